"""Which lines of logs stand beside which requests: by their content, else by the clocks.

What the diagnosis found to be about a request is told to be; of other lines only the time is known.
A line that no clock can place stands nowhere, and is counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..logs.lines import LogLine, read_lines
from ..trace.operations import Operations
from ..views.log_lines import LogRow, log_row, moment
from .finding import Finding
from .log_joining import Joining
from .log_matching import Fit

CONSOLE: Final = "console"
VMM_LOG: Final = "vmm-log"
BEFORE: Final = -1
"""The row of lines that were written before the first request."""
_NEAR_NS: Final = 30_000_000_000
"""Nobody waits longer for an answer: what was written later has to do with something else."""
_MOST_AROUND: Final = 12
_MOST_TOLD: Final = 40
_MOST: Final = 100_000
_SURE: Final = 3
"""Lines that have to agree on the guest's clock."""


class GivenLog(NamedTuple):
    """A log that was given: `source` is CONSOLE or VMM_LOG."""

    source: str
    path: Path


class LineBeside(NamedTuple):
    """A line beside a request; `t_ns` since the first record, None where no clock tells.

    `told` says that the diagnosis found it to be about the request, not only near it.
    """

    source: str
    number: int
    text: str
    t_ns: int | None
    told: bool


@dataclass(slots=True)
class LinesBeside:
    """Lines by the row of their request, in the order of time; BEFORE is a row of its own.

    `more` counts by row what is left out. The other counts are of lines that stand nowhere.
    """

    rows: dict[int, list[LineBeside]] = field(default_factory=lambda: defaultdict(list))
    more: Counter[int] = field(default_factory=Counter)
    timeless: int = 0
    of_others: int = 0
    far: int = 0

    def sentences(self) -> Iterator[str]:
        """What of the logs is not shown, and why."""
        if self.timeless:
            yield (
                f"{self.timeless} lines have no time that can be compared with the recording's "
                "clock"
            )
        if self.of_others:
            yield f"{self.of_others} lines are of other guests"
        if self.far:
            yield f"{self.far} lines are more than 30 s away from every request"


def lines_beside(
    files: Sequence[GivenLog],
    joining: Joining,
    findings: Sequence[Finding],
    operations: Operations,
    clocks: tuple[int | None, int],
) -> LinesBeside:
    """The lines of logs beside the requests of a recording.

    `clocks` are the wall clock at the recording's first record and the first record's own time.
    Raises UnreadableInput.
    """
    wall_ns, first_ns = clocks
    found = LinesBeside()
    told = _told(joining, findings, operations)
    place = _Places(operations)
    guest = _GuestClock(joining, first_ns)
    name = joining.guest.sandbox if joining.guest is not None else None
    refused = bool(joining.refused) and joining.matcher is None
    kept = 0
    for source, path in files:
        row: int | None = None
        order = _ConsoleOrder(told, str(path)) if source == CONSOLE else None
        for line in read_lines(path):
            said = log_row(line, source)
            key = (str(path), line.number)
            about = told.get(key)
            offset = guest.offset(key[0], line)
            if about is None and ((refused and source == CONSOLE) or _is_of_another(line, name)):
                found.of_others += 1
                continue
            t_ns = moment(said, wall_ns, offset)
            if about is None and t_ns is not None:
                row = place.row(t_ns)
                if row is None:
                    found.far += 1
                    continue
                if order is not None:
                    row = order.row(line.number, row)
            elif about is not None:
                row = about
            elif row is None or line.guest_ns is not None or line.wall_ns is not None:
                found.timeless += 1
                continue
            kept += _keep(found, row, said, t_ns, about is not None, kept)
    for row, lines in found.rows.items():
        found.rows[row] = place.in_order(row, lines)
    return found


def _keep(
    found: LinesBeside, row: int, said: LogRow, t_ns: int | None, told: bool, kept: int
) -> int:
    """Keep a line, unless there are too many; how many more there are then."""
    lines = found.rows[row]
    alike = sum(each.told == told for each in lines)
    room = alike < (_MOST_TOLD if told else _MOST_AROUND) and kept < _MOST
    line = LineBeside(said.source, said.number, said.text, t_ns, told)
    if row == BEFORE and not room and lines:
        lines.pop(0)  # the last ones are nearest
        found.more[row] += 1
        lines.append(line)
        return 0
    if room:
        lines.append(line)
    else:
        found.more[row] += 1
    return int(room)


def _is_of_another(line: LogLine, name: str | None) -> bool:
    if line.sandbox is None or name is None:
        return False
    return not (line.sandbox.startswith(name) or name.startswith(line.sandbox))


