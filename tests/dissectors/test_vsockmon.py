"""vsockmon packets: taken apart, put together to connections, and cut off by captures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapReader

from dissectors import wire_formats
from dissectors.constants import MESSAGE_SIZE, UPCALL_PORT
from dissectors.events import Event, ReplyReceived, RequestReceived
from dissectors.messages import bare_request, hello
from dissectors.observer import Observer, Start
from dissectors.vsockmon import (
    VIRTIO_SIZE,
    VSOCKMON_SIZE,
    Accepted,
    Carried,
    Connections,
    Ended,
    MonitorOp,
    NotAPacket,
    Opened,
    Packet,
    StreamEvent,
    Transport,
    VirtioOp,
    decode_packet,
)
from tests.dissectors.playbook import facts
from tests.dissectors.recordings import TRANSCRIPTS, recorded
from tests.dissectors.strategies import GOLDEN

MONITORED = {
    VirtioOp.REQUEST: MonitorOp.CONNECT,
    VirtioOp.RESPONSE: MonitorOp.CONNECT,
    VirtioOp.RST: MonitorOp.DISCONNECT,
    VirtioOp.SHUTDOWN: MonitorOp.DISCONNECT,
    VirtioOp.RW: MonitorOp.PAYLOAD,
    VirtioOp.CREDIT_UPDATE: MonitorOp.CONTROL,
    VirtioOp.CREDIT_REQUEST: MonitorOp.CONTROL,
}
"""The `op` that the guest gives a virtio packet in the vsockmon header."""
BOTH = 3
GUEST = (3, UPCALL_PORT)
HELLO, ASK, ANSWER = (
    hello().encode(),
    bare_request(77).encode(),
    bare_request(77).reply(-1).encode(),
)


def monitor_header(src: tuple[int, int], dst: tuple[int, int], op: int, t: int, size: int) -> bytes:
    built: bytes = wire_formats.VSOCKMON.build(
        {"src_cid": src[0], "dst_cid": dst[0], "src_port": src[1], "dst_port": dst[1], "op": op,
         "t": t, "len": size, "reserved": bytes(2)}
    )  # fmt: skip
    return built


def virtio(
    src: tuple[int, int], dst: tuple[int, int], op: int, payload: bytes = b"", flags: int = 0
) -> bytes:
    """A packet of a virtio guest."""
    monitored = MONITORED.get(VirtioOp(op), MonitorOp.UNKNOWN)
    header: bytes = wire_formats.VIRTIO_VSOCK.build(
        {"src_cid": src[0], "dst_cid": dst[0], "src_port": src[1], "dst_port": dst[1],
         "len": len(payload), "type": 1, "op": op, "flags": flags, "buf_alloc": 1 << 18,
         "fwd_cnt": 0}
    )  # fmt: skip
    return monitor_header(src, dst, monitored, Transport.VIRTIO, len(header)) + header + payload


class Line(NamedTuple):
    """One connection's packets."""

    client: tuple[int, int] = (2, 1024)
    server: tuple[int, int] = GUEST

    def sends(self, op: int, payload: bytes = b"", flags: int = 0) -> bytes:
        """To the server."""
        return virtio(self.client, self.server, op, payload, flags)

    def gets(self, op: int, payload: bytes = b"", flags: int = 0) -> bytes:
        """From the server."""
        return virtio(self.server, self.client, op, payload, flags)


LINE = Line()
OPENING = [LINE.sends(VirtioOp.REQUEST), LINE.gets(VirtioOp.RESPONSE)]
OPENED: list[StreamEvent] = [Opened(1, UPCALL_PORT, seen=True), Accepted(1)]


def follow(packets: Iterable[bytes], connections: Connections | None = None) -> list[StreamEvent]:
    connections = connections or Connections()
    return [event for raw in packets for event in connections.packet(decode_packet(raw))]


# Packets.


