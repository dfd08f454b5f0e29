"""One line of the ladder as pieces: an arrow with an operation, an answer, or a connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from ...codes import Severity
from ...trace.decoding import Connection
from ...trace.operations import Operation
from ...views.connections import end_text, opening_text
from ...views.line_order import Shows
from ...views.text import duration, fields_text, result_text, safe, seconds
from .styled import SEVERITY_LOOKS, SIGNS, Line, Styled, cut, deadline

GUTTER: Final = 4
_TIME: Final = 13
_WHOLE_TIME: Final = 28
_LEAST_LANE: Final = 16
_WIDEST_LANE: Final = 110


class Clock(Enum):
    """How times are shown."""

    SINCE_START = "since start"
    DELTA = "delta"
    ABSOLUTE = "absolute"

    @property
    def following(self) -> Clock:
        """The one that comes after it, round and round."""
        clocks = list(Clock)
        return clocks[(clocks.index(self) + 1) % len(clocks)]


def time_text(clock: Clock, t_ns: int, before_ns: int, wall_ns: int | None) -> str:
    """A moment; `before_ns` is that of the line before, `wall_ns` the wall clock at `t_ns` 0."""
    if clock is Clock.DELTA:
        return f"+{duration(t_ns - before_ns)}"
    if clock is Clock.ABSOLUTE and wall_ns is not None:
        try:
            moment = datetime.fromtimestamp((wall_ns + t_ns) // 1_000_000_000, UTC)
        except (OverflowError, ValueError, OSError):
            return "?"
        return f"{moment:%Y-%m-%d %H:%M:%S}.{(wall_ns + t_ns) // 1000 % 1_000_000:06d}Z"
    return seconds(t_ns)


def time_room(clock: Clock, wall_ns: int | None) -> int:
    """Columns for a time, with a blank: a date is never cut."""
    return _WHOLE_TIME if clock is Clock.ABSOLUTE and wall_ns is not None else _TIME


@dataclass(frozen=True, slots=True)
class Columns:
    """How many columns of the screen each part of a line has, with a blank; 0 where it is hidden.

    `lane` is what is between VMM and guest.
    """

    row: int
    key: int
    time: int
    lane: int
    codes: bool
    doubts: bool

    @classmethod
    def of(cls, width: int, time: int, shown: Sequence[str], operations: int) -> Columns:
        """For a pane so wide, with so much room for a time, and those columns shown."""
        row = len(str(operations)) + 1 if "row" in shown else 0
        key = (7 if width < 96 else 12) if "number" in shown else 0
        time = time if "time" in shown else 0
        lane = min(max(width - GUTTER - row - key - time - 2, _LEAST_LANE), _WIDEST_LANE)
        return cls(row, key, time, lane, "codes" in shown, "doubts" in shown)


@dataclass(frozen=True, slots=True)
class Beside:
    """What the browser adds to a line: its time as text, what was found, the user's marks."""

    time: str
    severity: int = 0
    codes: Sequence[str] = ()
    sign: str = " "
    """A mark's letter, or that the operation is picked."""
    remarked: bool = False
    waits: bool = False
    """Its answer may still come."""
    waited_ns: int | None = None
    context: bool = False
    """Of another connection than the chosen one, or not matching."""


def heading(columns: Columns) -> Line:
    """The line above the ladder."""
    row = _cell("#", columns.row)
    text = f"{' ' * GUTTER}{row}{_cell('req', columns.key)}{_cell('time', columns.time)}"
    return [Styled(f"{text}VMM{'guest':>{columns.lane - 1}}", "heading")]


def operation_line(shows: Shows, operation: Operation, columns: Columns, beside: Beside) -> Line:
    """A request or its answer."""
    if shows is Shows.REQUEST:
        return _request(operation, columns, beside)
    return _reply(operation, columns, beside)


def _cell(text: str, room: int) -> str:
    """A text at the right of its columns, with a blank behind; nothing where there are none."""
    return f"{cut(text, room - 1):>{room - 1}} " if room else ""