def _told(
    joining: Joining, findings: Sequence[Finding], operations: Operations
) -> dict[tuple[str, int], int]:
    """The rows of lines that the diagnosis found to be about a request, by file and number."""
    conns, requests = operations.column("conn"), operations.column("request")
    keys = zip(conns.tolist(), requests.tolist(), strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    told: dict[tuple[str, int], int] = {}
    for asked, said in joining.matcher.fit.pairs if joining.matcher is not None else ():
        row = row_of.get((asked.conn, asked.request))
        if row is not None:
            told |= {(line.file or "", line.number): row for line in said.lines}
    for finding in findings:
        row = row_of.get((finding.conn or 0, -1 if finding.request is None else finding.request))
        for seen in finding.evidence if row is not None else ():
            if row is not None and seen.line is not None:
                told.setdefault((seen.file or "", seen.line), row)
    return told


class _ConsoleOrder:
    """A console's lines are in the guest's order, which is surer than what its clock tells."""

    def __init__(self, told: Mapping[tuple[str, int], int], file: str) -> None:
        anchors = sorted((number, row) for (name, number), row in told.items() if name == file)
        self._numbers = [number for number, _ in anchors]
        self._rows = [row for _, row in anchors]

    def row(self, number: int, by_time: int) -> int:
        """The row of a line between two that are told: not before the first one's request, and
        before the second one's, whose own first line is still to come."""
        at = bisect_left(self._numbers, number)
        first = self._rows[at - 1] if at else BEFORE
        last = self._rows[at] if at < len(self._rows) else by_time
        if first > last:
            return by_time  # requests of several connections, or of several threads
        return min(max(by_time, first), max(last - (at < len(self._rows)), first))


class _Places:
    """Where a moment is among the requests."""

    def __init__(self, operations: Operations) -> None:
        self._sent: NDArray[np.int64] = np.maximum.accumulate(operations.t_ns())
        latency = operations.column("latency_ns")
        self._end = np.maximum.accumulate(self._sent + np.maximum(latency, 0))

    def row(self, t_ns: int) -> int | None:
        """The last request that was sent by then; BEFORE, and None where none is near."""
        if not len(self._sent):
            return None
        row = int(np.searchsorted(self._sent, t_ns, "right")) - 1
        away = self._sent[0] - t_ns if row < 0 else t_ns - self._end[row]
        return row if away <= _NEAR_NS else None

    def in_order(self, row: int, lines: Sequence[LineBeside]) -> list[LineBeside]:
        """Lines of each log as they stand in it, and the logs among each other by time."""
        sent = int(self._sent[row]) if row >= 0 else 0
        last: dict[str, int] = {}
        timed = []
        for line in lines:
            before = last.get(line.source)
            t_ns = line.t_ns if before is None else max(line.t_ns or before, before)
            last[line.source] = sent if t_ns is None else t_ns
            timed.append((last[line.source], line))
        return [line for _, line in sorted(timed, key=lambda pair: pair[0])]


class _GuestClock:
    """What to add to the guest's clock, boot by boot, and anew each time that it stood still."""

    def __init__(self, joining: Joining, first_ns: int) -> None:
        self._first_ns = first_ns
        self._boot = 0
        self._boots: dict[tuple[str, int], int] = {}
        self._pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._slips = False
        if joining.matcher is None or joining.guest is None:
            return
        console = joining.guest.console
        if console.boots:
            lines = [line for operation in console.operations[:1] for line in operation.lines[:1]]
            earlier = any(line.number < console.boots[0].number for line in lines)
            numbered = enumerate(console.boots, start=int(earlier))
            self._boots = {(line.file or "", line.number): boot for boot, line in numbered}
        self._learn(joining.matcher.fit)

    def _learn(self, fit: Fit) -> None:
        self._slips = bool(fit.slips())
        for asked, said in fit.pairs:
            guest_ns = said.lines[0].guest_ns
            if guest_ns is not None:
                self._pairs[said.boot].append((guest_ns, asked.t_ns - guest_ns))
        for pairs in self._pairs.values():
            pairs.sort()

    def offset(self, file: str, line: LogLine) -> int | None:
        """What makes this line's time one since the first record; None where nothing tells."""
        self._boot = self._boots.get((file, line.number), self._boot)
        pairs = self._pairs.get(self._boot, ())
        if line.guest_ns is None or len(pairs) < _SURE:
            return None
        if self._slips:
            before = [offset for guest_ns, offset in pairs if guest_ns <= line.guest_ns]
            return (before[-1] if before else pairs[0][1]) - self._first_ns
        return sorted(offset for _, offset in pairs)[len(pairs) // 2] - self._first_ns