@pytest.mark.parametrize("op", VirtioOp)
def test_a_virtio_packet_of_each_operation(op: VirtioOp) -> None:
    assert decode_packet(LINE.sends(op, b"abc", flags=2)) == Packet(
        src_cid=2, dst_cid=3, src_port=1024, dst_port=UPCALL_PORT, op=MONITORED[op],
        virtio_op=op, virtio_flags=2, payload=b"abc", missing=0, fwd_cnt=0,
    )  # fmt: skip


@pytest.mark.parametrize("t", [Transport.UNKNOWN, Transport.NO_INFO, 9])
@pytest.mark.parametrize("op", [*MonitorOp, 77])
@pytest.mark.parametrize("size", [0, 5, VIRTIO_SIZE])
def test_a_packet_of_another_transport(t: int, op: int, size: int) -> None:
    raw = monitor_header((2, 1024), GUEST, op, t, size) + bytes(size) + b"abc"
    packet = decode_packet(raw)
    assert (packet.op, packet.payload, packet.missing) == (op, b"abc", 0)
    assert packet.virtio_op is None
    assert packet.virtio_flags is None


def test_a_virtio_header_that_is_too_small_is_passed_over() -> None:
    raw = monitor_header((2, 1024), GUEST, MonitorOp.PAYLOAD, Transport.VIRTIO, 43) + bytes(43)
    assert decode_packet(raw + b"abc").virtio_op is None
    assert decode_packet(raw + b"abc").payload == b"abc"


@pytest.mark.parametrize(
    "size", [0, VSOCKMON_SIZE - 1, VSOCKMON_SIZE, VSOCKMON_SIZE + VIRTIO_SIZE - 1]
)
def test_a_packet_without_all_of_its_headers_is_none(size: int) -> None:
    with pytest.raises(NotAPacket, match=f"{size} bytes are too few"):
        decode_packet(LINE.sends(VirtioOp.RW, b"abc")[:size])


def test_what_a_captures_packet_limit_cut_off_is_missing() -> None:
    whole = LINE.sends(VirtioOp.RW, bytes(MESSAGE_SIZE))
    for kept in (MESSAGE_SIZE, 1000, 1, 0):
        cut = whole[: VSOCKMON_SIZE + VIRTIO_SIZE + kept]
        for packet in (decode_packet(cut), decode_packet(cut, len(whole))):
            assert (len(packet.payload), packet.missing) == (kept, MESSAGE_SIZE - kept)


def test_without_a_virtio_header_only_the_length_on_the_wire_tells_what_is_missing() -> None:
    raw = monitor_header((2, 1024), GUEST, MonitorOp.PAYLOAD, Transport.NO_INFO, 0) + b"abc"
    assert decode_packet(raw).missing == 0
    assert decode_packet(raw, len(raw) + 7).missing == 7


# Connections.


def test_a_connection_from_request_to_reset() -> None:
    assert follow(
        [
            *OPENING,
            LINE.gets(VirtioOp.CREDIT_UPDATE),
            LINE.sends(VirtioOp.RW, b"d"),
            LINE.gets(VirtioOp.RW, HELLO),
            LINE.sends(VirtioOp.CREDIT_REQUEST),
            LINE.sends(VirtioOp.SHUTDOWN, flags=BOTH),
            LINE.gets(VirtioOp.RST),
            LINE.sends(VirtioOp.RST),
        ]
    ) == [
        *OPENED,
        Carried(1, True, b"d", 0),
        Carried(1, False, HELLO, 0),
        Ended(1, by_guest=False, reset=False),
    ]


def test_a_guest_that_shuts_down() -> None:
    packets = [*OPENING, LINE.gets(VirtioOp.SHUTDOWN, flags=BOTH), LINE.sends(VirtioOp.RST)]
    assert follow(packets) == [*OPENED, Ended(1, by_guest=True, reset=False)]


