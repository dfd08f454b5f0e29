"""What the drawn ladder of a report is drawn from: lines in the order of time, as JSON.

`ladder.js` draws it. `shows` has a digit for each line: what `Shows` has, or `LOG`. `at` is the row
of the operation, or the place in `connections` or `logs`. Times are nanoseconds since the first
record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np

from ..diagnose.lines_beside import BEFORE, CONSOLE, LineBeside
from ..trace.decoding import Connection
from ..trace.opening import Capture
from ..views.connections import end_text, opening_text
from ..views.line_order import Line, Order, Shows

LOG: Final = 4
"""A line of a log, or a remark."""


def ladder(
    opened: Capture, shown: int, beside: Mapping[int, Sequence[LineBeside]]
) -> dict[str, Any]:
    """The ladder of the first `shown` operations, with the lines beside them."""
    operations = opened.operations
    order = Order(
        operations, opened.first_ns, np.arange(shown), list(enumerate(opened.connections))
    )
    sent: list[int] = operations.t_ns()[:shown].tolist()
    took: list[int] = operations.column("latency_ns")[:shown].tolist()
    connections = [_told(connection, opened.first_ns) for connection in opened.connections]
    lines = [order.line(number) for number in range(len(order))]
    times = list(accumulate((_when(line, sent, took, connections) for line in lines), max))
    shows: list[int] = []
    at: list[int] = []
    logs: list[list[Any]] = []
    told = 0
    for place, row, line in _placed(order, times, shown, beside):
        shows += [int(each.shows) for each in lines[told:place]] + [LOG]
        at += [each.at for each in lines[told:place]] + [len(logs)]
        logs.append([row, line.t_ns, line.source, line.told, line.text])
        told = place
    return {
        "shows": "".join(map(str, [*shows, *(int(each.shows) for each in lines[told:])])),
        "at": [*at, *(each.at for each in lines[told:])],
        "sent": sent,
        "took": took,
        "connections": connections,
        "logs": logs,
    }


def _told(connection: Connection, first_ns: int) -> list[Any]:
    """Number, when and how it opened, when and how it ended."""
    opened, closed = connection.opened_ns, connection.closed_ns
    return [
        connection.number,
        None if opened is None else opened - first_ns,
        opening_text(connection),
        None if closed is None else closed - first_ns,
        end_text(connection),
    ]


def _when(
    line: Line, sent: Sequence[int], took: Sequence[int], connections: Sequence[list[Any]]
) -> int:
    match line.shows:
        case Shows.REQUEST:
            return sent[line.at]
        case Shows.REPLY:
            return sent[line.at] + max(took[line.at], 0)
        case Shows.OPENED:
            return int(connections[line.at][1])
        case Shows.CLOSED:
            return int(connections[line.at][3])


def _placed(
    order: Order, times: Sequence[int], shown: int, beside: Mapping[int, Sequence[LineBeside]]
) -> Iterator[tuple[int, int, LineBeside]]:
    """Each line of a log: the place of the ladder's line that it goes before, its row, and itself.

    It stands behind its request. What a console says of a request stands before the answer,
    whatever the clocks say, and what is only near it stands before the next request. Lines of one
    log stay in their order.
    """
    found: list[tuple[int, int, LineBeside]] = []
    for row in sorted(row for row in beside if row < shown):
        own = order.number(Line(Shows.REQUEST, row)) if row != BEFORE else None
        low = 0 if own is None else own + 1
        answer = order.number(Line(Shows.REPLY, row)) if row != BEFORE else None
        following = order.number(Line(Shows.REQUEST, row + 1))
        highs: list[int] = []
        last: dict[str, int] = {}
        for line in reversed(beside[row]):
            end = following if not line.told else answer if line.source == CONSOLE else None
            high = len(times) if end is None else max(end, low)
            last[line.source] = min(high, last.get(line.source, high))
            highs.append(last[line.source])
        place: dict[str, int] = {}
        for line, high in zip(beside[row], reversed(highs), strict=True):
            at = place.get(line.source, low)
            if line.t_ns is not None:
                at = max(at, bisect_right(times, line.t_ns, low, high))
            place[line.source] = at
            found.append((at, row, line))
    yield from sorted(found, key=lambda each: each[0])
