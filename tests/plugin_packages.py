"""Packages that add something to the program, as pip leaves them on disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


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


def pip_install(target: Path, *projects: Path) -> Path:
    """Have pip build and install projects into a folder, with what this environment has."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", target, *projects],
        check=True, timeout=100,
    )  # fmt: skip
    return target
