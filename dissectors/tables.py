"""What a table of messages is made of: rows of fields, and the layouts that follow from them.

`dissectors.layouts` has the rows of the device manager; other services bring their own. No row is
of a certain message here. docs/developing.md tells what a row can say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from itertools import count
from typing import Final, NamedTuple
from zlib import crc32

from .constants import Arch
from .errors import UpcallError

TYPE_CODES: Final = {
    "u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i8": "b", "i16": "h", "i32": "i", "i64": "q",
}  # fmt: skip
"""The types of fields, all little-endian, and how `struct` and numpy write them."""


ARCH_NAMES: Final = {Arch.X86_64: "x86-64", Arch.AARCH64: "aarch64"}
"""The architectures as texts for people call them."""


class Show(Enum):
    """How people read a field's value."""

    NUMBER = auto()
    HEX = auto()
    MAGIC = auto()
    """`0x444d0100`, and whether it is wrong."""
    MESSAGE_TYPE = auto()
    """The number, and the name of that type."""
    ERRNO = auto()
    """The number, and the name of a negative errno."""
    FILLING = auto()
    """Bytes of no meaning: what they hold is not shown, only how many are not zero."""


class Bits(NamedTuple):
    """A number that some bits of a field hold."""

    name: str
    shift: int
    width: int
    meaning: str

    @property
    def limit(self) -> int:
        """The largest value."""
        return (1 << self.width) - 1

    def of(self, value: int) -> int:
        """The number within the field's value."""
        return value >> self.shift & self.limit

    def put(self, value: int, number: int) -> int:
        """The field's value with this number in it."""
        return value & ~(self.limit << self.shift) | number << self.shift


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A row of the table: one field of a request or of a reply.

    `offset` counts bytes from the message's beginning. With `count` it is an array of so many;
    `length` names the field that says how many of them are meant.
    """

    offset: int
    name: str
    type: str
    meaning: str
    count: int | None = None
    length: str = ""
    arch: Arch | None = None
    """Only guests of this architecture have the field; None for all."""
    show: Show = Show.NUMBER
    bits: tuple[Bits, ...] = ()
    word: str = ""
    """What `send` calls the value where it asks for it; it does not ask for others."""
    default: int = 0
    """The value in a request for which nobody was asked."""
    item: str = ""
    """What the filter language calls any one element of an array."""

    @property
    def code(self) -> str:
        """One element's type as `struct` and numpy write it."""
        return TYPE_CODES[self.type]

    @property
    def item_size(self) -> int:
        """Bytes of one element."""
        return int(self.type[1:]) // 8

    @property
    def size(self) -> int:
        """Bytes of the whole field."""
        return self.item_size * (1 if self.count is None else self.count)

    @property
    def end(self) -> int:
        """The offset behind the field."""
        return self.offset + self.size

    @property
    def type_name(self) -> str:
        """`u32`, or `u8[256]` for an array."""
        return self.type if self.count is None else f"{self.type}[{self.count}]"

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest value of one element."""
        bits = 8 * self.item_size
        if self.type[0] == "u":
            return 0, (1 << bits) - 1
        return -(1 << bits - 1), (1 << bits - 1) - 1


class MessageRow(NamedTuple):
    """A message type: its number and name, and the rows of its request's and its reply's load.

    `text` is an operation in a few words, with fields in braces; without it all are listed.
    """

    number: int
    name: str
    request: tuple[FieldRow, ...] = ()
    reply: tuple[FieldRow, ...] = ()
    text: str = ""


class Layout(NamedTuple):
    """The fields that some message types have in common, for one architecture or for any.

    `number` is what the columns of operations call it; 0 is that of messages without a load.
    """

    number: int
    arch: Arch | None
    request: tuple[FieldRow, ...]
    reply: tuple[FieldRow, ...]
    messages: tuple[MessageRow, ...]


class BadTable(UpcallError, ValueError):
    """Rows that do not make a table: one sentence says which, and why."""


@dataclass(frozen=True)
class MessageTable:
    """A service's messages: requests and replies of fixed sizes in bytes, one answering the other.

    `byte` picks the service. Requests and replies begin with a header. `type_field` is the field of
    the request's header that has the message's number; only a service with a single message does
    without. `size_field` has the number of bytes of the load, which may tell the guest's
    architecture. A reply's header has an integer `ret`, 0 for success and a negative errno for
    failure.

    Rows leave no bytes out between the header and the last field: where C aligns, a row of its own
    says so (`Show.FILLING`). Raises BadTable.
    """

    byte: int
    request_size: int
    reply_size: int
    request_header: tuple[FieldRow, ...]
    reply_header: tuple[FieldRow, ...]
    messages: tuple[MessageRow, ...]
    type_field: str = ""
    size_field: str = ""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise BadTable(problem)

    @cached_property
    def by_number(self) -> dict[int, MessageRow]:
        """The messages by their numbers."""
        return {message.number: message for message in self.messages}

    @cached_property
    def by_name(self) -> dict[str, MessageRow]:
        """The messages by their names."""
        return {message.name: message for message in self.messages}

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Every layout once, in the order of the messages; each stands at its number."""
        return tuple(dict.fromkeys((self._bare, *self._by_message.values())))

    @cached_property
    def fingerprint(self) -> str:
        """Another text for every table from which bytes are read in another way."""
        rows = [
            [row.offset, row.name, row.type, row.count, row.length, row.arch, row.bits]
            for message in self.messages
            for row in (*self.request_header, *message.request, *self.reply_header, *message.reply)
        ]
        names = [(message.number, message.name) for message in self.messages]
        told = repr((self.request_size, self.reply_size, self.type_field, names, rows))
        return f"{crc32(told.encode()):08x}"

    def layout(self, number: int, arch: Arch) -> Layout:
        """The layout of a message with this number; that of no load for one that is not known."""
        return self._by_message.get((number, arch), self._bare)

    def layouts_of(self, number: int) -> tuple[Layout, ...]:
        """A message's layouts: one, or one for each architecture."""
        return self._layouts_of.get(number, (self._bare,))

    def telling_layouts(self) -> Iterator[tuple[MessageRow, Layout]]:
        """Each message's layouts where the size of the request's load tells which one it is."""
        for message in self.messages:
            if self.depends_on_arch(message.number):
                layouts = {self.layout(message.number, arch) for arch in Arch}
                if len({self.load_size(layout) for layout in layouts}) == len(layouts):
                    yield from ((message, layout) for layout in layouts)

    def told_arch(self, number: int, load_size: int) -> Arch | None:
        """The architecture that the size of a request's load tells; None where it tells none."""
        return self._told.get((number, load_size))

    @cached_property
    def request_fields(self) -> dict[str, tuple[FieldRow, ...]]:
        """The rows of each name that requests have, headers' first; parts have their field's."""
        return _by_name((self.request_header, *(message.request for message in self.messages)))

    @cached_property
    def reply_fields(self) -> dict[str, tuple[FieldRow, ...]]:
        """The rows of each name that replies have, headers' first; parts have their field's."""
        return _by_name((self.reply_header, *(message.reply for message in self.messages)))

    def load_size(self, layout: Layout, of_reply: bool = False) -> int:
        """Bytes of the load of a request or of a reply, headers not counted."""
        fields = layout.reply if of_reply else layout.request
        header = self.reply_header if of_reply else self.request_header
        return fields[-1].end - _end(header) if fields else 0

    def depends_on_arch(self, number: int) -> bool:
        """Whether a message's layout differs by the guest's architecture."""
        return self.layout(number, Arch.X86_64) is not self.layout(number, Arch.AARCH64)

    @cached_property
    def _layouts_of(self) -> dict[int, tuple[Layout, ...]]:
        return {
            number: tuple(dict.fromkeys(self.layout(number, arch) for arch in Arch))
            for number in self.by_number
        }

    @cached_property
    def _bare(self) -> Layout:
        alike = tuple(m for m in self.messages if not m.request and not m.reply)
        return Layout(0, None, (), (), alike)

    @cached_property
    def _by_message(self) -> dict[tuple[int, Arch], Layout]:
        numbers = count(1)
        known: dict[object, Layout] = {}
        found: dict[tuple[int, Arch], Layout] = {}
        for message in self.messages:
            rows = (*message.request, *message.reply)
            if not rows:
                continue
            differs = any(field.arch for field in rows)
            for arch in Arch:
                request, reply = (
                    tuple(field for field in fields if field.arch in (None, arch))
                    for fields in (message.request, message.reply)
                )
                its = arch if differs else None
                key = (its, request, reply)
                if key not in known:
                    alike = tuple(
                        other
                        for other in self.messages
                        if (other.request, other.reply) == (message.request, message.reply)
                    )
                    known[key] = Layout(next(numbers), its, request, reply, alike)
                found[message.number, arch] = known[key]
        return found

    @cached_property
    def _told(self) -> dict[tuple[int, int], Arch | None]:
        return {
            (message.number, self.load_size(layout)): layout.arch
            for message, layout in self.telling_layouts()
        }


