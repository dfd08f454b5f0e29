"""From a file to operations: a small capture is decoded, a large one read through its index."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..capture.frames import BadRecord
from ..capture.index import Index, read_index, tail
from ..capture.reader import CaptureReader, Damage, DamageTo
from ..capture.records import Begins, Chunk, Header, How, Mark, Origin, Vmm
from ..capture.runs import MessageRun
from ..capture.segments import digest_of
from ..sources import Source, open_source
from .bulk import feed
from .decoding import Connection, Session, read_as
from .indexed_columns import IndexedColumns
from .indexing import INDEX_VERSION, Indexer
from .operation_table import rows_in
from .operations import Operations
from .streams import in_bulk, is_progress

Progress = Callable[[int], None]
"""Called now and then with the offset that decoding has reached."""
_INT_LIMIT: Final = 1 << 63

DECODED_SIZE: Final = 16 << 20
"""Up to here a capture is decoded whatever its index says: that takes a second or two."""
CHECKED_SIZE: Final = 64 << 20
"""Up to here every byte is summed up, also by who did not ask for it."""
_SAMPLES: Final = 4


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture as it was found: what is in it, and what is missing.

    `complete` is None when not every byte was looked at.
    """

    header: Header
    operations: Operations
    connections: list[Connection]
    marks: list[Mark]
    vmm: list[Vmm]
    duration_ns: int
    damage: list[Damage]
    gaps: int
    complete: bool | None
    live: bool
    first_ns: int = 0
    indexed: bool = field(default=False, compare=False)
    origins: list[Origin] = field(default_factory=list)

    @property
    def lost_bytes(self) -> int:
        """Bytes known to be missing: gaps of the recording, and the file's torn end."""
        torn = (d.size for d in self.damage if d.at_end and d.to is DamageTo.RECORDS)
        return self.gaps + sum(torn)

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


def load(path: Path, progress: Progress | None = None, check: bool = True) -> Capture:
    """Open anything that holds a capture; raises UnreadableInput and nothing else.

    Without `check` the bytes of a large capture are not summed up, and whether it is complete
    stays unknown.
    """
    source = open_source(path)
    indexed = _indexed(source, check)
    if indexed is not None:
        return indexed
    with source:
        return decode_source(source, progress)


def load_indexed(path: Path) -> Capture | None:
    """Open a large capture by its index, None when it has none to go by; raises UnreadableInput."""
    source = open_source(path)
    indexed = _indexed(source, check=True)
    if indexed is None:
        with source:
            pass  # only to close it
    return indexed


def has_index(source: Source) -> bool:
    """Whether a capture is large and has an index to go by, as far as can be seen at once."""
    return _index_of(source) is not None


def _index_of(source: Source) -> Index | None:
    if not isinstance(source, CaptureReader) or not source.is_one_file:
        return None
    return read_index(source, INDEX_VERSION) if source.size > DECODED_SIZE else None


def _indexed(source: Source, check: bool) -> Capture | None:
    index = _index_of(source)
    if index is None or not isinstance(source, CaptureReader):
        return None
    try:
        return _from_index(source, index, check or source.size <= CHECKED_SIZE)
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError):
        return None  # a damaged index is only a lost short cut


def decode_source(source: Source, progress: Progress | None = None) -> Capture:
    """Decode every record of an open source."""
    session = Session(source.header)
    for count, (offset, item) in enumerate(in_bulk(source)):
        feed(session, item, offset)
        if progress is not None and is_progress(count, item):
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
        origins=session.origins,
    )


def build_index(path: Path, progress: Progress | None = None) -> bool:
    """Append an index to a capture that was closed cleanly; False where that cannot be done.

    When it cannot be written whole, the file is left as it was. Raises OSError.
    """
    with CaptureReader(path) as reader:
        size = reader.size
        indexer = Indexer(reader.header, tells=False)
        frames = bytearray()

        def cut(end: int, ended: bool) -> None:
            digest = digest_of(reader.read, indexer.begin, end)
            frames.extend(indexer.cut(end, size + len(frames), digest, ended))

        for count, (offset, item) in enumerate(in_bulk(reader)):
            if indexer.due(offset):
                cut(offset, False)
            if isinstance(item, MessageRun):
                for part in indexer.parts(item):
                    if indexer.due(int(part.offset[0])):
                        cut(int(part.offset[0]), False)
                    indexer.take(part)
            else:
                indexer.feed(item, offset)
            if progress is not None and is_progress(count, item):
                progress(offset)
        if not reader.complete:
            return False
        cut(size, True)
    if indexer.broken:
        return False
    try:
        with path.open("ab") as file:
            file.write(bytes(frames) + tail(indexer.last_at))
            file.flush()
            os.fdatasync(file.fileno())
    except BaseException:
        os.truncate(path, size)
        raise
    return True


