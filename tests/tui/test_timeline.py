"""The scales of the timeline: times stand where they are, in seconds or by the clock."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upcall_trace.tui.panes.timeline import nice_step

from .support import CAPTURES, Driven, drive

CPUS = CAPTURES / "cpu_lifecycle.upcap"


def scale_of(browser: Driven) -> str:
    (line,) = (line for line in browser.lines() if line.startswith("╵"))
    return line


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=str)
def test_times_stand_at_their_columns(size: tuple[int, int]) -> None:
    async def script(browser: Driven) -> None:
        scale = scale_of(browser)
        whole_s = browser.panes.recording.duration_ns / 1e9
        found = list(re.finditer(r"╵(\d+)s", scale))
        assert len(found) >= 2
        for each in found:
            assert each.start() == int(int(each[1]) / whole_s * size[0])
        assert scale.endswith("▁ 100us █ 10.00s ✗ none")

    drive(script, CPUS, size=size)


def test_with_absolute_times_it_tells_the_time_of_day() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("t", "t")
        assert re.match(r"╵15:14:46\.416111 +╵15:14:46\.\d{6}", scale_of(browser))

    drive(script, CAPTURES / "real_client_simple.upcap", size=(160, 50))


@pytest.mark.parametrize("size", [(30, 24), (80, 12)], ids=str)
def test_where_there_is_no_room_there_is_less_of_it(size: tuple[int, int]) -> None:
    async def script(browser: Driven) -> None:
        assert all(len(line) <= size[0] for line in browser.lines())
        if size[1] < 16:
            assert "╵" not in browser.text()

    drive(script, CPUS, size=size)


@given(st.integers(1, 1 << 62))
def test_steps_are_round_and_not_too_short(least_ns: int) -> None:
    step = nice_step(least_ns)
    assert least_ns <= step < least_ns * 3
    assert re.fullmatch("[125]0*", str(step))
