"""Scapy layers for upcall inside a vsockmon capture; importing this module registers them.

    from scapy.utils import rdpcap
    import dissectors.scapy_layers
    rdpcap("guest.pcap").show()

A packet holds what was sent at once, which need not be one message: whole messages become a chain
of layers, and whatever is no whole message stays `Raw`. No stream is put together again; that is
`dissectors.vsockmon`. Every byte is in a field, so a packet built from its fields alone is the
packet that was captured.

Nothing in a CPU reply tells the guest's architecture (docs/protocol.md section 3). For a capture
of an aarch64 guest set `conf.contribs["upcall"]["arch"] = Arch.AARCH64` before reading it.

Scapy is licensed GPL-2.0-only; no other module of this package may import it.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, ClassVar, Final

from scapy.config import conf
from scapy.data import DLT_VSOCK
from scapy.fields import (
    AnyField,
    ByteEnumField,
    ByteField,
    EnumField,
    LEIntEnumField,
    LEIntField,
    LELongField,
    LenField,
    LEShortEnumField,
    LEShortField,
    StrFixedLenField,
    XByteField,
    XLEIntField,
    XLELongField,
)
from scapy.packet import Packet, bind_layers

from .constants import (
    APIC_IDS_SIZE,
    CPU_MSG_SIZE,
    CPU_REPLY_MSG_SIZE,
    ERRNO_NAMES,
    HEADER_SIZE,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    PCI_MSG_SIZE,
    UPCALL_PORT,
    Arch,
    MessageType,
)
from .messages import cpu_arch
from .services import DEVICE_MANAGER
from .vsockmon import VIRTIO_SIZE, MonitorOp, Transport, VirtioOp

conf.contribs.setdefault("upcall", {"arch": Arch.X86_64})


class _Addressed(Packet):
    """A header with both ends' addresses: its answer is the one that goes the other way."""

    def answers(self, other: Packet) -> int:
        return int(
            other.__class__ is self.__class__
            and (self.src_cid, self.src_port) == (other.dst_cid, other.dst_port)
            and (self.dst_cid, self.dst_port) == (other.src_cid, other.src_port)
            and self._payload_answers(other)
        )

    def _payload_answers(self, other: Packet) -> bool:
        return bool(self.payload.answers(other.payload))


class VsockMon(_Addressed):
    """`af_vsockmon_hdr`, what LINKTYPE_VSOCK packets begin with; docs/protocol.md section 2."""

    name = "VsockMon"
    fields_desc: ClassVar[list[AnyField]] = [
        LELongField("src_cid", 0),
        LELongField("dst_cid", 0),
        LEIntField("src_port", 0),
        LEIntField("dst_port", 0),
        LEShortEnumField("op", MonitorOp.PAYLOAD, MonitorOp),
        LEShortEnumField("t", Transport.UNKNOWN, Transport),
        LEShortField("len", 0),
        StrFixedLenField("reserved", b"", 2),
    ]

    def mysummary(self) -> str:
        return self.sprintf("%src_cid%:%src_port% > %dst_cid%:%dst_port%")


class VirtioVsock(_Addressed):
    """`virtio_vsock_hdr`, the transport header of a virtio guest; docs/protocol.md section 2."""

    name = "VirtioVsock"
    fields_desc: ClassVar[list[AnyField]] = [
        LELongField("src_cid", 0),
        LELongField("dst_cid", 0),
        LEIntField("src_port", 0),
        LEIntField("dst_port", 0),
        LenField("len", None, fmt="<I"),
        LEShortField("type", 1),
        LEShortEnumField("op", VirtioOp.RW, VirtioOp),
        LEIntField("flags", 0),
        LEIntField("buf_alloc", 0),
        LEIntField("fwd_cnt", 0),
    ]

    def _payload_answers(self, other: Packet) -> bool:
        if other.op == VirtioOp.REQUEST:
            return self.op in (VirtioOp.RESPONSE, VirtioOp.RST)
        return self.op == other.op == VirtioOp.RW and super()._payload_answers(other)

    def mysummary(self) -> Any:  # scapy also takes a couple: the text, and layers to show before it
        return self.sprintf("%op%"), [VsockMon]


# Device-manager messages, docs/protocol.md section 3.
_HEADER_START: Final = Struct("<3I")
_MAGIC: Final = MAGIC_VERSION.to_bytes(4, "little")
_RET_NAMES: Final = {0: "success"} | {-number: name for number, name in ERRNO_NAMES.items()}


class _ApicIdsField(StrFixedLenField):
    """All 256 ids as bytes, shown as the list of those that are meant."""

    def i2repr(self, pkt: Packet | None, v: bytes) -> str:
        return str(list(v if pkt is None else v[: pkt.count]))


