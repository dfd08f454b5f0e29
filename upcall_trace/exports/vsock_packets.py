"""A capture's records as packets of a vsockmon interface, and what has no packet as comments.

A capture from the VMM's socket holds lines (`CONNECT 219`, `OK 1073741824`) where the guest's
wire has packets (REQUEST, RESPONSE). So there are three kinds of items:

- a packet that stands for exactly one record: payload after the handshake, the end of a side
- a *derived* packet, made because the wire must have had one: the request for a CONNECT line. It
  carries the records it was made from, so that reading the file gives them back unchanged
- an item without a packet: what the VMM did, marks, gaps. It is carried by a comment alone

Addresses that no record tells are made up: the host is CID 2, the guest CID 3, and the client of
connection N has port 2^30 + N, as Dragonball counts them. No IO. docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dissectors.constants import HOST_CID
from dissectors.events import ConnectLine, Event, OkLine, RequestReceived
from dissectors.vsockmon import SHUTDOWN_BOTH, VirtioOp, encode_packet

from ..capture.records import (
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from ..trace.decoding import Session

_GUEST_CID: Final = 3
_FIRST_PORT: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Item:
    """One block of the file: a packet, or with empty `raw` a note that has none.

    `itself` is the record that the packet stands for; `carried` are records that only this item's
    comments hold.
    """

    t_ns: int
    raw: bytes = b""
    itself: Record | None = None
    carried: tuple[Record, ...] = ()
    words: tuple[str, ...] = ()
    begins: int | None = None
    """The connection whose first packet this is."""


@dataclass(slots=True)
class _PacketStream:
    """What the packets of one connection need to know."""

    conn: int
    port: int
    taken_by_guest: int = 0
    taken_by_client: int = 0
    client_line_done: bool = False
    guest_line_done: bool = False
    accepted: bool = False
    told: bool = False

    def packet(self, to_guest: bool, op: VirtioOp, payload: bytes = b"", flags: int = 0) -> bytes:
        client, guest = (HOST_CID, _FIRST_PORT + self.conn), (_GUEST_CID, self.port)
        if to_guest:
            raw = encode_packet(
                client, guest, op, payload, flags=flags, fwd_cnt=self.taken_by_client
            )
            self.taken_by_guest += len(payload)
        else:
            raw = encode_packet(
                guest, client, op, payload, flags=flags, fwd_cnt=self.taken_by_guest
            )
            self.taken_by_client += len(payload)
        return raw


def items(
    header: Header,
    records: Iterable[Record],
    remarks: Mapping[tuple[int, int | None], Sequence[str]],
) -> Iterator[Item]:
    """The items of a capture, in the order of its records.

    `remarks` are comments on requests and, with None for the request, on connections.
    """
    session = Session(header)
    streams: dict[int, _PacketStream] = {}
    for record in records:
        events = session.feed(record)
        if isinstance(record, (Header, End)):
            continue
        conn = getattr(record, "conn", None) or 0
        if isinstance(record, Open):
            streams[conn] = _PacketStream(conn, header.port if record.port is None else record.port)
        stream = streams.get(conn)
        if stream is None and isinstance(record, (Chunk, Close)):
            stream = streams[conn] = _PacketStream(conn, header.port, True, True)
        if stream is None:
            yield Item(getattr(record, "t_ns", session.last_ns), carried=(record,))
            continue
        for item in _of(record, events, stream, session):
            numbers = [event.number for event in events if isinstance(event, RequestReceived)]
            keys: list[tuple[int, int | None]] = [(conn, number) for number in numbers]
            begins = None
            if item.raw and not stream.told:
                stream.told = True
                begins = conn
                keys.insert(0, (conn, None))
            words = tuple(text for key in keys for text in remarks.get(key, ()))
            yield replace(item, words=words, begins=begins)


def _of(
    record: Record, events: Sequence[Event], stream: _PacketStream, session: Session
) -> Iterator[Item]:
    match record:
        case Open():
            yield from _opening(record, stream)
        case Chunk():
            yield from _chunk(record, events, stream)
        case Close():
            yield from _closing(record, stream)
        case GaveUp() | Gap() | Vmm() | Mark():
            yield Item(getattr(record, "t_ns", session.last_ns), carried=(record,))


def _opening(record: Open, stream: _PacketStream) -> Iterator[Item]:
    if record.begins is Begins.LINE:
        yield Item(record.t_ns, carried=(record,))  # the packets come with the lines
        return
    stream.client_line_done = stream.guest_line_done = True
    if record.begins is Begins.MIDDLE:
        stream.accepted = True
        yield Item(record.t_ns, carried=(record,))
        return
    yield Item(record.t_ns, stream.packet(True, VirtioOp.REQUEST), carried=(record,))
    if record.accepted is not False:
        stream.accepted = True
        yield Item(record.t_ns, stream.packet(False, VirtioOp.RESPONSE))


def _chunk(record: Chunk, events: Sequence[Event], stream: _PacketStream) -> Iterator[Item]:
    if stream.client_line_done if record.to_guest else stream.guest_line_done:
        yield Item(record.t_ns, stream.packet(record.to_guest, VirtioOp.RW, record.data), record)
        return
    made = []
    rest = b""
    for event in events:
        match event:
            case ConnectLine(port=port):
                stream.client_line_done = True
                rest = record.data.partition(b"\n")[2]
                if port is not None:
                    stream.port = port
                    made.append(stream.packet(True, VirtioOp.REQUEST))
            case OkLine(port=port):
                stream.guest_line_done = True
                rest = record.data.partition(b"\n")[2]
                if port is not None:
                    stream.accepted = True
                    made.append(stream.packet(False, VirtioOp.RESPONSE))
    if rest and made:
        made.append(stream.packet(record.to_guest, VirtioOp.RW, rest))
    if not made:
        yield Item(record.t_ns, carried=(record,))
    for place, raw in enumerate(made):
        yield Item(record.t_ns, raw, carried=() if place else (record,))


def _closing(record: Close, stream: _PacketStream) -> Iterator[Item]:
    to_guest = not record.by_guest
    if stream.accepted and record.how is How.CLOSE:
        yield Item(
            record.t_ns, stream.packet(to_guest, VirtioOp.SHUTDOWN, flags=SHUTDOWN_BOTH), record
        )
    elif stream.accepted and record.how is How.RESET:
        yield Item(record.t_ns, stream.packet(to_guest, VirtioOp.RST), record)
    elif stream.told and record.how is not How.HALF:
        yield Item(record.t_ns, stream.packet(to_guest, VirtioOp.RST), carried=(record,))
    else:
        yield Item(record.t_ns, carried=(record,))
