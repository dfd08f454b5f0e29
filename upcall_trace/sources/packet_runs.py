"""Packets that carry one whole message each, gathered into runs; a packet at a time is decided.

What a packet means depends on the connection it is of, so each is looked at. But of one that only
carries bytes, or tells of credit, on a connection that is known, a look at a few numbers is enough.
All others are `PacketRecords`' to understand.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import numpy as np

from dissectors.vsockmon import (
    VIRTIO_SIZE,
    VSOCKMON_SIZE,
    Flow,
    MonitorOp,
    Stream,
    Transport,
    VirtioOp,
)

from ..capture.encoding import literal_of
from ..capture.records import MAX_CHUNK, Chunk, Gap, Record
from ..capture.runs import SHORTEST, MessageRun
from .packet_blocks import PacketPlace
from .vsock_records import NOT_CAPTURED, PacketRecords

ADDRESSES: Final = Struct("<QQII")
_KIND: Final = Struct("<HHH")
PAYLOAD: Final = _KIND.pack(MonitorOp.PAYLOAD, Transport.VIRTIO, VIRTIO_SIZE)
_CONTROL: Final = _KIND.pack(MonitorOp.CONTROL, Transport.VIRTIO, VIRTIO_SIZE)
VIRTIO: Final = Struct("<IHHIII")
VIRTIO_AT: Final = VSOCKMON_SIZE + ADDRESSES.size
HEADERS: Final = VSOCKMON_SIZE + VIRTIO_SIZE
_PAD: Final = bytes(16)


class GatheredMessages:
    """Whole messages of packets of one block, by columns."""

    def __init__(self, whole: int) -> None:
        self._whole = whole
        self._t_ns: list[int] = []
        self._conn: list[int] = []
        self._to_guest: list[bool] = []
        self._begin: list[int] = []
        self._size: list[int] = []

    def add(self, block: bytes, begin: int, t_ns: int, conn: int, to_guest: bool) -> None:
        """The message that begins there."""
        self._t_ns.append(t_ns)
        self._conn.append(conn)
        self._to_guest.append(to_guest)
        self._begin.append(begin)
        self._size.append(len(literal_of(block, begin, begin + self._whole)))

    def taken(self, block: bytes) -> list[Record | MessageRun]:
        """The messages since the last call: a run, or singly where they are few."""
        count = len(self._t_ns)
        if not count:
            return []
        found: list[Record | MessageRun] = []
        if count < SHORTEST or max(self._t_ns) >= 1 << 62:
            for t_ns, conn, to_guest, begin in zip(
                self._t_ns, self._conn, self._to_guest, self._begin, strict=True
            ):
                found.append(Chunk(t_ns, conn, to_guest, block[begin : begin + self._whole]))
        else:
            low, high = self._begin[0], self._begin[-1] + self._whole
            found.append(
                MessageRun(
                    self._whole,
                    block[low:high] + _PAD + bytes(self._whole),
                    np.zeros(count, np.int64),
                    np.array(self._t_ns, np.int64),
                    np.array(self._conn, np.int64),
                    np.array(self._to_guest, np.bool_),
                    np.array(self._begin, np.int64) - low,
                    np.array(self._size, np.int64),
                )
            )
        for column in (self._t_ns, self._conn, self._to_guest, self._begin, self._size):
            column.clear()
        return found


class RunsOfPackets:
    """Give it packets; what it does not take is for `converter` to understand."""

    def __init__(self, converter: PacketRecords, whole: int) -> None:
        self._converter = converter
        self._whole = whole
        self._ways: dict[bytes, tuple[Stream, bool, Flow, Flow] | None] = {}
        self._messages = GatheredMessages(whole)

    def take(self, block: bytes, at: PacketPlace, t_ns: int) -> list[Record] | None:
        """None for a packet that was not taken, else the records that follow what was gathered."""
        begin, end = at.begin, at.end
        kind = block[begin + 24 : begin + 30]
        if end - begin < HEADERS or at.original_size != end - begin:
            return None
        if kind != PAYLOAD and kind != _CONTROL:
            return None
        addresses = block[begin : begin + 24]
        way = self._ways[addresses] if addresses in self._ways else self._way(addresses)
        if way is None:
            return None
        stream, from_server, ours, theirs = way
        size, _, op, _, _, fwd_cnt = VIRTIO.unpack_from(block, begin + VIRTIO_AT)
        payload = begin + HEADERS
        if kind == _CONTROL:
            if op == VirtioOp.RST:
                return None
            carried = 0
        else:
            if op != VirtioOp.RW or size != end - payload or not size:
                return None
            carried = size
        unseen = theirs.taken(fwd_cnt, carried > 0)
        ours.carried(carried)
        made: list[Record] = []
        conn, to_guest = stream.number, not from_server
        if unseen:
            made.append(Gap(t_ns, conn, from_server, unseen, NOT_CAPTURED))
        if carried == self._whole and not made:
            self._messages.add(block, payload, t_ns, conn, to_guest)
        else:
            for first in range(payload, payload + carried, MAX_CHUNK):
                piece = block[first : min(first + MAX_CHUNK, end)]
                made.append(Chunk(t_ns, conn, to_guest, piece))
        return made

    def _way(self, addresses: bytes) -> tuple[Stream, bool, Flow, Flow] | None:
        """The connection of packets with these addresses, whether its server sends them, and the
        flows of sender and receiver; None where the next packet may change what they mean."""
        src_cid, dst_cid, src_port, dst_port = ADDRESSES.unpack(addresses)
        src, dst = (src_cid, src_port), (dst_cid, dst_port)
        found = self._converter.connections.known(src, dst)
        way = None
        if found is not None and self._converter.is_upcall(found):
            from_server = src == found.server
            flows = found.to_server, found.to_client
            ours, theirs = reversed(flows) if from_server else flows
            way = found, from_server, ours, theirs
        self._ways[addresses] = way
        return way

    def gathered(self, block: bytes) -> list[Record | MessageRun]:
        """The messages since the last call: a run, or singly where they are few."""
        return self._messages.taken(block)

    def forget(self) -> None:
        """A packet was understood elsewhere: connections may be others now."""
        self._ways.clear()