def _end(fields: Sequence[FieldRow]) -> int:
    return fields[-1].end if fields else 0


def _by_name(rows: Sequence[Sequence[FieldRow]]) -> dict[str, tuple[FieldRow, ...]]:
    found: dict[str, dict[FieldRow, None]] = {}
    for field in dict.fromkeys(field for fields in rows for field in fields):
        if field.show is not Show.FILLING:
            for name in (field.name, *(part.name for part in field.bits)):
                found.setdefault(name, {})[field] = None
    return {name: tuple(fields) for name, fields in found.items()}


def named(rows: Sequence[FieldRow], name: str) -> tuple[FieldRow, Bits | None] | None:
    """The field of that name among some rows, or the one of which a part has the name."""
    for field in rows:
        if field.name == name and field.show is not Show.FILLING:
            return field, None
        for part in field.bits:
            if part.name == name:
                return field, part
    return None


def padding(fields: Sequence[FieldRow], size: int) -> FieldRow:
    """What follows a message's fields up to its size: a row that every message has."""
    end = _end(fields)
    return FieldRow(
        end, "padding", "u8", "fills the message; zeros or leftovers", size - end,
        show=Show.FILLING,
    )  # fmt: skip


_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN: Final = frozenset({"padding", "op", "number", "fields", "encode", "reply", "codec"})
"""Names of what every decoded message has."""


