"""Operations while they are decoded: rows of one packed table, with no Python object for each.

`columns` gives them as arrays, one for each number of a row. `cut` gives the rows that there are
and lets go of them, so that decoding a long capture takes no memory for each operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import errno_name, op_name
from dissectors.services import ServiceReply, ServiceRequest

from .rows import ANSWERS, COLUMNS, KEPT, load_end, table_of

FREE_ROWS: Final = 1 << 16
"""So many operations any file may stand for; beyond, it needs bytes for each."""
ROW_BYTES: Final = 16
"""Bytes of a capture for an operation at least: a request that is a run of zeros takes more."""


def rows_in(size: int) -> int:
    """How many operations `size` bytes of a capture can stand for.

    A few hostile bytes can stand for very many, and memory has to be found for each.
    """
    return FREE_ROWS + size // ROW_BYTES


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

    def lacks_rest(self, row: int) -> None:
        """The rest of a request was not recorded: if fields are in it, none are known."""
        rows, at = self._place(row)
        cell = np.frombuffer(bytes(rows[at : at + _ROW.size]), ROWS)[0]
        if cell["size"] < load_end(cell):
            rows[at + _AT["layout"]] = 0

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

    def lacks_rest(self, row: int) -> None:
        return None
