"""Operations, a request and its reply, as columns of numbers.

A row costs no Python object, so a million of them stay small, and a column of them is an array:
filters and statistics read columns. `Operations.operation` makes one row an object again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import errno_name, op_name, result_meaning
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.tables import FieldRow, Layout

from ..errors import WrongUsage
from .judgement import Judged
from .rows import (
    COLUMNS,
    FieldPlace,
    Store,
    gathered,
    layout_at,
    places,
    reply_layout,
    store_of,
    table_of,
)

ANOMALIES: Final = (
    "bad-magic",
    "stale-success",
    "stale-error",
    "stale-load",
    "split-request",
    "short-request",
    "overlapping-requests",
    "over-long-request",
    "reply-mismatch",
)
"""Doubts that the wire alone raises; bit n of the `anomalies` column is the n-th name."""
ANOMALY_BIT: Final = {name: 1 << bit for bit, name in enumerate(ANOMALIES)}

_BLOCK: Final = 1 << 14  # rows whose arrays are looked through at once
_PIECE: Final = 1 << 16
"""Rows of a piece of what is in memory anyway."""
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One request as the guest saw it, and what came back.

    `t_ns` counts from the capture's first record; `latency_ns` runs from the last byte of the
    request to the last byte of its reply. `ret`, `latency_ns` and `reply` are None while
    unanswered.
    """

    row: int
    conn: int
    request: int
    t_ns: int
    op: str
    msg_type: int | None
    fields: Mapping[str, Any]
    size: int
    ret: int | None
    latency_ns: int | None
    reply: Mapping[str, Any] | None
    anomalies: tuple[str, ...]
    service: int = DEVICE_MANAGER_TABLE.byte

    @property
    def errno(self) -> str | None:
        """The name of a negative `ret`, None for success and unknown numbers."""
        return None if self.ret is None else errno_name(self.ret)

    @property
    def meaning(self) -> str:
        """What `ret` says in a few words; empty for plain success."""
        if self.ret is None or self.msg_type is None:
            return ""
        return result_meaning(self.msg_type, self.ret)

    @property
    def reply_load(self) -> dict[str, Any]:
        """The fields of the reply's load; empty without one."""
        header = ("msg_type", "msg_size")
        return {name: value for name, value in (self.reply or {}).items() if name not in header}

    @property
    def failed(self) -> bool:
        """True when it was answered with an error, or not at all."""
        return self.ret is None or self.ret < 0


class ColumnsPiece(NamedTuple):
    """Columns of the rows from `first_row` on; `extra` is the bytes from `extra_first` on."""

    first_row: int
    extra_first: int
    columns: Columns