def _ret() -> AnyField:
    return EnumField("ret", 0, _RET_NAMES, fmt="<i")


class UpcallHeader(Packet):
    """The 16 bytes that every message begins with, in both directions."""

    name = "Upcall header"
    fields_desc: ClassVar[list[AnyField]] = [
        XLEIntField("magic_version", MAGIC_VERSION),
        LEIntField("msg_size", 0),
        LEIntEnumField("msg_type", MessageType.CONNECT, MessageType),
        LEIntField("msg_flags", 0),
    ]

    def answers(self, other: Packet) -> int:
        return 0

    def mysummary(self) -> Any:
        load = (f for f in self.fields_desc[4:] if f.name not in ("alignment", "padding"))
        shown = (f"{f.name}={f.i2repr(self, self.getfieldval(f.name))}" for f in load)
        before = [VsockMon, VirtioVsock, type(self.underlayer)]
        return " ".join((f"{self.name} {self.sprintf('%msg_type%')}", *shown)), before


def _message(*load: AnyField) -> list[AnyField]:
    padding = MESSAGE_SIZE - HEADER_SIZE - sum(field.sz for field in load)
    return [*UpcallHeader.fields_desc, *load, StrFixedLenField("padding", b"", padding)]


class UpcallRequest(UpcallHeader):
    """A request without a load: CONNECT, ADD_MEM, DEL_MEM, unknown types.

    Given bytes, `UpcallRequest(...)` is what they are on their way to the guest: the layer of
    their `msg_type`, the service byte, or `Raw`.
    """

    name = "Upcall request"
    fields_desc = _message()

    @classmethod
    def dispatch_hook(cls, _pkt: bytes = b"", *args: Any, **kargs: Any) -> type[Packet]:
        if not _pkt:
            return cls
        if len(_pkt) == 1 or _pkt[1:5] == _MAGIC:
            return UpcallService
        if len(_pkt) < MESSAGE_SIZE:
            return conf.raw_layer
        _, msg_size, msg_type = _HEADER_START.unpack_from(_pkt)
        arch = cpu_arch(msg_size, conf.contribs["upcall"]["arch"])
        return _REQUESTS[arch].get(msg_type, cls)

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        return UpcallRequest if len(payload) >= MESSAGE_SIZE else conf.raw_layer


class UpcallService(Packet):
    """The byte with which a client picks a service; docs/protocol.md section 1."""

    name = "Upcall service"
    fields_desc: ClassVar[list[AnyField]] = [
        ByteEnumField("service", DEVICE_MANAGER.byte, {DEVICE_MANAGER.byte: DEVICE_MANAGER.name})
    ]

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        return UpcallRequest if len(payload) >= MESSAGE_SIZE else conf.raw_layer

    def answers(self, other: Packet) -> int:
        return 0

    def mysummary(self) -> Any:
        return self.sprintf("Upcall service %service%"), [VsockMon, VirtioVsock]


class _CpuRequestX86(UpcallRequest):
    msg_size = CPU_MSG_SIZE[Arch.X86_64]
    fields_desc = _message(
        ByteField("count", 0),
        XByteField("apic_ver", 0x14),
        _ApicIdsField("apic_ids", b"", APIC_IDS_SIZE),
    )


class _CpuRequestArm(UpcallRequest):
    msg_size = CPU_MSG_SIZE[Arch.AARCH64]
    fields_desc = _message(ByteField("count", 0))


class _MmioRequest(UpcallRequest):
    msg_size = MMIO_MSG_SIZE
    fields_desc = _message(
        XLELongField("mmio_base", 0),
        XLELongField("mmio_size", 0),
        LEIntField("mmio_irq", 0),
        StrFixedLenField("alignment", b"", 4),
    )


class _PciRequest(UpcallRequest):
    msg_size = PCI_MSG_SIZE
    fields_desc = _message(
        XByteField("busno", 0),
        XByteField("devfn", 0),
    )


class UpcallAddCpu(_CpuRequestX86):
    """ADD_CPU on x86-64."""

    msg_type = MessageType.ADD_CPU


class UpcallDelCpu(_CpuRequestX86):
    """DEL_CPU on x86-64."""

    msg_type = MessageType.DEL_CPU


class UpcallAddCpuArm(_CpuRequestArm):
    """ADD_CPU on aarch64."""

    msg_type = MessageType.ADD_CPU


class UpcallDelCpuArm(_CpuRequestArm):
    """DEL_CPU on aarch64."""

    msg_type = MessageType.DEL_CPU


