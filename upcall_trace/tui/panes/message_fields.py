"""The fields of a message with the bytes that hold them, for the field tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dissectors.codecs import elements
from dissectors.constants import Arch
from dissectors.tables import FieldRow, Layout, Show, padding

from ...trace.operations import Operation
from ...trace.provenance import Kind
from ...trace.rows import table_of
from ...views.values import shown, shown_in_full
from ..data.walk import Message


class ShownField(NamedTuple):
    """A field, and where it is: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int
    value: str
    kinds: tuple[Kind, ...]
    """Whose its bytes are: one kind, or several."""


def request_fields(operation: Operation, layout: Layout, message: Message) -> list[ShownField]:
    """The fields of a request; `layout` is that of its operation."""
    table = table_of(operation.service)
    rows = (*table.request_header, *layout.request)
    return list(_fields((*rows, padding(rows, table.request_size)), message))


def reply_fields(
    operation: Operation, layout: Layout, message: Message, arch: Arch
) -> list[ShownField]:
    """The fields of a reply of a guest of that architecture; none while there is no reply."""
    if operation.reply is None:
        return []
    table = table_of(operation.service)
    told = operation.reply.get("msg_type")
    if operation.msg_type is not None and told is not None:
        layout = table.layout(told, layout.arch or arch)
    rows = (*table.reply_header, *layout.reply)
    return list(_fields((*rows, padding(rows, table.reply_size)), message))


def told_fields(operation: Operation, layout: Layout, of_reply: bool) -> list[ShownField]:
    """The fields of a message whose bytes are not at hand: of another package's service."""
    values = (operation.reply or {}) if of_reply else operation.fields
    rows = layout.reply if of_reply else layout.request
    return [
        ShownField(row.name, row.offset, row.size, shown(row, values[row.name]), ())
        for row in rows
        if row.name in values
    ]


def _fields(rows: Sequence[FieldRow], message: Message) -> Iterator[ShownField]:
    numbers: dict[str, int] = {}
    for row in rows:
        raw = message.raw[row.offset : row.end]
        if not raw:
            continue
        if row.show is Show.FILLING:
            zeros = raw.count(0)
            many = f"{len(raw) - zeros} of {len(raw)} not zero"
            value = "all zero" if zeros == len(raw) else many
        elif row.count is not None:
            value = shown(row, elements(row, raw, numbers.get(row.length, row.count)))
        else:
            numbers[row.name] = int.from_bytes(raw, "little", signed=row.type[0] == "i")
            value = shown_in_full(row, numbers[row.name])
        yield ShownField(row.name, row.offset, len(raw), value, _kinds(message, row.offset, raw))


def _kinds(message: Message, offset: int, raw: bytes) -> tuple[Kind, ...]:
    kinds: dict[Kind, None] = {}
    for run in message.runs:
        if run.offset < offset + len(raw) and run.offset + run.length > offset:
            kinds[run.kind] = None
    return tuple(kinds)