class StoredColumns(Mapping[str, NDArray[Any]]):
    """Columns that are somewhere else than in memory, where a whole one may have no room."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """How long a column is."""

    @abstractmethod
    def pieces(self) -> Iterator[ColumnsPiece]:
        """All rows in their order, some thousand at a time."""

    @abstractmethod
    def piece_at(self, row: int) -> ColumnsPiece:
        """The one that a row is in."""


class Operations:
    """A view of columns as operations: of a table that was decoded, or of a capture's index.

    `column` gives one column as an array; it is fetched when it is first asked for. Of a piece of
    a longer view, rows count from the piece's first one.
    """

    def __init__(
        self, columns: Columns, first_ns: int, first_row: int = 0, extra_first: int = 0
    ) -> None:
        self._columns = columns
        self._first_ns = first_ns
        self.first_row = first_row
        """Where row 0 is in the whole of which this is a piece."""
        self._extra_first = extra_first
        self.judge: Callable[[Operations], Judged] | None = None
        """What finds out the findings at each operation, when they are first asked for."""
        self._judged: Judged | None = None

    def __len__(self) -> int:
        columns = self._columns
        return columns.rows if isinstance(columns, StoredColumns) else len(columns["conn"])

    def pieces(self) -> Iterator[Operations]:
        """The same, some thousand rows at a time: who lets go of each needs memory for one."""
        columns = self._columns
        found = columns.pieces() if isinstance(columns, StoredColumns) else self._slices()
        for first_row, extra_first, part in found:
            piece = Operations(part, self._first_ns, first_row, extra_first)
            piece.judge = self.judge
            yield piece

    def _slices(self) -> Iterator[ColumnsPiece]:
        for first in range(0, len(self), _PIECE):
            part = {name: self._columns[name][first : first + _PIECE] for name in COLUMNS}
            part["extra"] = self._columns["extra"]
            yield ColumnsPiece(self.first_row + first, self._extra_first, part)

    def judged(self) -> Judged:
        """The findings at each operation; raises WrongUsage where nothing can find them out."""
        if self._judged is None:
            if self.judge is None:
                raise WrongUsage("what was found is not known here: code and finding need a file")
            self._judged = self.judge(self)
        return self._judged

    def column(self, name: str) -> NDArray[Any]:
        """One column by its name in the table."""
        return self._columns[name]

    def names(self) -> list[str]:
        """The columns there are."""
        return list(self._columns)

    def layout(self, row: int) -> Layout:
        """Which fields the messages of an operation have."""
        table = table_of(int(self._columns["service"][row]))
        return layout_at(table, int(self._columns["layout"][row]))

    def ours(self) -> NDArray[np.bool_]:
        """A mask of the operations of the device manager; the others are of other services."""
        mask: NDArray[np.bool_] = self._columns["service"] == DEVICE_MANAGER_TABLE.byte
        return mask

    def t_ns(self) -> NDArray[Any]:
        """When each request was sent, in nanoseconds since the capture's first record."""
        times: NDArray[Any] = self._columns["t_ns"]
        return times - self._first_ns if self._first_ns else times

    def where(self, name: str, test: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> Any:
        """A mask of the operations with a field, a part of one or an element of an array of that
        name whose value passes the test. `test` takes values and gives a truth value for each."""
        service = self._columns["service"]
        ours = bool((service == DEVICE_MANAGER_TABLE.byte).all())
        services = [DEVICE_MANAGER_TABLE.byte] if ours else np.unique(service).tolist()
        hits = np.zeros(len(self), np.bool_)
        for place in places(name, services):
            numbers = [layout.number for layout in place.layouts]
            chosen = np.isin(self._columns["layout"], numbers)
            if not ours:
                chosen &= service == place.service
            if place.of_reply:
                chosen &= (self._columns["answered"] == 1) & (self._columns["reply_load"] >= 0)
            hits |= self._tested(place, chosen, test)
        return hits

    def _tested(
        self, place: FieldPlace, chosen: NDArray[np.bool_], test: Callable[[NDArray[Any]], Any]
    ) -> NDArray[np.bool_]:
        row, part = place.row, place.part
        store = store_of(place.table, place.layouts[0], place.of_reply)
        if row.count is not None:
            return self._any_element(place, store, chosen, test)
        if row in store.in_columns:
            values = self._columns["reply_load" if place.of_reply else row.name]
            if part is not None:
                values = (values >> part.shift) & part.limit
            whole: NDArray[np.bool_] = test(values) & chosen
            return whole
        rows = np.flatnonzero(chosen)
        values = gathered(self._columns["extra"], self._begins(place, rows) + store.place(row), row)
        if part is not None:
            values = (values >> part.shift) & part.limit
        hits = np.zeros(len(chosen), np.bool_)
        hits[rows] = test(values)
        return hits

    def _begins(self, place: FieldPlace, rows: NDArray[Any]) -> NDArray[Any]:
        """Where the bytes of some rows' requests or replies begin in `extra`."""
        if place.of_reply:
            begins = self._columns["reply_load"][rows]
        else:
            ends = self._columns["extra_end"][rows].astype(np.int64)
            begins = ends - self._columns["extra_size"][rows]
        begins = begins - self._extra_first
        clipped: NDArray[Any] = np.clip(begins, 0, len(self._columns["extra"]))
        return clipped

    def _any_element(
        self,
        place: FieldPlace,
        store: Store,
        chosen: NDArray[np.bool_],
        test: Callable[[NDArray[Any]], Any],
    ) -> NDArray[np.bool_]:
        hits = np.zeros(len(chosen), np.bool_)
        every = np.flatnonzero(chosen)
        for block in range(0, len(every), _BLOCK):  # a damaged index may claim any lengths
            rows = every[block : block + _BLOCK]
            begins = self._begins(place, rows) + store.packed.size
            for array in store.arrays:
                counts = self._lengths(place, store, array, rows)
                if array is place.row:
                    break
                begins = begins + counts * array.item_size
            first = np.repeat(np.cumsum(counts) - counts, counts)
            number = np.arange(int(counts.sum())) - first
            starts = np.repeat(begins, counts) + number * place.row.item_size
            passed = test(gathered(self._columns["extra"], starts, place.row))
            hits[np.repeat(rows, counts)[passed]] = True
        return hits

    def _lengths(
        self, place: FieldPlace, store: Store, array: FieldRow, rows: NDArray[Any]
    ) -> NDArray[Any]:
        """How many elements of an array are meant in each of some rows."""
        assert array.count is not None  # it is an array
        counting = next((row for row in store.rows if row.name == array.length), None)
        if counting is None:
            return np.full(len(rows), array.count)
        if counting in store.in_columns:
            lengths: NDArray[Any] = self._columns[counting.name][rows]
        else:
            at = self._begins(place, rows) + store.place(counting)
            lengths = gathered(self._columns["extra"], at, counting)
        bounded: NDArray[Any] = np.minimum(
            lengths.astype(np.uint64), np.uint64(array.count)
        ).astype(np.int64)
        return bounded

    def operation(self, row: int) -> Operation:
        """One row as an object."""
        if isinstance(self._columns, StoredColumns):
            first_row, extra_first, part = self._columns.piece_at(row)
            return Operations(part, self._first_ns, first_row, extra_first).operation(
                row - first_row
            )
        cell = {name: self._columns[name][row].item() for name in _SHOWN}
        table = table_of(cell["service"])
        ours = table is DEVICE_MANAGER_TABLE
        layout = layout_at(table, cell["layout"])
        message = table.by_number.get(cell["msg_type"])
        reply: dict[str, Any] | None = None
        if cell["answered"]:
            reply = {"msg_type": cell["reply_type"], "msg_size": cell["reply_size"]} if ours else {}
            if cell["reply_load"] >= 0:
                answered = reply_layout(table, layout, cell["reply_type"])
                load = cell["reply_load"]
                number = {row.name: load for row in answered.reply}
                begin = load - self._extra_first
                reply |= store_of(table, answered, True).read(number, self._columns["extra"], begin)
        begin = cell["extra_end"] - cell["extra_size"] - self._extra_first
        return Operation(
            row=self.first_row + row,
            conn=cell["conn"],
            request=cell["request"],
            t_ns=cell["t_ns"] - self._first_ns,
            op=message.name if message else op_name(cell["msg_type"]),
            msg_type=cell["msg_type"] if ours else None,
            fields=store_of(table, layout, False).read(cell, self._columns["extra"], begin),
            size=cell["size"],
            ret=cell["ret"] if cell["answered"] else None,
            latency_ns=cell["latency_ns"] if cell["answered"] else None,
            reply=reply,
            anomalies=anomaly_names(cell["anomalies"]),
            service=cell["service"],
        )

    def __iter__(self) -> Iterator[Operation]:
        for piece in self.pieces():
            yield from map(piece.operation, range(len(piece)))


_SHOWN: Final = tuple(
    name for name in COLUMNS if name not in ("offset", "position", "msg_size", "reply_offset")
)


def anomaly_names(bits: int) -> tuple[str, ...]:
    """The names of the bits that are set, in the order of `ANOMALIES`."""
    return tuple(name for name, bit in ANOMALY_BIT.items() if bits & bit)
