"""Device-manager messages as frozen dataclasses, decoded and encoded with `struct`.

Direction is not in the bytes, so there is `decode_request` and `decode_reply` and never one
`decode`. Both take exactly `MESSAGE_SIZE` bytes and lose none of them: what follows the load is
kept in `padding`, and `encode` gives the same bytes back. Where fields are, and how large, stands
in `dissectors.layouts`; a class here names the fields of a layout for code that uses them, and a
layout without a class here gets one that is made. docs/protocol.md section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, cast

from .codecs import Codec, Coded, CodedReply, TableCodec, load_values
from .constants import (
    APIC_IDS_SIZE,
    CPU_MSG_SIZE,
    CPU_REPLY_MSG_SIZE,
    MAGIC_VERSION,
    MMIO_MSG_SIZE,
    PCI_MSG_SIZE,
    REPLY_LOAD_OFFSET,
    Arch,
    MessageType,
)
from .layouts import DEVICE_MANAGER_TABLE, FUNCTION, SLOT


@dataclass(frozen=True, slots=True)
class Request(Coded):
    """A request whose type has no load (CONNECT, ADD_MEM, DEL_MEM, unknown types)."""

    codec: ClassVar[Codec]

    magic_version: int
    msg_size: int
    msg_type: int
    msg_flags: int
    padding: bytes = field(repr=False)

    def reply(self, ret: int = 0, load: int | None = None) -> Reply:
        """The reply a guest with clean buffers gives: `ret`, and after success its `load`.

        The load is the first field of the reply's; others are zero.
        """
        kind = cast(type[Reply], DEVICE_MANAGER_CODEC.replies[self.codec.layout])
        rows = kind.codec.load
        first = self._usual_load(ret) if load is None else load
        values = load_values(rows, {rows[0].name: first} if rows else {})
        size = sum(row.size for row in rows)
        header = _reply_header(self, size, ret)
        return kind(*header, bytes(kind.codec.room), *values)

    def _usual_load(self, ret: int) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class CpuRequestX86(Request):
    """ADD_CPU or DEL_CPU on x86-64: CPUs are named by APIC id."""

    count: int
    apic_ver: int
    apic_ids: bytes
    """All 256 bytes of the array; the first `count` are meant."""

    def _usual_load(self, ret: int) -> int:
        return self.count if _reply_header(self, CPU_REPLY_MSG_SIZE, ret)[1] else 0


@dataclass(frozen=True, slots=True)
class CpuRequestArm(Request):
    """ADD_CPU or DEL_CPU on aarch64: CPUs are counted, not named."""

    count: int


@dataclass(frozen=True, slots=True)
class MmioRequest(Request):
    """ADD_MMIO or DEL_MMIO: a virtio-mmio register window and its interrupt."""

    mmio_base: int
    mmio_size: int
    mmio_irq: int
    alignment: bytes = field(repr=False)
    """The four bytes with which C rounds the structure up to 24."""


@dataclass(frozen=True, slots=True)
class PciRequest(Request):
    """ADD_PCI or DEL_PCI: one slot and function of a bus; the domain is always 0."""

    busno: int
    devfn: int

    @property
    def slot(self) -> int:
        return SLOT.of(self.devfn)

    @property
    def function(self) -> int:
        return FUNCTION.of(self.devfn)


@dataclass(frozen=True, slots=True)
class Reply(CodedReply):
    """A reply without a load, and the CONNECT message (`ret` 0, every header field but magic 0)."""

    codec: ClassVar[Codec]

    magic_version: int
    msg_size: int
    msg_type: int
    msg_flags: int
    ret: int
    padding: bytes = field(repr=False)

    @property
    def is_hello(self) -> bool:
        """True when the header is that of a CONNECT message (section 5, WaitingService)."""
        return (
            self.magic_version == MAGIC_VERSION
            and self.msg_type == MessageType.CONNECT
            and self.msg_size == 0
            and self.msg_flags == 0
        )


@dataclass(frozen=True, slots=True)
class CpuReplyX86(Reply):
    """Reply to a CPU request on x86-64; `apic_index` is stale when the command failed."""

    apic_index: int


@dataclass(frozen=True, slots=True)
class CpuReplyArm(Reply):
    """Reply to a CPU request on aarch64; `cpu_id` is the number of CPUs online afterwards."""

    cpu_id: int


def _reply_header(request: Request, success_size: int, ret: int) -> tuple[int, int, int, int, int]:
    """The guest never echoes a wrong magic, and then has no load either (section 4)."""
    done = ret == 0 and request.magic_version == MAGIC_VERSION
    return (MAGIC_VERSION, success_size if done else 0, request.msg_type, 0, ret)


DEVICE_MANAGER_CODEC: Final = TableCodec(
    DEVICE_MANAGER_TABLE,
    Request,
    Reply,
    requests={
        (MessageType.ADD_CPU, Arch.X86_64): CpuRequestX86,
        (MessageType.ADD_CPU, Arch.AARCH64): CpuRequestArm,
        (MessageType.ADD_MMIO, None): MmioRequest,
        (MessageType.ADD_PCI, None): PciRequest,
    },
    replies={
        (MessageType.ADD_CPU, Arch.X86_64): CpuReplyX86,
        (MessageType.ADD_CPU, Arch.AARCH64): CpuReplyArm,
    },
)

decode_request: Final = DEVICE_MANAGER_CODEC.request_decoder()
"""Decode the guest's request buffer; `arch` only matters where `msg_size` does not tell.

