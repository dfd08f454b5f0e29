"""Captures made from captures: what is kept is what it was."""

from __future__ import annotations

import random
import time
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissectors.constants import MESSAGE_SIZE, MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request
from tests.support import (
    ADD_MEM,
    DISK,
    TRANSCRIPTS,
    answer,
    ask,
    connect,
    decode,
    golden,
    operations,
    records_of,
    small_capture,
)
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.records import (
    DAMAGED,
    LEFT_OUT,
    TIME_LIMIT,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    Header,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.trace.operations import Operation, Operations
from upcall_trace.trace.streams import keep_connections, with_dependencies
from upcall_trace.transform.composing import keep_operations, merge

HEADER = Header("test")


class Kept(NamedTuple):
    """What must stay the same of an operation."""

    op: str
    fields: object
    size: int
    ret: int | None
    reply: object


def kept(op: Operation) -> Kept:
    return Kept(op.op, op.fields, op.size, op.ret, op.reply)


def by_key(records: list[Record], header: Header = HEADER) -> dict[tuple[int, int], Operation]:
    return {(op.conn, op.request): op for op in operations(decode(records, header))}


def filtered(
    records: list[Record], mask: list[bool], header: Header = HEADER
) -> tuple[set[tuple[int, int]], list[Record]]:
    """The operations that a mask keeps, and the records of the new capture."""
    session = decode(records, header)
    columns = Operations(session.table.columns(), session.first_ns or 0)
    wanted = with_dependencies(columns, np.array(mask, bool))
    return wanted, list(keep_operations(header, records, wanted))


def check_filter(records: list[Record], mask: list[bool], header: Header = HEADER) -> None:
    """The operations of the mask and those they were executed over are there, and no others."""
    before = by_key(records, header)
    wanted, new = filtered(records, mask, header)
    masked = {key for key, hit in zip(before, mask, strict=True) if hit}
    assert wanted == needed(before, masked)
    after = by_key(new, header)
    assert after.keys() == wanted
    assert {key: kept(op) for key, op in after.items()} == {
        key: kept(op) for key, op in before.items() if key in wanted
    }
    conns = {0} | {conn for conn, _ in wanted}
    gaps = [record for record in records if isinstance(record, Gap) and record.conn in conns]
    assert decode(new, header).lost == sum(g.size for g in gaps if g.reason != LEFT_OUT)
    for record in new:
        encode(record)


def needed(
    every: dict[tuple[int, int], Operation], wanted: set[tuple[int, int]]
) -> set[tuple[int, int]]:
    """The same again, step by step: each short request with the one before it."""
    found = set(wanted)
    for conn in {conn for conn, _ in wanted}:
        numbers = [number for c, number in every if c == conn]
        for place in reversed(range(1, len(numbers))):
            here = (conn, numbers[place])
            if here in found and every[here].size < MESSAGE_SIZE:
                found.add((conn, numbers[place - 1]))
    return found


_T = MessageType
_ASKED: list[Request] = [
    DISK,
    ADD_MEM,
    mmio_request(_T.DEL_MMIO, 0xE0008000, 0x2000, 6),
    cpu_request(_T.ADD_CPU, [1, 2]),
    cpu_request(_T.DEL_CPU, 3),
    pci_request(_T.ADD_PCI, 0, 9),
    bare_request(77),
]


def sends(draw: st.DrawFn) -> list[bytes]:
    """What a client might write at once, good and bad."""
    raw = draw(st.sampled_from(_ASKED)).encode()
    cut = draw(st.integers(1, MESSAGE_SIZE - 1))
    match draw(st.sampled_from(["whole", "whole", "pair", "short", "split", "long", "bytes"])):
        case "pair":
            return [raw + draw(st.sampled_from(_ASKED)).encode()]
        case "short":
            return [raw[:cut]]
        case "split":
            return [raw[:cut], raw[cut:]]
        case "long":
            return [raw + b"\xff" * cut]
        case "bytes":
            return [draw(st.binary(min_size=1, max_size=30))]
    return [raw]


@st.composite
def traffic(draw: st.DrawFn) -> list[Record]:
    """A few connections of any such sends, with replies in any slices, some late, some lost."""
    clock = 0
    made: list[Record] = []
    for conn in range(1, draw(st.integers(1, 2)) + 1):
        made += connect(conn, clock)
        due = b""
        for _ in range(draw(st.integers(0, 6))):
            for raw in sends(draw):
                clock += 10
                made.append(ask(raw, clock, conn))
                for begin in range(0, len(raw), MESSAGE_SIZE):
                    asked = bare_request(int.from_bytes(raw[begin + 8 : begin + 12], "little"))
                    due += asked.reply(draw(st.sampled_from([0, -17, -19]))).encode()
            while due and draw(st.integers(0, 3)):
                size = draw(st.sampled_from([1024, 1024, len(due), 1, 500, 1500]))
                clock += 10
                made.append(Chunk(clock, conn, False, due[:size]))
                due = due[size:]
            if due and not draw(st.integers(0, 9)):  # a part of a reply, or of several, is lost
                size = draw(st.integers(1, len(due)))
                made.append(Gap(clock, conn, False, size, "the disk was full"))
                due = due[size:]
            if not draw(st.integers(0, 9)):  # a part of the file is lost, and replies with it
                made.append(Gap(clock, 0, False, 9, DAMAGED))
                due = due[draw(st.integers(0, len(due))) :]
        if draw(st.booleans()):
            made.append(Close(clock + 1, conn, by_guest=False))
    return made


@given(traffic(), st.data())
@settings(max_examples=80)
def test_filtering_keeps_the_chosen_operations_as_they_were(
    recorded: list[Record], data: st.DataObject
) -> None:
    count = len(by_key(recorded))
    check_filter(recorded, data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_filtering_a_recording_by_every_single_operation_and_by_its_opposite(path: object) -> None:
    header, recorded = records_of(path)  # type: ignore[arg-type]
    count = len(by_key(recorded, header))
    for chosen in range(count):
        check_filter(recorded, [row == chosen for row in range(count)], header)
        check_filter(recorded, [row != chosen for row in range(count)], header)


@pytest.mark.usefixtures("nasty_service")
def test_another_services_requests_are_whole_at_their_own_length() -> None:
    recorded: list[Record] = [*connect()[:3], ask(b"n", 1)]
    for raw in (b"12345678", b"12345678", b"123", b"12345678"):
        recorded += [ask(raw, 10), Chunk(20, 1, False, b"12345678")]
    for chosen, numbers in ((0, {0}), (1, {1}), (2, {1, 2}), (3, {3})):
        wanted, new = filtered(recorded, [row == chosen for row in range(4)])
        assert wanted == by_key(new).keys() == {(1, number) for number in numbers}


def test_keeping_everything_changes_nothing() -> None:
    for path in TRANSCRIPTS:
        header, recorded = records_of(path)
        conns = {conn for conn, _ in by_key(recorded, header)}
        _, new = filtered(recorded, [True] * len(by_key(recorded, header)), header)
        assert new == [
            record
            for record in recorded
            if getattr(record, "conn", 0) in conns or isinstance(record, Vmm)
        ]


def test_a_split_request_brings_its_first_piece_along() -> None:
    header, recorded = records_of(golden("framing"))
    rest = [(op.conn, op.request) == (2, 1) for op in operations(decode(recorded, header))]
    wanted, new = filtered(recorded, rest, header)
    assert wanted == {(2, 0), (2, 1)}
    assert {getattr(record, "conn", 2) for record in new} == {2}


def test_what_is_left_out_becomes_a_gap_that_says_so() -> None:
    recorded = [
        *connect(), ask(DISK, 10), answer(DISK, 20), ask(ADD_MEM, 30), answer(ADD_MEM, 40, ret=-1),
    ]  # fmt: skip
    _, new = filtered(recorded, [False, True])
    assert new == [
        *connect(),
        Gap(10, 1, True, 1024, LEFT_OUT),
        Gap(20, 1, False, 1024, LEFT_OUT),
        ask(ADD_MEM, 30),
        answer(ADD_MEM, 40, ret=-1),
    ]
    assert decode(new).lost == 0


def test_parts_of_one_send_are_kept_apart_and_neighbours_stay_together() -> None:
    three = DISK.encode() + ADD_MEM.encode() + DISK.encode()
    recorded = [*connect(), ask(three, 10)]
    _, new = filtered(recorded, [True, True, False])
    assert new[5:] == [ask(three[:2048], 10), Gap(10, 1, True, 1024, LEFT_OUT)]
    _, new = filtered(recorded, [False, True, False])
    assert new[5:] == [
        Gap(10, 1, True, 1024, LEFT_OUT),
        ask(ADD_MEM, 10),
        Gap(10, 1, True, 1024, LEFT_OUT),
    ]


def test_what_is_beside_the_operations() -> None:
    """Marks of a connection go with it; what the VMM did, and marks of none, always stay."""
    beside: list[Record] = [
        Vmm(5, "vCPU 1 created"), Mark(1, None, None, "start"), Mark(2, 1, 0, "kept"),
        Mark(3, 2, 0, "gone"), Open(6, 2), ask(b"CONNECT 9\n", 7, 2), End(99),
    ]  # fmt: skip
    _, new = filtered([*connect(), ask(DISK, 10), *beside], [True])
    assert new == [*connect(), ask(DISK, 10), *beside[:3]]


def test_bytes_that_answer_nothing_are_kept() -> None:
    recorded = [*connect(), answer(DISK, 5), ask(DISK, 10), answer(DISK, 20)]
    _, new = filtered(recorded, [True])
    assert new == recorded


def test_a_reply_whose_beginning_was_not_recorded_is_left_out_whole() -> None:
    reply = DISK.reply(-17).encode()
    following = ADD_MEM.reply(-1).encode() + DISK.reply(-22).encode()
    recorded = [
        *connect(), ask(DISK.encode() + ADD_MEM.encode() + DISK.encode(), 10),
        Gap(20, 1, False, 500, "the disk was full"), Chunk(30, 1, False, reply[500:] + following),
    ]  # fmt: skip
    assert [op.ret for op in by_key(recorded).values()] == [None, -1, -22]
    for keep in range(8):
        check_filter(recorded, [bool(keep & 1 << bit) for bit in range(3)])


@pytest.mark.parametrize("conns", [set(), {1}, {2}, {1, 2}])
def test_keeping_connections(conns: set[int]) -> None:
    recorded: list[Record] = [
        *small_capture(), Vmm(9, "x"), Mark(1, None, None, "x"), Mark(1, 2, None, "x"),
        Gap(9, 0, False, 1, "x"), End(10),
    ]  # fmt: skip
    new = list(keep_connections(recorded, conns))
    assert new == [
        record
        for record in recorded
        if isinstance(record, Vmm)
        or getattr(record, "conn", 99) in conns
        or (isinstance(record, Mark) and record.conn is None)
        or (isinstance(record, Gap) and record.conn == 0)
    ]
    before = by_key(recorded)
    assert by_key(new).keys() == {key for key in before if key[0] in conns}


def test_splitting_a_recording_keeps_every_operation_once() -> None:
    header, recorded = records_of(golden("aarch64_lifecycle"))
    before = by_key(recorded, header)
    after: dict[tuple[int, int], Operation] = {}
    for conn in decode(recorded, header).connections:
        after |= by_key(list(keep_connections(recorded, {conn})), header)
    assert {key: kept(op) for key, op in after.items()} == {k: kept(op) for k, op in before.items()}


def test_merging_aligns_wall_clocks_and_numbers_connections_anew() -> None:
    first: list[Record] = [Open(0, 1), Open(500, 7), Close(600, 1, True), Mark(1, 7, 0, "first")]
    second: list[Record] = [Open(0, 1), Gap(50, 1, True, 5, "x"), Close(900, 1, True), End(900)]
    header, merged = merge(
        [
            (Header("proxy", "t1", "h1", "x86_64", 1_000_000, 1, 219, {"a": "1", "b": "1"}), first),
            (
                Header("proxy", "t2", "h2", "x86_64", 1_000_300, 4, 219, {"b": "2", "c": "2"}),
                second,
            ),
        ]
    )
    assert header == Header(
        "merge", "t1", "h1", "x86_64", 1_000_000, 4, 219, {"a": "1", "b": "1", "c": "2"}
    )
    assert list(merged) == [
        Open(0, 1),
        Open(300, 2),
        Gap(350, 2, True, 5, "x"),
        Open(500, 3),
        Close(600, 1, True),
        Mark(1, 3, 0, "first"),
        Close(1200, 2, True),
    ]


def test_merging_captures_of_unlike_guests_or_unknown_clocks() -> None:
    sources = [
        (Header("a", arch="x86_64"), [Open(5, 1)]),
        (Header("b", arch="aarch64", wall_ns=900), [Open(0, 1)]),
        (Header("c", wall_ns=1000), [Open(0, 1)]),
    ]
    header, merged = merge(sources)
    assert (header.arch, header.wall_ns) == (None, 900)
    assert list(merged) == [Open(0, 1), Open(5, 2), Open(100, 3)]
    header, merged = merge([(Header("a", arch="aarch64"), []), (Header("b"), [])])
    assert (header.arch, header.wall_ns) == ("aarch64", None)
    assert list(merged) == []


def test_merging_keeps_each_captures_own_order_when_a_clock_steps_back() -> None:
    first: list[Record] = [Open(100, 1), Close(40, 1, True), Open(120, 2)]
    second: list[Record] = [Open(50, 1), Open(110, 2)]
    _, merged = merge([(HEADER, first), (HEADER, second)])
    assert [(type(r), r.t_ns) for r in merged if not isinstance(r, Mark | Header)] == [
        (Open, 50), (Open, 100), (Close, 40), (Open, 110), (Open, 120),
    ]  # fmt: skip


def test_a_connections_number_that_is_used_again_becomes_two() -> None:
    again: list[Record] = [Open(0, 1), Close(1, 1, True), Open(2, 1), Close(3, 1, True)]
    _, merged = merge([(HEADER, again)])
    assert [getattr(record, "conn", None) for record in merged] == [1, 1, 2, 2]


def test_what_the_vmm_did_for_a_connection_follows_its_number() -> None:
    records: list[Record] = [Vmm(0, "early", 5), Open(1, 5), Vmm(2, "x", 5), Vmm(3, "all")]
    _, merged = merge([(HEADER, [Open(0, 1)]), (HEADER, records)])
    assert [record for record in merged if isinstance(record, Vmm)] == [
        Vmm(0, "early"), Vmm(2, "x", 2), Vmm(3, "all"),
    ]  # fmt: skip


def test_merging_a_recording_with_itself_gives_every_operation_twice() -> None:
    header, recorded = records_of(golden("pci_memory"))
    _, merged = merge([(header, recorded), (header, recorded)])
    once = [kept(op) for op in operations(decode(recorded, header))]
    twice = operations(decode(merged, header))
    assert [kept(op) for op in twice if op.conn in (1, 3)] == once
    assert [kept(op) for op in twice if op.conn in (2, 4)] == once


@pytest.mark.parametrize("walls", [(-(1 << 63), (1 << 63) - 1), ((1 << 63) - 1, -(1 << 63))])
def test_clocks_that_are_absurdly_far_apart_stay_within_what_can_be_written(
    walls: tuple[int, int],
) -> None:
    latest: list[Record] = [Open(-TIME_LIMIT, 1), Open(TIME_LIMIT - 1, 2)]
    header, merged = merge([(Header("x", wall_ns=wall), latest) for wall in walls])
    written = list(merged)
    assert len(written) == 4
    for record in (header, *written):
        encode(record)


def test_merging_many_connections_costs_linear_time() -> None:
    many: list[Record] = [Open(n, n) for n in range(1, 60_000)]
    begin = time.process_time()
    _, merged = merge([(HEADER, many), (HEADER, many)])
    assert sum(1 for _ in merged) == 2 * len(many)
    assert time.process_time() - begin < 10


def test_filtering_many_unanswered_requests_costs_linear_time() -> None:
    """Each byte from the guest must not make us look at every open request."""
    zeros = bytes(64 * MESSAGE_SIZE)
    recorded = [*connect(), *(ask(zeros, n) for n in range(1000))]
    recorded += [Chunk(2000 + n, 1, False, b"x") for n in range(2000)]
    wanted = {(1, number) for number in range(0, 64_000, 2)}
    begin = time.process_time()
    new = list(keep_operations(HEADER, recorded, wanted))
    assert len(new) > 64_000
    assert time.process_time() - begin < 20


@pytest.mark.torture
def test_filtering_long_conversations_by_any_mask() -> None:
    for _ in range(200):
        rng = random.Random()
        recorded: list[Record] = []
        for conn in (1, 2):
            recorded += connect(conn)
        due = {1: b"", 2: b""}
        for n in range(100, 500):
            conn = rng.choice((1, 2))
            if rng.random() < 0.5:
                raw = rng.choice(_ASKED).encode()
                raw = rng.choice(
                    (raw, raw, raw[: rng.randrange(1, 1024)], raw * 2, raw + b"\1" * 9)
                )
                recorded.append(ask(raw, n, conn))
                receives = -(-len(raw) // MESSAGE_SIZE)
                due[conn] += b"".join(
                    bare_request(3).reply(rng.choice((0, -1, -19))).encode()
                    for _ in range(receives)
                )
            elif due[conn]:
                size = rng.choice((1024, 1024, 3000, rng.randrange(1, 2000)))
                recorded.append(Chunk(n, conn, False, due[conn][:size]))
                due[conn] = due[conn][size:]
        count = len(by_key(recorded))
        odds = rng.random()
        check_filter(recorded, [rng.random() < odds for _ in range(count)])


def test_a_filtered_capture_can_be_filtered_again() -> None:
    header, recorded = records_of(golden("stale_results"))
    count = len(by_key(recorded, header))
    _, once = filtered(recorded, [row % 3 != 0 for row in range(count)], header)
    left = by_key(once, header)
    _, twice = filtered(once, [number % 2 == 0 for _, number in left], header)
    expected = {key: op for key, op in left.items() if key[1] % 2 == 0}
    assert {k: kept(op) for k, op in by_key(twice, header).items()} == {
        key: kept(op) for key, op in expected.items()
    }


def test_damage_of_the_file_stays_in_its_place() -> None:
    """Without it the last reply would be taken for the first request's."""
    recorded = [
        *connect(), ask(DISK, 10), Gap(15, 0, False, 99, DAMAGED),
        ask(ADD_MEM, 20), answer(ADD_MEM, 30, ret=-1),
    ]  # fmt: skip
    assert filtered(recorded, [True, True])[1] == recorded
    for keep in range(4):
        check_filter(recorded, [bool(keep & 1), bool(keep & 2)])


def test_a_connection_first_seen_in_the_middle_is_filtered_too() -> None:
    recorded: list[Record] = [
        Open(0, 1, Begins.MIDDLE),
        *(r for n in range(3) for r in (ask(DISK, n), answer(DISK, n, ret=-n))),
        ask(ADD_MEM, 9),
    ]
    for keep in range(16):
        check_filter(recorded, [bool(keep & 1 << bit) for bit in range(4)])
