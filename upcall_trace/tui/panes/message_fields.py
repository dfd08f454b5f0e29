"""The fields of a message with the bytes that hold them, for the field tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dissectors.codecs import elements
from dissectors.constants import Arch
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.tables import FieldRow, Show, padding

from ...trace.operations import CPU_ARM, Operation
from ...trace.provenance import Kind
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


def request_fields(operation: Operation, message: Message, arm: bool) -> list[ShownField]:
    """The fields of a request; none for a service that is not known here."""
    if operation.msg_type is None:
        return []
    table = DEVICE_MANAGER_TABLE
    msg_size = int.from_bytes(message.raw[4:8], "little")
    arch = table.told_arch(operation.msg_type, msg_size) or _arch(arm)
    rows = (*table.request_header, *table.layout(operation.msg_type, arch).request)
    return list(_fields((*rows, padding(rows, table.request_size)), message))


def reply_fields(operation: Operation, message: Message, arm: bool) -> list[ShownField]:
    """The fields of a reply; none for a service that is not known here."""
    if operation.msg_type is None or operation.reply is None:
        return []
    table = DEVICE_MANAGER_TABLE
    rows = (*table.reply_header, *table.layout(operation.reply["msg_type"], _arch(arm)).reply)
    return list(_fields((*rows, padding(rows, table.reply_size)), message))


def _arch(arm: bool) -> Arch:
    return Arch.AARCH64 if arm else Arch.X86_64


def is_arm(layout: int, header_arch: str | None) -> bool:
    """Whether a message is read as an aarch64 guest's."""
    return layout == CPU_ARM or header_arch == Arch.AARCH64.value


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
