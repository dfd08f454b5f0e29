"""vsockmon packets (LINKTYPE_VSOCK) and the connections they belong to.

`decode_packet` takes one captured packet apart; `Connections` follows every connection in it and
says what each packet means for its streams. Which of them carry upcall is the listener's port.
docs/protocol.md section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct

from .constants import HOST_CID, UPCALL_PORT
from .errors import UpcallError

_VSOCKMON = Struct("<QQIIHHH2s")
_VIRTIO = Struct("<QQIIIHHIII")
VSOCKMON_SIZE = _VSOCKMON.size
VIRTIO_SIZE = _VIRTIO.size


class MonitorOp(IntEnum):
    """`op` of af_vsockmon_hdr."""

    UNKNOWN = 0
    CONNECT = 1
    DISCONNECT = 2
    CONTROL = 3
    PAYLOAD = 4


class Transport(IntEnum):
    """`t` of af_vsockmon_hdr: which transport header follows."""

    UNKNOWN = 0
    NO_INFO = 1
    VIRTIO = 2


class VirtioOp(IntEnum):
    """`op` of virtio_vsock_hdr."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


SHUTDOWN_BOTH = 3


class NotAPacket(UpcallError, ValueError):
    """Bytes too short for the headers they announce."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; `virtio_op` and `virtio_flags` are None without a virtio header."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    op: int
    virtio_op: int | None
    virtio_flags: int | None
    payload: bytes = field(repr=False)
    missing: int
    """Payload bytes that the capture's packet size limit cut off."""
    fwd_cnt: int | None = None
    """Bytes of its peer that the sender had taken by then, modulo 2^32."""


def decode_packet(raw: bytes, original_size: int | None = None) -> Packet:
    """Decode one captured packet; `original_size` is its length on the wire in bytes.

    Raises NotAPacket when the headers are not all there.
    """
    if len(raw) < VSOCKMON_SIZE:
        raise NotAPacket(f"{len(raw)} bytes are too few for a vsockmon header")
    src_cid, dst_cid, src_port, dst_port, op, t, header_size, _ = _VSOCKMON.unpack_from(raw)
    begin = VSOCKMON_SIZE + header_size
    if len(raw) < begin:
        raise NotAPacket(f"{len(raw)} bytes are too few for the transport header")
    payload = raw[begin:]
    missing = max(0, (original_size or len(raw)) - len(raw))
    virtio_op = virtio_flags = fwd_cnt = None
    if t == Transport.VIRTIO and header_size >= VIRTIO_SIZE:
        size, _, virtio_op, virtio_flags, _, fwd_cnt = _VIRTIO.unpack_from(raw, VSOCKMON_SIZE)[4:]
        if virtio_op == VirtioOp.RW and op == MonitorOp.PAYLOAD:
            missing = max(missing, size - len(payload))
            payload = payload[:size]  # what is behind it pads the packet
    return Packet(
        src_cid, dst_cid, src_port, dst_port, op, virtio_op, virtio_flags, payload, missing, fwd_cnt
    )


def encode_packet(
    src: tuple[int, int],
    dst: tuple[int, int],
    virtio_op: VirtioOp,
    payload: bytes = b"",
    *,
    flags: int = 0,
    fwd_cnt: int = 0,
) -> bytes:
    """One packet as a vsockmon interface shows it, with a virtio header; `src` is (CID, port).

    `fwd_cnt` is the count of bytes that the sender has taken from its peer.
    """
    op = _OPERATION_OF[virtio_op]
    head = _VSOCKMON.pack(
        src[0], dst[0], src[1], dst[1], op, Transport.VIRTIO, VIRTIO_SIZE, b"\0\0"
    )
    virtio = _VIRTIO.pack(
        src[0], dst[0], src[1], dst[1], len(payload), _STREAM, virtio_op, flags,
        _RECEIVE_BUFFER, fwd_cnt & 0xFFFFFFFF,
    )  # fmt: skip
    return head + virtio + payload


_COUNT_MASK = 0xFFFFFFFF
_STREAM = 1
_RECEIVE_BUFFER = 262144
"""`buf_alloc` of every recorded guest and of the backends that were seen."""
_OPERATION_OF = {
    VirtioOp.REQUEST: MonitorOp.CONNECT,
    VirtioOp.RESPONSE: MonitorOp.CONNECT,
    VirtioOp.RST: MonitorOp.DISCONNECT,
    VirtioOp.SHUTDOWN: MonitorOp.DISCONNECT,
    VirtioOp.RW: MonitorOp.PAYLOAD,
    VirtioOp.CREDIT_UPDATE: MonitorOp.CONTROL,
    VirtioOp.CREDIT_REQUEST: MonitorOp.CONTROL,
}
"""The vsockmon operation that Linux gives each virtio one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection begins; not `seen` when the capture began after it did."""

    conn: int
    port: int
    seen: bool
    listener_in_guest: bool = True
    """False when the host listens and the guest connects: then the port is none of the guest's."""


@dataclass(frozen=True, slots=True)
class Accepted:
    conn: int


@dataclass(frozen=True, slots=True)
class Carried:
    """Payload of one packet of an upcall connection; `missing` bytes of it were not captured."""

    conn: int
    to_guest: bool
    payload: bytes = field(repr=False)
    missing: int


@dataclass(frozen=True, slots=True)
class Unseen:
    """`size` bytes crossed before this packet and are in no packet: the receiver counts them."""

    conn: int
    to_guest: bool
    size: int


@dataclass(frozen=True, slots=True)
class Ended:
    """One side closed or refused; `reset` when an accepted connection had no shutdown before."""

    conn: int
    by_guest: bool
    reset: bool


