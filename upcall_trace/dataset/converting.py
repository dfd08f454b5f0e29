"""One capture becomes rows of a fleet's tables, by the day on which they were recorded.

The capture is read once, for what was asked and answered, and for why it failed.
docs/fleet.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..capture.records import Header
from ..diagnose.engine import Diagnosis, sort_key
from ..diagnose.finding import Finding
from ..diagnose.successes import feed as find
from ..errors import UserError
from ..kernel.noted_world import noted_world
from ..sources import open_source
from ..trace.bulk import feed
from ..trace.decoding import Session
from ..trace.opening import Capture, capture_of
from ..trace.streams import in_bulk
from .parquet import arrow_schema, operation_batches, pyarrow_or_refuse
from .schema import FLEET, Row, codes_by_request, finding_rows

if TYPE_CHECKING:
    import pyarrow

NO_DAY: Final = "unknown"
"""The day of what has no wall-clock time."""
_KERNEL: Final = "kernel"
"""The note that says which kernel a guest ran, as `record --note kernel=6.1.62` writes it."""


@dataclass(slots=True)
class Converted:
    """What one source amounts to: `rows` are (table, day, rows of it)."""

    rows: list[tuple[str, str, pyarrow.Table]] = field(default_factory=list)
    operations: int = 0
    findings: int = 0
    trouble: bool = False


def convert(path: Path, url: str, digest: str) -> Converted:
    """The rows of a capture at `path`, found at `url`; what cannot be read is a problem's row."""
    try:
        return _converted(path, url, digest)
    except UserError as error:
        return problem(url, digest, "unreadable", str(error).replace(str(path), url))


def problem(url: str, digest: str | None, kind: str, about: str) -> Converted:
    """A row of the table of problems."""
    row = {"url": url, "digest": digest, "problem": kind, "about": about}
    return Converted([("problems", NO_DAY, _table("problems", [row]))], trouble=True)


def _converted(path: Path, url: str, digest: str) -> Converted:
    findings: list[Finding] = []
    with open_source(path) as source:
        header = source.header
        diagnosis = Diagnosis(header)
        # A diagnosis that keeps no table passes over plain successes.
        session = Session(diagnosis.session.header)
        for offset, item in in_bulk(source):
            findings += find(diagnosis, item, offset)
            feed(session, item, offset)
        findings += diagnosis.finish()
        session.finish()
        opened = capture_of(session, source)
    findings.sort(key=sort_key)
    whose = _whose(header, digest)
    operations = opened.operations
    found = Converted(operations=len(operations), findings=len(findings))
    for batch in operation_batches(operations, codes_by_request(findings), opened.started):
        for day, piece in _by_day(batch):
            found.rows.append(("operations", day, _with_whose(whose, piece)))
    days = _Days(opened)
    failed = sum(connection.failures for connection in opened.connections)
    rows: dict[tuple[str, str], list[Row]] = {}
    for finding, row in zip(findings, finding_rows(findings), strict=True):
        rows.setdefault(("findings", days.of_finding(finding)), []).append(whose | row)
    for connection in opened.connections:
        row = _connection_row(connection, days.at(connection.opened_ns))
        rows.setdefault(("connections", days.day(connection.opened_ns)), []).append(whose | row)
    last = opened.first_ns + opened.duration_ns
    rows["captures", days.day(last)] = [
        whose
        | {
            "url": url,
            "source": header.source,
            "started": opened.started,
            "duration_ns": opened.duration_ns,
            "connections": len(opened.connections),
            "operations": len(operations),
            "failures": failed,
            "findings": len(findings),
            "complete": bool(opened.complete),
            "lost_bytes": opened.lost_bytes,
            "notes": json.dumps(header.notes),
        }
    ]
    if opened.damage or not opened.complete or opened.gaps:
        about = _damage(opened)
        lost = {"url": url, "digest": digest, "problem": "damaged", "about": about}
        rows["problems", NO_DAY] = [lost]
        found.trouble = True
    for (name, day), listed in rows.items():
        found.rows.append((name, day, _table(name, listed)))
    return found


def _damage(opened: Capture) -> str:
    parts = [f"{opened.lost_bytes} bytes are missing"] if opened.lost_bytes else []
    if places := [damage for damage in opened.damage if not damage.at_end]:
        parts.append(f"{len(places)} places of it cannot be read, the first at {places[0].offset}")
    if any(damage.at_end for damage in opened.damage):
        parts.append("its end is torn")
    elif not opened.complete and not places:
        parts.append("it was not closed cleanly")
    return "; ".join(parts)


def _whose(header: Header, digest: str) -> Row:
    world = noted_world(header.notes)
    return {
        "digest": digest,
        "host": header.host or None,
        "sandbox": header.sandbox,
        "kernel": header.notes.get(_KERNEL) or (world.kernel if world else None),
        "arch": header.arch or (world.arch.value if world else None),
    }


class _Days:
    """Which day it was at a time of the capture's clock."""

    def __init__(self, opened: Capture) -> None:
        self._wall_ns = opened.header.wall_ns if opened.started else None

    def at(self, t_ns: int) -> datetime | None:
        if self._wall_ns is None:
            return None
        try:
            wall_us = (self._wall_ns + t_ns) // 1000
            return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=wall_us)
        except OverflowError:
            return None

    def day(self, t_ns: int) -> str:
        return _day(self.at(t_ns))

    def of_finding(self, finding: Finding) -> str:
        if finding.time_ns is None:
            return NO_DAY
        try:
            moment = datetime.fromtimestamp(0, UTC) + timedelta(
                microseconds=finding.time_ns // 1000
            )
        except OverflowError:
            return NO_DAY
        return _day(moment)


def _day(moment: datetime | None) -> str:
    return NO_DAY if moment is None else moment.date().isoformat()


def _connection_row(connection: Any, opened: datetime | None) -> Row:
    closed = connection.closed_ns is not None
    return {
        "conn": connection.number,
        "time": opened,
        "begins": str(connection.begins),
        "port": connection.port,
        "accepted": connection.accepted,
        "service": connection.service,
        "requests": connection.requests,
        "replies": connection.replies,
        "failures": connection.failures,
        "payload": connection.payload,
        "lost": connection.lost,
        "closed_by_guest": connection.closed_by_guest if closed else None,
        "how": None if connection.how is None else str(connection.how),
    }


def _by_day(batch: pyarrow.RecordBatch) -> Iterator[tuple[str, pyarrow.Table]]:
    """A batch of operations in pieces of a day each."""
    pa = pyarrow_or_refuse()
    import pyarrow.compute as pc

    times = batch.column("time")
    if times.null_count == len(times):
        yield NO_DAY, pa.Table.from_batches([batch])
        return
    days = pc.strftime(times, format="%Y-%m-%d")
    for day in sorted(pc.unique(days).to_pylist()):
        yield day, pa.Table.from_batches([batch.filter(pc.equal(days, day))])


def _with_whose(whose: Row, rows: pyarrow.Table) -> pyarrow.Table:
    pa = pyarrow_or_refuse()
    schema = arrow_schema(FLEET["operations"])
    repeated = [pa.repeat(pa.scalar(value, pa.string()), len(rows)) for value in whose.values()]
    return pa.Table.from_arrays([*repeated, *rows.columns], schema=schema)


def _table(name: str, rows: Iterable[Row]) -> pyarrow.Table:
    return pyarrow_or_refuse().Table.from_pylist(list(rows), schema=arrow_schema(FLEET[name]))