def index_disagrees(reader: CaptureReader, decoded: Capture) -> str | None:
    """What the index of a capture says otherwise than its records, which were decoded.

    None when they agree, and for a capture without an index.
    """
    index = read_index(reader, INDEX_VERSION)
    if index is None:
        return None
    try:
        claimed = _from_index(reader, index, check=False, strict=True)
        for name in decoded.operations.names():
            if not np.array_equal(claimed.operations.column(name), decoded.operations.column(name)):
                return f"column {name}"
        for what in ("connections", "marks", "vmm", "origins", "gaps", "duration_ns", "first_ns"):
            if getattr(claimed, what) != getattr(decoded, what):
                return what.replace("_ns", "")
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        return str(error)
    return None


def _from_index(reader: CaptureReader, index: Index, check: bool, strict: bool = False) -> Capture:
    rows = sum(segment.rows for segment in index.segments)
    if rows > rows_in(reader.size):
        raise BadRecord("more operations than a file of its size can hold")
    if check:
        for segment in index.segments:
            if not reader.is_as_recorded(segment):
                raise BadRecord("the records are not those that the index was made of")
    last = index.segments[-1]
    first_ns = last.first_ns or 0
    columns = IndexedColumns(index, lambda: decode_source(reader).operations, strict)
    _try_samples(reader, columns)
    beside = columns.beside
    connections: dict[int, Connection] = {}
    for values in _from_json(beside["connections"], Connection):
        connections[values["number"]] = connection = _connection(values)
        if connection.read_as != read_as(connection.service):
            raise BadRecord("it was made with other services than there are here")
    marks = [Mark(**values) for values in _from_json(beside["marks"], Mark)]
    marks += [record for _, record in reader.records(last.end) if isinstance(record, Mark)]
    return Capture(
        header=reader.header,
        operations=Operations(columns, first_ns),
        connections=list(connections.values()),
        marks=marks,
        vmm=[Vmm(**values) for values in _from_json(beside["vmm"], Vmm)],
        duration_ns=last.last_ns - first_ns,
        damage=reader.damage,
        gaps=last.lost,
        complete=True if check else None,
        live=False,
        first_ns=first_ns,
        indexed=True,
        origins=[Origin(**values) for values in _from_json(beside["origins"], Origin)],
    )


def _try_samples(reader: CaptureReader, columns: IndexedColumns) -> None:
    """A few rows are compared with their records; raises BadRecord for one that is not there."""
    from ..capture.encoding import decode

    count = columns.rows
    for row in sorted({count * part // _SAMPLES for part in range(_SAMPLES)} - {count}):
        sample = columns.sample(row)
        record = decode(reader.record_at(sample["offset"]))
        if (
            not isinstance(record, Chunk)
            or record.conn != sample["conn"]
            or record.t_ns != sample["t_ns"]
            or not record.to_guest
        ):
            raise BadRecord("the index speaks of requests that are not there")


def _from_json(parts: Iterable[NDArray[Any]], kind: type[Any]) -> Iterator[dict[str, Any]]:
    """The objects in a column, with the fields of the dataclass `kind`; raises ValueError."""
    wanted = fields(kind)
    for part in parts:
        for values in json.loads(part.tobytes()):
            yield {known.name: _checked(values[known.name], str(known.type)) for known in wanted}


_JSON_TYPES: Final[dict[str, type]] = {
    "int": int, "bool": bool, "str": str, "bytes": str, "Begins": str, "How": str,
    "tuple[int, int, int]": list, "dict[str, str]": dict,
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
    if type(value) is dict and not all(type(text) is str for text in value.values()):
        raise ValueError("not all of it is text")
    if type(value) is list:
        return tuple(_checked(part, "int") for part in value)
    return value


def _connection(values: dict[str, Any]) -> Connection:
    for name in ("line", "answer"):
        values[name] = values[name].encode("latin-1")
    values["begins"] = Begins(values["begins"])
    values["how"] = None if values["how"] is None else How(values["how"])
    return Connection(**values)
