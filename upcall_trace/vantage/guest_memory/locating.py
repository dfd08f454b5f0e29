"""What of upcall stands in memory: connection objects, packets, messages, sockets.

Pure: windows of bytes in, what was found out. Nothing is taken for what it is because of one
number alone: the magic stands in kernel code, too. docs/guest-memory.md tells the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import (
    APIC_IDS_SIZE,
    CPU_TYPES,
    HEADER_SIZE,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    MMIO_TYPES,
    PCI_MSG_SIZE,
    PCI_TYPES,
    REPLY_LOAD_OFFSET,
    UPCALL_PORT,
)
from dissectors.vsockmon import VIRTIO_SIZE, VirtioOp

from .windows import REACH, Progress, Stretch

REPLY_AT: Final = 16 + MESSAGE_SIZE
"""Where the reply buffer stands in the guest's object; the request buffer is at 16."""
OBJECT_SIZE: Final = REPLY_AT + MESSAGE_SIZE

_MAGIC: Final = MAGIC_VERSION.to_bytes(4, "little")
_WORD: Final = Struct("<Q")
_HEADER: Final = Struct("<4I")
_VIRTIO: Final = Struct("<QQIIIHHIII")
_ZEROS: Final = bytes(MESSAGE_SIZE)
_SIZES: Final = np.array([0, 1, 2, 4, 24, 258], np.uint32)
"""Every `msg_size` that a sane message has (docs/protocol.md section 3)."""
_REPLY_SIZES: Final = frozenset({0, 4})
_LONE_TYPE_LIMIT: Final = 16
_REPLY_END: Final = REPLY_LOAD_OFFSET + 4
"""The guest never writes its reply buffer from here on: it stays as it was cleared."""
_SCRIBBLE_LIMIT: Final = 16
"""Bytes in the rest of a reply that an allocator may have written after the object was freed."""
_VIRTIO_STREAM: Final = 1
_PAYLOAD_LIMIT: Final = 64 << 10
_HOST_CID: Final = 2
_AF_VSOCK: Final = 40
_ANY_PORT: Final = 0xFFFFFFFF
_SOCKET_BEFORE: Final = 0x800
_SOCKET_AFTER: Final = 0x300
_TEXT: Final = 0xFFFFFFFF00000000
"""From here on a kernel's code and static data stand, which no task and no socket is in."""

LIMIT: Final = 1 << 15
"""Of each kind at most so many are kept; a guest can make as many as it likes."""


@dataclass(frozen=True, slots=True)
class ConnectionObject:
    """What the guest's server keeps of one connection: pointers, last request, last reply.

    `address` is where it begins, `task` None where there is no pointer to one in front (the
    lab's own module has none). `scribbled` says that an allocator wrote into its end.
    """

    address: int
    request_at: int
    task: int | None
    socket: int
    request: bytes = field(repr=False)
    reply: bytes = field(repr=False)
    scribbled: bool = False


@dataclass(frozen=True, slots=True)
class CarvedPacket:
    """A virtio-vsock packet of the upcall port, with its payload when that still stands there.

    `payload` is empty for packets without one and for those whose payload was written over.
    """

    address: int
    to_guest: bool
    guest_cid: int
    peer_port: int
    op: int
    fwd_cnt: int
    size: int
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CarvedMessage:
    """A message that stands alone: what it says is certain, where it belongs is not."""

    address: int
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KernelSocket:
    """The guest's end of a vsock connection of the upcall port.

    `context` is the memory around its addresses, which stand at `address`, `at` bytes into it.
    """

    address: int
    guest_cid: int
    peer_port: int
    at: int
    context: bytes = field(repr=False)


@dataclass(slots=True)
class Located:
    """All that was found. `immediates` counts the magic where no message is: kernel code."""

    objects: dict[int, ConnectionObject] = field(default_factory=dict)
    packets: dict[int, CarvedPacket] = field(default_factory=dict)
    messages: dict[int, CarvedMessage] = field(default_factory=dict)
    sockets: dict[int, KernelSocket] = field(default_factory=dict)
    immediates: set[int] = field(default_factory=set)
    looked_at: int = 0
    overflowed: bool = False
    """More was there than is kept."""


def locate(
    windows: Iterable[Stretch],
    aligned: bool,
    port: int = UPCALL_PORT,
    progress: Progress | None = None,
) -> Located:
    """Look through all of a memory. For any bytes it returns, and never raises."""
    found = Located()
    for window in windows:
        look(window, aligned, port, found)
        if progress is not None:
            progress(found.looked_at)
    for packet in found.packets.values():
        if packet.payload:
            found.messages.pop(packet.address + VIRTIO_SIZE, None)
    for held in found.objects.values():
        found.messages.pop(held.request_at, None)
        found.messages.pop(held.request_at + MESSAGE_SIZE, None)
        found.immediates.discard(held.request_at)
    return found


