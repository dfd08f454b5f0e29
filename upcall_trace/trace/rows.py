"""How the fields of a message are kept in a row of operations, and read from it again.

Each number of a device-manager request's load has a column of its own. What has none stands in
`extra`, the bytes of variable length: first the numbers, then of each array the elements that are
meant. A reply whose load is one small number keeps it in `reply_load`; of any other, `reply_load`
says where its load begins in `extra`. All of it follows from the table of the message's service.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dissectors.codecs import Codec, compiled, elements
from dissectors.constants import Arch
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.services import registered, service_for
from dissectors.tables import Bits, FieldRow, Layout, MessageTable, Show


def _load_columns() -> dict[str, str]:
    found: dict[str, FieldRow] = {}
    for layout in DEVICE_MANAGER_TABLE.layouts:
        for row in layout.request:
            known = found.get(row.name)
            if row.count is None and (known is None or known.size < row.size):
                found[row.name] = row
    return {name: row.code for name, row in found.items()}


LOAD_COLUMNS: Final = _load_columns()
"""Name and `struct` code of the columns that hold the numbers of a request's load."""
COLUMNS: Final = {
    "conn": "I",
    "request": "I",
    "t_ns": "q",
    "offset": "Q",
    "position": "I",
    "size": "I",
    "service": "B",
    "layout": "B",
    "msg_type": "I",
    "msg_size": "I",
    **LOAD_COLUMNS,
    "anomalies": "I",
    "extra_end": "Q",
    "extra_size": "I",
    "answered": "B",
    "ret": "i",
    "reply_type": "I",
    "reply_size": "I",
    "reply_load": "q",
    "latency_ns": "q",
    "reply_offset": "q",
}
"""Name and `struct` code of each column. `offset` and `reply_offset` are of the records in the
file, `position` is in the record; `reply_load` and `reply_offset` are -1 where there is none;
`extra_end` and `extra_size` say which of the `extra` bytes are the request's. `layout` is a number
among the layouts of the service's table, `msg_type` that of a message in it."""


@dataclass(frozen=True)
class Store:
    """Where the fields of a load are: `in_columns` have their own, the others are in `extra`."""

    rows: tuple[FieldRow, ...]
    in_columns: tuple[FieldRow, ...]
    in_extra: tuple[FieldRow, ...]
    arrays: tuple[FieldRow, ...]

    @cached_property
    def packed(self) -> Struct:
        """The numbers in `extra`."""
        return Struct("<" + "".join(row.code for row in self.in_extra))

    def place(self, row: FieldRow) -> int:
        """Where a number begins in the row's part of `extra`, counted in bytes."""
        return sum(other.size for other in self.in_extra[: self.in_extra.index(row)])

    def read(
        self, cell: Mapping[str, int], extra: NDArray[Any], begin: int
    ) -> dict[str, int | list[int]]:
        """The fields by their names, in the order of the table; none where `extra` is damaged."""
        values: dict[str, int | list[int]] = {row.name: cell[row.name] for row in self.in_columns}
        if self.in_extra or self.arrays:
            begin = max(0, begin)
            try:
                room = self.packed.size + sum(row.size for row in self.arrays)
                raw = extra[begin : begin + room].tobytes()
                numbers = self.packed.unpack_from(raw)
                values |= zip((row.name for row in self.in_extra), numbers, strict=True)
                at = self.packed.size
                for row in self.arrays:
                    end = at + row.item_size * meant(row, values)
                    values[row.name] = elements(row, raw[at:end], meant(row, values))
                    at = end
            except struct_error:
                return {}
        found: dict[str, int | list[int]] = {}
        for row in self.rows:
            value = found[row.name] = values[row.name]
            if isinstance(value, int):
                found |= {part.name: part.of(value) for part in row.bits}
        return found


def meant(row: FieldRow, values: Mapping[str, Any]) -> int:
    """How many elements of an array are meant; never more than it has."""
    assert row.count is not None  # it is an array
    return min(row.count, values[row.length]) if row.length else row.count