StreamEvent = Opened | Accepted | Carried | Unseen | Ended


@dataclass(slots=True)
class Flow:
    """One direction of a connection: bytes that its packets carry, against those that its receiver
    says it has taken. Both count modulo 2^32."""

    sent: int | None
    """None while it is not known what crossed before the capture began."""
    _seen: int = 0
    _told: int | None = None

    def carried(self, size: int) -> None:
        """A packet of this direction was seen."""
        if self.sent is None:
            self._seen += size
        else:
            self.sent += size

    def taken(self, fwd_cnt: int, carries: bool) -> int:
        """The receiver says so in a packet of its own, which `carries` payload or not; returns how
        many bytes must have crossed unseen.

        It cannot have taken more than was sent. Without the beginning, counting starts when it
        answers, and has taken exactly what was seen since it last said so.
        """
        if self.sent is None:
            more = None if self._told is None else (fwd_cnt - self._told) & _COUNT_MASK
            if carries and more == self._seen > 0:
                self.sent = fwd_cnt
            elif more is None or more > self._seen:
                self._told, self._seen = fwd_cnt, 0
            return 0
        unseen = (fwd_cnt - self.sent) & _COUNT_MASK
        if unseen >= _COUNT_MASK >> 1:
            return 0  # what was sent last is still on its way
        self.sent += unseen
        return unseen


@dataclass(slots=True)
class Stream:
    """A connection as its packets show it: `to_server` and `to_client` are its directions."""

    number: int
    server: tuple[int, int]
    accepted: bool
    to_server: Flow
    to_client: Flow
    ending: bool = False

    @property
    def in_guest(self) -> bool:
        """Whether the listener is the guest; the host has a CID of its own."""
        return self.server[0] != HOST_CID

    def carries(self, upcall_port: int) -> bool:
        return self.in_guest and self.server[1] == upcall_port


def _credit(connection: Stream, packet: Packet, from_server: bool) -> list[StreamEvent]:
    """Take in what a packet says of both directions."""
    ours, theirs = connection.to_server, connection.to_client
    if from_server:
        ours, theirs = theirs, ours
    size = 0
    if packet.op == MonitorOp.PAYLOAD:
        size = len(packet.payload) + packet.missing
    unseen = 0
    if packet.fwd_cnt is not None and packet.virtio_op != VirtioOp.RST:  # which may have no socket
        unseen = theirs.taken(packet.fwd_cnt, size > 0)
    ours.carried(size)
    return [Unseen(connection.number, from_server, unseen)] if unseen else []


class Connections:
    """Numbers connections from 1 in the order of their first packet, and follows each."""

    def __init__(self, upcall_port: int = UPCALL_PORT) -> None:
        self._upcall_port = upcall_port
        self._known: dict[frozenset[tuple[int, int]], Stream] = {}
        self._count = 0

    def packet(self, packet: Packet) -> list[StreamEvent]:
        """What `packet` means; payload of other ports is never returned."""
        src = (packet.src_cid, packet.src_port)
        dst = (packet.dst_cid, packet.dst_port)
        key = frozenset((src, dst))
        connection = self._known.get(key)
        events: list[StreamEvent] = []
        if self._is_first(packet, connection):
            connection = self._open(key, server=dst, accepted=False)
            return [Opened(connection.number, packet.dst_port, True, connection.in_guest)]
        if connection is None:
            if packet.op == MonitorOp.DISCONNECT:
                return []
            server = src if packet.src_port == self._upcall_port else dst
            connection = self._open(key, server, accepted=True)
            events.append(Opened(connection.number, server[1], False, connection.in_guest))
        from_server = src == connection.server
        if connection.carries(self._upcall_port):
            events += _credit(connection, packet, from_server)
        match packet.op:
            case MonitorOp.CONNECT if from_server and not connection.accepted:
                connection.accepted = True
                events.append(Accepted(connection.number))
            case MonitorOp.PAYLOAD if connection.carries(self._upcall_port):
                if packet.payload or packet.missing:
                    events.append(
                        Carried(connection.number, not from_server, packet.payload, packet.missing)
                    )
            case MonitorOp.DISCONNECT:
                by_guest = from_server is connection.in_guest
                events += self._end(key, connection, packet, by_guest)
        return events

    def known(self, src: tuple[int, int], dst: tuple[int, int]) -> Stream | None:
        """The connection of packets between these, where there is one."""
        return self._known.get(frozenset((src, dst)))

    def _is_first(self, packet: Packet, connection: Stream | None) -> bool:
        if packet.op != MonitorOp.CONNECT:
            return False
        if packet.virtio_op is not None:
            return packet.virtio_op == VirtioOp.REQUEST
        return connection is None

    def _open(
        self, key: frozenset[tuple[int, int]], server: tuple[int, int], accepted: bool
    ) -> Stream:
        self._count += 1
        sent = None if accepted else 0
        flows = Flow(sent), Flow(sent)
        connection = self._known[key] = Stream(self._count, server, accepted, *flows)
        return connection

    def _end(
        self,
        key: frozenset[tuple[int, int]],
        connection: Stream,
        packet: Packet,
        by_guest: bool,
    ) -> list[StreamEvent]:
        shutdown = packet.virtio_op == VirtioOp.SHUTDOWN
        if shutdown and packet.virtio_flags != SHUTDOWN_BOTH:
            return []  # half-closed: the other direction may still carry bytes
        if not shutdown:
            del self._known[key]
        if connection.ending:
            return []  # the answer to a shutdown that was already told
        connection.ending = True
        refused = not connection.accepted
        return [Ended(connection.number, by_guest, reset=not shutdown and not refused)]
