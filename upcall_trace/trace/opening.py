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

from ..capture.index import Index, append_index, read_index
from ..capture.reader import CaptureReader, Damage
from ..capture.records import BadRecord, Begins, Header, How, Mark, Vmm
from ..errors import UnreadableInput
from ..sources import Source, open_source
from .decoding import Connection, Session
from .operations import COLUMN_TYPES, MAX_ROWS, Operations

INDEX_VERSION: Final = 1
"""Raised whenever decoding changes: older indexes are then decoded anew."""

Progress = Callable[[int], None]
"""Called now and then with the offset that decoding has reached."""
_PROGRESS_EVERY: Final = 4096
_JSON_LIMIT: Final = 64 << 20
_INT_LIMIT: Final = 1 << 63


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
    indexed = _indexed(source)
    if indexed is not None:
        return indexed
    with source:
        return decode_source(source, progress)


def load_indexed(path: Path) -> Capture | None:
    """Open a capture by its index, None when it has none to go by; raises UnreadableInput."""
    source = open_source(path)
    indexed = _indexed(source)
    if indexed is None:
        with source:
            pass  # only to close it
    return indexed


def _indexed(source: Source) -> Capture | None:
    if isinstance(source, CaptureReader):
        index = read_index(source, INDEX_VERSION)
        if index is not None:
            try:
                return _from_index(source, index)
            except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError):
                pass  # a damaged index is only a lost short cut
    return None


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
    summary = {
        "duration_ns": capture.duration_ns,
        "gaps": capture.gaps,
        "first_ns": capture.first_ns,
    }
    try:
        tables = {
            "operations": {name: operations.column(name) for name in operations.names()},
            "others": {
                "connections": _as_json([asdict(connection) for connection in capture.connections]),
                "marks": _as_json([asdict(mark) for mark in capture.marks]),
                "vmm": _as_json([asdict(vmm) for vmm in capture.vmm]),
            },
        }
        append_index(path, INDEX_VERSION, covers, tables, summary)
    except ValueError:
        return False  # too large for one; such a capture is decoded each time
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
                if len(decoded) != self._index.tables["operations"]["conn"][1]:
                    path = self._index.reader.path
                    raise UnreadableInput(f"{path}: its index is damaged; recover it") from None
                self._read = {known: decoded.column(known) for known in decoded.names()}
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.names("operations"))

    def __len__(self) -> int:
        return len(self._index.names("operations"))


def _from_index(reader: CaptureReader, index: Index) -> Capture:
    _check_columns(index.tables["operations"])
    first_ns, duration_ns, gaps = (
        _checked(index.summary[name], "int") for name in ("first_ns", "duration_ns", "gaps")
    )
    marks = [Mark(**values) for values in _from_json(index, "marks", Mark)]
    marks += [record for _, record in reader.records(index.end) if isinstance(record, Mark)]
    return Capture(
        header=reader.header,
        operations=Operations(_LazyColumns(index), first_ns),
        connections=[_connection(v) for v in _from_json(index, "connections", Connection)],
        marks=marks,
        vmm=[Vmm(**values) for values in _from_json(index, "vmm", Vmm)],
        duration_ns=duration_ns,
        damage=[],
        gaps=gaps,
        complete=True,
        live=False,
        first_ns=first_ns,
        indexed=True,
    )


def _check_columns(described: Mapping[str, tuple[str, int, tuple[int, ...]]]) -> None:
    types = {name: dtype for name, (dtype, _, _) in described.items()}
    rows = {count for name, (_, count, _) in described.items() if name != "extra"}
    if types != COLUMN_TYPES or len(rows) != 1 or max(rows) > MAX_ROWS:
        raise BadRecord("the columns are not those of operations")


def _as_json(values: list[dict[str, Any]]) -> NDArray[Any]:
    text = json.dumps(values, default=lambda raw: raw.decode("latin-1"))
    if len(text) > _JSON_LIMIT:
        raise ValueError("too many connections, marks or VMM records")
    return np.frombuffer(text.encode(), np.uint8)


def _from_json(index: Index, name: str, kind: type[Any]) -> list[dict[str, Any]]:
    """The objects in a column, with the fields of the dataclass `kind`; raises ValueError."""
    if index.tables["others"][name][1] > _JSON_LIMIT:
        raise BadRecord(f"column {name} is out of bounds")
    wanted = fields(kind)
    return [
        {known.name: _checked(values[known.name], str(known.type)) for known in wanted}
        for values in json.loads(index.column("others", name).tobytes())
    ]


_JSON_TYPES: Final[dict[str, type]] = {
    "int": int, "bool": bool, "str": str, "bytes": str, "Begins": str, "How": str,
    "tuple[int, int, int]": list,
}  # fmt: skip


def _checked(value: Any, annotation: str) -> Any:
    """`value` when it is what JSON holds for a field of that type; raises ValueError."""
    name, _, optional = annotation.partition(" | ")
    if value is None and optional:
        return None
    if type(value) is not _JSON_TYPES[name]:
        raise ValueError(f"not of type {annotation}")
    if type(value) is int and not -_INT_LIMIT <= value < _INT_LIMIT:
        raise ValueError("a number is out of range")
    if type(value) is list:
        return tuple(_checked(part, "int") for part in value)
    return value


def _connection(values: dict[str, Any]) -> Connection:
    for name in ("line", "answer"):
        values[name] = values[name].encode("latin-1")
    values["begins"] = Begins(values["begins"])
    values["how"] = None if values["how"] is None else How(values["how"])
    return Connection(**values)