_stores: dict[tuple[int, int, bool], Store] = {}


def store_of(table: MessageTable, layout: Layout, of_reply: bool) -> Store:
    """Where the load of a layout's requests, or of its replies, is kept."""
    key = (table.byte, layout.number, of_reply)
    if key not in _stores:
        load = layout.reply if of_reply else layout.request
        rows = tuple(row for row in load if row.show is not Show.FILLING)
        numbers = tuple(row for row in rows if row.count is None)
        own = () if of_reply or table is not DEVICE_MANAGER_TABLE else numbers
        if of_reply and _is_one_number(rows):
            own = numbers
        in_extra = tuple(row for row in numbers if row not in own)
        arrays = tuple(row for row in rows if row.count is not None)
        _stores[key] = Store(rows, own, in_extra, arrays)
    return _stores[key]


def _is_one_number(rows: Sequence[FieldRow]) -> bool:
    """Whether a reply's load is a number that `reply_load` can hold, which is -1 for none."""
    return len(rows) == 1 and rows[0].type in ("u8", "u16", "u32") and rows[0].count is None


class Kept(NamedTuple):
    """How the requests of a class become rows: a tuple, because every request is kept by one.

    `values` are the cells that only a layout knows; `pack` makes a row of all.
    """

    service: int
    layout: int
    pack: Callable[..., bytes]
    values: Callable[[Any], tuple[int, ...]]
    extra: Callable[[Any], bytes] | None


class _HowToKeep(dict[type[Any], Kept]):
    def __missing__(self, kind: type[Any]) -> Kept:
        self[kind] = kept = _learn(kind)
        return kept


KEPT: Final = _HowToKeep()
"""How to keep requests of a class."""


def _learn(kind: type[Any]) -> Kept:
    codec: Codec = kind.codec
    table = codec.table
    store = store_of(table, codec.layout, False)
    own = {row.name for row in store.in_columns}
    cells = [name for name in LOAD_COLUMNS if name in own]
    code = "<"
    for name, letter in COLUMNS.items():
        empty = name in LOAD_COLUMNS and name not in own
        code += f"{Struct('<' + letter).size}x" if empty else letter
    size = f"min(m.{table.size_field}, {_U32})" if table.size_field else "0"
    values = ", ".join([f"m.number & {_U32}", size, *(f"m.{name}" for name in cells)])
    if table is DEVICE_MANAGER_TABLE:
        values = ", ".join(f"m.{name}" for name in ("msg_type", "msg_size", *cells))
    extra = compiled(_extra_source(store), pack=store.packed.pack)
    return Kept(
        table.byte,
        codec.layout.number,
        Struct(code).pack,
        compiled(f"({values},)"),
        extra if store.in_extra or store.arrays else None,
    )


_U32: Final = 0xFFFFFFFF


def _extra_source(store: Store) -> str:
    """What goes into `extra`, as source text."""
    parts = [f"pack({', '.join(f'm.{row.name}' for row in store.in_extra)})"] * bool(store.in_extra)
    for row in store.arrays:
        length = f"m.{row.length}" if row.length else str(row.count)
        parts.append(f"m.{row.name}[:{length} * {row.item_size}]")
    return " + ".join(parts) or "b''"


class _HowToAnswer(dict[type[Any], Callable[[Any], tuple[int, int, Any]]]):
    def __missing__(self, kind: type[Any]) -> Callable[[Any], tuple[int, int, Any]]:
        self[kind] = told = _learn_answer(kind)
        return told


ANSWERS: Final = _HowToAnswer()
"""A function of a reply for each class: its type, its size, and its load, which is a number that is
kept as it is, or bytes that go into `extra`."""


