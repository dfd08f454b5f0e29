"""The observer: what holds for any bytes, and what it says about recordings of real guests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissectors.constants import MAGIC_VERSION, MESSAGE_SIZE, Arch, MessageType
from dissectors.events import Event, Hello, Lost, ReplyReceived, RequestReceived
from dissectors.messages import (
    Reply,
    Request,
    cpu_request,
    decode_request,
    mmio_request,
)
from dissectors.observer import Observer, Start
from tests.dissectors.playbook import (
    CONNECT,
    END,
    HANDSHAKE,
    HELLO,
    MAGIC,
    OK,
    SERVICE,
    Cut,
    Gap,
    Happening,
    Step,
    answer,
    ask,
    byte_by_byte,
    crossed,
    cut_at,
    facts,
    feed,
    one_way,
    whole,
)
from tests.dissectors.recordings import TRANSCRIPTS, recorded, recorded_arch, stream
from tests.dissectors.strategies import messages

MANY = settings(max_examples=150)

# What hypothesis makes conversations of: telling pieces, slices of them, and any bytes.
TOKENS = [
    CONNECT, b"connect 219\r\n", b"CONNECT 9999\n", b"CONNECT " + b"0" * 5000 + b"219\n",
    b"passfd\n", OK, b"OK " + b"0" * 5000 + b"1\n", b"refused\n", SERVICE, b"x", b"\n", MAGIC,
    HELLO, ask(0).encode(), answer(0).encode(), bytes(MESSAGE_SIZE),
    cpu_request(MessageType.ADD_CPU, 1).encode(),
    cpu_request(MessageType.ADD_CPU, [1, 2]).reply(-22).encode(),
]  # fmt: skip
tokens = st.sampled_from(TOKENS)
slices = st.builds(
    lambda token, begin, size: token[begin : begin + size],
    tokens,
    st.integers(0, MESSAGE_SIZE),
    st.integers(0, MESSAGE_SIZE),
)
raws = st.lists(tokens | slices | st.binary(max_size=40), max_size=4).map(b"".join)
gaps = st.builds(
    Gap, st.sampled_from([-1, 0, 1, 7, 1023, 1024, 1025, 1 << 62]) | st.integers(1, 3000)
)
steps = st.lists(st.tuples(st.booleans(), raws | gaps | st.sampled_from(Happening)), max_size=10)
conversations = st.builds(list.__add__, st.sampled_from([[], HANDSHAKE]), steps)
Make = Callable[[], Observer]
observers = st.builds(
    lambda start, arch: lambda: Observer(start, arch), st.sampled_from(Start), st.sampled_from(Arch)
)
cuts = st.lists(st.integers(1, 3 * MESSAGE_SIZE), max_size=6).map(cut_at)


@MANY
@given(observers, conversations, cuts)
def test_whatever_comes_in_whatever_order_it_gives_events_and_never_raises(
    make: Make, conversation: list[Step], cut: Cut
) -> None:
    for event in feed(make(), [*conversation, (True, END)], cut):
        assert isinstance(event, Event)


def joined(conversation: list[Step]) -> list[Step]:
    """The conversation with neighbouring bytes from the guest in one piece."""
    steps: list[Step] = []
    for is_stream, group in groupby(conversation, lambda s: not s[0] and isinstance(s[1], bytes)):
        if is_stream:
            steps.append((False, b"".join(item for _, item in group if isinstance(item, bytes))))
        else:
            steps += group
    return steps


def means_the_same_in_any_slicing(make: Make, conversation: list[Step], cut: Cut) -> None:
    conversation = joined([*conversation, (True, END)])
    expected = list(feed(make(), conversation))
    for slicing in (byte_by_byte, cut):
        events = list(feed(make(), conversation, slicing))
        for to_guest in (True, False):
            assert one_way(events, to_guest) == one_way(expected, to_guest)


def has_every_byte(make: Make, conversation: list[Step], cut: Cut) -> None:
    conversation = [*conversation, (True, END)]
    events = list(feed(make(), conversation, cut))
    for to_guest in (True, False):
        sent = b"".join(s for way, s in conversation if way is to_guest and isinstance(s, bytes))
        assert b"".join(map(crossed, one_way(events, to_guest))) == sent


@MANY
@given(observers, conversations, cuts)
def test_the_guests_bytes_mean_the_same_in_any_slicing(
    make: Make, conversation: list[Step], cut: Cut
) -> None:
    means_the_same_in_any_slicing(make, conversation, cut)


@MANY
@given(observers, conversations, cuts)
def test_no_byte_that_went_in_is_missing_from_the_events(
    make: Make, conversation: list[Step], cut: Cut
) -> None:
    has_every_byte(make, conversation, cut)


@pytest.mark.torture
@settings(max_examples=20_000, deadline=None)
@given(observers, conversations, cuts)
def test_any_slicing_and_no_missing_byte_very_often(
    make: Make, conversation: list[Step], cut: Cut
) -> None:
    means_the_same_in_any_slicing(make, conversation, cut)
    has_every_byte(make, conversation, cut)


@given(st.lists(raws | messages(), max_size=6), st.sampled_from(Arch))
def test_every_1024_bytes_of_a_send_are_one_receive_over_the_buffer_of_the_one_before(
    sends: list[bytes], arch: Arch
) -> None:
    observer = Observer(arch=arch)
    list(feed(observer, HANDSHAKE))
    events = [event for sent in sends for event in observer.to_guest(sent)]
    buffer = bytearray(MESSAGE_SIZE)
    number = 0
    for sent in sends:
        for position in range(0, len(sent), MESSAGE_SIZE):
            piece = sent[position : position + MESSAGE_SIZE]
            buffer[: len(piece)] = piece
            event = events[number]
            assert isinstance(event, RequestReceived)
            assert (event.number, event.position, event.size) == (number, position, len(piece))
            assert event.raw == buffer
            assert event.message == decode_request(bytes(buffer), arch)
            assert event.overlaps == (0 if number else None)
            number += 1
    assert number == len(events)


@given(st.lists(st.booleans(), max_size=20))
def test_a_reply_answers_the_oldest_open_request_or_nothing(sends: list[bool]) -> None:
    observer = Observer()
    list(feed(observer, HANDSHAKE))
    waiting: list[int] = []
    asked = 0
    for to_guest in sends:
        if to_guest:
            (request,) = observer.to_guest(ask(asked).encode())
            assert isinstance(request, RequestReceived)
            assert request.overlaps == (waiting[0] if waiting else None)
            waiting.append(asked)
            asked += 1
        else:
            (reply,) = observer.from_guest(answer(asked).encode())
            assert isinstance(reply, ReplyReceived)
            assert reply.number == (waiting.pop(0) if waiting else None)
        assert observer.open_requests == tuple(waiting)


def lossy(draw: st.DrawFn, to_guest: bool, sent: bytes) -> list[Step]:
    """`sent` with parts of it lost; to the guest all or nothing."""
    if to_guest:
        return [(True, Gap(len(sent)) if draw(st.booleans()) else sent)]
    ends = [*sorted(draw(st.sets(st.integers(1, len(sent) - 1), max_size=2))), len(sent)]
    pieces: list[Step] = []
    begin = 0
    for end in ends:
        lost = draw(st.booleans())
        pieces.append((False, Gap(end - begin) if lost else sent[begin:end]))
        begin = end
    return pieces


@st.composite
def lossy_conversations(draw: st.DrawFn, losing_from: int) -> list[Step]:
    """Requests in turns with their replies; what comes before step `losing_from` is complete."""
    conversation = list(HANDSHAKE)
    for number in range(draw(st.integers(1, 4))):
        conversation += [(True, ask(number).encode()), (False, answer(number).encode())]
    steps = conversation[:losing_from]
    for to_guest, sent in conversation[losing_from:]:
        assert isinstance(sent, bytes)
        steps += lossy(draw, to_guest, sent)
    return steps


def replies(events: list[Event]) -> list[tuple[int | None, int]]:
    """(request, ret) of every reply; with `answer` the two should be equal."""
    return [(e.number, e.message.ret) for e in events if isinstance(e, ReplyReceived)]


def keeps_the_pairing(conversation: list[Step]) -> None:
    events = list(feed(Observer(), conversation))
    recorded_whole = [n for n in range(4) if (False, answer(n).encode()) in joined(conversation)]
    assert replies(events) == [(number, number) for number in recorded_whole]
    lost = [number for e in events if isinstance(e, Lost) for number in e.replies]
    asked = sum(to_guest for to_guest, _ in conversation[4:])
    assert sorted([*lost, *recorded_whole]) == list(range(asked))


def pairs_nothing_wrongly(conversation: list[Step]) -> None:
    events = list(feed(Observer(), conversation))
    asked = {e.number: e.message.op for e in events if isinstance(e, RequestReceived)}
    for event in events:
        if isinstance(event, ReplyReceived) and event.number in asked:
            assert asked[event.number] == ask(event.message.ret).op
        assert not isinstance(event, Hello) or event.valid


@MANY
@given(lossy_conversations(losing_from=4))
def test_after_a_gap_of_known_size_every_whole_reply_is_paired_with_its_own_request(
    conversation: list[Step],
) -> None:
    keeps_the_pairing(conversation)


@MANY
@given(lossy_conversations(losing_from=0))
def test_whatever_is_lost_of_a_handshake_no_reply_is_paired_with_anothers_request(
    conversation: list[Step],
) -> None:
    pairs_nothing_wrongly(conversation)


@pytest.mark.torture
@settings(max_examples=20_000, deadline=None)
@given(lossy_conversations(losing_from=4), lossy_conversations(losing_from=0))
def test_gaps_very_often(ready_first: list[Step], any_loss: list[Step]) -> None:
    keeps_the_pairing(ready_first)
    pairs_nothing_wrongly(any_loss)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 1 << 62)), max_size=5))
@settings(max_examples=20)
def test_the_size_of_a_gap_costs_neither_time_nor_memory(sizes: list[tuple[bool, int]]) -> None:
    observer = Observer()
    list(feed(observer, HANDSHAKE))
    for to_guest, size in sizes:
        (lost,) = observer.lost(to_guest, size)
        assert (lost.to_guest, lost.size) == (to_guest, size)  # type: ignore[union-attr]  # a Lost
    assert len(observer._open) <= len(sizes)


# Recordings of real guests: tests/golden.

UPCALL = [">> CONNECT line, port 219", "<< OK line, port 219"]
READY = [*UPCALL, ">> service 0x64, device manager", "<< hello"]
FRAMING = {
    1: [
        *READY,
        ">> request 0 add_mem",
        ">> request 1 del_mem, at 1024, overlaps 0",
        "<< reply to 0, ret -1",
        "<< reply to 1, ret -1",
        ">> request 2 add_mem, 16 bytes",
        "<< reply to 2, ret -1",
    ],
    2: [
        *READY,
        ">> request 0 add_mmio, 500 bytes",
        ">> request 1 connect, 524 bytes, continues 0, overlaps 0",
        "<< reply to 0, ret 0",
        "<< reply to 1, ret 0",
    ],
    3: [
        *READY,
        ">> request 0 add_mmio, 20 bytes",
        ">> request 1 connect, 1004 bytes, continues 0, overlaps 0",
        "<< reply to 0, ret -22",
        "<< reply to 1, ret -22",
    ],
    4: [
        *READY,
        ">> request 0 add_mem",
        ">> request 1 type_4294967295, 476 bytes, at 1024, rest_of 0, overlaps 0",
        "<< reply to 0, ret -1",
        "<< reply to 1, ret -1",
    ],
}
FOUR_AT_ONCE = [*READY, ">> request 0 add_mem", "<< reply to 0, ret -1"]
HANDSHAKES = {
    1: [">> CONNECT line, port 9999"],
    2: [r">> CONNECT line, malformed b'HELLO\n'"],
    3: [r">> CONNECT line, malformed b'CONNECT abc\n'"],
    4: UPCALL,
    5: [*UPCALL, ">> service 0x78, unknown"],
    6: UPCALL,
    7: FOUR_AT_ONCE,
    8: FOUR_AT_ONCE,
    9: FOUR_AT_ONCE,
    10: FOUR_AT_ONCE,
}


@pytest.mark.parametrize(("name", "expected"), [("framing", FRAMING), ("handshake", HANDSHAKES)])
@pytest.mark.parametrize("cut", [whole, byte_by_byte])
def test_a_recording_says_what_its_story_says(
    name: str, expected: dict[int, list[str]], cut: Cut
) -> None:
    told = {}
    for conn, conversation in recorded(name).items():
        events = list(feed(Observer(), [*conversation, (True, END)], cut))
        told[conn] = [line for to in (True, False) for line in facts(one_way(events, to))]
        if cut is whole:
            assert facts(events) == expected[conn]
    assert told == {
        conn: sorted(lines, key=lambda line: line[:2] != ">>") for conn, lines in expected.items()
    }


def test_the_guest_saw_a_short_request_over_the_one_before() -> None:
    events = list(feed(Observer(), recorded("framing")[1]))
    second, short = [e for e in events if isinstance(e, RequestReceived)][1:]
    assert (short.size, short.raw[:16]) == (16, recorded("framing")[1][6][1])
    assert short.raw[16:] == second.raw[16:]


def test_the_guest_ran_the_first_piece_of_a_split_request_with_the_rest_zero() -> None:
    requests = [
        event.message
        for event in feed(Observer(), recorded("framing")[3])
        if isinstance(event, RequestReceived)
    ]
    assert requests[0] == mmio_request(MessageType.ADD_MMIO, 0xD1002000, 0, 0)
    assert isinstance(requests[1], Request)
    assert requests[1].magic_version == 0


COUNTS = {
    # requests, replies, the unanswered as (connection, request)
    "aarch64_lifecycle": (32, 30, [(2, 1), (3, 3)]),
    "channel_removed_5_10": (3, 1, [(1, 0), (2, 1)]),
    "cpu_lifecycle": (11, 11, []),
    "cpu_lifecycle_5_10": (15, 15, []),
    "cpu_lifecycle_6_12": (16, 16, []),
    "cpu_lookup_5_10": (15, 12, [(2, 0), (3, 0), (4, 1)]),
    "cpu_offlined_5_10": (7, 7, []),
    "cpu_retry_5_10": (10, 9, [(1, 6)]),
    "framing": (9, 9, []),
    "framing_5_10": (9, 9, []),
    "guest_oops": (4, 3, [(1, 1)]),
    "guest_oops_5_10": (25, 19, [(1, 1), (2, 3), (3, 11), (4, 0), (5, 0), (6, 0)]),
    "guest_oops_6_12": (4, 3, [(1, 1)]),
    "handshake": (4, 4, []),
    "handshake_5_10": (4, 4, []),
    "mmio_edges_5_10": (30, 30, []),
    "mmio_lifecycle": (15, 15, []),
    "mmio_lifecycle_5_10": (15, 15, []),
    "mmio_without_boot_device_5_10": (11, 8, [(1, 2), (2, 1), (3, 4)]),
    "mmio_wrong_interrupt_5_10": (10, 6, [(2, 0), (3, 0), (4, 0), (5, 2)]),
    "pci_memory": (11, 11, []),
    "pci_memory_5_10": (11, 11, []),
    "stale_results": (12, 12, []),
    "stale_results_5_10": (12, 12, []),
}


def test_every_transcript_has_its_counts_here() -> None:
    assert list(COUNTS) == TRANSCRIPTS


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_recorded_guest_answers_each_request_with_its_own_type(name: str) -> None:
    requests, replies, unanswered = COUNTS[name]
    told: list[Event] = []
    still_open = []
    for conn, conversation in recorded(name).items():
        observer = Observer(arch=recorded_arch(name))
        events = list(feed(observer, conversation))
        still_open += [(conn, number) for number in observer.open_requests]
        told += events
        asked = [event.message for event in events if isinstance(event, RequestReceived)]
        for event in events:
            if isinstance(event, ReplyReceived):
                assert event.number is not None
                request, reply = asked[event.number], event.message
                assert isinstance(request, Request)
                assert isinstance(reply, Reply)
                assert (reply.magic_version, reply.msg_type) == (MAGIC_VERSION, request.msg_type)
            assert not isinstance(event, Hello) or event.valid
        for to_guest in (True, False):
            sent = b"".join(map(crossed, one_way(events, to_guest)))
            assert sent == stream(conversation, to_guest)
    assert sum(isinstance(event, RequestReceived) for event in told) == requests
    assert sum(isinstance(event, ReplyReceived) for event in told) == replies
    assert still_open == unanswered
