"""Where no cycles are searched, and that they are again after it."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import write_capture
from upcall_trace.cli.support.collecting import kept_to_the_end, no_search_for_cycles


def test_it_is_off_for_the_work_alone() -> None:
    def work() -> None:
        with no_search_for_cycles():
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert gc.isenabled()


def test_who_had_it_off_has_it_off_after() -> None:
    gc.disable()
    try:
        with no_search_for_cycles():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_searched_no_more() -> None:
    before = gc.get_freeze_count()
    try:
        with kept_to_the_end():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_each_command_s_modules_are_searched_no_more(tmp_path: Path) -> None:
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))\n"
        "from upcall_trace.cli import main\n"
        "main(sys.argv[1:])"
    )
    path = write_capture(tmp_path / "empty.upcap", [])
    ended = subprocess.run(
        [sys.executable, "-c", code, "info", path], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "True True"
