"""The fields of a message with the bytes that hold them, for the field tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from dissectors import layouts
from dissectors.constants import MAGIC_VERSION, Arch, errno_name, op_name

from ...trace.operations import CPU_ARM, Operation
from ...trace.provenance import Kind
from ...views.text import id_list, safe
from ..data.walk import Message

_SIGNED: Final = "i32"
_NAMED: Final = ("magic_version", "mmio_base", "mmio_size")


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
    arch = Arch.AARCH64 if arm else Arch.X86_64
    msg_size = int.from_bytes(message.raw[4:8], "little")
    return list(_fields(layouts.request_format(operation.msg_type, msg_size, arch), message))


def reply_fields(operation: Operation, message: Message, arm: bool) -> list[ShownField]:
    """The fields of a reply; none for a service that is not known here."""
    if operation.msg_type is None or operation.reply is None:
        return []
    arch = Arch.AARCH64 if arm else Arch.X86_64
    return list(_fields(layouts.reply_format(operation.reply["msg_type"], arch), message))


def is_arm(layout: int, header_arch: str | None) -> bool:
    """Whether a message is read as an aarch64 guest's."""
    return layout == CPU_ARM or header_arch == Arch.AARCH64.value


def _fields(fmt: object, message: Message) -> Iterator[ShownField]:
    count = message.raw[16] if len(message.raw) > 16 else 0
    for row in layouts.layout(fmt):
        raw = message.raw[row.offset : row.offset + row.size]
        if not raw:
            continue
        value = _value(row, raw, count)
        yield ShownField(row.name, row.offset, len(raw), value, _kinds(message, row.offset, raw))


def _value(row: layouts.FieldLayout, raw: bytes, count: int) -> str:
    if row.name == "apic_ids":
        return id_list(list(raw[:count]))
    if row.type_name.startswith("u8["):
        zeros = raw.count(0)
        return "all zero" if zeros == len(raw) else f"{len(raw) - zeros} of {len(raw)} not zero"
    number = int.from_bytes(raw, "little", signed=row.type_name == _SIGNED)
    if row.name == "magic_version":
        return f"{number:#010x}" + ("" if number == MAGIC_VERSION else " wrong")
    if row.name in _NAMED:
        return f"{number:#x}"
    if row.name == "msg_type":
        return f"{number} {safe(op_name(number))}"
    if row.name == "ret" and number:
        return f"{number} {errno_name(number) or ''}".rstrip()
    if row.name == "devfn":
        return f"{number:#04x} slot {number >> 3} function {number & 7}"
    return str(number)


def _kinds(message: Message, offset: int, raw: bytes) -> tuple[Kind, ...]:
    kinds: dict[Kind, None] = {}
    for run in message.runs:
        if run.offset < offset + len(raw) and run.offset + run.length > offset:
            kinds[run.kind] = None
    return tuple(kinds)
