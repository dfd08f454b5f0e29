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

from collections.abc import Sequence
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
    LESignedIntField,
    LESignedLongField,
    LESignedShortField,
    SignedByteField,
    StrFixedLenField,
    XByteField,
    XLEIntField,
    XLELongField,
    XLEShortField,
)
from scapy.packet import Packet, bind_layers

from .codecs import elements
from .constants import (
    ERRNO_NAMES,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    UPCALL_PORT,
    Arch,
    MessageType,
)
from .layouts import DEVICE_MANAGER_TABLE, HEADER, REPLY_HEADER
from .services import DEVICE_MANAGER
from .tables import FieldRow, MessageRow, Show, padding
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


class _ArrayField(StrFixedLenField):
    """All of an array as bytes, shown as the list of those elements that are meant."""

    __slots__ = ("row",)  # scapy makes its own out of them, and has no other place for a name

    def __init__(self, row: FieldRow) -> None:
        super().__init__(row.name, b"", row.size)
        self.row = row

    def i2repr(self, pkt: Packet | None, v: bytes) -> str:
        meant = len(v) if pkt is None else getattr(pkt, self.row.length)
        return str(elements(self.row, v, meant))


_NUMBERS: Final = {
    "u8": (ByteField, XByteField),
    "u16": (LEShortField, XLEShortField),
    "u32": (LEIntField, XLEIntField),
    "u64": (LELongField, XLELongField),
    "i8": (SignedByteField, SignedByteField),
    "i16": (LESignedShortField, LESignedShortField),
    "i32": (LESignedIntField, LESignedIntField),
    "i64": (LESignedLongField, LESignedLongField),
}
"""Scapy's fields for a number, as people read it by default and in hexadecimal."""
_HEX: Final = (Show.HEX, Show.MAGIC)


def _field(row: FieldRow) -> AnyField:
    """A row of the table as scapy's field."""
    if row.length:
        return _ArrayField(row)
    if row.count is not None:
        return StrFixedLenField(row.name, b"", row.size)
    if row.show is Show.ERRNO:
        return EnumField(row.name, 0, _RET_NAMES, fmt="<" + row.code)
    if row.show is Show.MESSAGE_TYPE:
        return LEIntEnumField(row.name, MessageType.CONNECT, MessageType)
    default = MAGIC_VERSION if row.show is Show.MAGIC else row.default
    return _NUMBERS[row.type][row.show in _HEX](row.name, default)


def _fields(rows: Sequence[FieldRow]) -> list[AnyField]:
    return [_field(row) for row in (*rows, padding(rows, MESSAGE_SIZE))]


class UpcallHeader(Packet):
    """The 16 bytes that every message begins with, in both directions."""

    name = "Upcall header"
    fields_desc: ClassVar[list[AnyField]] = [_field(row) for row in HEADER]

    def answers(self, other: Packet) -> int:
        return 0

    def mysummary(self) -> Any:
        load = (f for f in self.fields_desc[len(HEADER) :] if f.name not in _FILLING)
        shown = (f"{f.name}={f.i2repr(self, self.getfieldval(f.name))}" for f in load)
        before = [VsockMon, VirtioVsock, type(self.underlayer)]
        return " ".join((f"{self.name} {self.sprintf('%msg_type%')}", *shown)), before


class UpcallRequest(UpcallHeader):
    """A request without a load: CONNECT, ADD_MEM, DEL_MEM, unknown types.

    Given bytes, `UpcallRequest(...)` is what they are on their way to the guest: the layer of
    their `msg_type`, the service byte, or `Raw`.
    """

    name = "Upcall request"
    fields_desc = _fields(HEADER)

    @classmethod
    def dispatch_hook(cls, _pkt: bytes = b"", *args: Any, **kargs: Any) -> type[Packet]:
        if not _pkt:
            return cls
        # Whole messages are messages, whatever stands in them.
        if len(_pkt) == 1 or (_pkt[1:5] == _MAGIC and len(_pkt) % MESSAGE_SIZE):
            return UpcallService
        if len(_pkt) < MESSAGE_SIZE:
            return conf.raw_layer
        _, msg_size, msg_type = _HEADER_START.unpack_from(_pkt)
        told = DEVICE_MANAGER_TABLE.told_arch(msg_type, msg_size)
        return _REQUESTS.get((msg_type, told or conf.contribs["upcall"]["arch"]), cls)

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