The layout follows `msg_type` alone, as in the guest: neither magic nor `msg_size` is checked.
Raises NotAMessage when the bytes are not `MESSAGE_SIZE`.
"""
decode_reply: Final = DEVICE_MANAGER_CODEC.reply_decoder()
"""Decode one message from the guest; `arch` decides the load of a CPU reply.

Raises NotAMessage when the bytes are not `MESSAGE_SIZE`.
"""


def _header(msg_type: int, msg_size: int) -> tuple[int, int, int, int]:
    return (MAGIC_VERSION, msg_size, msg_type, 0)


def cpu_request(
    msg_type: MessageType, apic_ids: list[int] | int, apic_ver: int = 0x14
) -> CpuRequestX86 | CpuRequestArm:
    """A well-formed CPU request: a list of APIC ids (x86-64) or a number of CPUs (aarch64)."""
    if isinstance(apic_ids, int):
        header = _header(msg_type, CPU_MSG_SIZE[Arch.AARCH64])
        return CpuRequestArm(*header, bytes(CpuRequestArm.codec.room), apic_ids)
    header = _header(msg_type, CPU_MSG_SIZE[Arch.X86_64])
    ids = bytes(apic_ids).ljust(APIC_IDS_SIZE, b"\0")
    room = bytes(CpuRequestX86.codec.room)
    return CpuRequestX86(*header, room, len(apic_ids), apic_ver, ids)


def mmio_request(msg_type: MessageType, base: int, size: int, irq: int) -> MmioRequest:
    """A well-formed ADD_MMIO or DEL_MMIO; `base` and `size` in bytes."""
    room = bytes(MmioRequest.codec.room)
    return MmioRequest(*_header(msg_type, MMIO_MSG_SIZE), room, base, size, irq, bytes(4))


def pci_request(msg_type: MessageType, busno: int, slot: int, function: int = 0) -> PciRequest:
    """A well-formed ADD_PCI or DEL_PCI."""
    room = bytes(PciRequest.codec.room)
    devfn = FUNCTION.put(SLOT.put(0, slot), function)
    return PciRequest(*_header(msg_type, PCI_MSG_SIZE), room, busno, devfn)


def bare_request(msg_type: int) -> Request:
    """A request that is a header and zeros: any type, ADD_MEM and unknown ones included."""
    return Request(*_header(msg_type, 0), bytes(Request.codec.room))


def hello() -> Reply:
    """The CONNECT message: the guest's first on a connection (section 1)."""
    return Reply(*_header(MessageType.CONNECT, 0), 0, bytes(Reply.codec.room))


REPLY_MEANS: Final = REPLY_LOAD_OFFSET + max(
    sum(row.size for row in layout.reply) for layout in DEVICE_MANAGER_TABLE.layouts
)
"""Bytes of a reply that can mean something; the rest of a message is padding."""
