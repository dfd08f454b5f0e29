"""The tick of a guest's clock, seen in the times of its packets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import PCAPS, run
from upcall_trace.sources.clock_ticks import tick_ns

TICKS = {100: 10_000_000, 250: 4_000_000, 300: 3_333_333, 1000: 1_000_000}


@pytest.mark.parametrize("rate", TICKS)
@given(
    begin=st.integers(0, 1 << 60),
    counts=st.lists(st.integers(0, 50), min_size=30, max_size=60),
    slew_ppm=st.integers(-100, 100),
)
def test_a_ticking_clock_is_seen_whatever_the_gaps_and_the_slewing(
    rate: int, begin: int, counts: list[int], slew_ppm: int
) -> None:
    """Each tick is as long as NTP makes it; single steps tell this clock from slower ones."""
    ticks = [0, 1, 2, 3]
    for count in counts:
        ticks.append(ticks[-1] + count)
    step = 1e9 / rate * (1 + slew_ppm / 1e6)
    assert tick_ns([begin + round(tick * step) for tick in ticks]) == TICKS[rate]


@given(st.lists(st.integers(50_000, 30_000_000), min_size=20, max_size=40))
def test_times_of_a_fine_clock_have_no_tick(steps: list[int]) -> None:
    times = [0]
    for number, step in enumerate(steps):
        # Off every millisecond by a tenth to nine tenths of one.
        odd = 100_000 + number * 37_000 % 800_000
        times.append(times[-1] + step // 1_000_000 * 1_000_000 + odd)
    assert tick_ns(times) is None


@pytest.mark.parametrize("times", [[], [5], [5, 5, 5], [0, 4_000_000], [0, 4_000_000, 8_000_000]])
def test_too_few_steps_tell_nothing(times: list[int]) -> None:
    assert tick_ns(times) is None


def test_info_tells_it() -> None:
    (path,) = (path for path in PCAPS if path.name == "cpu_lifecycle.vsockmon.pcap")
    assert ", clock steps of 4ms\n" in run("info", path).out
    assert run("info", path, "--json").objects[0]["resolution_ns"] == 4_000_000
