"""Operations, a request and its reply, kept as rows of one packed table.

A row costs no Python object, so a million of them stay small, and a column of them is an array:
filters and statistics read columns. `OperationTable.operation` makes one row an object again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import errno_name, op_name, result_meaning
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.services import ServiceReply, ServiceRequest
from dissectors.tables import FieldRow, Layout

from ..errors import WrongUsage
from .judgement import Judged
from .rows import (
    ANSWERS,
    COLUMNS,
    KEPT,
    FieldPlace,
    Store,
    gathered,
    layout_at,
    places,
    reply_layout,
    store_of,
    table_of,
)

FREE_ROWS: Final = 1 << 16
"""So many operations any file may stand for; beyond, it needs bytes for each."""
ROW_BYTES: Final = 16
"""Bytes of a capture for an operation at least: a request that is a run of zeros takes more."""


def rows_in(size: int) -> int:
    """How many operations `size` bytes of a capture can stand for.

    A few hostile bytes can stand for very many, and memory has to be found for each.
    """
    return FREE_ROWS + size // ROW_BYTES


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

_ROW: Final = Struct("<" + "".join(COLUMNS.values()))
ROWS: Final = np.dtype([(name, "<" + code) for name, code in COLUMNS.items()])
"""The numpy type of a row."""
COLUMN_TYPES: Final = {name: ROWS[name].str for name in COLUMNS} | {"extra": "|u1"}
"""Name and numpy type of each column that `OperationTable.columns` gives."""
_AT: Final = {name: place[1] for name, place in (ROWS.fields or {}).items()}
_ANSWER: Final = Struct("<BiIIqqq")
_U32: Final = Struct("<I")
_I64: Final = Struct("<q")
_RESULT: Final = Struct("<Bi")
_U32_LIMIT: Final = 0xFFFFFFFF
_BLOCK: Final = 1 << 14  # rows whose arrays are looked through at once


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


class OperationTable:
    """Rows of operations in the order in which the requests were sent."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._extra = bytearray()
        self._first = 0
        self._extra_first = 0
        self._kept: dict[int, bytearray] = {}
        self._changed: set[int] = set()

    def __len__(self) -> int:
        return self._first + len(self._rows) // _ROW.size

    def append(
        self,
        conn: int,
        number: int,
        t_ns: int,
        offset: int,
        position: int,
        size: int,
        request: ServiceRequest,
        anomalies: int,
    ) -> int:
        """Add a request that is not answered yet; returns its row."""
        service, layout, pack, values, extra_of = KEPT[type(request)]
        extra_size = 0
        if extra_of is not None:
            extra = extra_of(request)
            extra_size = len(extra)
            self._extra += extra
        row = len(self)
        self._rows += pack(
            conn, min(number, _U32_LIMIT), t_ns, offset, position, size, service, layout,
            *values(request), anomalies, self._extra_first + len(self._extra), extra_size,
            0, 0, 0, 0, -1, -1, -1,
        )  # fmt: skip
        return row

    def answer(self, row: int, reply: ServiceReply, latency_ns: int, offset: int) -> None:
        """Add the reply to a row; the latency is in nanoseconds."""
        msg_type, msg_size, load = ANSWERS[type(reply)](reply)
        if type(load) is bytes:  # more than one number: where it begins in `extra` stands for it
            begin = self._extra_first + len(self._extra)
            self._extra += load
            load = begin
        rows, at = self._place(row)
        _ANSWER.pack_into(
            rows, at + _AT["answered"],
            1, reply.ret, msg_type, msg_size, load, latency_ns, offset,
        )  # fmt: skip

    def extend(self, rows: NDArray[Any], extra: bytes) -> int:
        """Add rows that are made, of type `ROWS`, their places in `extra` counted from its
        beginning; returns the first one's number."""
        first = len(self)
        rows["extra_end"] += self._extra_first + len(self._extra)
        self._rows += rows.tobytes()
        self._extra += extra
        return first

    def change_anomalies(self, row: int, add: int = 0, remove: int = 0) -> None:
        """Set and clear bits of a row's anomalies."""
        rows, at = self._place(row)
        (bits,) = _U32.unpack_from(rows, at + _AT["anomalies"])
        _U32.pack_into(rows, at + _AT["anomalies"], (bits | add) & ~remove)

    def _place(self, row: int) -> tuple[bytearray, int]:
        """Where a row is now, which may have been cut off."""
        if row >= self._first:
            return self._rows, (row - self._first) * _ROW.size
        self._changed.add(row)
        return self._kept[row], 0

    def result(self, row: int) -> tuple[str, str, int]:
        """(operation, result, latency in ns or -1): the name of an errno, `ok` or `unanswered`."""
        rows, at = self._place(row)
        answered, ret = _RESULT.unpack_from(rows, at + _AT["answered"])
        (latency_ns,) = _I64.unpack_from(rows, at + _AT["latency_ns"])
        (msg_type,) = _U32.unpack_from(rows, at + _AT["msg_type"])
        message = table_of(rows[at + _AT["service"]]).by_number.get(msg_type)
        op = message.name if message else op_name(msg_type)
        if not answered:
            return op, "unanswered", -1
        return op, errno_name(ret) or "ok" if ret <= 0 else str(ret), latency_ns

    def columns(self, first: int = 0) -> dict[str, NDArray[Any]]:
        """A copy of every column from row `first` on, and the bytes in `extra`."""
        return _columns(self._rows[max(0, first - self._first) * _ROW.size :], self._extra)

    def cut(self, unfinished: Iterable[int]) -> tuple[dict[str, NDArray[Any]], Changed]:
        """The columns of the rows since the last cut, which are let go of, and what changed.

        `unfinished` are the rows, old and new, that can still change; of those only are copies
        kept. A row that was cut off earlier and changed since comes back whole.
        """
        changed = {row: bytes(self._kept[row]) for row in sorted(self._changed)}
        columns = _columns(self._rows, self._extra)
        kept = {}
        for row in unfinished:
            rows, at = self._place(row)
            kept[row] = bytearray(rows[at : at + _ROW.size])
        self._first, self._extra_first = len(self), self._extra_first + len(self._extra)
        self._rows, self._extra, self._kept = bytearray(), bytearray(), kept
        self._changed = set()
        return columns, changed


