"""The columns of the tables of operations and findings: names, types and meanings, once.

CSV, Arrow, Parquet and NDJSON are written from them, and the tables of a fleet. docs/tables.md,
docs/fleet.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from dissectors.layouts import DEVICE_MANAGER_TABLE, HEADER, REPLY_HEADER
from dissectors.tables import FieldRow

from ..diagnose.finding import Finding
from ..trace.operations import Operation

Kind = Literal["int", "uint", "text", "bool", "time", "ints", "texts"]
"""Signed and unsigned numbers of 64 bits, text, truth, a point in time (UTC), lists of the two."""


class Column(NamedTuple):
    """One column; a value can be null where the meaning says so."""

    name: str
    kind: Kind
    meaning: str


_LOAD: Final = {
    name: rows[0]
    for name, rows in DEVICE_MANAGER_TABLE.request_fields.items()
    if rows[0] not in HEADER
}
_REPLY_LOAD: Final = {
    name: rows[0]
    for name, rows in DEVICE_MANAGER_TABLE.reply_fields.items()
    if rows[0] not in REPLY_HEADER
}


def _kind(row: FieldRow) -> Kind:
    if row.count is not None:
        return "ints"
    return "uint" if row.type[0] == "u" else "int"


OPERATIONS: Final = (
    Column("conn", "int", "connection, from 1"),
    Column("request", "int", "request of its connection, from 0"),
    Column("t_ns", "int", "when it was sent, since the capture's first record"),
    Column("time", "time", "the same as a wall-clock time; null when the capture has none"),
    Column("op", "text", "the message's name in lower case"),
    Column("msg_type", "int", "its number; null for another service"),
    *(Column(name, _kind(row), "load; null where it has none") for name, row in _LOAD.items()),
    Column("ret", "int", "the result; null while unanswered"),
    Column("errno", "text", "the name of a negative result; else null"),
    Column("latency_ns", "int", "from the end of the request to the end of its reply, or null"),
    Column("reply_msg_size", "int", "size in the reply's header, or null"),
    *(Column(name, _kind(row), "load of the reply, or null") for name, row in _REPLY_LOAD.items()),
    Column("anomalies", "texts", "doubts that the wire raises"),
    Column("codes", "texts", "codes of the findings on it"),
)
FINDINGS: Final = (
    Column("code", "text", "the code, UP301"),
    Column("name", "text", "its name, mmio-overlap"),
    Column("severity", "text", "note, warning, error or fatal"),
    Column("conn", "int", "connection; null for what concerns the capture"),
    Column("request", "int", "request; null for what concerns a connection"),
    Column("inferred", "bool", "true when it is one of several possible causes"),
    Column("what", "text", "what happened"),
    Column("why", "text", "the guest's reason"),
    Column("so", "text", "what follows from it"),
    Column("next", "text", "what to do"),
)

WHOSE: Final = (
    Column("digest", "text", "SHA-256 of the capture's bytes, as they are stored"),
    Column("host", "text", "where it was recorded; null when it does not say"),
    Column("sandbox", "text", "whose guest it is; null when it does not say"),
    Column("kernel", "text", "the note `kernel` of the capture, or its world's; else null"),
    Column("arch", "text", "architecture of the guest, or null"),
)
"""What stands in front of each row of a fleet's tables but `problems`."""
CONNECTIONS: Final = (
    Column("conn", "int", "connection, from 1"),
    Column("time", "time", "when it was opened, or null"),
    Column("begins", "text", "what its recorded bytes begin with"),
    Column("port", "int", "the guest's port, or null"),
    Column("accepted", "bool", "whether the VMM accepted it, or null"),
    Column("service", "int", "its service byte, or null"),
    Column("requests", "int", "requests on it"),
    Column("replies", "int", "replies on it"),
    Column("failures", "int", "answered with an error, or not at all"),
    Column("payload", "int", "bytes of upcall, both ways"),
    Column("lost", "int", "bytes that are missing"),
    Column("closed_by_guest", "bool", "whether the guest ended it; null while it is open"),
    Column("how", "text", "how it was ended, or null"),
)
CAPTURES: Final = (
    Column("url", "text", "where it was found"),
    Column("source", "text", "what it was recorded from"),
    Column("started", "time", "its first record's time, or null"),
    Column("duration_ns", "int", "from its first to its last record"),
    Column("connections", "int", "connections in it"),
    Column("operations", "int", "operations in it"),
    Column("failures", "int", "operations answered with an error, or not at all"),
    Column("findings", "int", "findings in it"),
    Column("complete", "bool", "whether it was closed cleanly and all of it is whole"),
    Column("lost_bytes", "int", "bytes known to be missing"),
    Column("notes", "text", "its notes, as a JSON object"),
)
PROBLEMS: Final = (
    Column("url", "text", "where it was found"),
    Column("digest", "text", "SHA-256 of its bytes; null when they could not be read"),
    Column("problem", "text", "unreachable, unreadable or damaged"),
    Column("about", "text", "what is wrong with it, in a sentence"),
)
FLEET: Final[dict[str, tuple[Column, ...]]] = {
    "operations": (*WHOSE, *OPERATIONS),
    "findings": (*WHOSE, *FINDINGS),
    "connections": (*WHOSE, *CONNECTIONS),
    "captures": (*WHOSE, *CAPTURES),
    "problems": PROBLEMS,
}
"""The tables of a fleet. Each has the column `day` as well, the folder that a row is in."""
FLEET_VERSION: Final = 1
"""Raised whenever a column changes its meaning, or goes."""

Row = dict[str, Any]
"""A value for each column, by name."""


def operation_rows(
    operations: Iterable[Operation],
    codes: Mapping[tuple[int, int], list[str]],
    started: datetime | None = None,
) -> Iterator[Row]:
    """The rows of operations; `codes` by connection and request, `started` is `t_ns` 0."""
    for operation in operations:
        reply = operation.reply or {}
        row: Row = {column.name: None for column in OPERATIONS}
        row |= {name: value for name, value in operation.fields.items() if name in row}
        row |= {name: reply[name] for name in _REPLY_LOAD if name in reply}
        row |= {
            "conn": operation.conn,
            "request": operation.request,
            "t_ns": operation.t_ns,
            "time": started and started + timedelta(microseconds=operation.t_ns // 1000),
            "op": operation.op,
            "msg_type": operation.msg_type,
            "ret": operation.ret,
            "errno": operation.errno,
            "latency_ns": operation.latency_ns,
            "reply_msg_size": reply.get("msg_size"),
            "anomalies": list(operation.anomalies),
            "codes": codes.get((operation.conn, operation.request), []),
        }
        yield row


def finding_rows(findings: Iterable[Finding]) -> Iterator[Row]:
    """The rows of findings."""
    for finding in findings:
        row: Row = {column.name: getattr(finding, column.name) for column in FINDINGS}
        row["code"], row["severity"] = str(finding.code), finding.severity.word
        yield row


def codes_by_request(findings: Iterable[Finding]) -> dict[tuple[int, int], list[str]]:
    """The codes of the findings on each request, by connection and request."""
    found: dict[tuple[int, int], list[str]] = {}
    for finding in findings:
        if finding.conn is not None and finding.request is not None:
            codes = found.setdefault((finding.conn, finding.request), [])
            if str(finding.code) not in codes:
                codes.append(str(finding.code))
    return found


def as_json(value: Any) -> Any:
    """A value of a row as JSON holds it: times as RFC 3339 text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value