class UpcallAddMmio(_MmioRequest):
    """ADD_MMIO."""

    msg_type = MessageType.ADD_MMIO


class UpcallDelMmio(_MmioRequest):
    """DEL_MMIO."""

    msg_type = MessageType.DEL_MMIO


class UpcallAddPci(_PciRequest):
    """ADD_PCI."""

    msg_type = MessageType.ADD_PCI


class UpcallDelPci(_PciRequest):
    """DEL_PCI."""

    msg_type = MessageType.DEL_PCI


class UpcallReply(UpcallHeader):
    """A reply without a load.

    Given bytes, `UpcallReply(...)` is what they are on their way from the guest: the layer of
    their `msg_type` for `conf.contribs["upcall"]["arch"]`, or `Raw`.
    """

    name = "Upcall reply"
    fields_desc = _message(_ret())

    @classmethod
    def dispatch_hook(cls, _pkt: bytes = b"", *args: Any, **kargs: Any) -> type[Packet]:
        if not _pkt:
            return cls
        if len(_pkt) < MESSAGE_SIZE:
            return conf.raw_layer
        _, _, msg_type = _HEADER_START.unpack_from(_pkt)
        return _REPLIES[conf.contribs["upcall"]["arch"]].get(msg_type, cls)

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        return UpcallReply if len(payload) >= MESSAGE_SIZE else conf.raw_layer

    def answers(self, other: Packet) -> int:
        return int(isinstance(other, UpcallRequest) and self.msg_type == other.msg_type)


class UpcallConnect(UpcallReply):
    """The guest's first message, which answers the service byte.

    A reply to a request of type 0 has the same shape and can have the same bytes.
    """

    def answers(self, other: Packet) -> int:
        return int(isinstance(other, UpcallService) or super().answers(other))


class UpcallCpuReply(UpcallReply):
    """Reply to ADD_CPU or DEL_CPU on x86-64."""

    msg_size = CPU_REPLY_MSG_SIZE
    msg_type = MessageType.ADD_CPU
    fields_desc = _message(
        _ret(),
        LEIntField("apic_index", 0),
    )


class UpcallCpuReplyArm(UpcallReply):
    """Reply to ADD_CPU or DEL_CPU on aarch64."""

    msg_size = CPU_REPLY_MSG_SIZE
    msg_type = MessageType.ADD_CPU
    fields_desc = _message(
        _ret(),
        LEIntField("cpu_id", 0),
    )


_ANY_ARCH_REQUESTS: Final[dict[int, type[Packet]]] = {
    MessageType.ADD_MMIO: UpcallAddMmio,
    MessageType.DEL_MMIO: UpcallDelMmio,
    MessageType.ADD_PCI: UpcallAddPci,
    MessageType.DEL_PCI: UpcallDelPci,
}
_REQUESTS: Final[dict[Arch, dict[int, type[Packet]]]] = {
    Arch.X86_64: {
        MessageType.ADD_CPU: UpcallAddCpu,
        MessageType.DEL_CPU: UpcallDelCpu,
        **_ANY_ARCH_REQUESTS,
    },
    Arch.AARCH64: {
        MessageType.ADD_CPU: UpcallAddCpuArm,
        MessageType.DEL_CPU: UpcallDelCpuArm,
        **_ANY_ARCH_REQUESTS,
    },
}
_REPLIES: Final[dict[Arch, dict[int, type[Packet]]]] = {
    Arch.X86_64: {
        MessageType.CONNECT: UpcallConnect,
        MessageType.ADD_CPU: UpcallCpuReply,
        MessageType.DEL_CPU: UpcallCpuReply,
    },
    Arch.AARCH64: {
        MessageType.CONNECT: UpcallConnect,
        MessageType.ADD_CPU: UpcallCpuReplyArm,
        MessageType.DEL_CPU: UpcallCpuReplyArm,
    },
}

conf.l2types.register(DLT_VSOCK, VsockMon)
bind_layers(VsockMon, VirtioVsock, t=Transport.VIRTIO, len=VIRTIO_SIZE)
bind_layers(VirtioVsock, UpcallRequest, op=VirtioOp.RW, dst_port=UPCALL_PORT)
bind_layers(VirtioVsock, UpcallReply, op=VirtioOp.RW, src_port=UPCALL_PORT)
# Other transports: nothing between vsockmon's own header and the payload.
bind_layers(VsockMon, UpcallRequest, op=MonitorOp.PAYLOAD, len=0, dst_port=UPCALL_PORT)
bind_layers(VsockMon, UpcallReply, op=MonitorOp.PAYLOAD, len=0, src_port=UPCALL_PORT)
