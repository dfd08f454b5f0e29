"""How hypothesis and the workers run here, and what several tests want to find installed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from dissectors import services
from tests.chromium import CHROMIUM
from tests.plugin_packages import once, pip_install

_TEMPORARY_LIMIT = 20
# The same examples each time, and never against the clock.
settings.register_profile(
    "ordinary", deadline=None, derandomize=True, database=None, max_examples=50
)
settings.register_profile(
    "torture", deadline=None, derandomize=False, database=None, max_examples=2000
)
settings.load_profile("ordinary")
# As the program does: a worker imports numpy, and starts what imports it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A script's background ignores it, and programs that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The tests put sockets into their folders, and the path of a socket has a limit.
if len(os.fsencode(tempfile.gettempdir())) > _TEMPORARY_LIMIT:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")


@pytest.hookimpl(optionalhook=True)  # there are runs without xdist
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors: many tests wait for a guest."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        # It makes a socket in there, whose path has a limit.
        place = {**os.environ, "TMPDIR": "/tmp"}
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], env=place)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this program as pip installs it from a copy of the sources."""
    root = Path(__file__).parents[1]

    def made(place: Path) -> None:
        copy = place / "copy"
        for name in ("upcall_trace", "dissectors", "captures", "docs"):
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
            shutil.copy(root / name, copy)
        pip_install(place / "site", copy)

    return once(tmp_path_factory, "wheel", made) / "site"


_NASTY = r'''
"""A service with a name that no terminal should get to see, and fields named as ours are."""

from dissectors.services import Service
from dissectors.tables import FieldRow, MessageRow, MessageTable

SERVICE = Service(
    "nas\x1b]0;ty\x07\r\u202e",
    MessageTable(
        byte=0x6E,
        request_size=8,
        reply_size=8,
        request_header=(),
        reply_header=(FieldRow(0, "ret", "i32", "the result"),),
        messages=(
            MessageRow(
                0,
                "nasty",
                (FieldRow(0, "mmio_base", "u32", "ours"), FieldRow(4, "count", "u8", "some", 4)),
                (FieldRow(4, "value", "u32", "what it is"),),
            ),
        ),
    ),
)
'''


@pytest.fixture
def nasty_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that registers a service behind the byte `n`; the directory it is in."""
    site = tmp_path / "site"
    info = site / "nasty-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "nasty_service.py").write_text(_NASTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nasty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[upcall_trace.services]\nnasty = nasty_service:SERVICE\n"
    )
    monkeypatch.syspath_prepend(site)
    services._registered.cache_clear()
    yield site
    monkeypatch.undo()
    services._registered.cache_clear()
