"""Packages that add something to the program, as pip leaves them on disk."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path

import pytest

from dissectors import services
from upcall_trace import plugins


def plant(site: Path, package: str, entries: Mapping[str, str], **modules: str) -> Path:
    """An installed package in `site`: `entries` is `group.name` to `module:attribute`.

    The group is the last word of the entry point group, `modules` are names and their source.
    """
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = []
    for place, target in entries.items():
        group, _, name = place.partition(".")
        lines += [f"[upcall_trace.{group}]", f"{name} = {target}"]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, source in modules.items():
        (site / f"{name}.py").write_text(source)
    return site


@contextmanager
def installed_in(site: Path) -> Iterator[None]:
    """Python looks for packages in a folder too, and forgets afterwards what it found there."""
    before = set(sys.modules)
    sys.path.insert(0, str(site))
    invalidate_caches()
    _forget()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(site)):
                del sys.modules[name]
        _forget()


def _forget() -> None:
    plugins.forget()
    services._registered.cache_clear()
    services.take_troubles()


def pip_install(target: Path, *projects: Path) -> Path:
    """Have pip build and install projects into a folder, with what this environment has."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", target, *projects],
        check=True, timeout=100,
    )  # fmt: skip
    return target


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once in a run of the tests, whichever worker needs it first."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "whole").exists():
            place.mkdir()
            make(place)
            (place / "whole").touch()
    return place
