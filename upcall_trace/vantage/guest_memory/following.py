"""From a connection object along its pointers: to its socket, the socket's counts, its thread.

Pure but for the `read` that it is given. A guest's virtual addresses become addresses of the memory
by what is found there: empty lists point at themselves. Where that fails, as in pages that were
taken out of their memory, nothing is followed, and nothing is claimed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from .locating import ConnectionObject, KernelSocket, is_kernel_pointer

Read = Callable[[int, int], bytes]

_WORD: Final = Struct("<Q")
_TWO_WORDS: Final = Struct("<QQ")
_SOCKET: Final = Struct("<IH10xQQ")
"""struct socket: state, type, then flags, file and sk (the same from 5.10 to 6.18)."""
_STREAM: Final = 1
_LAST_STATE: Final = 4
_COUNTERS_SIZE: Final = 64
_LAYOUTS: Final = ((28, 40), (40, 52))
"""Where `fwd_cnt` and `buf_alloc` stand in struct virtio_vsock_sock: to 6.10, and from 6.11."""
_TX_CNT: Final = 16
_LEAST_BUFFER: Final = 4096
_SOCK_SIZE: Final = 0x900
_HOLE: Final = 128 << 20
_THREAD: Final = b"db_dev_mgr\0"
_TASK_SIZE: Final = 12 << 10
_TASK_DEAD: Final = 0x80
_OLD_STATE_AT, _STATE_AT = 0x10, 0x18
"""Of the task's state on x86-64: in 5.10, and from 5.14."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the guest's transport counted of a connection, in bytes, service byte and hello too.

    `address` is where it stands, `layout` which of the kernel's layouts it has, `owner` the
    guest's address of the socket that it belongs to.
    """

    address: int
    layout: int
    owner: int
    to_guest: int
    from_guest: int

    @property
    def requests(self) -> int:
        """Requests that the guest took: whole ones, behind the service byte."""
        return max(0, self.to_guest - 1) // 1024

    @property
    def replies(self) -> int:
        """Replies that the guest sent, behind the CONNECT message."""
        return max(0, self.from_guest // 1024 - 1)


@dataclass(frozen=True, slots=True)
class Followed:
    """Where an object's pointers lead.

    `thread` is True while the guest's thread is there, False when it is gone, None when that
    cannot be told.
    """

    guest_cid: int
    peer_port: int
    counts: Counts | None
    thread: bool | None


def follow(held: ConnectionObject, sockets: Iterable[KernelSocket], read: Read) -> Followed | None:
    """What an object's socket is, None when it was not found."""
    wanted = _WORD.pack(held.socket)
    for socket in sockets:
        if socket.context.find(wanted, 0, socket.at) < 0:
            continue
        shift = _shift(socket)
        if shift is None or not _agrees(held, socket, shift, read):
            return Followed(socket.guest_cid, socket.peer_port, None, None)
        return Followed(
            socket.guest_cid,
            socket.peer_port,
            _counts(socket, shift, read),
            _thread(held, shift, read),
        )
    return None


def shift_of(sockets: Iterable[KernelSocket], read: Read) -> int | None:
    """What to take from a virtual address of the guest to have one of this memory.

    None where that was not found out; then pointers cannot be followed.
    """
    for socket in sockets:
        shift = _shift(socket)
        if shift is None:
            continue
        for at in range(socket.at % 8, socket.at, 8):
            (pointer,) = _WORD.unpack_from(socket.context, at)
            if is_kernel_pointer(pointer) and _is_socket_of(pointer, socket, shift, read):
                return shift
    return None


def leads_to_socket(held: ConnectionObject, shift: int, read: Read) -> bool | None:
    """Whether a stream socket is where the object says; None when that memory is not there."""
    raw = read(held.socket - shift, _SOCKET.size)
    if len(raw) < _SOCKET.size:
        return None
    state, kind, _, sk = _SOCKET.unpack(raw)
    return bool(state <= _LAST_STATE and kind == _STREAM and is_kernel_pointer(sk))


def read_counts(before: Counts, read: Read) -> Counts | None:
    """The counts where they were found before; None when they are another socket's by now."""
    now = _counts_in(read(before.address, _COUNTERS_SIZE), before.address, before.layout)
    return now if now is not None and now.owner == before.owner else None