def _problems(table: MessageTable) -> Iterator[str]:
    """What is wrong with a table, the first thing first."""
    if len(table.by_number) != len(table.messages) or len(table.by_name) != len(table.messages):
        yield "two messages have the same number or name"
    if not 0 <= table.byte <= 255:
        yield f"{table.byte} is no service byte"
    if any(not 0 <= message.number < 1 << 32 for message in table.messages):
        yield "a message's number has more than 32 bits"
    if len(table.messages) != 1 and not table.type_field:
        yield "several messages need a type_field that tells them apart"
    header = {field.name for field in table.request_header}
    for name in (table.type_field, table.size_field):
        if name and name not in header:
            yield f"{name!r} is no field of the request's header"
    if "ret" not in {field.name for field in table.reply_header}:
        yield "the reply's header has no ret"
    for message in table.messages:
        if not _NAME.fullmatch(message.name):
            yield f"{message.name!r} is no name for a message: lower case, digits, _"
        for arch in Arch:
            for what, head, load, size in (
                ("request", table.request_header, message.request, table.request_size),
                ("reply", table.reply_header, message.reply, table.reply_size),
            ):
                mine = tuple(field for field in load if field.arch in (None, arch))
                for problem in _problems_of((*head, *mine), size):
                    yield f"{message.name} {what}: {problem}"


def _problems_of(fields: Sequence[FieldRow], size: int) -> Iterator[str]:
    numbers: set[str] = set()
    names: set[str] = set()
    end = 0
    for field in fields:
        for name in (field.name, *(part.name for part in field.bits)):
            if not _NAME.fullmatch(name) or name in _TAKEN or name in names:
                yield f"{name!r} cannot be the name of a field, or is used twice"
            names.add(name)
        if field.type not in TYPE_CODES:
            yield f"{field.name} is of type {field.type!r}; there are {', '.join(TYPE_CODES)}"
        if field.offset != end:
            yield f"{field.name} is at {field.offset}, and the row before ends at {end}"
        end = field.end
        if field.length and (field.length not in numbers or field.count is None):
            yield f"{field.name} has its length in {field.length}, which is no number before it"
        if field.count is None and field.type[0] == "u":
            numbers.add(field.name)
    if end > size:
        yield f"its fields end at {end}, beyond its {size} bytes"
