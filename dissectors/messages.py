"""Device-manager messages as frozen dataclasses, decoded and encoded with `struct`.

Direction is not in the bytes, so there is `decode_request` and `decode_reply` and never one
`decode`. Both take exactly `MESSAGE_SIZE` bytes and lose none of them: what follows the load is
kept in `padding`, and `encode` gives the same bytes back. `dissectors.layouts` states the layout
declaratively; the tests hold the two equal. docs/protocol.md section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

from .constants import (
    APIC_IDS_SIZE,
    CPU_MSG_SIZE,
    CPU_REPLY_MSG_SIZE,
    CPU_TYPES,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    MMIO_TYPES,
    PCI_MSG_SIZE,
    PCI_TYPES,
    Arch,
    MessageType,
    op_name,
)
from .errors import UpcallError

_HEADER = Struct("<4I")
_CPU_X86 = Struct(f"<4IBB{APIC_IDS_SIZE}s")
_CPU_ARM = Struct("<4IB")
_MMIO = Struct("<4IQQI4s")
_PCI = Struct("<4IBB")
_REPLY = Struct("<4Ii")
_CPU_REPLY = Struct("<4IiI")

FieldValue = int | list[int]


class NotAMessage(UpcallError, ValueError):
    """Bytes that cannot be a whole message: only their number can be wrong."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose type has no load (CONNECT, ADD_MEM, DEL_MEM, unknown types)."""

    magic_version: int
    msg_size: int
    msg_type: int
    msg_flags: int
    padding: bytes = field(repr=False)

    @property
    def op(self) -> str:
        """The message's name in lower case, `type_77` for an unknown type."""
        return op_name(self.msg_type)

    def fields(self) -> dict[str, FieldValue]:
        """The load's fields by their names in the specification."""
        return {}

    def encode(self) -> bytes:
        """The `MESSAGE_SIZE` bytes this request was decoded from."""
        return (
            _HEADER.pack(self.magic_version, self.msg_size, self.msg_type, self.msg_flags)
            + self.padding
        )

    def reply(self, ret: int = 0, load: int | None = None) -> Reply:
        """The reply a guest with clean buffers gives: `ret`, and for a CPU success its `load`."""
        return Reply(*_reply_header(self, 0, ret), bytes(MESSAGE_SIZE - _REPLY.size))


@dataclass(frozen=True, slots=True)
class CpuRequestX86(Request):
    """ADD_CPU or DEL_CPU on x86-64: CPUs are named by APIC id."""

    count: int
    apic_ver: int
    apic_ids: bytes
    """All 256 bytes of the array; the first `count` are meant."""

    def fields(self) -> dict[str, FieldValue]:
        ids = list(self.apic_ids[: self.count])
        return {"count": self.count, "apic_ver": self.apic_ver, "apic_ids": ids}

    def encode(self) -> bytes:
        return (
            _CPU_X86.pack(
                self.magic_version, self.msg_size, self.msg_type, self.msg_flags,
                self.count, self.apic_ver, self.apic_ids,
            )
            + self.padding
        )  # fmt: skip

    def reply(self, ret: int = 0, load: int | None = None) -> Reply:
        header = _reply_header(self, CPU_REPLY_MSG_SIZE, ret)
        index = load if load is not None else (self.count if header[1] else 0)
        return CpuReplyX86(*header, bytes(MESSAGE_SIZE - _CPU_REPLY.size), index)


@dataclass(frozen=True, slots=True)
class CpuRequestArm(Request):
    """ADD_CPU or DEL_CPU on aarch64: CPUs are counted, not named."""

    count: int

    def fields(self) -> dict[str, FieldValue]:
        return {"count": self.count}

    def encode(self) -> bytes:
        return (
            _CPU_ARM.pack(
                self.magic_version, self.msg_size, self.msg_type, self.msg_flags, self.count
            )
            + self.padding
        )

    def reply(self, ret: int = 0, load: int | None = None) -> Reply:
        header = _reply_header(self, CPU_REPLY_MSG_SIZE, ret)
        return CpuReplyArm(*header, bytes(MESSAGE_SIZE - _CPU_REPLY.size), load or 0)


