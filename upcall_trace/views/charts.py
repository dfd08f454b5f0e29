"""Charts as coordinates and SVG: latency over time with the deadlines, and counts over time.

Plain geometry without a library, since a report is one file that draws without a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dissectors.constants import CALLER_TIMEOUT_NS, SERVICE_BYTE_LIMIT_NS

from ..trace.operations import Operation
from .text import duration

WIDTH: Final = 960
HEIGHT: Final = 220
RIGHT: Final = 156
"""Room for the names of the deadlines, in SVG units."""
_LEFT, _TOP, _BOTTOM = 70, 10, 26
_MOST_POINTS: Final = 3000
DEADLINES: Final = ((CALLER_TIMEOUT_NS, "caller gives up"), (SERVICE_BYTE_LIMIT_NS, "vCPU start"))
"""Of the protocol: docs/protocol.md sections 4 and 5."""


class Dot(NamedTuple):
    """One operation in the chart; `x` and `y` in SVG units, `kind` is its class there."""

    x: float
    y: float
    kind: str
    title: str


class Tick(NamedTuple):
    """A line of the grid with its label."""

    at: float
    label: str
    kind: str = "grid"


class LatencyChart(NamedTuple):
    """Points by time and latency, the latter on a logarithmic scale."""

    points: Sequence[Dot]
    rows: Sequence[Tick]
    columns: Sequence[Tick]
    left_out: int
    """Operations without a point: unanswered ones, and those that another point hides."""


def latency_chart(operations: Iterable[Operation], duration_ns: int) -> LatencyChart:
    """The chart of answered operations; of crowded places the slowest are kept."""
    answered = [o for o in operations if o.latency_ns is not None]
    slowest = max((o.latency_ns or 0 for o in answered), default=0)
    high = max(slowest, CALLER_TIMEOUT_NS * 2)
    low = max(1_000, min((o.latency_ns or 0 for o in answered), default=1_000))
    low_log, high_log = math.floor(math.log10(low)), math.ceil(math.log10(high))
    span = max(duration_ns, 1)

    def x(t_ns: int) -> float:
        return _LEFT + (WIDTH - _LEFT - RIGHT) * min(max(t_ns / span, 0), 1)

    def y(latency_ns: int) -> float:
        share = (math.log10(max(latency_ns, 1)) - low_log) / max(high_log - low_log, 1)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(max(share, 0), 1))

    kept = sorted(answered, key=lambda o: -(o.latency_ns or 0))
    places: set[tuple[int, int, str]] = set()
    points: list[Dot] = []
    for operation in kept:
        latency = operation.latency_ns or 0
        kind = (
            "bad" if (operation.ret or 0) < 0 else "late" if latency > CALLER_TIMEOUT_NS else "ok"
        )
        point = Dot(round(x(operation.t_ns), 1), round(y(latency), 1), kind, _title(operation))
        place = (round(point.x), round(point.y), kind)
        if place not in places and len(points) < _MOST_POINTS:
            places.add(place)
            points.append(point)
    rows = [
        Tick(round(y(10**power), 1), duration(10**power)) for power in range(low_log, high_log + 1)
    ]
    rows += [
        Tick(round(y(limit), 1), f"{duration(limit)} {name}", "deadline")
        for limit, name in DEADLINES
        if limit <= 10**high_log
    ]
    columns = [Tick(round(x(span * part // 4), 1), duration(span * part // 4)) for part in range(5)]
    return LatencyChart(points, rows, columns, len(kept) - len(points))


def _title(operation: Operation) -> str:
    key = f"{operation.conn}.{operation.request}"
    return f"{key} {operation.op} {duration(operation.latency_ns or 0)}"


class Steps(NamedTuple):
    """A count over time as the points of an SVG polyline."""

    name: str
    points: str
    last: int
    most: int


def steps(name: str, values: Sequence[tuple[int, int]], duration_ns: int, height: int) -> Steps:
    """`values` are (time, count from then on), in order; the count before the first is its own."""
    span, most = max(duration_ns, 1), max((count for _, count in values), default=0)
    drawn: list[str] = []
    before = values[0][1] if values else 0
    for t_ns, count in [*values, (duration_ns, values[-1][1] if values else 0)]:
        x = _LEFT + (WIDTH - _LEFT - RIGHT) * min(max(t_ns / span, 0), 1)
        for level in (before, count):
            drawn.append(f"{x:.1f},{height - 4 - (height - 8) * level / max(most, 1):.1f}")
        before = count
    return Steps(name, " ".join(drawn), before, most)
