"""From a file to operations: through its index when it has one, by decoding it otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .capture.index import Index, append_index, read_index
from .capture.reader import CaptureReader, Damage
from .capture.records import BadRecord, Begins, Header, How, Mark, Vmm
from .formats import Source, open_source
from .operations import Operations
from .session import Connection, Session

INDEX_VERSION: Final = 1
"""Raised whenever decoding changes: older indexes are then decoded anew."""

Progress = Callable[[int], None]
"""Called now and then with the offset that decoding has reached."""
_PROGRESS_EVERY: Final = 4096


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture as it was found: what is in it, and what is missing."""

    header: Header
    operations: Operations
    connections: list[Connection]
    marks: list[Mark]
    vmm: list[Vmm]
    duration_ns: int
    damage: list[Damage]
    gaps: int
    complete: bool
    live: bool
    first_ns: int = 0
    indexed: bool = field(default=False, compare=False)

    @property
    def lost_bytes(self) -> int:
        """Bytes known to be missing: gaps of the recording, and the file's torn end."""
        return self.gaps + sum(damage.size for damage in self.damage if damage.at_end)

    @property
    def started(self) -> datetime | None:
        """When the first record was made, in UTC; None when the capture does not say."""
        if self.header.wall_ns is None:
            return None
        try:
            wall_us = (self.header.wall_ns + self.first_ns) // 1000
            return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=wall_us)
        except (OverflowError, ValueError, OSError):
            return None


def load(path: Path, progress: Progress | None = None) -> Capture:
    """Open anything that holds a capture; raises UnreadableInput and nothing else."""
    source = open_source(path)
    if isinstance(source, CaptureReader):
        index = read_index(source, INDEX_VERSION)
        if index is not None:
            try:
                return _from_index(source, index)
            except (BadRecord, KeyError, TypeError, ValueError, IndexError):
                pass  # a damaged index is only a lost short cut
    with source:
        return decode_source(source, progress)


def decode_source(source: Source, progress: Progress | None = None) -> Capture:
    """Decode every record of an open source."""
    session = Session(source.header)
    for count, (offset, record) in enumerate(source.records()):
        session.feed(record, offset)
        if progress is not None and count % _PROGRESS_EVERY == 0:
            progress(offset)
    session.finish()
    return capture_of(session, source)


def capture_of(session: Session, source: Source) -> Capture:
    """What a session that was fed all of `source` amounts to."""
    first_ns = session.first_ns or 0
    return Capture(
        header=source.header,
        operations=Operations(session.table.columns(), first_ns),
        connections=list(session.connections.values()),
        marks=session.marks,
        vmm=session.vmm,
        duration_ns=session.last_ns - first_ns,
        damage=source.damage,
        gaps=session.lost,
        complete=source.complete,
        live=source.live,
        first_ns=first_ns,
    )


def build_index(path: Path, progress: Progress | None = None) -> bool:
    """Append an index to a capture that was closed cleanly; False where that cannot be done."""
    with CaptureReader(path) as reader:
        capture = decode_source(reader, progress)
        covers = reader.size
    if not capture.complete or capture.damage:
        return False
    operations = capture.operations
    tables = {
        "operations": {name: operations.column(name) for name in operations.names()},
        "others": {
            "connections": _as_json([asdict(connection) for connection in capture.connections]),
            "marks": _as_json([asdict(mark) for mark in capture.marks]),
            "vmm": _as_json([asdict(vmm) for vmm in capture.vmm]),
        },
    }
    summary = {
        "duration_ns": capture.duration_ns,
        "gaps": capture.gaps,
        "first_ns": capture.first_ns,
    }
    append_index(path, INDEX_VERSION, covers, tables, summary)
    return True


class _LazyColumns(Mapping[str, NDArray[Any]]):
    """An index's columns of operations, each read when it is first looked at.

    A column that turns out to be damaged costs the short cut, not the answer: the capture is
    then decoded.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._read: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            try:
                self._read[name] = self._index.column("operations", name)
            except BadRecord:
                decoded = decode_source(self._index.reader).operations
                self._read = {known: decoded.column(known) for known in decoded.names()}
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.names("operations"))

    def __len__(self) -> int:
        return len(self._index.names("operations"))


def _from_index(reader: CaptureReader, index: Index) -> Capture:
    summary = index.summary
    marks = [Mark(**values) for values in _from_json(index.column("others", "marks"))]
    marks += [record for _, record in reader.records(index.end) if isinstance(record, Mark)]
    return Capture(
        header=reader.header,
        operations=Operations(_LazyColumns(index), int(summary["first_ns"])),
        connections=[_connection(v) for v in _from_json(index.column("others", "connections"))],
        marks=marks,
        vmm=[Vmm(**values) for values in _from_json(index.column("others", "vmm"))],
        duration_ns=int(summary["duration_ns"]),
        damage=[],
        gaps=int(summary["gaps"]),
        complete=True,
        live=False,
        first_ns=int(summary["first_ns"]),
        indexed=True,
    )


def _as_json(values: list[dict[str, Any]]) -> NDArray[Any]:
    text = json.dumps(values, default=lambda raw: raw.decode("latin-1"))
    return np.frombuffer(text.encode(), np.uint8)


def _from_json(column: NDArray[Any]) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = json.loads(column.tobytes())
    return values


def _connection(values: dict[str, Any]) -> Connection:
    for name in ("line", "answer"):
        values[name] = values[name].encode("latin-1")
    values["begins"] = Begins(values["begins"])
    values["how"] = None if values["how"] is None else How(values["how"])
    values["peer"] = None if values["peer"] is None else tuple(values["peer"])
    return Connection(**{known.name: values[known.name] for known in fields(Connection)})
