"""Codecs made from a table of messages: bytes to frozen dataclasses and back, with `struct`.

Each layout has one class for its requests and one for its replies. A class is either given, where
code wants to name its fields, or made. What can be worked out beforehand is worked out when the
codecs are made, so that decoding a message is two look-ups and one `unpack`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field as dataclass_field
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass, make_dataclass
from struct import Struct
from struct import error as struct_error
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from .constants import Arch
from .errors import UpcallError
from .slots import maker
from .tables import FieldRow, Layout, MessageTable, Show

FieldValue = int | list[int]


class NotAMessage(UpcallError, ValueError):
    """Bytes that cannot be a whole message: only their number can be wrong."""


class Codec:
    """One layout's requests or replies as bytes. `table` is its service's, `load` are its rows.

    `encode` and `fields` are functions of a message, written out from the rows: what a loop over
    rows would do for each message is done once.
    """

    decode: Callable[[bytes], Any]
    """Makes a message of the class that has this codec; of bytes that are long enough."""

    def __init__(self, table: MessageTable, layout: Layout, of_reply: bool) -> None:
        self.table = table
        self.layout = layout
        header = table.reply_header if of_reply else table.request_header
        self.load = layout.reply if of_reply else layout.request
        rows = (*header, *self.load)
        self.struct = Struct("<" + "".join(map(_code, rows)))
        self.header_length = len(header)
        self.room = (table.reply_size if of_reply else table.request_size) - self.struct.size
        """Bytes behind the last field."""
        self.names = [row.name for row in rows]
        values = ", ".join(f"m.{name}" for name in self.names)
        self.encode: Callable[[Any], bytes] = compiled(
            f"pack({values}) + m.padding", pack=self.struct.pack
        )
        shown = [row for row in self.load if row.show is not Show.FILLING]
        self.fields: Callable[[Any], dict[str, Any]] = compiled(
            "{" + ", ".join(entry for row in shown for entry in _entries(row)) + "}",
            elements=elements, rows={row.name: row for row in shown},
        )  # fmt: skip


def compiled(expression: str, **known: Any) -> Any:
    """A function of a message `m`; the names in it are the table's, which has checked them."""
    return eval(f"lambda m: {expression}", known)  # noqa: S307


def _entries(row: FieldRow) -> Iterator[str]:
    """What a field and its parts add to `fields`, as source text."""
    value = f"m.{row.name}"
    if row.count is not None:
        meant = f"m.{row.length}" if row.length else str(row.count)
        if row.type == "u8":
            value = f"list({value}[:{meant}])"
        else:
            value = f"elements(rows[{row.name!r}], {value}, {meant})"
    yield f"{row.name!r}: {value}"
    yield from (f"{part.name!r}: {value} >> {part.shift} & {part.limit}" for part in row.bits)