def _gutter(beside: Beside) -> list[Styled]:
    return [
        Styled(" "),
        Styled(
            SIGNS[beside.severity], "dim" if beside.context else SEVERITY_LOOKS[beside.severity]
        ),
        Styled(beside.sign, "key"),
        Styled("#" if beside.remarked else " ", "remark"),
    ]


def _laned(middle: Line, fill: str, end: Line, lane: int) -> Line:
    """What is between VMM and guest, its middle cut so that the end stands at the guest's line."""
    room = lane + 2 - sum(len(piece.text) for piece in end)
    line: Line = []
    for piece in middle:
        text = cut(piece.text, room)
        room -= len(text)
        line.append(Styled(text, piece.kind))
    return [*line, Styled(fill * room, "dim"), *end]


def _request(operation: Operation, columns: Columns, beside: Beside) -> Line:
    lane = columns.lane
    plain = "dim" if beside.context else ""
    key = f"{operation.conn}.{operation.request}"
    name = safe(operation.op)
    fields = fields_text(operation.fields, max(lane - len(name) - 6, 12))
    said = f" {name} {fields}".rstrip() + " "
    return [
        *_gutter(beside),
        Styled(_cell(str(operation.row), columns.row), plain or "dim"),
        Styled(_cell(key, columns.key), plain or "key"),
        Styled(_cell(beside.time, columns.time), plain or "dim"),
        *_laned([Styled("├─", "dim"), Styled(said, plain)], "─", [Styled("►│", "dim")], lane),
    ]


def _reply(operation: Operation, columns: Columns, beside: Beside) -> Line:
    lane = columns.lane
    plain = "dim" if beside.context else ""
    latency, late = "", None
    if operation.latency_ns is not None:
        latency, late = duration(operation.latency_ns), deadline(operation.latency_ns)
    elif beside.waits and beside.waited_ns is not None:
        latency, late = duration(beside.waited_ns), deadline(beside.waited_ns)
    sign = late.sign if late else ""
    if sign and not columns.key:
        latency = f"{sign} {latency}"
    look = plain or ("error" if operation.failed else "warning" if operation.anomalies else "ok")
    result = "waits for its answer" if beside.waits else safe(result_text(operation))
    tags = [*beside.codes] if columns.codes else []
    tags += [f"[{name}]" for name in operation.anomalies] if columns.doubts else []
    least = len(tags[0]) + 2 if tags else 0
    notes = cut(f" {' '.join(tags)} " if tags else "", max(lane - len(result) - 3, least))
    result = cut(result, max(lane - len(notes) - 4, 0))
    noted = Styled(notes, plain or SEVERITY_LOOKS.get(beside.severity, "") or "warning")
    if operation.ret is None:
        arrow, fill, end = "…" if beside.waits else "✗", " ", [noted, Styled("│", "dim")]
    else:
        arrow, fill, end = "◄", "─", [noted, Styled("─┤", "dim")]
    return [
        *_gutter(beside),
        Styled(" " * columns.row),
        Styled(_cell(sign, columns.key), plain or (late.look if late else "")),
        Styled(_cell(latency, columns.time), plain or (late.look if late else "dim")),
        *_laned([Styled("│", "dim"), Styled(f"{arrow} {result} ", look)], fill, end, lane),
    ]


def connection_line(shows: Shows, connection: Connection, columns: Columns, beside: Beside) -> Line:
    """A connection's beginning or end."""
    plain = "dim" if beside.context else ""
    opens = shows is Shows.OPENED
    said = opening_text(connection) if opens else end_text(connection)
    name = f"conn {connection.number}"
    if len(name) >= columns.key:
        name = str(connection.number)
    noted = opens and columns.codes and beside.codes
    notes = f" {' '.join(beside.codes)} " if noted else ""
    severity = beside.severity if opens else 0
    look = plain or ("error" if severity >= Severity.ERROR else "dim")
    return [
        *_gutter(beside),
        Styled(" " * columns.row),
        Styled(_cell(name, columns.key), plain or "key"),
        Styled(_cell(beside.time, columns.time), plain or "dim"),
        *_laned(
            [Styled("│", "dim"), Styled(f" {said} ", look)],
            "·",
            [Styled(notes, plain or SEVERITY_LOOKS.get(severity, "")), Styled("│", "dim")],
            columns.lane,
        ),
    ]
