"""A pcapng file that this program wrote: packets and carried records give the capture back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from dissectors.constants import HOST_CID
from dissectors.vsockmon import (
    SHUTDOWN_BOTH,
    MonitorOp,
    NotAPacket,
    Packet,
    VirtioOp,
    decode_packet,
)

from ..capture.reader import Damage
from ..capture.records import (
    CONN_LIMIT,
    CUT_OFF,
    Begins,
    Chunk,
    Close,
    Gap,
    Header,
    How,
    Open,
    Record,
)  # fmt: skip
from ..capture.runs import MessageRun
from .carried import DERIVED, carried, connection_of
from .pcap_permissive import PcapngFile, comments
from .plain_packets import PlainPackets


class OwnPcapngSource:
    """Such a file as a `Source`: the same records as before, in the same order.

    Packets that were added by others, whose connection no comment names, become connections with
    numbers of their own, seen from the middle.
    """

    live = False

    def __init__(self, path: Path, file: PcapngFile) -> None:
        self.damage: list[Damage] = []
        self.complete = False
        self._file = file
        self._size = path.stat().st_size
        headers = [each for each in carried(comments(file.section)) if isinstance(each, Header)]
        self.header = headers[0] if headers else Header(source="pcapng")
        self._conns: dict[frozenset[tuple[int, int]], int] = {}
        self._strangers = CONN_LIMIT

    def records(self) -> Iterator[tuple[int, Record]]:
        for block in self._file.blocks():
            for record in self._of(block):
                yield 0, record
        self._conclude()

    def runs(self, whole: int) -> Iterator[tuple[int, Record | MessageRun]]:
        """The same, with messages that are all `whole` bytes long as runs, as in a capture."""
        plain = PlainPackets(self._file, self._conns, self.header.wall_ns or 0, whole)
        while True:
            position = yield from plain.taken(self._file.position)
            block = self._file.block_at(position)
            if block is None:
                break
            for record in self._of(block):
                yield 0, record
            plain.forget()
        self._conclude()

    def _of(self, block: Any) -> Iterator[Record]:
        """The records that a block stands for, and those that it carries."""
        told = comments(block)
        yield from carried(told)
        captured = self._file.packet(block)
        if captured is None:
            return
        try:
            packet = decode_packet(captured.raw, captured.original_size)
        except NotAPacket:
            self.damage.append(Damage(captured.offset, len(captured.raw), at_end=False))
            return
        key = frozenset(((packet.src_cid, packet.src_port), (packet.dst_cid, packet.dst_port)))
        number = connection_of(told)
        if number is not None:
            self._conns[key] = number
        t_ns = captured.wall_ns - (self.header.wall_ns or 0)
        if key not in self._conns:
            self._strangers -= 1
            self._conns[key] = self._strangers
            yield Open(t_ns, self._strangers, Begins.MIDDLE)
        if DERIVED not in told:
            yield from _meant(t_ns, self._conns[key], packet)

    def _conclude(self) -> None:
        torn = self._size - self._file.read_to
        if torn > 0:
            self.damage.append(Damage(self._file.read_to, torn, at_end=True))
        self.complete = torn <= 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _meant(t_ns: int, conn: int, packet: Packet) -> Iterator[Record]:
    """The record that a packet stands for; what a size limit cut off its bytes is a gap."""
    to_guest = packet.src_cid == HOST_CID
    if packet.op == MonitorOp.PAYLOAD and (packet.payload or packet.missing):
        if packet.payload:
            yield Chunk(t_ns, conn, to_guest, packet.payload)
        if packet.missing:
            yield Gap(t_ns, conn, to_guest, packet.missing, CUT_OFF)
    elif packet.virtio_op == VirtioOp.SHUTDOWN and packet.virtio_flags == SHUTDOWN_BOTH:
        yield Close(t_ns, conn, not to_guest)
    elif packet.virtio_op == VirtioOp.RST:
        yield Close(t_ns, conn, not to_guest, How.RESET)
