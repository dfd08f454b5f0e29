"""The format of every message as a construct value, with the specification's field names.

This is the format to read, and the reference that `dissectors.messages` is tested against; it is
far too slow for a large recording. Nothing is checked and nothing is lost: the magic is a plain
number, since a wrong one is what a trace is opened for, and the padding keeps whatever bytes it
holds, so `build(parse(raw)) == raw` for every `raw` of the format's size.
docs/protocol.md sections 2 and 3.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from construct import (  # type: ignore[import-untyped]  # construct ships no annotations
    Bytes,
    Construct,
    FixedSized,
    FormatField,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64ul,
    Renamed,
    Struct,
)

from .constants import APIC_IDS_SIZE, CPU_MSG_SIZE, MESSAGE_SIZE, Arch, MessageType

# Device-manager messages, docs/protocol.md section 3.
HEADER: Final = Struct(
    "magic_version" / Int32ul * '0x444D0100: "DM", version 1.0',
    "msg_size" / Int32ul * "bytes of load, without header and ret",
    "msg_type" / Int32ul * "which message this is",
    "msg_flags" / Int32ul * "reserved, 0",
)


def _message(*load: Construct) -> Construct:
    # Not Padded: that would put zeros where the peer had left its old buffer.
    padding = "padding" / GreedyBytes * "fills the message; zeros or leftovers"
    return FixedSized(MESSAGE_SIZE, Struct(*HEADER.subcons, *load, padding))


BARE_REQUEST: Final = _message()
"""CONNECT, ADD_MEM, DEL_MEM and unknown types: no load that anyone reads."""

CPU_REQUEST_X86: Final = _message(
    "count" / Int8ul * "how many of apic_ids are meant",
    "apic_ver" / Int8ul * "APIC version of the CPUs",
    "apic_ids" / Bytes(APIC_IDS_SIZE) * "one APIC id a byte",
)
CPU_REQUEST_ARM: Final = _message(
    "count" / Int8ul * "how many CPUs to add or remove",
)
MMIO_REQUEST: Final = _message(
    "mmio_base" / Int64ul * "address of the device's register window",
    "mmio_size" / Int64ul * "bytes in that window",
    "mmio_irq" / Int32ul * "interrupt; on aarch64 an SPI number",
    "alignment" / Bytes(4) * "C padding, part of msg_size",
)
PCI_REQUEST: Final = _message(
    "busno" / Int8ul * "bus; the domain is always 0",
    "devfn" / Int8ul * "slot << 3 | function",
)

_RET: Final = "ret" / Int32sl * "0, or a negative errno"

CONNECT: Final = _message(_RET)
"""The guest's first message; the shape of a reply, all zero but the magic."""
REPLY: Final = _message(_RET)
CPU_REPLY_X86: Final = _message(
    _RET,
    "apic_index" / Int32ul * "APIC ids that were handled",
)
CPU_REPLY_ARM: Final = _message(
    _RET,
    "cpu_id" / Int32ul * "CPUs online afterwards",
)

_ANY_ARCH_REQUESTS: Final[dict[int, Construct]] = {
    MessageType.ADD_MMIO: MMIO_REQUEST,
    MessageType.DEL_MMIO: MMIO_REQUEST,
    MessageType.ADD_PCI: PCI_REQUEST,
    MessageType.DEL_PCI: PCI_REQUEST,
}
REQUESTS: Final[dict[Arch, dict[int, Construct]]] = {
    Arch.X86_64: {
        MessageType.ADD_CPU: CPU_REQUEST_X86,
        MessageType.DEL_CPU: CPU_REQUEST_X86,
        **_ANY_ARCH_REQUESTS,
    },
    Arch.AARCH64: {
        MessageType.ADD_CPU: CPU_REQUEST_ARM,
        MessageType.DEL_CPU: CPU_REQUEST_ARM,
        **_ANY_ARCH_REQUESTS,
    },
}
"""Requests that have a load; every other type is a `BARE_REQUEST`."""

REPLIES: Final[dict[Arch, dict[int, Construct]]] = {
    Arch.X86_64: {
        MessageType.CONNECT: CONNECT,
        MessageType.ADD_CPU: CPU_REPLY_X86,
        MessageType.DEL_CPU: CPU_REPLY_X86,
    },
    Arch.AARCH64: {
        MessageType.CONNECT: CONNECT,
        MessageType.ADD_CPU: CPU_REPLY_ARM,
        MessageType.DEL_CPU: CPU_REPLY_ARM,
    },
}
"""Messages from the guest that are more than a plain `REPLY`."""

