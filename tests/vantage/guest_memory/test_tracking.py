"""What crossed between two looks at one object, with the socket's counts and without."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from dissectors.constants import MessageType
from dissectors.messages import Request, bare_request, cpu_request, hello, pci_request
from tests.support import decode, operations
from tests.vantage.guest_memory.cutouts import held
from upcall_trace.capture.records import Chunk, Close, Gap, Mark, Record
from upcall_trace.vantage.guest_memory.following import Counts
from upcall_trace.vantage.guest_memory.locating import object_at
from upcall_trace.vantage.guest_memory.tracking import Tally, Tracked

ADD_1 = pci_request(MessageType.ADD_PCI, 0, 1)
ADD_2 = pci_request(MessageType.ADD_PCI, 0, 2)
DEL_1 = pci_request(MessageType.DEL_PCI, 0, 1)
NOTHING = bytes(1024)


def counted(requests: int, replies: int) -> Counts:
    return Counts(0x1000, 0, 7, 1 + 1024 * requests, 1024 * (1 + replies))


class Guest:
    """A connection object under watch: `>>` and `<<` cross, `look` shows what that left."""

    def __init__(self, with_counts: bool, new: bool = True) -> None:
        self.request, self.reply = NOTHING, hello().encode()
        self.requests = self.replies = 0
        self.with_counts = with_counts
        self.tally = Tally()
        self.t_ns = 0
        begun = object_at(held(self.request, self.reply), 0x2000)
        assert begun is not None
        self.tracked = Tracked(1, begun, self.raw, self.counts, self.tally)
        self.records: list[Record] = list(self.tracked.open(0, 0, 219, new))

    @property
    def raw(self) -> bytes:
        return held(self.request, self.reply)

    @property
    def counts(self) -> Counts | None:
        return counted(self.requests, self.replies) if self.with_counts else None

    def ask(self, request: Request) -> None:
        self.request = request.encode()
        self.requests += 1

    def answer(self, ret: int = 0) -> None:
        asked = self.request
        self.reply = (
            asked[:4] + bytes(4) + asked[8:12] + bytes(4) + ret.to_bytes(4, "little", signed=True)
        ).ljust(1024, b"\0")
        self.replies += 1

    def look(self) -> list[tuple[str, str]]:
        """Direction and kind of the records that this look gave."""
        before, self.t_ns = self.t_ns, self.t_ns + 200_000
        new = self.tracked.look(self.t_ns, before, 0, self.raw, self.counts)
        self.records += new
        return shown(new)

    def end(self) -> list[tuple[str, str]]:
        new = self.tracked.end(self.t_ns, closed=False)
        self.records += new
        return shown(new)

    def seen(self) -> list[tuple[str, int | None]]:
        """The operations as they are decoded from the records."""
        found = operations(decode(self.records))
        return [(f"{each.op} {each.fields.get('slot', '')}".strip(), each.ret) for each in found]


def shown(records: Sequence[Record]) -> list[tuple[str, str]]:
    ways = {True: ">", False: "<"}
    return [
        (type(record).__name__.lower(), ways[record.to_guest])
        for record in records
        if isinstance(record, Chunk | Gap)
    ]


each_way = pytest.mark.parametrize("with_counts", [True, False], ids=["counts", "changes"])


@each_way
def test_a_request_and_its_reply_are_two_records(with_counts: bool) -> None:
    guest = Guest(with_counts)
    assert guest.look() == []
    guest.ask(ADD_1)
    assert guest.look() == [("chunk", ">")]
    guest.answer(-19)
    assert guest.look() == [("chunk", "<")]
    assert guest.look() == []
    assert guest.seen() == [("add_pci 1", -19)]


@each_way
def test_both_in_one_look_come_in_their_order(with_counts: bool) -> None:
    guest = Guest(with_counts)
    guest.ask(ADD_1)
    guest.answer(-19)
    assert guest.look() == [("chunk", ">"), ("chunk", "<")]
    guest.ask(DEL_1)
    guest.look()
    guest.answer()
    guest.ask(ADD_2)
    assert guest.look() == [("chunk", "<"), ("chunk", ">")]
    guest.answer(-17)
    guest.look()
    assert guest.seen() == [("add_pci 1", -19), ("del_pci 1", 0), ("add_pci 2", -17)]


def test_counts_tell_repeats_in_identical_bytes_apart() -> None:
    guest = Guest(with_counts=True)
    for _ in range(5):
        guest.ask(ADD_1)
        guest.look()
        guest.answer(-19)
        guest.look()
    assert guest.seen() == [("add_pci 1", -19)] * 5
    assert guest.tally.inferred == 0


def test_counts_tell_how_many_crossed_between_two_looks() -> None:
    guest = Guest(with_counts=True)
    for slot in (1, 2, 3):
        guest.ask(pci_request(MessageType.ADD_PCI, 0, slot))
        guest.answer(-slot)
    assert guest.look() == [
        ("gap", ">"), ("gap", "<"), ("gap", ">"), ("gap", "<"), ("chunk", ">"), ("chunk", "<"),
    ]  # fmt: skip
    (operation,) = operations(decode(guest.records))
    assert (operation.request, operation.ret) == (2, -3)
    assert (guest.tally.missed_requests, guest.tally.missed_replies) == (2, 2)


def test_counts_tell_where_a_request_was_cut() -> None:
    guest = Guest(with_counts=True)
    whole = ADD_1.encode()
    begun = counted(0, 0)
    guest.request = whole
    first = Counts(begun.address, 0, 7, begun.to_guest + 500, begun.from_guest)
    records = guest.tracked.look(1, 0, 0, guest.raw, first)
    (piece,) = [record for record in records if isinstance(record, Chunk)]
    assert piece.data == whole[:500]


def test_what_is_written_but_not_counted_yet_waits_for_the_next_look() -> None:
    guest = Guest(with_counts=True)
    guest.request = ADD_1.encode()
    assert guest.look() == []
    guest.requests = 1
    assert guest.look() == [("chunk", ">")]


def test_a_reply_that_was_written_over_is_a_gap_and_not_the_next_ones() -> None:
    """Between two looks: an answer, the next request, and its answer not counted yet."""
    guest = Guest(with_counts=True)
    guest.ask(ADD_1)
    guest.look()
    guest.answer(-19)
    guest.ask(DEL_1)
    guest.answer(-5)
    guest.replies -= 1
    assert guest.look() == [("gap", "<"), ("chunk", ">")]
    guest.replies += 1
    assert guest.look() == [("chunk", "<")]
    assert guest.seen() == [("add_pci 1", None), ("del_pci 1", -5)]


def test_without_counts_an_answer_in_the_same_bytes_is_inferred_from_the_next_request() -> None:
    guest = Guest(with_counts=False)
    guest.ask(ADD_1)
    guest.answer(-19)
    guest.look()
    guest.ask(ADD_2)
    guest.answer(-19)
    assert guest.look() == [("chunk", ">")]  # whether it was answered does not show
    guest.ask(DEL_1)
    assert guest.look() == [("chunk", "<"), ("chunk", ">")]
    guest.answer(-19)
    guest.look()
    assert guest.seen() == [("add_pci 1", -19), ("add_pci 2", -19), ("del_pci 1", -19)]
    assert guest.tally.inferred == 1
    remarks = [
        (record.request, record.text) for record in guest.records if isinstance(record, Mark)
    ]
    assert any(request == 1 and "inferred" in text for request, text in remarks)


def test_at_the_end_what_does_not_show_is_a_gap_and_no_verdict() -> None:
    guest = Guest(with_counts=False)
    for request in (ADD_1, ADD_2):
        guest.ask(request)
        guest.answer(-19)
        guest.look()
    assert guest.end() == [("gap", "<")]


def test_without_counts_a_repeated_request_shows_by_another_answer() -> None:
    guest = Guest(with_counts=False)
    for ret in (-19, -16):
        guest.ask(ADD_1)
        guest.answer(ret)
        guest.look()
    assert guest.seen() == [("add_pci 1", -19), ("add_pci 1", -16)]


def test_a_cpu_request_over_the_answer_to_a_smaller_one_waits() -> None:
    guest = Guest(with_counts=False)
    guest.ask(cpu_request(MessageType.ADD_CPU, [1]))
    guest.reply = cpu_request(MessageType.ADD_CPU, [1]).reply().encode()
    guest.look()
    guest.ask(cpu_request(MessageType.ADD_CPU, [1, 2]))
    guest.look()
    assert guest.end() == []
    assert [ret for _, ret in guest.seen()] == [0, None]


@each_way
def test_an_object_that_is_another_owners_by_now_ends_the_connection(with_counts: bool) -> None:
    guest = Guest(with_counts)
    guest.ask(ADD_1)
    guest.answer()
    guest.look()
    foreign = b"secret of another owner " * 86
    records = guest.tracked.look(9, 8, 0, foreign, guest.counts)
    assert [type(record) for record in records] == [Close]
    assert guest.tracked.gone


def test_a_request_that_waited_before_the_recording_is_in_it() -> None:
    begun = object_at(held(DEL_1.encode(), ADD_1.reply(-19).encode()), 0)
    assert begun is not None
    tracked = Tracked(1, begun, b"", None, Tally())
    records = list(tracked.open(5, 0, 219, new=False))
    assert [(each.op, each.ret) for each in operations(decode(records))] == [("del_pci", None)]


def test_of_a_long_connection_what_was_before_is_a_gap_of_its_size() -> None:
    begun = object_at(held(ADD_1.encode(), ADD_1.reply(-19).encode()), 0)
    assert begun is not None
    tracked = Tracked(1, begun, b"", counted(3000, 3000), Tally())
    gaps = [each for each in tracked.open(5, 0, 219, new=False) if isinstance(each, Gap)]
    assert [gap.size for gap in gaps[1:]] == [3000 * 1024] * 2


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_seen_crossed_and_nothing_is_counted_twice(seed: int) -> None:
    """Looks at random moments: with counts, requests seen and missed are those that crossed."""
    chance = random.Random(seed)
    guest = Guest(with_counts=True)
    crossed: list[tuple[str, int]] = []
    for number in range(60):
        request = chance.choice([ADD_1, ADD_2, DEL_1, bare_request(77)])
        guest.ask(request)
        if chance.random() < 0.6:
            guest.look()
        ret = chance.choice([0, -19, -16])
        guest.answer(ret)
        crossed.append((f"{request.op} {request.fields().get('slot', '')}".strip(), ret))
        if chance.random() < 0.6:
            guest.look()
        assert guest.tally.requests + guest.tally.missed_requests <= number + 1
    guest.look()
    assert guest.tally.requests + guest.tally.missed_requests == 60
    assert guest.tally.replies + guest.tally.missed_replies == 60
    for operation in operations(decode(guest.records)):
        op, ret = crossed[operation.request]
        assert f"{operation.op} {operation.fields.get('slot', '')}".strip() == op
        assert operation.ret in (ret, None)
