"""Lines in another order than they were said: the newest first, or a part of the log twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from .lines import LogLine

_KEPT: Final = 200_000
_FEWEST: Final = 3
_SECOND: Final = 1_000_000_000
_EXACT: Final = re.compile(r"\[ {0,12}\d{1,9}\.\d{6}\]")
_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"
_SHORT: Final = re.compile(r"([A-Z][a-z]{2}) ([ \d]\d) (\d\d:\d\d:\d\d(?:\.\d{1,9})?) ")


def newest_first(lines: Sequence[LogLine], texts: Sequence[str]) -> bool:
    """Whether the times of a log's first lines go down and never up, as of `journalctl -r`.

    Each text is the beginning of that line of the file, for times without a year.
    """
    times: list[tuple[int, int | str, int | str]] = [
        (line.wall_ns or 0, line.guest_ns or 0, 0)
        for line in lines
        if line.wall_ns is not None or line.guest_ns is not None
    ]
    if not times:
        times = [
            (_MONTHS.find(found[1]), int(found[2]), found[3])
            for text in texts
            if (found := _SHORT.match(text))
        ]
    down = sum(later < earlier for earlier, later in pairwise(times))
    up = sum(later > earlier for earlier, later in pairwise(times))
    return up == 0 and down + 1 >= _FEWEST


class Repeats:
    """Tells lines that were told already: by another file, or before time went back.

    Lines with a time of day can be known again, and those of a console that have microseconds: two
    boots of a guest begin with the same, but do not go on so.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str | None, int]] = {}
        self._last: dict[tuple[str | None, ...], tuple[int, int]] = {}
        self._turns: dict[tuple[str | None, ...], int] = {}

    def is_one(self, line: LogLine) -> bool:
        """Whether this line was told before; it is remembered."""
        if line.wall_ns is None and not _is_exact(line):
            return False
        whose = (line.file, line.host, line.pid, line.sandbox, line.pod)
        now = (line.wall_ns or 0, line.guest_ns or 0)
        if now < self._last.get(whose, now) and len(self._turns) < _KEPT:
            self._turns[whose] = self._turns.get(whose, 0) + 1
        if whose in self._last or len(self._last) < _KEPT:
            self._last[whose] = now
        turn = self._turns.get(whose, 0)
        key = hash((now, whose[1:], line.text))
        if key not in self._seen:
            if len(self._seen) < _KEPT:
                self._seen[key] = line.file, turn
            return False
        file, before = self._seen[key]
        if file == line.file:
            return before < turn
        return now[0] % _SECOND != 0 or line.wall_ns is None


def _is_exact(line: LogLine) -> bool:
    """Whether a console's line has a time that no other boot's has, to the microsecond."""
    return not line.dressed and bool(line.guest_ns) and _EXACT.match(line.text) is not None