@pytest.mark.parametrize("by_guest", [True, False])
def test_a_reset_without_a_shutdown(by_guest: bool) -> None:
    reset = (LINE.gets if by_guest else LINE.sends)(VirtioOp.RST)
    assert follow([*OPENING, reset]) == [*OPENED, Ended(1, by_guest, reset=True)]


def test_a_refused_connection() -> None:
    assert follow([LINE.sends(VirtioOp.REQUEST), LINE.gets(VirtioOp.RST)]) == [
        Opened(1, UPCALL_PORT, seen=True),
        Ended(1, by_guest=True, reset=False),
    ]


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_a_half_closed_connection_goes_on(flags: int) -> None:
    assert follow(
        [
            *OPENING,
            LINE.sends(VirtioOp.SHUTDOWN, flags=flags),
            LINE.gets(VirtioOp.RW, b"late"),
            LINE.gets(VirtioOp.SHUTDOWN, flags=BOTH),
        ]
    ) == [*OPENED, Carried(1, False, b"late", 0), Ended(1, by_guest=True, reset=False)]


@pytest.mark.parametrize("ended", [True, False])
def test_the_same_ports_again_are_another_connection(ended: bool) -> None:
    between = [LINE.sends(VirtioOp.SHUTDOWN, flags=BOTH)] if ended else []
    events = follow([*OPENING, *between, *OPENING, LINE.sends(VirtioOp.RW, b"d")])
    assert events[-3:] == [
        Opened(2, UPCALL_PORT, seen=True),
        Accepted(2),
        Carried(2, True, b"d", 0),
    ]


def test_the_same_ports_after_a_reset_need_a_request_to_be_seen_from_the_start() -> None:
    packets = [*OPENING, LINE.gets(VirtioOp.RST), LINE.sends(VirtioOp.RW, b"d")]
    assert follow(packets)[-2:] == [
        Opened(2, UPCALL_PORT, seen=False),
        Carried(2, True, b"d", 0),
    ]


@pytest.mark.parametrize("from_guest", [True, False])
def test_a_connection_that_is_only_seen_from_the_middle(from_guest: bool) -> None:
    packet = (LINE.gets if from_guest else LINE.sends)(VirtioOp.RW, ASK)
    assert follow([packet, LINE.sends(VirtioOp.SHUTDOWN, flags=BOTH)]) == [
        Opened(1, UPCALL_PORT, seen=False),
        Carried(1, not from_guest, ASK, 0),
        Ended(1, by_guest=False, reset=False),
    ]


def test_the_end_of_a_connection_that_was_never_seen_says_nothing() -> None:
    assert follow([LINE.gets(VirtioOp.RST), LINE.sends(VirtioOp.SHUTDOWN, flags=BOTH)]) == []


def test_of_other_ports_no_payload_is_given() -> None:
    other = Line(server=(3, 1024))
    assert follow(
        [
            other.sends(VirtioOp.REQUEST),
            other.gets(VirtioOp.RESPONSE),
            other.sends(VirtioOp.RW, b"secret"),
            other.gets(VirtioOp.RW, b"secret"),
            other.gets(VirtioOp.RST),
        ]
    ) == [Opened(1, 1024, seen=True), Accepted(1), Ended(1, by_guest=True, reset=True)]


def test_where_the_host_listens_the_guest_is_the_client() -> None:
    to_host = Line(client=(3, 1024), server=(2, UPCALL_PORT))
    packets = [
        to_host.sends(VirtioOp.REQUEST),
        to_host.gets(VirtioOp.RESPONSE),
        to_host.sends(VirtioOp.RW, b"not upcall"),
        to_host.gets(VirtioOp.SHUTDOWN, flags=BOTH),
    ]
    assert follow(packets) == [
        Opened(1, UPCALL_PORT, seen=True, listener_in_guest=False),
        Accepted(1),
        Ended(1, by_guest=False, reset=False),
    ]


def test_what_pads_a_packet_is_no_payload() -> None:
    padded = LINE.sends(VirtioOp.RW, ASK) + bytes(37)
    assert decode_packet(padded) == decode_packet(LINE.sends(VirtioOp.RW, ASK))


