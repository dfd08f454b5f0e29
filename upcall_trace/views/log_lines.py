"""Lines of logs beside a recording: read within bounds, and put on the recording's clock.

Shared by the terminal browser and the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from ..logs.lines import LogLine, read_lines
from .text import safe

_KEPT: Final = 100_000
_SHOWN: Final = 2000
"""Characters of a line at most; nobody reads further across."""


class LogRow(NamedTuple):
    """A line of a log. Its times are None where it has none; `wall_ns` is since 1970."""

    source: str
    number: int
    text: str
    guest_ns: int | None
    wall_ns: int | None


def log_row(line: LogLine, source: str) -> LogRow:
    """A line as it is shown: safe, and cut."""
    return LogRow(source, line.number, safe(line.text[:_SHOWN]), line.guest_ns, line.wall_ns)


def read_log(path: Path, source: str) -> list[LogRow]:
    """The first lines of a log, as many as can be kept; raises UnreadableInput."""
    return [log_row(line, source) for line in islice(read_lines(path), _KEPT)]


def moment(row: LogRow, wall_ns: int | None, guest_offset_ns: int | None) -> int | None:
    """When a line was written, since the recording's first record; None where no clock tells.

    `wall_ns` is the wall clock at the first record, `guest_offset_ns` what to add to the guest's
    clock to get the time since then.
    """
    if row.guest_ns is not None and guest_offset_ns is not None:
        return row.guest_ns + guest_offset_ns
    if row.wall_ns is not None and wall_ns is not None:
        return row.wall_ns - wall_ns
    return None


def timed(
    log: Iterable[LogRow], wall_ns: int | None, guest_offset_ns: int | None
) -> Iterator[tuple[int, LogRow]]:
    """Lines with their moments; a line without a time stays with the one before."""
    t_ns = 0
    for row in log:
        found = moment(row, wall_ns, guest_offset_ns)
        t_ns = t_ns if found is None else found
        yield t_ns, row
