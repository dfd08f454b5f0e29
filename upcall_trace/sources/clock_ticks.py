"""The step of the clock behind times, where it is coarser than the file's unit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from .packets import NANOSECONDS

LOOKED_AT: Final = 256
"""So many times are enough to tell."""
_RATES: Final = (100, 250, 300, 1000)
"""Ticks a second that Linux can be built with (CONFIG_HZ)."""
_NEAR: Final = 64
"""Clocks are slewed: only steps of so few ticks are still near a multiple."""
_OFF: Final = 0.01
_FEWEST_STEPS: Final = 3


def tick_ns(times: Sequence[int]) -> int | None:
    """The tick of a kernel that all steps between `times` (ns) are multiples of; None for none.

    The longest that fits: a clock of 4 ms has only multiples of 1 ms, too.
    """
    moments = sorted(set(times))
    steps = [b - a for a, b in pairwise(moments)]
    for rate in _RATES:
        tick = NANOSECONDS / rate
        near = [step / tick for step in steps if step < _NEAR * tick]
        if len(near) >= _FEWEST_STEPS and all(_is_whole(each) for each in near):
            return round(tick)
    return None


def _is_whole(ticks: float) -> bool:
    return round(ticks) >= 1 and abs(ticks - round(ticks)) <= _OFF
