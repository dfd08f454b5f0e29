"""Operations, a request and its reply, kept as rows of one packed table.

A row costs no Python object, so a million of them stay small, and a column of them is an array:
filters and statistics read columns. `OperationTable.operation` makes one row an object again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import errno_name, op_name, result_meaning
from dissectors.messages import (
    CpuReplyArm,
    CpuReplyX86,
    CpuRequestArm,
    CpuRequestX86,
    MmioRequest,
    PciRequest,
    Reply,
    Request,
)
from dissectors.services import ServiceReply, ServiceRequest

FREE_ROWS: Final = 1 << 20
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

# Which of a row's columns its request fills.
BARE, CPU_X86, CPU_ARM, MMIO, PCI, OTHER_SERVICE = range(6)

_COLUMNS: Final = (
    ("conn", "I"),
    ("request", "I"),
    ("t_ns", "q"),
    ("offset", "Q"),
    ("position", "I"),
    ("size", "I"),
    ("layout", "B"),
    ("msg_type", "I"),
    ("msg_size", "I"),
    ("mmio_base", "Q"),
    ("mmio_size", "Q"),
    ("mmio_irq", "I"),
    ("count", "B"),
    ("apic_ver", "B"),
    ("busno", "B"),
    ("devfn", "B"),
    ("anomalies", "I"),
    ("extra_end", "Q"),
    ("extra_size", "I"),
    ("answered", "B"),
    ("ret", "i"),
    ("reply_type", "I"),
    ("reply_size", "I"),
    ("reply_load", "q"),
    ("latency_ns", "q"),
    ("reply_offset", "q"),
)
"""Name and `struct` code of each column. `offset` and `reply_offset` are of the records in the
file, `position` is in the record; `reply_load` and `reply_offset` are -1 where there is none;
`extra_end` and `extra_size` say which of the `extra` bytes are the row's."""
_ROW: Final = Struct("<" + "".join(code for _, code in _COLUMNS))
_DTYPE: Final = np.dtype([(name, "<" + code) for name, code in _COLUMNS])
COLUMN_TYPES: Final = {name: _DTYPE[name].str for name, _ in _COLUMNS} | {"extra": "|u1"}
"""Name and numpy type of each column that `OperationTable.columns` gives."""
_ANSWER_AT: Final = _DTYPE.fields["answered"][1] if _DTYPE.fields else 0
_ANSWER: Final = Struct("<BiIIqqq")
_ANOMALIES_AT: Final = _DTYPE.fields["anomalies"][1] if _DTYPE.fields else 0
_U32: Final = Struct("<I")
_U32_LIMIT: Final = 0xFFFFFFFF


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
    reply: Mapping[str, int] | None
    anomalies: tuple[str, ...]

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
        extra_begin = len(self._extra)
        base = window = irq = count = apic_ver = busno = devfn = 0
        msg_type = msg_size = 0
        if isinstance(request, Request):
            msg_type, msg_size = request.msg_type, request.msg_size
            layout = BARE
            if isinstance(request, MmioRequest):
                layout = MMIO
                base, window, irq = request.mmio_base, request.mmio_size, request.mmio_irq
            elif isinstance(request, PciRequest):
                layout = PCI
                busno, devfn = request.busno, request.devfn
            elif isinstance(request, CpuRequestX86):
                layout = CPU_X86
                count, apic_ver = request.count, request.apic_ver
                self._extra += request.apic_ids[:count]
            elif isinstance(request, CpuRequestArm):
                layout = CPU_ARM
                count = request.count
        else:
            layout = OTHER_SERVICE
            described = [request.op, dict(request.fields())]
            self._extra += json.dumps(described, default=str, skipkeys=True).encode()
        row = len(self)
        self._rows += _ROW.pack(
            conn, min(number, _U32_LIMIT), t_ns, offset, position, size, layout, msg_type, msg_size,
            base, window, irq, count, apic_ver, busno, devfn, anomalies,
            self._extra_first + len(self._extra), len(self._extra) - extra_begin,
            0, 0, 0, 0, -1, -1, -1,
        )  # fmt: skip
        return row

    def answer(self, row: int, reply: ServiceReply, latency_ns: int, offset: int) -> None:
        """Add the reply to a row; the latency is in nanoseconds."""
        msg_type = msg_size = 0
        load = -1
        if isinstance(reply, Reply):
            msg_type, msg_size = reply.msg_type, reply.msg_size
            if isinstance(reply, CpuReplyX86):
                load = reply.apic_index
            elif isinstance(reply, CpuReplyArm):
                load = reply.cpu_id
        rows, at = self._place(row)
        _ANSWER.pack_into(
            rows, at + _ANSWER_AT,
            1, reply.ret, msg_type, msg_size, load, latency_ns, offset,
        )  # fmt: skip

    def change_anomalies(self, row: int, add: int = 0, remove: int = 0) -> None:
        """Set and clear bits of a row's anomalies."""
        rows, at = self._place(row)
        (bits,) = _U32.unpack_from(rows, at + _ANOMALIES_AT)
        _U32.pack_into(rows, at + _ANOMALIES_AT, (bits | add) & ~remove)

    def _place(self, row: int) -> tuple[bytearray, int]:
        """Where a row is now, which may have been cut off."""
        if row >= self._first:
            return self._rows, (row - self._first) * _ROW.size
        self._changed.add(row)
        return self._kept[row], 0

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
    rows = np.frombuffer(bytes(packed), _DTYPE)
    named: dict[str, NDArray[Any]] = {name: rows[name] for name, _ in _COLUMNS}
    named["extra"] = np.frombuffer(bytes(extra), np.uint8)
    return named