def socket_of(
    held: ConnectionObject, shifts: Iterable[int], read: Read, port: int
) -> KernelSocket | None:
    """The socket that an object points at, by the first of some shifts with which one is there."""
    for shift in shifts:
        raw = read(held.socket - shift, _SOCKET.size)
        if len(raw) < _SOCKET.size:
            continue
        state, kind, _, sk = _SOCKET.unpack(raw)
        if state > _LAST_STATE or kind != _STREAM or not is_kernel_pointer(sk):
            continue
        context = read(sk - shift, _SOCK_SIZE)
        for found in re.finditer(_addresses(port), context, re.DOTALL):
            at = found.start()
            guest_cid, peer_port = (
                int.from_bytes(context[at + place : at + place + 4], "little") for place in (8, 20)
            )
            return KernelSocket(sk - shift + at, guest_cid, peer_port, at, context)
    return None


def likely_shifts(held: ConnectionObject, ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Shifts that lead from an object's socket into one of some ranges (begin, end) of memory.

    The kernel's direct mapping begins at a multiple of 1 GiB, and holes below 4 GiB are multiples
    of 128 MiB, so that few places are left.
    """
    for begin, end in ranges:
        first = begin + held.socket % _HOLE
        for place in range(first, end, _HOLE):
            yield held.socket - place


def _addresses(port: int) -> bytes:
    """A local socket address with the upcall port, and a remote one of the host behind it."""
    family = re.escape((40).to_bytes(2, "little"))
    here, host = (re.escape(number.to_bytes(4, "little")) for number in (port, 2))
    return family + b".." + here + b".{8}" + family + b"..[^\xff].{3}" + host


def quick_place(counts: Counts) -> tuple[int, int]:
    """Address and size of the bytes that change whenever anything crosses."""
    fwd_at = _LAYOUTS[counts.layout][0]
    return counts.address + _TX_CNT, fwd_at + 4 - _TX_CNT


def _shift(socket: KernelSocket) -> int | None:
    """By the list heads around a socket's addresses that are empty, and so point at themselves."""
    begin = socket.address - socket.at
    votes: Counter[int] = Counter()
    for at in range(socket.at % 8, len(socket.context) - 16, 8):
        ahead, back = (
            _WORD.unpack_from(socket.context, at),
            _WORD.unpack_from(socket.context, at + 8),
        )
        if ahead == back and is_kernel_pointer(ahead[0]):
            votes[ahead[0] - begin - at] += 1
    best = votes.most_common(1)
    return best[0][0] if best and best[0][1] >= 2 else None


def _is_socket_of(pointer: int, socket: KernelSocket, shift: int, read: Read) -> bool:
    raw = read(pointer - shift, _SOCKET.size)
    if len(raw) < _SOCKET.size:
        return False
    state, kind, _, sk = _SOCKET.unpack(raw)
    return bool(
        state <= _LAST_STATE
        and kind == _STREAM
        and socket.address - socket.at <= sk - shift < socket.address
    )


def _agrees(held: ConnectionObject, socket: KernelSocket, shift: int, read: Read) -> bool:
    """Whether the socket that the object points at points at this one in turn."""
    return _is_socket_of(held.socket, socket, shift, read)


def _counts(socket: KernelSocket, shift: int, read: Read) -> Counts | None:
    """The transport's counts: the one thing behind the addresses that points back."""
    begin = socket.address - socket.at
    for at in range(socket.at + 32, len(socket.context) - 8, 8):
        (pointer,) = _WORD.unpack_from(socket.context, at)
        if not is_kernel_pointer(pointer):
            continue
        raw = read(pointer - shift, _COUNTERS_SIZE)
        if len(raw) < _COUNTERS_SIZE:
            continue
        (back,) = _WORD.unpack_from(raw)
        if begin <= back - shift < socket.address:
            for layout in range(len(_LAYOUTS)):
                counts = _counts_in(raw, pointer - shift, layout)
                if counts is not None:
                    return counts
    return None


def _counts_in(raw: bytes, address: int, layout: int) -> Counts | None:
    if len(raw) < _COUNTERS_SIZE:
        return None
    fwd_at, room_at = _LAYOUTS[layout]
    sent, taken, room = (
        int.from_bytes(raw[at : at + 4], "little") for at in (_TX_CNT, fwd_at, room_at)
    )
    if not taken or room < _LEAST_BUFFER or room & (room - 1):
        return None
    return Counts(address, layout, _WORD.unpack_from(raw)[0], taken, sent)


def _thread(held: ConnectionObject, shift: int, read: Read) -> bool | None:
    """Whether the thread that the object belongs to is still one of upcall's."""
    if held.task is None:
        return None
    raw = read(held.task - shift, _TASK_SIZE)
    if len(raw) < _TASK_SIZE:
        return None
    # A thread that has ended is freed, and its name stays until the page is used again.
    ended = _WORD.unpack_from(raw, _OLD_STATE_AT)[0] == _TASK_DEAD or (
        int.from_bytes(raw[_STATE_AT : _STATE_AT + 4], "little") == _TASK_DEAD
    )
    return _THREAD in raw and not ended
