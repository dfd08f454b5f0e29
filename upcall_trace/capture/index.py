"""The index of a capture: columns of each segment, so that opening a large one decodes nothing.

It only ever speeds things up. A reader that finds none, an older one, or one that does not cover
the file decodes the capture instead. Each segment has one INDEX_ROWS record with its columns and
one SEGMENT record; a TAIL record of fixed size, always the file's last, points at the last
SEGMENT. docs/capture-format.md.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import UpcallError
from .encoding import encode
from .frames import MAX_PAYLOAD, BadRecord, Kind, frame, pack
from .reader import CaptureReader
from .records import Mark
from .segments import IndexSegment, parse_segment
from .unpacking import zstd_library

Column = NDArray[Any]

_COLUMN_LIMIT: Final = 64 << 20
"""Bytes of one column of one segment at most: few hostile ones could unpack to any number."""
_FREE_BYTES: Final = 64 << 20
_BYTES_PER_BYTE: Final = 16
"""What all of one column may unpack to: so much, and so many times the size of the file."""
_LEVEL: Final = 3
_DTYPES: Final = frozenset({"|u1", "|i1", "<u2", "<u4", "<u8", "<i4", "<i8"})


def encode_columns(version: int, columns: Mapping[str, Column]) -> bytes:
    """The frame of one segment's columns; raises ValueError when they are too large for one."""
    compress = zstd_library().compress
    packed = {}
    for name, column in columns.items():
        if column.nbytes > _COLUMN_LIMIT:
            raise ValueError(f"column {name} has more than {_COLUMN_LIMIT} bytes")
        raw = np.ascontiguousarray(column).tobytes()
        packed[name] = [column.dtype.str, len(column), compress(raw, _LEVEL)]
    payload = pack([int(Kind.INDEX_ROWS), version, packed])
    if len(payload) > MAX_PAYLOAD:
        raise ValueError("the columns of a segment do not fit into a record")
    return frame(payload)


def tail(segment_at: int) -> bytes:
    """The frame of the TAIL record."""
    return frame(pack([int(Kind.TAIL), segment_at.to_bytes(8, "little")]))


TAIL_SIZE: Final = len(tail(0))


@dataclass(frozen=True, slots=True)
class Index:
    """The segments of a capture in their order; columns are read when they are asked for."""

    segments: tuple[IndexSegment, ...]
    reader: CaptureReader = field(repr=False)
    _packed: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def budget(self) -> int:
        """Bytes that one column may have in all of the segments together."""
        return _FREE_BYTES + _BYTES_PER_BYTE * self.reader.size

    def parts(self, name: str) -> Iterator[Column]:
        """A column, segment by segment; raises BadRecord where the file does not hold it."""
        budget = self.budget
        for place in range(len(self.segments)):
            part = self._part(place, name)
            budget -= part.nbytes
            if budget < 0:
                raise BadRecord(f"column {name} is out of bounds")
            yield part

    def _part(self, place: int, name: str) -> Column:
        if not self._packed:
            # All at once: several threads may read columns.
            self._packed[:] = [self._columns(segment) for segment in self.segments]
        return PackedColumns(self._packed[place]).column(name)

    def packed(self, place: int) -> PackedColumns:
        """The columns of one segment, of which nothing is kept here; raises BadRecord."""
        return PackedColumns(self._columns(self.segments[place]))

    def _columns(self, segment: IndexSegment) -> dict[str, Any]:
        values = self.reader.record_at(segment.rows_at)
        if values[0] != Kind.INDEX_ROWS or len(values) < 3 or type(values[2]) is not dict:
            raise BadRecord(f"no columns at offset {segment.rows_at}")
        columns: dict[str, Any] = values[2]
        return columns