def test_the_upcall_port_can_be_another() -> None:
    other = Line(server=(3, 1000))
    packets = [other.gets(VirtioOp.RW, b"x"), LINE.sends(VirtioOp.RW, b"d")]
    assert follow(packets, Connections(upcall_port=1000)) == [
        Opened(1, 1000, seen=False),
        Carried(1, False, b"x", 0),
        Opened(2, UPCALL_PORT, seen=False),
    ]


def test_a_transport_that_says_nothing_of_itself() -> None:
    client = (2, 1024)

    def packet(to_guest: bool, op: MonitorOp, payload: bytes = b"") -> bytes:
        src, dst = (client, GUEST) if to_guest else (GUEST, client)
        return monitor_header(src, dst, op, Transport.NO_INFO, 0) + payload

    events = follow(
        [
            packet(True, MonitorOp.CONNECT),
            packet(False, MonitorOp.CONNECT),
            packet(True, MonitorOp.PAYLOAD, b"d"),
            packet(True, MonitorOp.PAYLOAD),
            packet(False, MonitorOp.DISCONNECT),
            packet(True, MonitorOp.CONNECT),
        ]
    )
    assert events[:3] == [*OPENED, Carried(1, True, b"d", 0)]
    assert isinstance(events[3], Ended)
    assert (events[3].conn, events[3].by_guest) == (1, True)
    assert events[4:] == [Opened(2, UPCALL_PORT, seen=True)]


# From packets to messages.


def observed(packets: Iterable[tuple[bytes, int | None]]) -> dict[int, list[Event]]:
    """What observers make of each upcall connection; a packet comes with its length on the wire."""
    connections = Connections()
    observers: dict[int, Observer] = {}
    told: dict[int, list[Event]] = {}
    for raw, original_size in packets:
        for event in connections.packet(decode_packet(raw, original_size)):
            if isinstance(event, Opened) and event.port == UPCALL_PORT:
                observers[event.conn] = Observer(Start.SERVICE if event.seen else Start.MIDDLE)
                told[event.conn] = []
            elif isinstance(event, Carried):
                observer = observers[event.conn]
                take = observer.to_guest if event.to_guest else observer.from_guest
                told[event.conn] += take(event.payload)
                told[event.conn] += observer.lost(event.to_guest, event.missing, rest_of_send=True)
    return told


def exchange(line: Line) -> list[bytes]:
    """A service byte, a CONNECT message and one request with its reply, in many packets."""
    return [
        line.sends(VirtioOp.REQUEST),
        line.gets(VirtioOp.RESPONSE),
        line.sends(VirtioOp.RW, b"d"),
        line.gets(VirtioOp.RW, HELLO[:100]),
        line.gets(VirtioOp.RW, HELLO[100:]),
        line.sends(VirtioOp.RW, ASK[:500]),
        line.sends(VirtioOp.CREDIT_UPDATE),
        line.sends(VirtioOp.RW, ASK[500:]),
        line.gets(VirtioOp.RW, ANSWER[:1000]),
        line.gets(VirtioOp.RW, ANSWER[1000:] + ANSWER[:24]),
        line.gets(VirtioOp.RW, ANSWER[24:]),
        line.sends(VirtioOp.SHUTDOWN, flags=BOTH),
        line.gets(VirtioOp.RST),
    ]


EXCHANGED = [
    ">> service 0x64, device manager",
    "<< hello",
    ">> request 0 type_77, 500 bytes",
    ">> request 1 connect, 524 bytes, continues 0, overlaps 0",
    "<< reply to 0, ret -1",
    "<< reply to 1, ret -1",
]


def test_messages_are_put_together_across_packets() -> None:
    (events,) = observed((raw, None) for raw in exchange(LINE)).values()
    assert facts(events) == EXCHANGED


