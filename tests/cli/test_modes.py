"""Who can read what the commands write: the table of docs/robustness.md, row by row."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests import GuestProcess
from tests.support import golden, run, small_capture, write_capture
from upcall_trace.sockets.addresses import socket_folder

PAGE = (Path(__file__).parents[2] / "docs" / "robustness.md").read_text()
DERIVING = ("filter", "split", "merge", "recover", "edit", "export", "import", "bundle", "minimise")


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def short_path() -> Iterator[Path]:
    with socket_folder() as folder:
        yield Path(folder)


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def told(what: str) -> str:
    """The mode that the page gives for something."""
    (row,) = re.findall(rf"^\| {re.escape(what)}[^|]*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    return str(row).strip()


def test_sockets_and_their_notes(short_path: Path) -> None:
    guest = GuestProcess(short_path / "g", "--control", short_path / "c")
    try:
        assert mode(guest.path) == mode(short_path / "c") == told("sockets that are listened on")
        assert mode(Path(f"{guest.path}.target")) == told("the note beside a socket")
        replayed = write_capture(short_path / "a.upcap", small_capture())
        run("replay", replayed, "--to", guest.path, "--live", "-o", short_path / "r.upcap")
        assert mode(short_path / "r.upcap") == told("captures that are recorded")
    finally:
        guest.kill()


def test_the_capture_of_a_demo() -> None:
    (path,) = re.findall(r"^(/\S+\.upcap)$", run("demo").out, re.MULTILINE)
    assert mode(Path(path)) == told("captures that are recorded")
    assert mode(Path(path).parent) == "0700"


@pytest.mark.parametrize("reading", ["import", "bundle"])
@pytest.mark.parametrize(("given", "umask"), [(0o600, 0o022), (0o644, 0o022), (0o644, 0o077)])
def test_what_is_derived_is_never_more_open_than_its_input(
    reading: str, given: int, umask: int, tmp_path: Path
) -> None:
    """`tests/cli/test_attacks.py` has the other commands."""
    path = tmp_path / "in"
    path.write_bytes(golden("framing").read_bytes())
    path.chmod(given)
    os.umask(umask)
    out = tmp_path / ("out.tar.gz" if reading == "bundle" else "out.upcap")
    assert run(reading, path, "-o", out).code == 0
    assert stat.S_IMODE(out.stat().st_mode) == given & ~umask


def test_the_page_names_every_command_that_derives() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| what is derived"))
    assert re.findall(r"`([a-z]+)`", row) == list(DERIVING)
