"""A small guest's memory made by hand: an object, its socket, the socket's counts, its thread.

Laid out as in a kernel with its direct mapping: what stands at an offset has the virtual address
`BASE` more. Pointers of real kernels were looked at on the live guest and on a cut-out of 6.1.
"""

from __future__ import annotations

from struct import pack, pack_into
from typing import Final

from tests.vantage.guest_memory.cutouts import held

BASE: Final = 0xFFFF888000000000
OBJECT, SOCKET, SOCK, COUNTS, TASK = 0x3000, 0x5A40, 0x7000, 0x9040, 0xA000
_OPS: Final = 0xFFFFFFFF81ABF2C0


class WholeGuest:
    """64 KiB of memory with one connection; `layout` 1 has the counts as kernels from 6.11."""

    def __init__(
        self,
        request: bytes,
        reply: bytes,
        requests: int,
        replies: int,
        layout: int = 0,
        thread: bool = True,
        peer_port: int = 1024,
    ) -> None:
        self.raw = raw = bytearray(1 << 16)
        raw[OBJECT : OBJECT + 2064] = held(request, reply, BASE + TASK, BASE + SOCKET)
        pack_into("<IHHQQQQ", raw, SOCKET, 3, 1, 0, 0, 0, BASE + SOCK, _OPS)
        for place in (0x40, 0x60, 0x120):  # lists that are empty point at themselves
            pack_into("<QQ", raw, SOCK + place, *[BASE + SOCK + place] * 2)
        pack_into("<Q", raw, SOCK + 0x240, BASE + SOCKET)
        raw[SOCK + 0x2C0 : SOCK + 0x2D0] = pack("<HHIIB3x", 40, 0, 219, 3, 0)
        raw[SOCK + 0x2D0 : SOCK + 0x2E0] = pack("<HHIIB3x", 40, 0, peer_port, 2, 0)
        pack_into("<Q", raw, SOCK + 0x480, BASE + COUNTS)
        taken, sent = 1 + 1024 * requests, 1024 * (1 + replies)
        pack_into("<QIIIII", raw, COUNTS, BASE + SOCK, 0, 0, sent, sent, 65536)
        pack_into("<IIII", raw, COUNTS + (28, 40)[layout], taken, taken, 0, 262144)
        if thread:
            raw[TASK + 0xA40 : TASK + 0xA4B] = b"db_dev_mgr\0"
