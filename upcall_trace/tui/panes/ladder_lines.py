"""One line of the ladder as pieces: an arrow with an operation, an answer, or a connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from ...capture.records import Begins, How
from ...codes import Severity
from ...trace.decoding import Connection
from ...trace.operations import Operation
from ...views.frames import ending_text
from ...views.text import duration, fields_text, result_text, safe, seconds
from ..data.line_order import Shows
from .styled import SEVERITY_LOOKS, SIGNS, Line, Styled, cut, deadline

GUTTER: Final = 4
_TIME: Final = 13
_WHOLE_TIME: Final = 28
_LEAST_LANE: Final = 16
_WIDEST_LANE: Final = 110
_BEGAN: Final = {
    Begins.LINE: "opens",
    Begins.SERVICE: "opens, inside the guest",
    Begins.MIDDLE: "first seen in the middle",
    Begins.OTHER: "opens, not upcall",
}


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
class Beside:
    """What the browser adds to a line: its time as text, what was found, the user's marks."""

    time: str
    room: int = _TIME
    """Columns for the time."""
    severity: int = 0
    codes: Sequence[str] = ()
    sign: str = " "
    """A mark's letter, or that the operation is picked."""
    remarked: bool = False
    context: bool = False
    """Of another connection than the chosen one, or not matching."""


def heading(width: int, room: int) -> Line:
    """The line above the ladder, with `room` columns for times."""
    text = f"{'req':>{GUTTER + _key(width) - 1}} {'time':>{room - 1}} "
    return [Styled(f"{text}VMM{'guest':>{_lane(width, room) - 1}}", "heading")]


def operation_line(shows: Shows, operation: Operation, width: int, beside: Beside) -> Line:
    """A request or its answer in `width` columns."""
    if shows is Shows.REQUEST:
        return _request(operation, width, beside)
    return _reply(operation, width, beside)


def _key(width: int) -> int:
    """Columns for a request's number, with a blank: longer ones where there is room."""
    return 7 if width < 96 else 12


def _lane(width: int, room: int) -> int:
    return min(max(width - GUTTER - _key(width) - room - 2, _LEAST_LANE), _WIDEST_LANE)


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


def _request(operation: Operation, width: int, beside: Beside) -> Line:
    lane = _lane(width, beside.room)
    plain = "dim" if beside.context else ""
    key = f"{operation.conn}.{operation.request}"
    name = safe(operation.op)
    fields = fields_text(operation.fields, max(lane - len(name) - 6, 12))
    said = f" {name} {fields}".rstrip() + " "
    return [
        *_gutter(beside),
        Styled(f"{cut(key, _key(width) - 1):>{_key(width) - 1}} ", plain or "key"),
        Styled(f"{cut(beside.time, beside.room - 1):>{beside.room - 1}} ", plain or "dim"),
        *_laned([Styled("├─", "dim"), Styled(said, plain)], "─", [Styled("►│", "dim")], lane),
    ]


def _reply(operation: Operation, width: int, beside: Beside) -> Line:
    lane = _lane(width, beside.room)
    plain = "dim" if beside.context else ""
    latency, late = "", None
    if operation.latency_ns is not None:
        latency, late = duration(operation.latency_ns), deadline(operation.latency_ns)
    sign = late.sign if late else ""
    look = plain or ("error" if operation.failed else "warning" if operation.anomalies else "ok")
    result = safe(result_text(operation))
    tags = [*beside.codes, *(f"[{name}]" for name in operation.anomalies)]
    least = len(tags[0]) + 2 if tags else 0
    notes = cut(f" {' '.join(tags)} " if tags else "", max(lane - len(result) - 3, least))
    result = cut(result, max(lane - len(notes) - 4, 0))
    noted = Styled(notes, plain or SEVERITY_LOOKS.get(beside.severity, "") or "warning")
    if operation.ret is None:
        arrow, fill, end = "✗", " ", [noted, Styled("│", "dim")]
    else:
        arrow, fill, end = "◄", "─", [noted, Styled("─┤", "dim")]
    return [
        *_gutter(beside),
        Styled(f"{sign:>{_key(width) - 1}} ", plain or (late.look if late else "")),
        Styled(f"{latency:>{beside.room - 1}} ", plain or (late.look if late else "dim")),
        *_laned([Styled("│", "dim"), Styled(f"{arrow} {result} ", look)], fill, end, lane),
    ]


def connection_line(shows: Shows, connection: Connection, width: int, beside: Beside) -> Line:
    """A connection's beginning or end in `width` columns."""
    plain = "dim" if beside.context else ""
    opens = shows is Shows.OPENED
    said = opening_text(connection) if opens else end_text(connection)
    name = f"conn {connection.number}"
    if len(name) >= _key(width):
        name = str(connection.number)
    notes = f" {' '.join(beside.codes)} " if opens and beside.codes else ""
    severity = beside.severity if opens else 0
    look = plain or ("error" if severity >= Severity.ERROR else "dim")
    return [
        *_gutter(beside),
        Styled(f"{cut(name, _key(width) - 1):>{_key(width) - 1}} ", plain or "key"),
        Styled(f"{cut(beside.time, beside.room - 1):>{beside.room - 1}} ", plain or "dim"),
        *_laned(
            [Styled("│", "dim"), Styled(f" {said} ", look)],
            "·",
            [Styled(notes, plain or SEVERITY_LOOKS.get(severity, "")), Styled("│", "dim")],
            _lane(width, beside.room),
        ),
    ]


def opening_text(connection: Connection) -> str:
    """How a connection begins, in a few words."""
    text = _BEGAN[connection.begins]
    if connection.port is not None:
        text += f", port {connection.port}"
    if connection.peer is not None:
        text += f", by pid {connection.peer[0]}"
    return text + f": {state_text(connection)}"


def connection_facts(connection: Connection, first_ns: int) -> list[str]:
    """All that is known of a connection, a line each; `first_ns` is the capture's first moment."""
    facts = [opening_text(connection)]
    facts += [f"line: {safe(connection.line)}"] if connection.line else []
    facts += [f"answer: {safe(connection.answer)}"] if connection.answer else []
    if connection.service is not None:
        facts.append(f"service byte: {connection.service:#04x}")
    if connection.closed_ns is not None:
        facts.append(f"{end_text(connection)} at {seconds(connection.closed_ns - first_ns)} s")
    return [*facts, f"{connection.requests} requests, {connection.replies} replies"]


def state_text(connection: Connection) -> str:
    """What became of a connection, in a word or two."""
    if connection.begins is Begins.OTHER:
        return "not upcall"
    if connection.hello:
        return "ready" if connection.closed_ns is None else "was ready"
    if connection.hello is False:
        return "bad CONNECT message"
    if connection.accepted is False or (
        connection.accepted is None and connection.closed_ns is not None and not connection.requests
    ):
        return "refused"
    if connection.requests:
        return "in use"
    return "no CONNECT message" if connection.accepted else "waiting for OK"


def end_text(connection: Connection) -> str:
    """Who ended a connection, and how."""
    how = connection.how or How.CLOSE
    return ending_text(how, connection.closed_by_guest, connection.reason)
