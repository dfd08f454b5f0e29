"""The one table of the protocol: every field of every message, where it is and how it is shown.

Whatever reads, writes or shows a message takes its fields from here: the codecs of
`dissectors.messages`, the formats of `dissectors.wire_formats`, the scapy layers, columns and
filters of operations, `send`, `edit --set`, comparisons, the browser, and the tables of
docs/protocol.md. A message type is a number in `MessageType` and one `MessageRow` in
`DEVICE_MANAGER_MESSAGES`. Other services give their messages in the same form, in a `MessageTable`
of their own. docs/protocol.md sections 2 and 3.
"""

from __future__ import annotations

from typing import Final

from .constants import APIC_IDS_SIZE, MAGIC_VERSION, MESSAGE_SIZE, Arch, MessageType, op_name
from .tables import ARCH_NAMES, Bits, FieldRow, MessageRow, MessageTable, Show, padding

# Device-manager messages, docs/protocol.md section 3.
HEADER: Final = (
    FieldRow(
        0,
        "magic_version",
        "u32",
        '0x444D0100: "DM", version 1.0',
        show=Show.MAGIC,
        default=MAGIC_VERSION,
    ),
    FieldRow(4, "msg_size", "u32", "bytes of load, without header and ret"),
    FieldRow(8, "msg_type", "u32", "which message this is", show=Show.MESSAGE_TYPE),
    FieldRow(12, "msg_flags", "u32", "reserved, 0"),
)
REPLY_HEADER: Final = (
    *HEADER,
    FieldRow(16, "ret", "i32", "0, or a negative errno", show=Show.ERRNO),
)

SLOT: Final = Bits("slot", 3, 5, "PCI slot, devfn >> 3")
FUNCTION: Final = Bits("function", 0, 3, "PCI function, devfn & 7")

_X86: Final = Arch.X86_64
_ARM: Final = Arch.AARCH64
_CPU: Final = (
    FieldRow(16, "count", "u8", "how many of apic_ids are meant", arch=_X86),
    FieldRow(17, "apic_ver", "u8", "APIC version of the CPUs", arch=_X86, default=0x14),
    FieldRow(
        18, "apic_ids", "u8", "one APIC id a byte", APIC_IDS_SIZE, "count", _X86,
        word="ID", item="apic_id",
    ),
    FieldRow(16, "count", "u8", "how many CPUs to add or remove", arch=_ARM, word="COUNT"),
)  # fmt: skip
_CPU_REPLY: Final = (
    FieldRow(20, "apic_index", "u32", "APIC ids that were handled", arch=_X86),
    FieldRow(20, "cpu_id", "u32", "CPUs online afterwards", arch=_ARM),
)
_CPU_TEXT: Final = "apic_ids={apic_ids}"
_MMIO: Final = (
    FieldRow(
        16, "mmio_base", "u64", "address of the device's register window",
        show=Show.HEX, word="BASE",
    ),
    FieldRow(24, "mmio_size", "u64", "bytes in that window", show=Show.HEX, word="SIZE"),
    FieldRow(32, "mmio_irq", "u32", "interrupt; on aarch64 an SPI number", word="IRQ"),
    FieldRow(36, "alignment", "u8", "C padding, part of msg_size", 4, show=Show.FILLING),
)  # fmt: skip
_MMIO_TEXT: Final = "{mmio_base}+{mmio_size} irq={mmio_irq}"
_PCI: Final = (
    FieldRow(16, "busno", "u8", "bus; the domain is always 0", word="BUS"),
    FieldRow(
        17, "devfn", "u8", "slot << 3 | function",
        show=Show.HEX, bits=(SLOT, FUNCTION), word="SLOT[.FN]",
    ),
)  # fmt: skip
_PCI_TEXT: Final = "bus={busno} slot={slot}.{function}"


def _message(
    number: MessageType,
    request: tuple[FieldRow, ...] = (),
    reply: tuple[FieldRow, ...] = (),
    text: str = "",
) -> MessageRow:
    return MessageRow(number, op_name(number), request, reply, text)


DEVICE_MANAGER_MESSAGES: Final = (
    _message(MessageType.CONNECT),
    _message(MessageType.ADD_CPU, _CPU, _CPU_REPLY, _CPU_TEXT),
    _message(MessageType.DEL_CPU, _CPU, _CPU_REPLY, _CPU_TEXT),
    _message(MessageType.ADD_MEM),
    _message(MessageType.DEL_MEM),
    _message(MessageType.ADD_MMIO, _MMIO, text=_MMIO_TEXT),
    _message(MessageType.DEL_MMIO, _MMIO, text=_MMIO_TEXT),
    _message(MessageType.ADD_PCI, _PCI, text=_PCI_TEXT),
    _message(MessageType.DEL_PCI, _PCI, text=_PCI_TEXT),
)
"""Every message type. A row more is a message that the whole program knows."""

# Packets of a vsockmon capture, docs/protocol.md section 2.
_ADDRESSES: Final = (
    FieldRow(0, "src_cid", "u64", "sender's context id"),
    FieldRow(8, "dst_cid", "u64", "receiver's context id"),
    FieldRow(16, "src_port", "u32", "sender's port"),
    FieldRow(20, "dst_port", "u32", "receiver's port"),
)
VSOCKMON_HEADER: Final = (
    *_ADDRESSES,
    FieldRow(24, "op", "u16", "1 connect, 2 disconnect, 3 control, 4 payload"),
    FieldRow(26, "t", "u16", "transport: 1 no info, 2 virtio"),
    FieldRow(28, "len", "u16", "bytes of the transport header that follows"),
    FieldRow(30, "reserved", "u8", "reserved", 2, show=Show.FILLING),
)
VIRTIO_VSOCK_HEADER: Final = (
    *_ADDRESSES,
    FieldRow(24, "len", "u32", "bytes of payload that follow"),
    FieldRow(28, "type", "u16", "socket type; 1 is a stream"),
    FieldRow(30, "op", "u16", "1 REQUEST, 2 RESPONSE, 3 RST, 4 SHUTDOWN, 5 RW, 6 and 7 credit"),
    FieldRow(32, "flags", "u32", "of SHUTDOWN: which directions end"),
    FieldRow(36, "buf_alloc", "u32", "bytes that the sender's receive buffer holds"),
    FieldRow(40, "fwd_cnt", "u32", "bytes that the sender has taken out of it"),
)


DEVICE_MANAGER_TABLE: Final = MessageTable(
    byte=0x64,
    request_size=MESSAGE_SIZE,
    reply_size=MESSAGE_SIZE,
    request_header=HEADER,
    reply_header=REPLY_HEADER,
    messages=DEVICE_MANAGER_MESSAGES,
    type_field="msg_type",
    size_field="msg_size",
)


def formats(table: MessageTable) -> dict[str, tuple[FieldRow, ...]]:
    """Every kind of message under a title, with all its rows: what documentation lists."""
    found: dict[str, tuple[FieldRow, ...]] = {}
    for what, header, size in (
        ("request", table.request_header, table.request_size),
        ("reply", table.reply_header, table.reply_size),
    ):
        for layout in table.layouts:
            load = layout.request if what == "request" else layout.reply
            names = ", ".join(message.name.upper() for message in layout.messages)
            arch = f", {ARCH_NAMES[layout.arch]}" if layout.arch else ""
            title = f"{names} {what}{arch}" if load else f"any other {what}"
            rows = (*header, *load)
            found[title] = (*rows, padding(rows, size))
    return found