class PackedColumns:
    """One segment's columns, packed; each method raises BadRecord where there is no such column."""

    def __init__(self, packed: Mapping[str, Any]) -> None:
        self._packed = packed

    def dtype(self, name: str) -> str:
        """The numpy type of a column."""
        return self._column(name)[0]

    def length(self, name: str) -> int:
        """How many values a column has, as it claims."""
        return self._column(name)[1]

    def column(self, name: str) -> Column:
        """A column, unpacked."""
        dtype, count, packed = self._column(name)
        size = count * np.dtype(dtype).itemsize
        zstd = zstd_library()
        try:
            decompressor = zstd.ZstdDecompressor()
            raw = decompressor.decompress(packed, max_length=size)
            if len(raw) != size or (not decompressor.eof and decompressor.decompress(b"", 1)):
                raise BadRecord(f"column {name} is not whole")
        except (EOFError, zstd.ZstdError) as error:
            raise BadRecord(f"column {name}: {error}") from None
        return np.frombuffer(raw, dtype)

    def _column(self, name: str) -> tuple[str, int, bytes]:
        try:
            dtype, count, packed = self._packed[name]
            size = count * np.dtype(dtype).itemsize if dtype in _DTYPES else -1
            if not 0 <= size <= _COLUMN_LIMIT or type(packed) is not bytes:
                raise BadRecord(f"column {name} is out of bounds")
        except (LookupError, TypeError, ValueError) as error:
            raise BadRecord(f"column {name}: {error}") from None
        return dtype, count, packed


def read_index(reader: CaptureReader, version: int) -> Index | None:
    """The index that covers all of the capture's traffic, or None.

    None too when it is of another `version`, damaged, or when traffic follows it. That the
    records are those it was made of is not looked at here.
    """
    if reader.live:
        return None
    try:
        values = reader.record_at(reader.size - TAIL_SIZE)
        if values[0] != Kind.TAIL or type(values[1]) is not bytes:
            return None
        segments = _chain(reader, int.from_bytes(values[1], "little"))
    except (BadRecord, LookupError, TypeError):
        return None
    last = segments[-1]
    if not last.ended or any(segment.version != version for segment in segments):
        return None
    # Whatever was appended later may only be marks, or another pointer to the same segment.
    damaged = len(reader.damage)
    for _, later in reader.payloads(last.end):
        if later[0] not in (Kind.INDEX_ROWS, Kind.SEGMENT, Kind.MARK, Kind.TAIL, Kind.INDEX):
            return None
    return Index(segments, reader) if len(reader.damage) == damaged else None


def _chain(reader: CaptureReader, at: int) -> tuple[IndexSegment, ...]:
    """The segments that lead up to the one at `at`, in order; raises BadRecord."""
    backwards: list[IndexSegment] = []
    next_at: int | None = at
    while next_at is not None:
        segment = parse_segment(reader.record_at(next_at), next_at)
        if backwards and (
            segment.end != backwards[-1].begin
            or segment.first_row + segment.rows != backwards[-1].first_row
        ):
            raise BadRecord("segments that do not follow each other")
        backwards.append(segment)
        next_at = segment.previous
    first = backwards[-1]
    if first.begin or first.first_row:
        raise BadRecord("the first segments are missing")
    return tuple(reversed(backwards))


def joined(parts: Sequence[Column], dtype: str) -> Column:
    """One column of its parts."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


class StillRecording(UpcallError, ValueError):
    """A capture that a recorder has open."""


def append_mark(path: Path, mark: Mark) -> None:
    """Append a mark to a capture at rest; the index, where there is one, stays in use.

    Raises OSError, NotACapture for a file that is not one, and StillRecording: two writers would
    lose each other's records.
    """
    with CaptureReader(path) as reader, path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StillRecording(f"{path} is still being recorded") from None
        except OSError:
            pass  # a file system without locks
        reader.size = os.fstat(file.fileno()).st_size
        end = b""
        try:
            values = reader.record_at(reader.size - TAIL_SIZE)
            if values[0] == Kind.TAIL:
                end = frame(pack([int(Kind.TAIL), values[1]]))
        except BadRecord:
            pass
        file.write(encode(mark) + end)
