"""Pairs of equal numbers of two lists, in order and as many as there can be. No IO.

Lists that differ in few places are walked as Myers does it, which costs nothing for what is alike.
Else the whole table of both is filled, a row at a time, each as one number of so many bits (Hyyrö's
way to the longest common subsequence). A table has its limits: longer lists are paired table by
table.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

_NEAR: Final = 64
"""Places to differ in, at most, for the walk."""
_TABLE: Final = 1 << 14
"""Rows and columns of a table; its rows take 32 MiB then."""


def matches(a: Sequence[int], b: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Index pairs of equal numbers, rising in both: the most there are, unless `a` and `b` are
    longer than a table and differ in more than a few places; then still many."""
    begin, end = 0, 0
    shorter = min(len(a), len(b))
    while begin < shorter and a[begin] == b[begin]:
        yield begin, begin
        begin += 1
    while end < shorter - begin and a[-1 - end] == b[-1 - end]:
        end += 1
    i = j = begin
    stop_a, stop_b = len(a) - end, len(b) - end
    while i < stop_a and j < stop_b:
        way = _Way(a[i:stop_a], b[j:stop_b], _NEAR)
        if way.is_whole:
            yield from ((i + x, j + y) for x, y in way.matches())
            break
        rows, columns = a[i : min(i + _TABLE, stop_a)], b[j : min(j + _TABLE, stop_b)]
        # What stands near the end of a table might be paired better in the next one.
        most_a = len(rows) if i + len(rows) == stop_a else _TABLE // 2
        most_b = len(columns) if j + len(columns) == stop_b else _TABLE // 2
        onward = most_a, most_b
        for x, y in _of_table(rows, columns):
            if x >= most_a or y >= most_b:
                onward = x, y
                break
            yield i + x, j + y
        i, j = i + onward[0], j + onward[1]
    yield from ((len(a) - left, len(b) - left) for left in range(end, 0, -1))


def _of_table(a: Sequence[int], b: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The longest common subsequence as index pairs, the first that there is.

    Bit k of a row is 0 where one number more of `b`, counted from its end, makes what `a` from
    that row on has in common with it longer by one.
    """
    columns, rest = len(b), len(a)
    every = (1 << columns) - 1
    hits: dict[int, int] = dict.fromkeys(a, 0)
    for place, number in enumerate(reversed(b)):
        if number in hits:
            hits[number] |= 1 << place
    rows = [every]
    row = every
    for number in reversed(a):
        hit = row & hits[number]
        if hit:
            row = (row + hit | row - hit) & every
        rows.append(row)
    x = y = 0
    while x < rest and y < columns:
        if a[x] == b[y]:
            yield x, y
            x, y = x + 1, y + 1
        elif rows[rest - x] >> columns - y - 1 & 1:
            y += 1
        else:
            x += 1


class _Way:
    """The way through a table of `a` and `b` with the fewest steps to the side, as Myers finds it.

    After `limit` such steps it gives up: then it is not whole.
    """

    def __init__(self, a: Sequence[int], b: Sequence[int], limit: int) -> None:
        self._fronts: list[array[int]] = []
        self._ends = size, other = len(a), len(b)
        self.is_whole = False
        for steps in range(limit + 1):
            front = array("l", [-1] * (2 * steps + 1))
            for diagonal in range(-min(steps, other), min(steps, size) + 1):
                if (diagonal + steps) % 2:
                    continue
                x = max(self._entries(steps, diagonal)) if steps else 0
                if x < 0:
                    continue
                y = x - diagonal
                while x < size and y < other and a[x] == b[y]:
                    x, y = x + 1, y + 1
                front[diagonal + steps] = x
                if (x, y) == self._ends:
                    self.is_whole = True
            self._fronts.append(front)
            if self.is_whole:
                return

    def _entries(self, steps: int, diagonal: int) -> tuple[int, int]:
        """Where one gets onto a diagonal with the last of so many steps: by leaving out one of
        `a`, or one of `b`; -1 when that cannot be."""
        front = self._fronts[steps - 1]
        at = diagonal + steps - 1  # where this diagonal stands in the front before
        left = front[at - 1] if 0 < at <= len(front) else -1
        above = front[at + 1] if -1 <= at < len(front) - 1 else -1
        size, other = self._ends
        without_a = left + 1 if 0 <= left < size else -1
        return without_a, above if above - diagonal <= other else -1

    def matches(self) -> Iterator[tuple[int, int]]:
        """The pairs on the way, when it is whole."""
        x, y = self._ends
        runs: list[tuple[int, int]] = []
        for steps in range(len(self._fronts) - 1, -1, -1):
            diagonal = x - y
            entries = self._entries(steps, diagonal) if steps else (0, 0)
            entry = max(entries)
            runs += [(n, n - diagonal) for n in range(x - 1, entry - 1, -1)]
            # Two ways may be as good: what is only in `a` then comes first.
            x, y = (entry, entry - diagonal - 1) if entries[1] == entry else (
                entry - 1, entry - diagonal)  # fmt: skip
        yield from reversed(runs)