@given(st.permutations([0] * 13 + [1] * 13 + [2] * 13))
@settings(max_examples=30)
def test_connections_at_once_do_not_disturb_each_other(order: list[int]) -> None:
    lines = [exchange(Line(client=(2, 1024 + number))) for number in range(3)]
    queues = [iter(packets) for packets in lines]
    told = observed((next(queues[number]), None) for number in order)
    assert list(told) == [1, 2, 3]
    for events in told.values():
        assert facts(events) == EXCHANGED


def after_packets_with(kept: int) -> tuple[int, int | None]:
    """A request's number and that of its reply, after packets that keep `kept` bytes of payload."""
    limit = VSOCKMON_SIZE + VIRTIO_SIZE + kept
    handshake = [*OPENING, LINE.sends(VirtioOp.RW, b"d"), LINE.gets(VirtioOp.RW, HELLO)]
    cut = [
        LINE.sends(VirtioOp.RW, ASK),
        LINE.gets(VirtioOp.RW, ANSWER[:600]),
        LINE.gets(VirtioOp.RW, ANSWER[600:]),
        LINE.sends(VirtioOp.RW, ASK + ASK),
        LINE.gets(VirtioOp.RW, ANSWER),
        LINE.gets(VirtioOp.RW, ANSWER),
    ]
    after = [LINE.sends(VirtioOp.RW, ASK), LINE.gets(VirtioOp.RW, ANSWER)]
    packets = [(raw, len(raw)) for raw in handshake]
    packets += [(raw[:limit], len(raw)) for raw in cut]
    packets += [(raw, len(raw)) for raw in after]
    (events,) = observed(packets).values()
    request, reply = events[-2:]
    assert isinstance(request, RequestReceived)
    assert isinstance(reply, ReplyReceived)
    return request.number, reply.number


def test_packets_that_keep_no_payload_leave_later_replies_with_their_requests() -> None:
    assert after_packets_with(0) == (3, 3)


@pytest.mark.parametrize("kept", [16, 1000])
def test_packets_that_keep_some_payload_leave_later_replies_with_their_requests(kept: int) -> None:
    assert after_packets_with(kept) == (3, 3)


# Anything at all.

ports = st.sampled_from([(2, 1024), (2, 1025), GUEST, (3, 1024)])
packets = st.builds(
    Packet,
    src_cid=st.sampled_from([2, 3]),
    dst_cid=st.sampled_from([2, 3]),
    src_port=st.sampled_from([219, 1024, 1025]),
    dst_port=st.sampled_from([219, 1024]),
    op=st.sampled_from([*MonitorOp, 9]),
    virtio_op=st.none() | st.sampled_from([*VirtioOp, 0]),
    virtio_flags=st.integers(0, 3),
    payload=st.binary(max_size=4),
    missing=st.integers(0, 4),
)


@given(st.lists(packets, max_size=30))
@settings(max_examples=300)
def test_whatever_packets_come_each_connection_opens_first_and_ends_once(
    captured: list[Packet],
) -> None:
    connections = Connections()
    opened: list[int] = []
    accepted: set[int] = set()
    ended: set[int] = set()
    for packet in captured:
        for event in connections.packet(packet):
            match event:
                case Opened(conn=conn):
                    assert conn == len(opened) + 1
                    opened.append(conn)
                case Accepted(conn=conn):
                    assert conn in opened
                    assert conn not in accepted
                    accepted.add(conn)
                case Carried(conn=conn):
                    assert conn in opened
                    assert (event.payload, event.missing) == (packet.payload, packet.missing)
                    assert UPCALL_PORT in (packet.src_port, packet.dst_port)
                case Ended(conn=conn):
                    assert conn in opened
                    assert conn not in ended
                    ended.add(conn)


headers = st.builds(
    lambda op, t, size, rest: monitor_header((2, 1), GUEST, op, t, size) + rest,
    st.integers(0, 5), st.integers(0, 3), st.sampled_from([0, 1, 43, 44, 45, 0xFFFF]),
    st.binary(max_size=80),
)  # fmt: skip


