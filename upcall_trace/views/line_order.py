"""Which line of the ladder shows what: requests, replies, and connections that open and close.

A line costs no object. As long as every reply comes before the next request, which is the rule,
lines follow from row numbers; else two arrays say where each event stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..trace.decoding import Connection
from ..trace.operations import Operations

Rows = NDArray[np.int64]


class Shows(IntEnum):
    """What a line shows."""

    REQUEST = 0
    REPLY = 1
    OPENED = 2
    CLOSED = 3


class Line(NamedTuple):
    """One line. `at` is the operation's row, or the connection's place in the list of them."""

    shows: Shows
    at: int


class Order:
    """The lines of some operations in the order of time; `rows` None stands for all of them.

    A request without an answer has its second line right below it.
    """

    def __init__(
        self,
        operations: Operations,
        first_ns: int,
        rows: Rows | None,
        connections: Sequence[tuple[int, Connection]],
    ) -> None:
        self.rows = rows
        t_ns = operations.t_ns()
        answered = operations.column("answered") == 1
        latency = operations.column("latency_ns")
        if rows is not None:
            t_ns, answered, latency = t_ns[rows], answered[rows], latency[rows]
        sent = np.maximum.accumulate(t_ns)  # rows stay in their order, whatever a clock did
        back = np.where(answered, np.maximum(t_ns + latency, sent), sent)
        self.count = len(sent)
        self._event_at: NDArray[np.int32] | None = None
        self._place_of: NDArray[np.int32] | None = None
        if not bool((back[:-1] <= sent[1:]).all()):
            times = np.empty(2 * self.count, np.int64)
            times[0::2], times[1::2] = sent, back
            self._event_at = np.argsort(times, kind="stable").astype(np.int32)
            self._place_of = np.empty_like(self._event_at)
            self._place_of[self._event_at] = np.arange(len(times), dtype=np.int32)
            back = np.sort(back)
        self._place_beside(connections, first_ns, sent, back)

    def _place_beside(
        self,
        connections: Sequence[tuple[int, Connection]],
        first_ns: int,
        sent: NDArray[Any],
        back: NDArray[Any],
    ) -> None:
        """Put the beginnings and ends of connections between the operations."""
        beside: list[tuple[int, int, Line]] = []
        side: Literal["left", "right"]
        for place, connection in connections:
            for shows, raw_ns in (
                (Shows.OPENED, connection.opened_ns),
                (Shows.CLOSED, connection.closed_ns),
            ):
                side = "left" if shows is Shows.OPENED else "right"
                if raw_ns is not None:
                    t_ns = raw_ns - first_ns
                    before = int(
                        np.searchsorted(sent, t_ns, side) + np.searchsorted(back, t_ns, side)
                    )
                    beside.append((before, t_ns, Line(shows, place)))
        beside.sort(key=lambda each: each[:2])
        self._beside = [line for _, _, line in beside]
        self._before = np.array([before for before, _, _ in beside], np.int64)
        self._beside_at = self._before + np.arange(len(beside))
        self._line_of_beside = {
            line: int(at) for line, at in zip(self._beside, self._beside_at, strict=True)
        }

    def __len__(self) -> int:
        return 2 * self.count + len(self._beside)

    def line(self, number: int) -> Line:
        """What line `number` shows; raises IndexError beyond the last."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        passed = int(np.searchsorted(self._beside_at, number, "right"))
        if passed and self._beside_at[passed - 1] == number:
            return self._beside[passed - 1]
        event = number - passed
        if self._event_at is not None:
            event = int(self._event_at[event])
        row = event >> 1
        return Line(Shows(event & 1), row if self.rows is None else int(self.rows[row]))

    def number(self, line: Line) -> int | None:
        """Where something is shown; None when it is not."""
        if line.shows in (Shows.OPENED, Shows.CLOSED):
            return self._line_of_beside.get(line)
        place = line.at
        if self.rows is not None:
            place = int(np.searchsorted(self.rows, line.at))
            if place >= self.count or self.rows[place] != line.at:
                return None
        if not 0 <= place < self.count:
            return None
        event = 2 * place + int(line.shows)
        if self._place_of is not None:
            event = int(self._place_of[event])
        return event + int(np.searchsorted(self._before, event, "right"))

    def nearest_row(self, row: int) -> int | None:
        """The shown operation that is at `row` or the first behind it, else the last one."""
        if not self.count:
            return None
        if self.rows is None:
            return min(row, self.count - 1)
        place = min(int(np.searchsorted(self.rows, row)), self.count - 1)
        return int(self.rows[place])

    def row_before(self, row: int) -> int | None:
        """The shown operation before this one, None for the first."""
        if self.rows is None:
            return row - 1 if row > 0 else None
        place = int(np.searchsorted(self.rows, row)) - 1
        return int(self.rows[place]) if place >= 0 else None

    def next_row(self, wanted: NDArray[Any], row: int, step: int) -> int | None:
        """The next shown operation after (`step` 1) or before (-1) `row` that `wanted` picks.

        `wanted` has a truth value for each operation of the capture.
        """
        if self.rows is not None:
            place = int(np.searchsorted(self.rows, row, "right" if step > 0 else "left"))
            rows = self.rows[place:] if step > 0 else self.rows[:place][::-1]
            return _first(wanted[rows], rows)
        picked = wanted[row + 1 : self.count] if step > 0 else wanted[: max(row, 0)][::-1]
        found = _first(picked, None)
        return None if found is None else row + 1 + found if step > 0 else row - 1 - found


def _first(picked: NDArray[Any], rows: Rows | None) -> int | None:
    place = int(picked.argmax()) if len(picked) else 0
    if not len(picked) or not picked[place]:
        return None
    return place if rows is None else int(rows[place])