def elements(field: FieldRow, raw: bytes, meant: int) -> list[int]:
    """The first `meant` elements of an array's bytes, as many as are there."""
    if field.item_size == 1 and field.type[0] == "u":
        return list(raw[:meant])
    count = min(meant, len(raw) // field.item_size)
    return list(Struct(f"<{count}{field.code}").unpack_from(raw))


def load_values(
    rows: Sequence[FieldRow], given: Mapping[str, int | Sequence[int]]
) -> list[int | bytes]:
    """The values of a load's fields, arrays as bytes; those not given have their usual value.

    A field that counts an array's elements is as long as the list that was given for it. Raises
    struct.error for a number that does not fit.
    """
    lists = {row.name: value for row in rows if isinstance(value := given.get(row.name), Sequence)}
    lengths = {row.length: len(lists[row.name]) for row in rows if row.name in lists}
    values: list[int | bytes] = []
    for row in rows:
        if row.count is None:
            value = given.get(row.name, lengths.get(row.name, row.default))
            values.append(cast(int, value))
        else:
            listed = lists.get(row.name, ())
            raw = Struct(f"<{len(listed)}{row.code}").pack(*listed)
            if len(raw) > row.size:
                raise struct_error(f"{row.name} has {row.count} elements, not {len(listed)}")
            values.append(raw.ljust(row.size, b"\0"))
    return values


def _code(field: FieldRow) -> str:
    return field.code if field.count is None else f"{field.size}s"


class Coded:
    """What every decoded message has, whatever its service."""

    __slots__ = ()

    codec: ClassVar[Codec]
    padding: bytes
    """What follows the load."""

    @property
    def number(self) -> int:
        """The number of the message's type in its service."""
        table = self.codec.table
        if not table.type_field:
            return table.messages[0].number
        return cast(int, getattr(self, table.type_field))

    @property
    def op(self) -> str:
        """The message's name, `type_77` for an unknown type."""
        number = self.number
        message = self.codec.table.by_number.get(number)
        return message.name if message else f"type_{number}"

    def fields(self) -> dict[str, Any]:
        """The load's fields by their names in the table; of an array the elements meant."""
        return self.codec.fields(self)

    def encode(self) -> bytes:
        """The bytes that this message was decoded from."""
        return self.codec.encode(self)


class CodedReply(Coded):
    """A reply of any service; `ret` 0 is success, a negative number an errno."""

    __slots__ = ()

    ret: int


_Kind = TypeVar("_Kind", bound=type[Coded])
Request_co = TypeVar("Request_co", bound=Coded, covariant=True)
Reply_co = TypeVar("Reply_co", bound=CodedReply, covariant=True)


def with_codec(kind: _Kind, table: MessageTable, layout: Layout, of_reply: bool) -> _Kind:
    """Give a dataclass its codec; its fields have to be those of the table, in their order."""
    codec = Codec(table, layout, of_reply)
    names = list(codec.names)
    names.insert(codec.header_length, "padding")
    if [field.name for field in dataclass_fields(cast(Any, kind))] != names:
        raise TypeError(f"{kind.__name__} has other fields than its rows in the table")
    kind.codec = codec
    codec.decode = _decoder(kind, codec)
    for name in ("encode", "fields"):
        setattr(kind, name, getattr(codec, name))
    return kind


def make_kind(
    table: MessageTable, layout: Layout, of_reply: bool, base: type[Coded]
) -> type[Coded]:
    """A dataclass for a layout; a `base` that is one itself has the fields of the header."""
    what = "Reply" if of_reply else "Request"
    name = "".join(layout.messages[0].name.title().split("_")) if layout.messages else "Bare"
    suffix = f"_{layout.arch.value}" if layout.arch else ""
    rows: list[Any] = []
    if not is_dataclass(base):
        header = table.reply_header if of_reply else table.request_header
        rows = [(field.name, int) for field in header]
        rows.append(("padding", bytes, dataclass_field(repr=False)))
    load = layout.reply if of_reply else layout.request
    rows += [(field.name, int if field.count is None else bytes) for field in load]
    made = make_dataclass(name + what + suffix, rows, bases=(base,), frozen=True, slots=True)
    kind = with_codec(cast(type[Coded], made), table, layout, of_reply)
    key = len(_MADE)
    _MADE.append(kind)
    setattr(kind, "__reduce__", lambda message: (_again, (key, message.encode())))  # noqa: B010
    return kind


_MADE: list[type[Coded]] = []
"""Classes that no module has under their name, which pickle therefore cannot find."""


def _again(key: int, raw: bytes) -> Coded:
    message: Coded = _MADE[key].codec.decode(raw)
    return message


Given = Mapping[tuple[int, Arch | None], type[Coded]]
"""Classes by the number of a message that they are for, and its architecture."""

_Plan = Callable[[bytes], Any]


class RequestDecoder(Protocol[Request_co]):
    """Decodes a whole request; `arch` only matters where the bytes do not tell."""

    def __call__(self, raw: bytes, arch: Arch = ...) -> Request_co: ...


class ReplyDecoder(Protocol[Reply_co]):
    """Decodes a whole reply; `request` is what it answers, where that is known."""

    def __call__(self, raw: bytes, arch: Arch = ..., request: Any = ...) -> Reply_co: ...


class TableCodec(Generic[Request_co, Reply_co]):
    """Decodes the messages of one table; each layout has a class of requests and one of replies.

    `requests` and `replies` give the classes of some layouts, the others are made on the bases.
    """

    def __init__(
        self,
        table: MessageTable,
        request_base: type[Request_co],
        reply_base: type[Reply_co],
        requests: Given | None = None,
        replies: Given | None = None,
    ) -> None:
        self.table = table
        self.requests = _kinds(table, False, request_base, requests or {})
        self.replies = _kinds(table, True, reply_base, replies or {})

    def request_decoder(self) -> RequestDecoder[Request_co]:
        """The layout follows the type alone, as in the guest: the magic is not checked, and the
        size of the load is only used to learn the guest's architecture."""
        table = self.table
        whole, only = table.request_size, _only(table)
        bare = self.requests[table.layouts[0]].codec.decode
        plain, x86, arm = _plans(table, self.requests)
        told = {
            (message.number, table.load_size(layout)): self.requests[layout].codec.decode
            for message, layout in table.telling_layouts()
        }
        unpack_type, type_at = _reader(table.request_header, table.type_field)
        unpack_size, size_at = _reader(table.request_header, table.size_field)

        def decode(raw: bytes, arch: Arch = Arch.X86_64) -> Request_co:
            if len(raw) != whole:
                raise NotAMessage(f"a request is {whole} bytes, not {len(raw)}")
            number = unpack_type(raw, type_at)[0] if unpack_type else only
            plan = plain.get(number)
            if plan is None:
                size = unpack_size(raw, size_at)[0] if unpack_size else -1
                plan = told.get((number, size))
                if plan is None:
                    plan = (arm if arch is Arch.AARCH64 else x86).get(number, bare)
            request: Request_co = plan(raw)
            return request

        return decode

    def request_with(
        self, number: int, values: Mapping[str, int | Sequence[int]], arch: Arch
    ) -> Request_co:
        """A well-formed request; fields that `values` lacks have their usual value.

        An array's length is that of the list. Raises struct.error for a number that does not fit.
        """
        table = self.table
        layout = table.layout(number, arch)
        told: dict[str, int | Sequence[int]] = {
            table.type_field: number,
            table.size_field: table.load_size(layout),
        }
        kind: Any = self.requests[layout]
        header = load_values(table.request_header, told)
        request: Request_co = kind(
            *header, bytes(kind.codec.room), *load_values(layout.request, values)
        )
        return request

    def reply_decoder(self) -> ReplyDecoder[Reply_co]:
        """A reply is of its own type, or where its header has none, of the request's; `arch` is
        the guest's architecture, for which the request's counts first."""
        table = self.table
        whole, only = table.reply_size, _only(table)
        bare = self.replies[table.layouts[0]].codec.decode
        plain, x86, arm = _plans(table, self.replies)
        unpack_type, type_at = _reader(table.reply_header, table.type_field)

        def decode(raw: bytes, arch: Arch = Arch.X86_64, request: Any = None) -> Reply_co:
            if len(raw) != whole:
                raise NotAMessage(f"a reply is {whole} bytes, not {len(raw)}")
            if unpack_type:
                number = unpack_type(raw, type_at)[0]
            else:
                number = only if request is None else request.number
            plan = plain.get(number)
            if plan is None:
                if request is not None:
                    arch = request.codec.layout.arch or arch
                plan = (arm if arch is Arch.AARCH64 else x86).get(number, bare)
            reply: Reply_co = plan(raw)
            return reply

        return decode


def _plans(table: MessageTable, kinds: Mapping[Layout, type[Coded]]) -> list[dict[int, _Plan]]:
    """By number: messages that are alike on every architecture, then x86-64's, then aarch64's."""
    plain: dict[int, _Plan] = {}
    x86: dict[int, _Plan] = {}
    arm: dict[int, _Plan] = {}
    for number in table.by_number:
        for arch, found in ((Arch.X86_64, x86), (Arch.AARCH64, arm)):
            plan = kinds[table.layout(number, arch)].codec.decode
            (found if table.depends_on_arch(number) else plain)[number] = plan
    return [plain, x86, arm]


def _only(table: MessageTable) -> int:
    """The number of a service's one message; -1, which no message has, where there are several."""
    return table.messages[0].number if len(table.messages) == 1 else -1


def _kinds(
    table: MessageTable, of_reply: bool, base: type[Coded], given: Given
) -> dict[Layout, type[Coded]]:
    return {layout: _kind(table, layout, of_reply, base, given) for layout in table.layouts}


def _kind(
    table: MessageTable, layout: Layout, of_reply: bool, base: type[Coded], given: Given
) -> type[Coded]:
    for message in layout.messages:
        kind = given.get((message.number, layout.arch))
        if kind is not None:
            return with_codec(kind, table, layout, of_reply)
    if is_dataclass(base):
        if layout.number == 0:
            return with_codec(base, table, layout, of_reply)
        if of_reply and not layout.reply:
            return base
    return make_kind(table, layout, of_reply, base)


def _decoder(kind: type[Coded], codec: Codec) -> _Plan:
    values = {name: f"v{at}" for at, name in enumerate(codec.names)}
    unpacked = f"[{', '.join(values.values())}] = unpack(raw)"
    ordered = list(values.items())
    ordered.insert(codec.header_length, ("padding", f"raw[{codec.struct.size}:]"))
    decode: _Plan = maker(kind, dict(ordered), "raw", unpacked, unpack=codec.struct.unpack_from)
    return decode


def _reader(header: Sequence[FieldRow], name: str) -> tuple[Callable[..., Any] | None, int]:
    for field in header:
        if name and field.name == name:
            return Struct("<" + field.code).unpack_from, field.offset
    return None, 0