@given(st.binary(max_size=120) | headers, st.none() | st.integers(0, 1 << 32))
@settings(max_examples=300)
def test_any_bytes_are_a_packet_with_all_of_its_payload_or_not_a_packet(
    raw: bytes, original_size: int | None
) -> None:
    try:
        packet = decode_packet(raw, original_size)
    except NotAPacket:
        return
    assert raw.endswith(packet.payload)
    assert packet.missing >= 0
    for event in Connections().packet(packet):
        assert isinstance(event, StreamEvent)


# Recordings of real guests.

Messages = tuple[list[RequestReceived], list[bytes]]


def messages(events: Iterable[Event]) -> Messages:
    """What requests were, whenever they came, and the bytes of replies."""
    seen = list(events)
    return (
        [replace(event, overlaps=None) for event in seen if isinstance(event, RequestReceived)],
        [event.raw for event in seen if isinstance(event, ReplyReceived)],
    )


def captured(name: str) -> list[tuple[bytes, int]]:
    with RawPcapReader(str(GOLDEN / f"{name}.vsockmon.pcap")) as reader:
        return [(raw, meta.wirelen) for raw, meta in reader]


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_guests_own_capture_holds_the_messages_that_its_client_recorded(name: str) -> None:
    inside = [messages(events) for events in observed(captured(name)).values()]
    outside = []
    for conversation in recorded(name).values():
        observer = Observer()
        outside.append(
            messages(
                event
                for to_guest, sent in conversation
                for event in (observer.to_guest(sent) if to_guest else observer.from_guest(sent))
            )
        )
    inside = [found for found in inside if found[0]]
    outside = [found for found in outside if found[0]]
    if name == "aarch64_lifecycle":  # the capture ends early, in the first connection
        requests, replies = outside[0]
        outside = [(requests[:24], replies[:23])]
    if name == "channel_removed_5_10":  # what was sent after that never reached the guest
        outside[1][0].pop()
    assert inside == outside


def test_what_dragonballs_own_client_sent() -> None:
    (events,) = observed(captured("real_client_simple")).values()
    assert facts(events) == [
        ">> service 0x64, device manager", "<< hello",
        ">> request 0 add_mmio", "<< reply to 0, ret 0",
        ">> request 1 del_cpu", "<< reply to 1, ret 0",
        ">> request 2 add_cpu", "<< reply to 2, ret 0",
        ">> request 3 add_mmio", "<< reply to 3, ret 0",
        ">> request 4 add_mmio", "<< reply to 4, ret -17",
        ">> request 5 del_mmio", "<< reply to 5, ret 0",
    ]  # fmt: skip
    removed = next(e.message for e in events if isinstance(e, RequestReceived) and e.number == 1)
    assert removed.fields() == {"count": 2, "apic_ver": 0x14, "apic_ids": [3, 2]}


HANDSHAKES: list[StreamEvent] = [
    Opened(1, 9999, seen=True), Ended(1, by_guest=True, reset=False),
    Opened(2, 219, seen=True), Accepted(2), Ended(2, by_guest=False, reset=False),
    Opened(3, 219, seen=True), Accepted(3), Ended(3, by_guest=True, reset=False),
    Opened(4, 219, seen=True), Accepted(4), Ended(4, by_guest=True, reset=False),
    Opened(5, 219, seen=True), Accepted(5), Opened(6, 219, seen=True), Accepted(6),
    Opened(7, 219, seen=True), Accepted(7), Opened(8, 219, seen=True), Accepted(8),
    Ended(5, by_guest=False, reset=False), Ended(6, by_guest=False, reset=False),
    Ended(7, by_guest=False, reset=False), Ended(8, by_guest=False, reset=False),
]  # fmt: skip


def test_handshakes_as_the_guest_saw_them() -> None:
    events = follow(raw for raw, _ in captured("handshake"))
    assert [event for event in events if not isinstance(event, Carried)] == HANDSHAKES
