"""vsockmon packets become a capture's records: shared by pcap files and live interfaces."""

from __future__ import annotations

from collections.abc import Iterator

from dissectors.constants import UPCALL_PORT
from dissectors.vsockmon import (
    Accepted,
    Carried,
    Connections,
    Ended,
    NotAPacket,
    Opened,
    Stream,
    StreamEvent,
    Unseen,
    decode_packet,
)

from ..capture.records import CUT_OFF, MAX_CHUNK, Begins, Chunk, Close, Gap, How, Open, Record

NOT_CAPTURED = "not in the packet capture, though their receiver counts them"
"""The reason of a gap that the packets after it show."""


class PacketRecords:
    """Turns packets into records, connection by connection.

    An `Open` record needs to say whether the guest accepted, so it is held back until the next
    packet of its connection tells.
    """

    def __init__(self, upcall_port: int = UPCALL_PORT) -> None:
        self._port = upcall_port
        self.connections = Connections(upcall_port)
        self._opening: dict[int, Open] = {}
        self.malformed = 0
        """Packets that were too short for their own headers."""

    def packet(self, t_ns: int, raw: bytes, original_size: int | None = None) -> Iterator[Record]:
        """The records that one packet makes; `original_size` is its length on the wire."""
        try:
            packet = decode_packet(raw, original_size)
        except NotAPacket:
            self.malformed += 1
            return
        for event in self.connections.packet(packet):
            yield from self._event(t_ns, event)

    def is_upcall(self, stream: Stream) -> bool:
        """Whether its packets carry upcall, and none of them is needed to tell how it began."""
        return stream.carries(self._port) and stream.number not in self._opening

    def finish(self) -> Iterator[Record]:
        """Connections whose beginning was seen and nothing else."""
        yield from self._opening.values()
        self._opening.clear()

    def _event(self, t_ns: int, event: StreamEvent) -> Iterator[Record]:
        match event:
            case Opened(conn=conn, port=port):
                upcall = Begins.SERVICE if event.seen else Begins.MIDDLE
                ours = port == self._port and event.listener_in_guest
                begins = upcall if ours else Begins.OTHER
                self._opening[conn] = Open(t_ns, conn, begins, port)
                if not event.seen:
                    yield self._opening.pop(conn)
            case Accepted(conn=conn):
                yield from self._opened(conn, accepted=True)
            case Carried(conn=conn):
                yield from self._opened(conn, accepted=True)
                for begin in range(0, len(event.payload), MAX_CHUNK):
                    piece = event.payload[begin : begin + MAX_CHUNK]
                    yield Chunk(t_ns, conn, event.to_guest, piece)
                if event.missing:
                    yield Gap(t_ns, conn, event.to_guest, event.missing, CUT_OFF)
            case Unseen(conn=conn):
                yield from self._opened(conn, accepted=True)
                yield Gap(t_ns, conn, event.to_guest, event.size, NOT_CAPTURED)
            case Ended(conn=conn):
                yield from self._opened(conn, accepted=False)
                how = How.RESET if event.reset else How.CLOSE
                yield Close(t_ns, conn, event.by_guest, how)

    def _opened(self, conn: int, accepted: bool) -> Iterator[Record]:
        opening = self._opening.pop(conn, None)
        if opening is not None:
            yield Open(opening.t_ns, conn, opening.begins, opening.port, accepted)