def _learn_answer(kind: type[Any]) -> Callable[[Any], tuple[int, int, Any]]:
    codec: Codec = kind.codec
    store = store_of(codec.table, codec.layout, True)
    load = "-1"
    if store.in_columns:
        load = f"m.{store.in_columns[0].name}"
    elif store.rows:
        load = _extra_source(store)
    ours = codec.table is DEVICE_MANAGER_TABLE
    head = "m.msg_type, m.msg_size" if ours else "0, 0"
    told: Callable[[Any], tuple[int, int, Any]] = compiled(
        f"({head}, {load})", pack=store.packed.pack
    )
    return told


_NOBODYS: Final = MessageTable(
    byte=0,
    request_size=4,
    reply_size=4,
    request_header=(FieldRow(0, "type", "u32", "which message this is"),),
    reply_header=(FieldRow(0, "ret", "i32", "the result"),),
    messages=(),
    type_field="type",
)


def table_of(service: int) -> MessageTable:
    """The table of a service byte; one without messages where nobody knows the byte."""
    if service == DEVICE_MANAGER_TABLE.byte:
        return DEVICE_MANAGER_TABLE
    found = service_for(service)
    return found.table if found else _NOBODYS


def layout_at(table: MessageTable, number: int) -> Layout:
    """The layout of a number in the `layout` column; that of no load for one that is damaged."""
    return table.layouts[number] if number < len(table.layouts) else table.layouts[0]


def reply_layout(table: MessageTable, layout: Layout, reply_type: int) -> Layout:
    """The layout of a reply to a request of this layout, by the type that the reply tells."""
    if table is not DEVICE_MANAGER_TABLE:
        return layout
    return table.layout(reply_type, layout.arch or Arch.X86_64)


def load_end(cell: Mapping[str, Any]) -> int:
    """Where the fields of a request end that has these columns."""
    layout = layout_at(table_of(int(cell["service"])), int(cell["layout"]))
    lengths: dict[str, int] = defaultdict(lambda: _U32)
    lengths |= {name: int(cell[name]) for name in LOAD_COLUMNS}
    ends = (
        row.offset + (row.size if row.count is None else row.item_size * meant(row, lengths))
        for row in layout.request
    )
    return max(ends, default=0)


class FieldPlace(NamedTuple):
    """Where values of a name are: those of `row`, or one of its `part`s, in some layouts."""

    service: int
    row: FieldRow
    part: Bits | None
    of_reply: bool
    layouts: tuple[Layout, ...]
    table: MessageTable


def places(name: str, services: Sequence[int]) -> Iterator[FieldPlace]:
    """Every place where these services' messages have a number, an array's element or a part of
    that name."""
    for service in services:
        table = table_of(service)
        if table.byte != service:
            continue
        found: dict[tuple[FieldRow, Bits | None, bool], list[Layout]] = {}
        for layout in table.layouts:
            for of_reply, load in ((False, layout.request), (True, layout.reply)):
                for row in load:
                    part = next((part for part in row.bits if part.name == name), None)
                    if part or name == (row.name if row.count is None else row.item):
                        found.setdefault((row, part, of_reply), []).append(layout)
        for (row, part, of_reply), layouts in found.items():
            yield FieldPlace(service, row, part, of_reply, tuple(layouts), table)


def other_tables() -> list[MessageTable]:
    """The tables of other packages' services."""
    return [service.table for service in registered()]


def gathered(extra: NDArray[Any], begins: NDArray[Any], row: FieldRow) -> NDArray[Any]:
    """One element of the row's type at each of these places in `extra`; zero beyond its end."""
    size = row.item_size
    padded = np.concatenate((extra, np.zeros(size, np.uint8)))
    starts = np.clip(begins, 0, len(extra)).astype(np.int64)
    value = np.zeros(len(starts), np.uint64)
    for place in range(size):
        value |= padded[starts + place].astype(np.uint64) << np.uint64(8 * place)
    return value.astype(f"<u{size}").view("<" + np.dtype(row.code).str[1:])