class UpcallReply(UpcallHeader):
    """A reply without a load.

    Given bytes, `UpcallReply(...)` is what they are on their way from the guest: the layer of
    their `msg_type` for `conf.contribs["upcall"]["arch"]`, or `Raw`.
    """

    name = "Upcall reply"
    fields_desc = _fields(REPLY_HEADER)

    @classmethod
    def dispatch_hook(cls, _pkt: bytes = b"", *args: Any, **kargs: Any) -> type[Packet]:
        if not _pkt:
            return cls
        if len(_pkt) < MESSAGE_SIZE:
            return conf.raw_layer
        _, _, msg_type = _HEADER_START.unpack_from(_pkt)
        return _REPLIES.get((msg_type, conf.contribs["upcall"]["arch"]), cls)

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


_FILLING: Final = {
    "padding",
    *(
        row.name
        for layout in DEVICE_MANAGER_TABLE.layouts
        for row in (*layout.request, *layout.reply)
        if row.show is Show.FILLING
    ),
}
_LAYERS: Final[dict[str, type[Packet]]] = {}


def _layer(
    base: type[Packet], name: str, doc: str, rows: Sequence[FieldRow], **usual: int
) -> type[Packet]:
    """The layer of that name for a message with these rows; `usual` are values of its header."""
    if name not in _LAYERS:
        kind: Any = type(base)
        made = kind(name, (base,), {"__doc__": doc, "fields_desc": _fields(rows), **usual})
        made.__module__ = __name__
        _LAYERS[name] = made
    return _LAYERS[name]


def _request_layer(message: MessageRow, arch: Arch) -> type[Packet]:
    layout = DEVICE_MANAGER_TABLE.layout(message.number, arch)
    if not layout.request:
        return UpcallRequest
    where = f" on {arch.value}" if layout.arch else ""
    return _layer(
        UpcallRequest,
        _camel(message.name) + ("Arm" if layout.arch is Arch.AARCH64 else ""),
        f"{message.name.upper()}{where}.",
        (*HEADER, *layout.request),
        msg_size=DEVICE_MANAGER_TABLE.load_size(layout),
        msg_type=message.number,
    )


def _reply_layer(message: MessageRow, arch: Arch) -> type[Packet]:
    if message.number == MessageType.CONNECT:
        return UpcallConnect
    layout = DEVICE_MANAGER_TABLE.layout(message.number, arch)
    if not layout.reply:
        return UpcallReply
    # Messages that share a layout share the layer of their replies: UpcallCpuReply.
    names = " or ".join(other.name.upper() for other in layout.messages)
    shared = layout.messages[0].name.removeprefix("add_")
    where = f" on {arch.value}" if layout.arch else ""
    return _layer(
        UpcallReply,
        _camel(shared) + "Reply" + ("Arm" if layout.arch is Arch.AARCH64 else ""),
        f"Reply to {names}{where}.",
        (*REPLY_HEADER, *layout.reply),
        msg_size=DEVICE_MANAGER_TABLE.load_size(layout, of_reply=True),
        msg_type=layout.messages[0].number,
    )


def _camel(name: str) -> str:
    return "Upcall" + name.title().replace("_", "")


_EACH: Final = [(message, arch) for message in DEVICE_MANAGER_TABLE.messages for arch in Arch]
_REQUESTS: Final = {(m.number, arch): _request_layer(m, arch) for m, arch in _EACH}
_REPLIES: Final = {(m.number, arch): _reply_layer(m, arch) for m, arch in _EACH}


def __getattr__(name: str) -> Any:
    """The layers that are made from the table: `UpcallAddMmio`, `UpcallCpuReply`."""
    try:
        return _LAYERS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


conf.l2types.register(DLT_VSOCK, VsockMon)
bind_layers(VsockMon, VirtioVsock, t=Transport.VIRTIO, len=VIRTIO_SIZE)
bind_layers(VirtioVsock, UpcallRequest, op=VirtioOp.RW, dst_port=UPCALL_PORT)
bind_layers(VirtioVsock, UpcallReply, op=VirtioOp.RW, src_port=UPCALL_PORT)
# Other transports: nothing between vsockmon's own header and the payload.
bind_layers(VsockMon, UpcallRequest, op=MonitorOp.PAYLOAD, len=0, dst_port=UPCALL_PORT)
bind_layers(VsockMon, UpcallReply, op=MonitorOp.PAYLOAD, len=0, src_port=UPCALL_PORT)
