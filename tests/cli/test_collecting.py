"""The search for cycles is on again after the work, whatever comes of it."""

from __future__ import annotations

import gc

import pytest

from upcall_trace.cli.support.collecting import no_search_for_cycles


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
