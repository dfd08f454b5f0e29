"""The format of every message as a construct value, with the specification's field names.

Made from the table in `dissectors.layouts`, and the reference that `dissectors.messages` is tested
against; it is far too slow for a large recording. Nothing is checked and nothing is lost: the magic
is a plain number, since a wrong one is what a trace is opened for, and the padding keeps whatever
bytes it holds, so `build(parse(raw)) == raw` for every `raw` of the format's size.

This is the only module that imports construct. docs/protocol.md sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from construct import (  # type: ignore[import-untyped]  # construct ships no annotations
    Bytes,
    Construct,
    FixedSized,
    GreedyBytes,
    Int8sl,
    Int8ul,
    Int16sl,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64sl,
    Int64ul,
    Struct,
)

from .constants import Arch
from .layouts import DEVICE_MANAGER_TABLE, VIRTIO_VSOCK_HEADER, VSOCKMON_HEADER
from .tables import FieldRow, MessageTable

_NUMBERS: Final = {
    "u8": Int8ul, "u16": Int16ul, "u32": Int32ul, "u64": Int64ul,
    "i8": Int8sl, "i16": Int16sl, "i32": Int32sl, "i64": Int64sl,
}  # fmt: skip


def struct_format(fields: Sequence[FieldRow]) -> Construct:
    """The rows as a construct value; an array stays the bytes that hold it."""
    return Struct(
        *(
            field.name
            / (_NUMBERS[field.type] if field.count is None else Bytes(field.size))
            * field.meaning
            for field in fields
        )
    )


@cache
def _message_format(fields: tuple[FieldRow, ...], size: int) -> Construct:
    """The rows and whatever fills the message up to its size."""
    # Not Padded: that would put zeros where the peer had left its old buffer.
    padding = "padding" / GreedyBytes * "fills the message; zeros or leftovers"
    return FixedSized(size, Struct(*struct_format(fields).subcons, padding))


def requests(table: MessageTable = DEVICE_MANAGER_TABLE) -> list[Construct]:
    """The format of each layout's requests."""
    return [
        _message_format((*table.request_header, *layout.request), table.request_size)
        for layout in table.layouts
    ]


def replies(table: MessageTable = DEVICE_MANAGER_TABLE) -> list[Construct]:
    """The format of each layout's replies; those without a load have one between them."""
    formats = (
        _message_format((*table.reply_header, *layout.reply), table.reply_size)
        for layout in table.layouts
    )
    return list(dict.fromkeys(formats))


def request_format(
    number: int,
    load_size: int,
    arch: Arch = Arch.X86_64,
    table: MessageTable = DEVICE_MANAGER_TABLE,
) -> Construct:
    """The format of a request; `arch` only matters where the size of its load does not tell.

    The rule is that of `messages.decode_request`: the guest goes by the type alone, and the size is
    only used to learn the guest's architecture.
    """
    layout = table.layout(number, table.told_arch(number, load_size) or arch)
    return _message_format((*table.request_header, *layout.request), table.request_size)


def reply_format(
    number: int, arch: Arch = Arch.X86_64, table: MessageTable = DEVICE_MANAGER_TABLE
) -> Construct:
    """The format of a message from the guest; nothing in it tells the architecture."""
    layout = table.layout(number, arch)
    return _message_format((*table.reply_header, *layout.reply), table.reply_size)


HEADER: Final = struct_format(DEVICE_MANAGER_TABLE.request_header)
VSOCKMON: Final = struct_format(VSOCKMON_HEADER)
VIRTIO_VSOCK: Final = struct_format(VIRTIO_VSOCK_HEADER)