def unpack_rows(packed: bytes) -> dict[str, NDArray[Any]]:
    """The columns of rows as `OperationTable.cut` packs those that changed; raises ValueError."""
    return _columns(packed, b"")


class NoTable(OperationTable):
    """Takes operations and keeps none: for whoever only wants a session's events."""

    def append(self, *_: object) -> int:
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

    def __len__(self) -> int:
        return len(self._columns["conn"])

    def column(self, name: str) -> NDArray[Any]:
        """One column by its name in the table."""
        return self._columns[name]

    def names(self) -> list[str]:
        """The columns there are."""
        return list(self._columns)

    def t_ns(self) -> NDArray[Any]:
        """When each request was sent, in nanoseconds since the capture's first record."""
        times: NDArray[Any] = self._columns["t_ns"] - self._first_ns
        return times

    def extra(self, row: int) -> bytes:
        """The row's bytes of variable length: APIC ids, or another service's fields as JSON."""
        end = int(self._columns["extra_end"][row])
        begin = end - int(self._columns["extra_size"][row])
        return self._columns["extra"][begin:end].tobytes()

    def operation(self, row: int) -> Operation:
        """One row as an object."""
        cell = {name: self._columns[name][row].item() for name in _SHOWN}
        layout = cell["layout"]
        op, msg_type = op_name(cell["msg_type"]), cell["msg_type"]
        fields: dict[str, Any] = {}
        if layout == MMIO:
            fields = {key: cell[key] for key in ("mmio_base", "mmio_size", "mmio_irq")}
        elif layout == PCI:
            devfn = cell["devfn"]
            fields = {"busno": cell["busno"], "devfn": devfn, "slot": devfn >> 3,
                      "function": devfn & 7}  # fmt: skip
        elif layout == CPU_X86:
            fields = {"count": cell["count"], "apic_ver": cell["apic_ver"],
                      "apic_ids": list(self.extra(row))}  # fmt: skip
        elif layout == CPU_ARM:
            fields = {"count": cell["count"]}
        elif layout == OTHER_SERVICE:
            op, fields = _other_service(self.extra(row))
            msg_type = None
        reply: dict[str, int] | None = None
        if cell["answered"]:
            reply = {"msg_type": cell["reply_type"], "msg_size": cell["reply_size"]}
            if cell["reply_load"] >= 0:
                arm = layout == CPU_ARM
                reply["cpu_id" if arm else "apic_index"] = cell["reply_load"]
        return Operation(
            row=row,
            conn=cell["conn"],
            request=cell["request"],
            t_ns=cell["t_ns"] - self._first_ns,
            op=op,
            msg_type=msg_type,
            fields=fields,
            size=cell["size"],
            ret=cell["ret"] if cell["answered"] else None,
            latency_ns=cell["latency_ns"] if cell["answered"] else None,
            reply=reply,
            anomalies=anomaly_names(cell["anomalies"]),
        )

    def __iter__(self) -> Iterator[Operation]:
        for row in range(len(self)):
            yield self.operation(row)


def _other_service(extra: bytes) -> tuple[str, dict[str, Any]]:
    """Name and fields of another service's request; neutral ones when `extra` is damaged."""
    try:
        op, fields = json.loads(extra)
    except (ValueError, TypeError, RecursionError):
        return "unknown", {}
    return str(op), fields if isinstance(fields, dict) else {}


_SHOWN: Final = tuple(
    name
    for name, _ in _COLUMNS
    if name not in ("offset", "position", "msg_size", "extra_end", "extra_size", "reply_offset")
)


def anomaly_names(bits: int) -> tuple[str, ...]:
    """The names of the bits that are set, in the order of `ANOMALIES`."""
    return tuple(name for name, bit in ANOMALY_BIT.items() if bits & bit)