# Packets of a vsockmon capture, docs/protocol.md section 2.
VSOCKMON_HEADER: Final = Struct(
    "src_cid" / Int64ul * "sender's context id",
    "dst_cid" / Int64ul * "receiver's context id",
    "src_port" / Int32ul * "sender's port",
    "dst_port" / Int32ul * "receiver's port",
    "op" / Int16ul * "1 connect, 2 disconnect, 3 control, 4 payload",
    "t" / Int16ul * "transport: 1 no info, 2 virtio",
    "len" / Int16ul * "bytes of the transport header that follows",
    "reserved" / Bytes(2) * "reserved",
)
VIRTIO_VSOCK_HEADER: Final = Struct(
    "src_cid" / Int64ul * "sender's context id",
    "dst_cid" / Int64ul * "receiver's context id",
    "src_port" / Int32ul * "sender's port",
    "dst_port" / Int32ul * "receiver's port",
    "len" / Int32ul * "bytes of payload that follow",
    "type" / Int16ul * "socket type; 1 is a stream",
    "op" / Int16ul * "1 REQUEST, 2 RESPONSE, 3 RST, 4 SHUTDOWN, 5 RW, 6 and 7 credit",
    "flags" / Int32ul * "of SHUTDOWN: which directions end",
    "buf_alloc" / Int32ul * "bytes that the sender's receive buffer holds",
    "fwd_cnt" / Int32ul * "bytes that the sender has taken out of it",
)

FORMATS: Final[dict[str, Construct]] = {
    "CONNECT": CONNECT,
    "ADD_CPU, DEL_CPU request, x86-64": CPU_REQUEST_X86,
    "ADD_CPU, DEL_CPU request, aarch64": CPU_REQUEST_ARM,
    "ADD_CPU, DEL_CPU reply, x86-64": CPU_REPLY_X86,
    "ADD_CPU, DEL_CPU reply, aarch64": CPU_REPLY_ARM,
    "ADD_MMIO, DEL_MMIO request": MMIO_REQUEST,
    "ADD_PCI, DEL_PCI request": PCI_REQUEST,
    "any other request": BARE_REQUEST,
    "any other reply": REPLY,
    "af_vsockmon_hdr": VSOCKMON_HEADER,
    "virtio_vsock_hdr": VIRTIO_VSOCK_HEADER,
}
"""Every format under a title, in the order in which documentation lists them."""


def request_format(msg_type: int, msg_size: int, arch: Arch = Arch.X86_64) -> Construct:
    """The format of a request with this header; `arch` only matters where `msg_size` does not tell.

    The rule is that of `messages.decode_request`: the guest goes by `msg_type` alone, and the
    `msg_size` of a CPU request is only used to learn the guest's architecture.
    """
    told = (known for known, size in CPU_MSG_SIZE.items() if size == msg_size)
    return REQUESTS[next(told, arch)].get(msg_type, BARE_REQUEST)


def reply_format(msg_type: int, arch: Arch = Arch.X86_64) -> Construct:
    """The format of a message from the guest; nothing in it tells the architecture."""
    return REPLIES[arch].get(msg_type, REPLY)


class FieldLayout(NamedTuple):
    """One row of a format's table; `offset` and `size` in bytes."""

    offset: int
    size: int
    name: str
    type_name: str
    """`u8`, `u16`, `u32`, `u64` or `i32`, little-endian, or `u8[N]` for N bytes."""
    meaning: str


_TYPE_NAMES: Final = {"B": "u8", "H": "u16", "L": "u32", "Q": "u64", "l": "i32"}


def layout(fmt: Construct, start_offset: int = 0) -> list[FieldLayout]:
    """The fields of one of this module's formats, in order, padding included.

    Offsets and sizes are read off the format itself, so a table made of them cannot go stale.
    `start_offset` is where the format begins within something larger.
    """
    end = start_offset + fmt.sizeof()
    struct = fmt.subcon if isinstance(fmt, FixedSized) else fmt
    rows = []
    offset = start_offset
    for field in struct.subcons:
        bare = field
        while isinstance(bare, Renamed):  # one such layer for the name, one for the meaning
            bare = bare.subcon
        size = end - offset if bare is GreedyBytes else bare.sizeof()
        is_number = isinstance(bare, FormatField)
        type_name = _TYPE_NAMES[bare.fmtstr[-1]] if is_number else f"u8[{size}]"
        rows.append(FieldLayout(offset, size, field.name, type_name, field.docs))
        offset += size
    return rows


_HEADER: Final = {
    "magic_version": (0, "<I"),
    "msg_size": (4, "<I"),
    "msg_type": (8, "<I"),
    "msg_flags": (12, "<I"),
}


REQUEST_FIELDS: Final = _HEADER | {
    "mmio_base": (16, "<Q"),
    "mmio_size": (24, "<Q"),
    "mmio_irq": (32, "<I"),
    "count": (16, "<B"),
    "apic_ver": (17, "<B"),
    "apic_ids": (18, "<B"),
    "busno": (16, "<B"),
    "devfn": (17, "<B"),
    "slot": (17, "<B"),
    "function": (17, "<B"),
}


REPLY_FIELDS: Final = _HEADER | {"ret": (16, "<i"), "apic_index": (20, "<I"), "cpu_id": (20, "<I")}
"""Where a field begins, and its type as `struct` writes it."""
