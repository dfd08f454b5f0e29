"""When each step of a replay is due, and how long is waited for what comes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import WrongUsage
from ..trace.script import Step

_RECEIVED_NS: Final = 250_000_000
"""By then a simulated guest has received a request, which settles what becomes of it."""
_FACTOR = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)x")


@dataclass(frozen=True, slots=True)
class Tempo:
    """`speed` times as fast as recorded, None for as fast as answers come.

    `max_gap_ns` shortens every longer pause of the recording. With `keep_splits` the pieces of a
    request keep their gaps at any speed.
    """

    speed: float | None = None
    max_gap_ns: int | None = None
    keep_splits: bool = False

    def due(self, steps: Sequence[Step]) -> Iterator[int]:
        """When each step is due, in nanoseconds from the first one; all 0 without a speed."""
        due = last = 0.0
        for step in steps:
            gap: float = step.t_ns - last if step is not steps[0] else 0
            last = step.t_ns
            if self.speed is not None:
                if self.max_gap_ns is not None:
                    gap = min(gap, self.max_gap_ns)
                due += max(0.0, gap) / self.speed
            yield int(due)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited: for a reply, and for one that the recording does not have.

    A reply gets twice the recorded time if that is longer. Without `silence_s` a silence is watched
    for as long as the recording did, but no longer than a reply is waited for. `simulated` is for a
    guest that settles what becomes of a request when it receives it.
    """

    reply_s: float = 15.0
    silence_s: float | None = None
    simulated: bool = False

    @property
    def work_ns(self) -> int:
        """For how long a request may have to be at work before the next one is right."""
        return _RECEIVED_NS if self.simulated else int(self.reply_s * 1e9)


def parse_speed(text: str) -> float | None:
    """`max`, `recorded` or a factor such as `2x`; raises WrongUsage."""
    if text == "max":
        return None
    if text == "recorded":
        return 1.0
    found = _FACTOR.fullmatch(text)
    if not found or not float(found[1]):
        raise WrongUsage(f"{text!r} is no speed: max, recorded, or a factor such as 2x or 0.5x")
    return float(found[1])
