"""Packets of a file of this program's that carry bytes and nothing else: no comment, no surprise.

Nearly all packets of such a file are of this kind, and a look at a few numbers is enough for each.
Every other block is for the library to read.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from struct import Struct
from typing import Final

from dissectors.constants import HOST_CID
from dissectors.vsockmon import VirtioOp

from ..capture.records import Chunk, Record
from ..capture.runs import MessageRun
from .packet_runs import ADDRESSES, HEADERS, PAYLOAD, VIRTIO, VIRTIO_AT, GatheredMessages
from .packets import NANOSECONDS, WALL_LIMIT
from .pcap_permissive import PcapngFile

_READ: Final = 4 << 20
_ENHANCED: Final = Struct("<IIIIIII")
_U32: Final = Struct("<I")
_KIND: Final = 6
_AROUND: Final = 32
"""Bytes of a packet's block besides the packet, where it has no options."""
_ADDRESSED: Final = ADDRESSES.size


class PlainPackets:
    """`conns` are the connections that are known, by both of their addresses."""

    def __init__(
        self,
        file: PcapngFile,
        conns: Mapping[frozenset[tuple[int, int]], int],
        begin_ns: int,
        whole: int,
    ) -> None:
        self._file = file
        self._conns = conns
        self._begin_ns = begin_ns
        self._whole = whole
        self._messages = GatheredMessages(whole)
        self._ways: dict[bytes, tuple[int, bool] | None] = {}
        self._read = b""
        self._from = 0

    def forget(self) -> None:
        """Connections may be others now."""
        self._ways.clear()

    def taken(self, position: int) -> Generator[tuple[int, Record | MessageRun], None, int]:
        """The records of the plain packets from `position` on, as `Source.records` gives them.

        Returns where another block begins.
        """
        if not self._file.is_little_endian:
            return position
        unpack, virtio, ticks = _ENHANCED.unpack_from, VIRTIO.unpack_from, self._file.ticks
        add, ways, begin_ns, whole = self._messages.add, self._ways, self._begin_ns, self._whole
        block, at = self._read, position - self._from
        end = len(block)
        fresh = False
        while True:
            if not 0 <= at <= end - _AROUND or at + _U32.unpack_from(block, at + 4)[0] > end:
                if fresh:
                    break
                yield from ((0, item) for item in self._messages.taken(block))
                position = self._from + at
                block = self._read = self._file.bytes_at(position, _READ)
                self._from, at, end, fresh = position, 0, len(block), True
                continue
            kind, total, interface, high, low, size, original = unpack(block, at)
            begin = at + 28
            stop = at + total
            if (
                kind != _KIND
                or size < HEADERS
                or total != _AROUND + size + (-size & 3)
                or original > size
                or interface >= len(ticks)
                or _U32.unpack_from(block, stop - 4)[0] != total
                or block[begin + _ADDRESSED : begin + _ADDRESSED + len(PAYLOAD)] != PAYLOAD
            ):
                break
            addresses = block[begin : begin + _ADDRESSED]
            way = ways[addresses] if addresses in ways else self._way(addresses)
            carried, _, op, _, _, _ = virtio(block, begin + VIRTIO_AT)
            payload = begin + HEADERS
            if way is None or op != VirtioOp.RW or carried != size - HEADERS or not carried:
                break
            wall_ns = min((high << 32 | low) * NANOSECONDS // ticks[interface], WALL_LIMIT)
            t_ns = wall_ns - begin_ns
            if carried == whole and t_ns >= 0:
                add(block, payload, t_ns, *way)
            else:
                yield from ((0, item) for item in self._messages.taken(block))
                yield 0, Chunk(t_ns, *way, block[payload : payload + carried])
            at, fresh = stop, False
        yield from ((0, item) for item in self._messages.taken(block))
        return self._from + at

    def _way(self, addresses: bytes) -> tuple[int, bool] | None:
        """The connection of packets with these addresses, and whether they go to the guest."""
        src_cid, dst_cid, src_port, dst_port = ADDRESSES.unpack(addresses)
        conn = self._conns.get(frozenset(((src_cid, src_port), (dst_cid, dst_port))))
        way = None if conn is None else (conn, src_cid == HOST_CID)
        self._ways[addresses] = way
        return way