Changed = dict[int, bytes]
"""Row -> all of its columns but `extra`, packed."""


def _columns(packed: bytes | bytearray, extra: bytes | bytearray) -> dict[str, NDArray[Any]]:
    rows = np.frombuffer(bytes(packed), ROWS)
    named: dict[str, NDArray[Any]] = {name: rows[name] for name in COLUMNS}
    named["extra"] = np.frombuffer(bytes(extra), np.uint8)
    return named


def unpack_rows(packed: bytes) -> dict[str, NDArray[Any]]:
    """The columns of rows as `OperationTable.cut` packs those that changed; raises ValueError."""
    return _columns(packed, b"")


class NoTable(OperationTable):
    """Takes operations and keeps none: for whoever only wants a session's events."""

    def append(self, *_: object) -> int:
        return 0

    def extend(self, *_: object) -> int:
        return 0

    def answer(self, *_: object) -> None:
        return None

    def change_anomalies(self, row: int, add: int = 0, remove: int = 0) -> None:
        return None


class Operations:
    """A view of columns as operations: of a table that was decoded, or of a capture's index.

    `column` gives one column as an array; it is fetched when it is first asked for.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], first_ns: int) -> None:
        self._columns = columns
        self._first_ns = first_ns
        self.judge: Callable[[Operations], Judged] | None = None
        """What finds out the findings at each operation, when they are first asked for."""
        self._judged: Judged | None = None

    def __len__(self) -> int:
        return len(self._columns["conn"])

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
        times: NDArray[Any] = self._columns["t_ns"] - self._first_ns
        return times

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
                reply |= store_of(table, answered, True).read(number, self._columns["extra"], load)
        return Operation(
            row=row,
            conn=cell["conn"],
            request=cell["request"],
            t_ns=cell["t_ns"] - self._first_ns,
            op=message.name if message else op_name(cell["msg_type"]),
            msg_type=cell["msg_type"] if ours else None,
            fields=store_of(table, layout, False).read(
                cell, self._columns["extra"], cell["extra_end"] - cell["extra_size"]
            ),
            size=cell["size"],
            ret=cell["ret"] if cell["answered"] else None,
            latency_ns=cell["latency_ns"] if cell["answered"] else None,
            reply=reply,
            anomalies=anomaly_names(cell["anomalies"]),
            service=cell["service"],
        )

    def __iter__(self) -> Iterator[Operation]:
        for row in range(len(self)):
            yield self.operation(row)


_SHOWN: Final = tuple(
    name for name in COLUMNS if name not in ("offset", "position", "msg_size", "reply_offset")
)


def anomaly_names(bits: int) -> tuple[str, ...]:
    """The names of the bits that are set, in the order of `ANOMALIES`."""
    return tuple(name for name, bit in ANOMALY_BIT.items() if bits & bit)
