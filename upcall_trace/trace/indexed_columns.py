"""The columns of operations that a capture's index holds: whole ones, or segment by segment.

Whole columns are fetched one by one when they are first looked at, and kept. Of a segment only
what is looked at is unpacked, and nothing is kept, so that a capture of any length can be counted
and searched in the memory of one segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.layouts import DEVICE_MANAGER_TABLE

from ..capture.frames import BadRecord
from ..capture.index import Index, PackedColumns, joined
from ..errors import UnreadableInput
from .operation_table import COLUMN_TYPES, ROWS
from .operations import ColumnsPiece, Operations, StoredColumns

BESIDE: Final = ("connections", "marks", "vmm", "origins", "changed", "changed_rows")
_KEPT: Final = 4
"""Segments that are kept for who looks around."""
Decode = Callable[[], Operations]
"""Decodes the capture of an index from its records."""


class IndexedColumns(StoredColumns):
    """An index's columns of operations.

    A column that turns out to be damaged costs the short cut, not the answer: the capture is
    then decoded. With `strict` it raises BadRecord, as it does for what is damaged beside them.
    """

    def __init__(self, index: Index, decode: Decode, strict: bool = False) -> None:
        self._index = index
        self._decode = decode
        self._strict = strict
        self._rows = sum(segment.rows for segment in index.segments)
        self._read: dict[str, NDArray[Any]] = {}
        self._kept: dict[int, ColumnsPiece] = {}
        self.beside: dict[str, list[NDArray[Any]]] = {name: [] for name in BESIDE}
        """What each segment holds beside its rows."""
        self._extra_firsts = [0]
        self._look_through()
        self._changed = self._changes()

    def _look_through(self) -> None:
        """One pass over all segments, for what is needed of each; raises BadRecord."""
        budget = self._index.budget
        for place in range(len(self._index.segments)):
            packed = self._index.packed(place)
            for name, parts in self.beside.items():
                parts.append(packed.column(name))
                budget -= parts[-1].nbytes
            self._extra_firsts.append(self._extra_firsts[-1] + packed.length("extra"))
            if budget < 0 or self._extra_firsts[-1] > self._index.budget:
                raise BadRecord("more beside its operations than a file of its size can hold")

    @property
    def rows(self) -> int:
        return self._rows

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            try:
                self._read[name] = self._column(name)
            except BadRecord:
                if self._strict:
                    raise
                self._read = self._decoded()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMN_TYPES)

    def __len__(self) -> int:
        return len(COLUMN_TYPES)

    def pieces(self) -> Iterator[ColumnsPiece]:
        """A piece for each segment."""
        return map(self._piece, range(len(self._index.segments)))

    def piece_at(self, row: int) -> ColumnsPiece:
        """The segment that a row is in; a few are kept, for who looks around."""
        if not 0 <= row < self._rows:
            raise IndexError(row)
        place = bisect_right(self._index.segments, row, key=lambda each: each.first_row) - 1
        if place not in self._kept:
            for other in list(self._kept)[: -_KEPT + 1]:
                self._kept.pop(other, None)
            self._kept[place] = self._piece(place)
        return self._kept[place]

    def _piece(self, place: int) -> ColumnsPiece:
        segment = self._index.segments[place]
        if not self._read.keys() >= COLUMN_TYPES.keys():
            try:
                packed = self._checked(place)
            except BadRecord:
                if self._strict:
                    raise
                self._read = self._decoded()
        if self._read.keys() >= COLUMN_TYPES.keys():
            return self._slice(segment.first_row, segment.rows)
        changed = self._changes_in(segment.first_row, segment.rows)
        if (changed["cells"]["service"] != DEVICE_MANAGER_TABLE.byte).any():
            # Their answers came in a later segment, and may have brought bytes there.
            return self._slice(segment.first_row, segment.rows)
        extra_first = self._extra_firsts[place]
        columns = _SegmentColumns(packed, segment.first_row, changed, self, extra_first)
        return ColumnsPiece(segment.first_row, extra_first, columns)

    def _slice(self, first_row: int, rows: int) -> ColumnsPiece:
        """Some rows of whole columns."""
        chosen = slice(first_row, first_row + rows)
        part = {name: self[name][chosen] for name in COLUMN_TYPES if name != "extra"}
        return ColumnsPiece(first_row, 0, part | {"extra": self["extra"]})

    def sample(self, row: int) -> Mapping[str, int]:
        """Where the request of a row is, and when it was sent; raises BadRecord."""
        for place, segment in enumerate(self._index.segments):
            if segment.first_row <= row < segment.first_row + segment.rows:
                packed = self._checked(place)
                at = row - segment.first_row
                return {name: int(packed.column(name)[at]) for name in ("offset", "conn", "t_ns")}
        raise BadRecord(f"no row {row}")

    def _checked(self, place: int) -> PackedColumns:
        """A segment's columns, all there, of the right types and lengths; raises BadRecord."""
        packed = self._index.packed(place)
        for name, dtype in COLUMN_TYPES.items():
            if packed.dtype(name) != dtype:
                raise BadRecord(f"column {name} has another type")
            if name != "extra" and packed.length(name) != self._index.segments[place].rows:
                raise BadRecord(f"column {name} is not as long as its segment")
        return packed

    def _decoded(self) -> dict[str, NDArray[Any]]:
        """All columns, from the records."""
        decoded = self._decode()
        if len(decoded) != self._rows:
            raise self._hopeless()
        return {known: decoded.column(known) for known in decoded.names()}

    def _hopeless(self) -> UnreadableInput:
        return UnreadableInput(f"{self._index.reader.path}: its index is damaged; recover it")

    def _column(self, name: str) -> NDArray[Any]:
        if name == "extra":
            return joined([*self._parts(name)], COLUMN_TYPES[name])
        column = np.empty(self._rows, COLUMN_TYPES[name])
        for segment, part in zip(self._index.segments, self._parts(name), strict=True):
            if len(part) != segment.rows:
                raise BadRecord(f"column {name} is not as long as its segment")
            column[segment.first_row : segment.first_row + segment.rows] = part
        column[self._changed["row"]] = self._changed["cells"][name]
        return column

    def _parts(self, name: str) -> Iterator[NDArray[Any]]:
        """A column segment by segment; all of them never stand in memory twice."""
        for part in self._index.parts(name):
            if part.dtype.str != COLUMN_TYPES[name]:
                raise BadRecord(f"column {name} has another type")
            yield part

    def _changes(self) -> NDArray[Any]:
        """The rows that were answered in a later segment than they were sent in, in their order."""
        numbers, cells = [], []
        told = zip(self._index.segments, self.beside.pop("changed"),
                   self.beside.pop("changed_rows"), strict=True)  # fmt: skip
        for segment, rows, raw in told:
            if len(raw) != len(rows) * ROWS.itemsize or (rows >= segment.first_row).any():
                raise BadRecord("rows that changed do not fit")
            numbers.append(rows)
            cells.append(raw.view(ROWS))
        every = np.empty(sum(map(len, numbers)), _CHANGED)
        every["row"], every["cells"] = np.concatenate(numbers), np.concatenate(cells)
        # Of a row that changed several times the last is what it is.
        backwards = every[::-1]
        _, last = np.unique(backwards["row"], return_index=True)
        changed: NDArray[Any] = backwards[last]
        return changed

    def _changes_in(self, first_row: int, rows: int) -> NDArray[Any]:
        ends = np.array((first_row, first_row + rows), np.uint64)
        begin, end = np.searchsorted(self._changed["row"], ends)
        found: NDArray[Any] = self._changed[begin:end]
        return found


_CHANGED = np.dtype([("row", "<u8"), ("cells", ROWS)])


class _SegmentColumns(Mapping[str, NDArray[Any]]):
    """The columns of one segment, each unpacked when it is first looked at."""

    def __init__(
        self, packed: PackedColumns, first_row: int, changed: NDArray[Any], whole: IndexedColumns,
        extra_first: int,
    ) -> None:  # fmt: skip
        self._packed = packed
        self._first_row = first_row
        self._changed = changed
        self._whole = whole
        self._extra_first = extra_first
        self._read: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            try:
                column = self._packed.column(name)
            except BadRecord:  # the whole column finds that out as well, and what to do
                first = self._extra_first if name == "extra" else self._first_row
                column = self._whole[name][first : first + self._packed.length(name)]
            if len(self._changed) and name != "extra":
                column = column.copy()
                column[self._changed["row"] - np.uint64(self._first_row)] = (
                    self._changed["cells"][name]
                )  # fmt: skip
            self._read[name] = column
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMN_TYPES)

    def __len__(self) -> int:
        return len(COLUMN_TYPES)
