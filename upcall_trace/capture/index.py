"""The index of a capture: columns behind its last record, so that opening reads no messages.

It is written at clean close and only ever speeds things up: a reader that finds none, an older
one, or records that it does not cover, decodes the capture instead. Columns are compressed in
blocks, each a record of its own; the INDEX record names them, and a TAIL record of fixed size,
always the file's last, points at the INDEX record. docs/capture-format.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import UpcallError
from .reader import CaptureReader
from .records import BadRecord, Kind, Mark, encode, frame, pack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Column = NDArray[Any]

_COLUMN_LIMIT: Final = 256 << 20
"""Bytes of one column at most: a few hostile ones could otherwise unpack to any number."""
_BLOCK_SIZE: Final = 4 << 20
_LEVEL: Final = 3
_SUMMARY_LIMIT: Final = 64
_DTYPES: Final = frozenset({"|u1", "|i1", "<u2", "<u4", "<u8", "<i4", "<i8"})


@dataclass(frozen=True, slots=True)
class Index:
    """What the INDEX record says; columns are read when they are asked for.

    `covers` is the offset up to which the columns tell the file's records; `end` is where the
    INDEX record itself stands: only marks follow it.
    """

    version: int
    covers: int
    end: int
    summary: dict[str, Any]
    tables: dict[str, dict[str, tuple[str, int, tuple[int, ...]]]]
    reader: CaptureReader = field(repr=False)

    def names(self, table: str) -> list[str]:
        """The columns that `table` has."""
        return list(self.tables.get(table, {}))

    def column(self, table: str, name: str) -> Column:
        """One whole column; raises BadRecord when the file does not hold what it should."""
        dtype, count, offsets = self.tables[table][name]
        parts = [self._block(offset, dtype) for offset in offsets]
        joined: Column = np.concatenate(parts) if parts else np.zeros(0, dtype)
        if len(joined) != count:
            raise BadRecord(f"column {name} has {len(joined)} rows, not {count}")
        return joined

    def _block(self, offset: int, dtype: str) -> Column:
        values = self.reader.record_at(offset)
        if values[0] != Kind.INDEX_ROWS or len(values) < 2 or type(values[1]) is not bytes:
            raise BadRecord(f"no column block at offset {offset}")
        decompressor = zstd.ZstdDecompressor()
        try:
            raw = decompressor.decompress(values[1], max_length=_BLOCK_SIZE)
        except zstd.ZstdError as error:
            raise BadRecord(f"column block at offset {offset}: {error}") from None
        if not decompressor.eof or len(raw) % np.dtype(dtype).itemsize:
            raise BadRecord(f"column block at offset {offset} is not whole")
        return np.frombuffer(raw, dtype)


def append_index(
    path: Path,
    version: int,
    covers: int,
    tables: Mapping[str, Mapping[str, Column]],
    summary: Mapping[str, Any],
) -> None:
    """Append the index of a capture that is closed; `covers` must be the file's size.

    When it cannot be written whole, the file is left as it was. Raises OSError, and ValueError for
    a column that is too large to be read again.
    """
    for columns in tables.values():
        if any(column.nbytes > _COLUMN_LIMIT for column in columns.values()):
            raise ValueError(f"a column has more than {_COLUMN_LIMIT} bytes")
    try:
        _append(path, version, covers, tables, summary)
    except BaseException:
        os.truncate(path, covers)
        raise


def _append(
    path: Path,
    version: int,
    covers: int,
    tables: Mapping[str, Mapping[str, Column]],
    summary: Mapping[str, Any],
) -> None:
    with path.open("ab") as file:
        described: dict[str, dict[str, list[Any]]] = {}
        for table, columns in tables.items():
            described[table] = {}
            for name, column in columns.items():
                offsets = []
                for block in _blocks(column):
                    offsets.append(file.tell())
                    file.write(frame(pack([int(Kind.INDEX_ROWS), zstd.compress(block, _LEVEL)])))
                described[table][name] = [column.dtype.str, len(column), offsets]
        at = file.tell()
        file.write(frame(pack([int(Kind.INDEX), version, covers, dict(summary), described])))
        file.write(_tail(at))
        file.flush()
        os.fdatasync(file.fileno())


def _blocks(column: Column) -> Iterator[bytes]:
    rows = _BLOCK_SIZE // column.dtype.itemsize
    for begin in range(0, len(column), rows):
        yield np.ascontiguousarray(column[begin : begin + rows]).tobytes()


def _tail(index_offset: int) -> bytes:
    return frame(pack([int(Kind.TAIL), index_offset.to_bytes(8, "little")]))


TAIL_SIZE: Final = len(_tail(0))


def read_index(reader: CaptureReader, version: int) -> Index | None:
    """The index that covers all of the capture's traffic, or None.

    None too when it is of another `version`, damaged, or when more than marks follows it.
    """
    if reader.live:
        return None
    try:
        values = reader.record_at(reader.size - TAIL_SIZE)
        if values[0] != Kind.TAIL or type(values[1]) is not bytes:
            return None
        at = int.from_bytes(values[1], "little")
        index = _parse(reader, at)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    if index.version != version or not 0 <= index.covers <= at:
        return None
    # Whatever was appended later may only be marks, or another pointer to the same index.
    for _, later in reader.payloads(at):
        if later[0] not in (Kind.INDEX, Kind.MARK, Kind.TAIL):
            return None
    return index


def _parse(reader: CaptureReader, at: int) -> Index:
    values = reader.record_at(at)
    kind, version, covers, summary, described = values[:5]
    if kind != Kind.INDEX or len(summary) > _SUMMARY_LIMIT:
        raise BadRecord("not an index")
    tables: dict[str, dict[str, tuple[str, int, tuple[int, ...]]]] = {}
    for table, columns in described.items():
        tables[table] = {}
        for name, (dtype, count, offsets) in columns.items():
            if dtype not in _DTYPES:
                raise BadRecord(f"column {name} has no known type")
            size = count * np.dtype(dtype).itemsize
            if not 0 <= size <= _COLUMN_LIMIT or len(offsets) > size // _BLOCK_SIZE + 1:
                raise BadRecord(f"column {name} is out of bounds")
            tables[table][name] = (dtype, int(count), tuple(int(offset) for offset in offsets))
    return Index(int(version), int(covers), at, dict(summary), tables, reader)


class StillRecording(UpcallError, ValueError):
    """A capture that a recorder has open."""


def append_mark(path: Path, mark: Mark) -> None:
    """Append a mark to a capture at rest; the index, where there is one, stays in use.

    Raises OSError, NotACapture for a file that is not one, and StillRecording: two writers would
    lose each other's records.
    """
    with CaptureReader(path) as reader:
        if reader.live:
            raise StillRecording(f"{path} is still being recorded")
        tail = b""
        try:
            values = reader.record_at(reader.size - TAIL_SIZE)
            if values[0] == Kind.TAIL:
                tail = frame(pack([int(Kind.TAIL), values[1]]))
        except BadRecord:
            pass
    with path.open("ab") as file:
        file.write(encode(mark) + tail)