@dataclass(frozen=True, slots=True)
class MmioRequest(Request):
    """ADD_MMIO or DEL_MMIO: a virtio-mmio register window and its interrupt."""

    mmio_base: int
    mmio_size: int
    mmio_irq: int
    alignment: bytes = field(repr=False)
    """The four bytes with which C rounds the structure up to 24."""

    def fields(self) -> dict[str, FieldValue]:
        return {
            "mmio_base": self.mmio_base,
            "mmio_size": self.mmio_size,
            "mmio_irq": self.mmio_irq,
        }

    def encode(self) -> bytes:
        return (
            _MMIO.pack(
                self.magic_version, self.msg_size, self.msg_type, self.msg_flags,
                self.mmio_base, self.mmio_size, self.mmio_irq, self.alignment,
            )
            + self.padding
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PciRequest(Request):
    """ADD_PCI or DEL_PCI: one slot and function of a bus; the domain is always 0."""

    busno: int
    devfn: int

    @property
    def slot(self) -> int:
        return self.devfn >> 3

    @property
    def function(self) -> int:
        return self.devfn & 7

    def fields(self) -> dict[str, FieldValue]:
        return {
            "busno": self.busno,
            "devfn": self.devfn,
            "slot": self.slot,
            "function": self.function,
        }

    def encode(self) -> bytes:
        return (
            _PCI.pack(
                self.magic_version, self.msg_size, self.msg_type, self.msg_flags,
                self.busno, self.devfn,
            )
            + self.padding
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply without a load, and the CONNECT message (`ret` 0, every header field but magic 0)."""

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

    def fields(self) -> dict[str, int]:
        """The load's fields by their names in the specification."""
        return {}

    def encode(self) -> bytes:
        """The `MESSAGE_SIZE` bytes this reply was decoded from."""
        return (
            _REPLY.pack(self.magic_version, self.msg_size, self.msg_type, self.msg_flags, self.ret)
            + self.padding
        )


@dataclass(frozen=True, slots=True)
class CpuReplyX86(Reply):
    """Reply to a CPU request on x86-64; `apic_index` is stale when the command failed."""

    apic_index: int

    def fields(self) -> dict[str, int]:
        return {"apic_index": self.apic_index}

    def encode(self) -> bytes:
        return (
            _CPU_REPLY.pack(
                self.magic_version, self.msg_size, self.msg_type, self.msg_flags,
                self.ret, self.apic_index,
            )
            + self.padding
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CpuReplyArm(Reply):
    """Reply to a CPU request on aarch64; `cpu_id` is the number of CPUs online afterwards."""

    cpu_id: int

    def fields(self) -> dict[str, int]:
        return {"cpu_id": self.cpu_id}

    def encode(self) -> bytes:
        return (
            _CPU_REPLY.pack(
                self.magic_version, self.msg_size, self.msg_type, self.msg_flags,
                self.ret, self.cpu_id,
            )
            + self.padding
        )  # fmt: skip


def _reply_header(request: Request, success_size: int, ret: int) -> tuple[int, int, int, int, int]:
    """The guest never echoes a wrong magic, and then has no load either (section 4)."""
    done = ret == 0 and request.magic_version == MAGIC_VERSION
    return (MAGIC_VERSION, success_size if done else 0, request.msg_type, 0, ret)


def cpu_arch(msg_size: int, default: Arch) -> Arch:
    """The layout of a CPU request: its `msg_size` tells it, else `default` (section 3)."""
    if msg_size == CPU_MSG_SIZE[Arch.X86_64]:
        return Arch.X86_64
    if msg_size == CPU_MSG_SIZE[Arch.AARCH64]:
        return Arch.AARCH64
    return default


def decode_request(raw: bytes, arch: Arch = Arch.X86_64) -> Request:
    """Decode the guest's request buffer; `arch` only matters where `msg_size` does not tell.

    The layout follows `msg_type` alone, as in the guest: neither magic nor `msg_size` is checked.
    Raises NotAMessage when `raw` is not `MESSAGE_SIZE` bytes long.
    """
    if len(raw) != MESSAGE_SIZE:
        raise NotAMessage(f"a request is {MESSAGE_SIZE} bytes, not {len(raw)}")
    magic_version, msg_size, msg_type, msg_flags = _HEADER.unpack_from(raw)
    header = (magic_version, msg_size, msg_type, msg_flags)
    if msg_type in MMIO_TYPES:
        base, size, irq, alignment = _MMIO.unpack_from(raw)[4:]
        return MmioRequest(*header, raw[_MMIO.size :], base, size, irq, alignment)
    if msg_type in CPU_TYPES:
        if cpu_arch(msg_size, arch) is Arch.AARCH64:
            return CpuRequestArm(*header, raw[_CPU_ARM.size :], raw[16])
        count, apic_ver, apic_ids = _CPU_X86.unpack_from(raw)[4:]
        return CpuRequestX86(*header, raw[_CPU_X86.size :], count, apic_ver, apic_ids)
    if msg_type in PCI_TYPES:
        return PciRequest(*header, raw[_PCI.size :], raw[16], raw[17])
    return Request(*header, raw[_HEADER.size :])


def decode_reply(raw: bytes, arch: Arch = Arch.X86_64) -> Reply:
    """Decode one message from the guest; `arch` decides the load of a CPU reply.

    Raises NotAMessage when `raw` is not `MESSAGE_SIZE` bytes long.
    """
    if len(raw) != MESSAGE_SIZE:
        raise NotAMessage(f"a reply is {MESSAGE_SIZE} bytes, not {len(raw)}")
    magic_version, msg_size, msg_type, msg_flags, ret = _REPLY.unpack_from(raw)
    if msg_type in CPU_TYPES:
        (load,) = _LOAD.unpack_from(raw, _REPLY.size)
        kind = CpuReplyArm if arch is Arch.AARCH64 else CpuReplyX86
        header = (magic_version, msg_size, msg_type, msg_flags, ret)
        return kind(*header, raw[_CPU_REPLY.size :], load)
    return Reply(magic_version, msg_size, msg_type, msg_flags, ret, raw[_REPLY.size :])


_LOAD = Struct("<I")


def _header(msg_type: MessageType, msg_size: int) -> tuple[int, int, int, int]:
    return (MAGIC_VERSION, msg_size, msg_type, 0)


def cpu_request(
    msg_type: MessageType, apic_ids: list[int] | int, apic_ver: int = 0x14
) -> CpuRequestX86 | CpuRequestArm:
    """A well-formed CPU request: a list of APIC ids (x86-64) or a number of CPUs (aarch64)."""
    if isinstance(apic_ids, int):
        header = _header(msg_type, CPU_MSG_SIZE[Arch.AARCH64])
        return CpuRequestArm(*header, bytes(MESSAGE_SIZE - _CPU_ARM.size), apic_ids)
    header = _header(msg_type, CPU_MSG_SIZE[Arch.X86_64])
    ids = bytes(apic_ids).ljust(APIC_IDS_SIZE, b"\0")
    padding = bytes(MESSAGE_SIZE - _CPU_X86.size)
    return CpuRequestX86(*header, padding, len(apic_ids), apic_ver, ids)


def mmio_request(msg_type: MessageType, base: int, size: int, irq: int) -> MmioRequest:
    """A well-formed ADD_MMIO or DEL_MMIO; `base` and `size` in bytes."""
    padding = bytes(MESSAGE_SIZE - _MMIO.size)
    return MmioRequest(*_header(msg_type, MMIO_MSG_SIZE), padding, base, size, irq, bytes(4))


def pci_request(msg_type: MessageType, busno: int, slot: int, function: int = 0) -> PciRequest:
    """A well-formed ADD_PCI or DEL_PCI."""
    padding = bytes(MESSAGE_SIZE - _PCI.size)
    return PciRequest(*_header(msg_type, PCI_MSG_SIZE), padding, busno, slot << 3 | function)


def bare_request(msg_type: int) -> Request:
    """A request that is a header and zeros: any type, ADD_MEM and unknown ones included."""
    return Request(MAGIC_VERSION, 0, msg_type, 0, bytes(MESSAGE_SIZE - _HEADER.size))


def hello() -> Reply:
    """The CONNECT message: the guest's first on a connection (section 1)."""
    return Reply(MAGIC_VERSION, 0, MessageType.CONNECT, 0, 0, bytes(MESSAGE_SIZE - _REPLY.size))