def look(window: Stretch, aligned: bool, port: int, found: Located) -> None:
    """Add what one window shows to what was found."""
    found.looked_at += window.size
    if not aligned and not np.frombuffer(window.raw, "<u8", window.size // 8).any():
        return  # images are full of nothing, and without alignment there are four ways to look
    for phase in (0,) if aligned else range(4):
        count = (window.size - phase) // 4
        if count <= 0:
            continue
        words = np.frombuffer(window.raw, "<u4", count, phase)
        _look_for_magic(window, words, phase, found)
        _look_for_port(window, words, phase, port, found)


def is_kernel_pointer(value: int) -> bool:
    """Whether a task or a socket can be there: the top bits all ones, eight-byte aligned.

    That holds on x86-64 with four and with five levels of page tables, and on aarch64.
    """
    return value >> 56 == 0xFF and value % 8 == 0 and value < _TEXT


def object_at(raw: bytes, address: int, known: bool = False) -> ConnectionObject | None:
    """The connection object whose 2064 bytes these are, counted from the task pointer's place.

    Of one that is `known` for one already, the request may be anything.
    """
    task, socket = _WORD.unpack_from(raw), _WORD.unpack_from(raw, 8)
    request, reply = raw[16:REPLY_AT], raw[REPLY_AT:OBJECT_SIZE]
    if not is_kernel_pointer(socket[0]):
        return None
    scribbled = _reply_state(reply)
    if scribbled is None or not (known or _fits(request, reply)):
        return None
    has_task = is_kernel_pointer(task[0])
    return ConnectionObject(
        address if has_task else address + 8,
        address + 16,
        task[0] if has_task else None,
        socket[0],
        kept_of_request(request),
        kept_of_reply(reply),
        scribbled,
    )


def kept_of_request(raw: bytes) -> bytes:
    """A request with nothing but its header and the load of its type; zeros for the rest.

    Behind that may stand what another owner of the page wrote there, which is nobody's business.
    """
    msg_type = int.from_bytes(raw[8:12], "little")
    if msg_type in CPU_TYPES:
        load = 2 + APIC_IDS_SIZE
    elif msg_type in MMIO_TYPES:
        load = MMIO_MSG_SIZE
    else:
        load = PCI_MSG_SIZE if msg_type in PCI_TYPES else 0
    return raw[: HEADER_SIZE + load].ljust(len(raw), b"\0")


def kept_of_reply(raw: bytes) -> bytes:
    """A reply with nothing but what the guest writes: header, `ret` and a CPU's load."""
    return raw[:_REPLY_END].ljust(len(raw), b"\0")


def _reply_state(reply: bytes) -> bool | None:
    """None for what no server left in its reply buffer, else whether its end was written over."""
    magic, msg_size, _, msg_flags = _HEADER.unpack_from(reply)
    if magic != MAGIC_VERSION or msg_size not in _REPLY_SIZES or msg_flags:
        return None
    rest = reply[_REPLY_END:]
    if rest == _ZEROS[: len(rest)]:
        return False
    return True if len(rest) - rest.count(0) <= _SCRIBBLE_LIMIT else None


def _fits(request: bytes, reply: bytes) -> bool:
    """Whether a request buffer can stand over this reply.

    With the magic it can be any request. Without, it is either untouched, or a request that the
    guest refused for its magic, whose type it echoed (docs/protocol.md section 4).
    """
    if request.startswith(_MAGIC):
        return True
    if request == _ZEROS:
        return reply[4:_REPLY_END] == _ZEROS[4:_REPLY_END] or reply[8:12] == bytes(4)
    return request[8:12] == reply[8:12] != bytes(4)


def _look_for_magic(window: Stretch, words: NDArray[np.uint32], phase: int, found: Located) -> None:
    places = np.flatnonzero(words == MAGIC_VERSION)
    if not len(places):
        return
    inside = places[places + 3 < len(words)]
    sane = (words[inside + 3] == 0) & np.isin(words[inside + 1], _SIZES)
    for place in inside[~sane][:LIMIT].tolist():
        _keep_immediate(window, place * 4 + phase, found)
    likely = inside[sane]
    if len(likely) > LIMIT:
        found.overflowed = True
    for place in likely[:LIMIT].tolist():
        offset = place * 4 + phase
        if offset >= window.end:
            break
        _judge(window, offset, found)


def _keep_immediate(window: Stretch, offset: int, found: Located) -> None:
    """The magic where no message is; the request of an object may be as odd as one likes."""
    if offset < window.end and len(found.immediates) < LIMIT:
        found.immediates.add(window.address(offset))


def _judge(window: Stretch, offset: int, found: Located) -> None:
    """A sane header stands here: of an object's reply, of a message, or of what looks like one."""
    whole = window.around(offset, REPLY_AT, MESSAGE_SIZE)
    if whole is not None:
        held = object_at(whole, window.address(offset) - REPLY_AT)
        if held is not None:
            _keep(found.objects, held.request_at, held, found)
            return
    raw = window.around(offset, 0, MESSAGE_SIZE)
    if raw is None:
        return
    if _is_message(raw):
        address = window.address(offset)
        kept = max(
            kept_of_request(raw), kept_of_reply(raw), key=lambda each: len(each.rstrip(b"\0"))
        )
        _keep(found.messages, address, CarvedMessage(address, kept), found)
    else:
        _keep_immediate(window, offset, found)


def _is_message(raw: bytes) -> bool:
    """Whether bytes with a sane header can be a whole message that stands alone."""
    _, _, msg_type, _ = _HEADER.unpack_from(raw)
    if msg_type > _LONE_TYPE_LIMIT:
        return False
    # A message is a few numbers and then nothing; what follows code and data is more of it.
    return raw.count(0) >= MESSAGE_SIZE - 300 and not any(raw[280:])


def _look_for_port(
    window: Stretch, words: NDArray[np.uint32], phase: int, port: int, found: Located
) -> None:
    places = np.flatnonzero(words == port)
    if not len(places):
        return
    for shift in (4, 5):  # as source or destination port of a packet's header
        first = places[(places >= shift) & (places - shift + 10 < len(words))] - shift
        first = first[_are_headers(words, first)]
        if len(first) > LIMIT:
            found.overflowed = True
        for place in first[:LIMIT].tolist():
            offset = place * 4 + phase
            if offset < window.end:
                _keep_packet(window, offset, shift == 5, found)
    # As the local address of a socket that has a remote one right behind it.
    inside = places[(places >= 1) & (places + 5 < len(words))]
    paired = (words[inside - 1] & 0xFFFF == _AF_VSOCK) & (words[inside + 3] & 0xFFFF == _AF_VSOCK)
    for place in inside[paired][:LIMIT].tolist():
        offset = (place - 1) * 4 + phase
        if offset < window.end:
            _keep_socket(window, offset, found)


def _are_headers(words: NDArray[np.uint32], first: NDArray[Any]) -> NDArray[np.bool_]:
    kind = words[first + 7]
    op = kind >> 16
    ok: NDArray[np.bool_] = (
        (kind & 0xFFFF == _VIRTIO_STREAM)
        & (op >= VirtioOp.REQUEST)
        & (op <= VirtioOp.CREDIT_REQUEST)
        & (words[first + 1] == 0)
        & (words[first + 3] == 0)
        & (words[first + 6] <= _PAYLOAD_LIMIT)
    )
    return ok


def _keep_packet(window: Stretch, offset: int, to_guest: bool, found: Located) -> None:
    header = window.around(offset, 0, VIRTIO_SIZE)
    if header is None:
        return
    src_cid, dst_cid, src_port, dst_port, size, _, op, _, _, fwd_cnt = _VIRTIO.unpack(header)
    guest_cid, host_cid, peer_port = (
        (dst_cid, src_cid, src_port) if to_guest else (src_cid, dst_cid, dst_port)
    )
    if host_cid != _HOST_CID or guest_cid <= _HOST_CID:
        return
    payload = b""
    if op == VirtioOp.RW:
        there = window.around(offset + VIRTIO_SIZE, 0, min(size, REACH - VIRTIO_SIZE))
        if there and _is_payload(there, to_guest):
            payload = kept_of_request(there) if to_guest else kept_of_reply(there)
    elif size:
        return
    address = window.address(offset)
    packet = CarvedPacket(address, to_guest, guest_cid, peer_port, op, fwd_cnt, size, payload)
    _keep(found.packets, address, packet, found)


def _is_payload(payload: bytes, to_guest: bool) -> bool:
    """Whether a payload is still upcall's, and not what was written over it.

    Requests may have a wrong magic; then the rest of their header has to be sane.
    """
    if len(payload) < HEADER_SIZE:
        return payload == b"d" and to_guest
    magic, msg_size, msg_type, msg_flags = _HEADER.unpack_from(payload)
    if magic == MAGIC_VERSION:
        return to_guest or (msg_size in _REPLY_SIZES and not msg_flags)
    return (
        to_guest
        and len(payload) == MESSAGE_SIZE
        and msg_type <= _LONE_TYPE_LIMIT
        and msg_size in _SIZES
        and not msg_flags
        and not any(payload[280:])
        and payload != _ZEROS
    )


def _keep_socket(window: Stretch, offset: int, found: Located) -> None:
    begin, edge = window.piece(offset)
    before = min(_SOCKET_BEFORE, offset - begin)
    after = min(_SOCKET_AFTER, edge - offset)
    context = window.around(offset, before, after)
    if context is None or after < 28:
        return
    guest_cid = int.from_bytes(context[before + 8 : before + 12], "little")
    peer_port = int.from_bytes(context[before + 20 : before + 24], "little")
    peer_cid = int.from_bytes(context[before + 24 : before + 28], "little")
    if peer_cid == _HOST_CID and peer_port != _ANY_PORT:
        address = window.address(offset)
        socket = KernelSocket(address, guest_cid, peer_port, before, context)
        _keep(found.sockets, address, socket, found)


def _keep(kept: dict[int, Any], address: int, value: object, found: Located) -> None:
    if len(kept) < LIMIT or address in kept:
        kept[address] = value
    else:
        found.overflowed = True
