"""Two recordings side by side."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from dissectors.constants import MessageType
from dissectors.messages import CpuRequestX86, cpu_request, pci_request
from tests.replay.modelled import ADD_MEM, Asking, T, disk, overlapping, recorded, script_of
from tests.support import answer, ask, connect
from upcall_trace.compare.aligning import Pair, align
from upcall_trace.compare.longest import matches
from upcall_trace.errors import WrongUsage
from upcall_trace.trace.script import Script

A, B, C, D = (disk(place) for place in range(4))


def longest(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of both can be paired at most, by the whole table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for place, y in enumerate(b):
            row.append(before[place] + 1 if x == y else max(before[place + 1], row[-1]))
    return row[-1]


def test_as_many_as_possible_are_paired_in_order() -> None:
    chance = random.Random(1)
    for _ in range(500):
        a, b = ([chance.randrange(3) for _ in range(chance.randrange(12))] for _ in "ab")
        found = list(matches(a, b))
        assert all(a[x] == b[y] for x, y in found)
        assert all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(found))
        assert len(found) == longest(a, b), (a, b)


def test_the_table_finds_as_many_as_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(5)
    for _ in range(300):
        a, b = ([chance.randrange(5) for _ in range(chance.randrange(60))] for _ in "ab")
        with monkeypatch.context() as only:
            only.setattr("upcall_trace.compare.longest._NEAR", -1)
            of_table = list(matches(a, b))
        assert all(a[x] == b[y] for x, y in of_table)
        assert all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(of_table))
        assert len(of_table) == len(list(matches(a, b))) == longest(a, b), (a, b)


def test_what_is_far_apart_is_still_paired_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upcall_trace.compare.longest._NEAR", 2)
    monkeypatch.setattr("upcall_trace.compare.longest._TABLE", 8)
    chance = random.Random(2)
    for _ in range(500):
        a, b = ([chance.randrange(4) for _ in range(chance.randrange(40))] for _ in "ab")
        found = list(matches(a, b))
        assert all(a[x] == b[y] for x, y in found)
        assert all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(found))


def test_many_operations_with_few_differences_take_no_time() -> None:
    chance = random.Random(3)
    a = [chance.randrange(50) for _ in range(100_000)]
    b = a[:60_000] + a[60_010:]
    b[30_000] = 99
    begun = time.process_time()
    assert len(list(matches(a, b))) == 99_989
    assert time.process_time() - begun < 2


@pytest.mark.torture
@pytest.mark.parametrize("apart", [0, 50], ids=["by chance", "not at all"])
def test_many_operations_that_are_hardly_alike_take_bounded_time(apart: int) -> None:
    chance = random.Random(4)
    a = [chance.randrange(50) for _ in range(100_000)]
    b = [chance.randrange(50) + apart for _ in range(100_000)]
    begun = time.process_time()
    assert bool(list(matches(a, b))) == (apart == 0)
    assert time.process_time() - begun < 60


SIGNS = {"same": "=", "changed": "!", "only_a": "-", "only_b": "+"}


def kinds(pairs: list[Pair]) -> str:
    return "".join(SIGNS[pair.kind] for pair in pairs)


def against(
    a: list[Asking], b: list[Asking], *ignored: str, whole_bytes: bool = False
) -> list[str]:
    found = align(script_of(recorded(a)), script_of(recorded(b)), ignored, whole_bytes)
    return [kinds(each.pairs) for each in found]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([A, B, C], [A, B, C], "==="),
        ([A, B, C], [A, C], "=-="),
        ([A, C], [A, B, C], "=+="),
        ([A, B, C, D], [A, C, B, D], "=-=+="),
        ([A, B], [C, D], "--++"),
        ([overlapping(0)], [A, overlapping(0)], "+!"),
        ([A, A], [A, A, A], "==+"),
    ],
)
def test_requests_are_paired_and_their_replies_compared(
    a: list[Asking], b: list[Asking], expected: str
) -> None:
    assert against(a, b) == [expected]


def test_connections_are_paired_in_their_order_whatever_their_numbers() -> None:
    one: list[Asking] = [(1, A), (2, B), (1, C)]
    other: list[Asking] = [(4, A), (9, B), (4, C)]
    assert against(one, other) == ["==", "="]
    assert against(one, [(3, A), (3, C)]) == ["==", "-"]
    (_, alone) = align(script_of(recorded(one)), script_of(recorded([(3, A)])))
    assert (alone.a, alone.b) == (2, None)


def test_times_padding_and_how_it_was_cut_do_not_count() -> None:
    padded = replace(A, padding=b"\xff" * len(A.padding))
    assert against([A], [padded]) == ["="]
    assert against([A], [padded], whole_bytes=True) == ["!"]
    late = [*connect(1, 50), ask(A, 70), answer(A, 90)]
    (found,) = align(script_of(recorded([A])), script_of(late))
    assert kinds(found.pairs) == "="


def test_the_bytes_that_differ_are_named() -> None:
    padded = replace(A, padding=bytes(100) + b"\xff" + A.padding[101:])
    (found,) = align(script_of(recorded([A])), script_of(recorded([padded])), (), True)
    (difference,) = found.pairs[0].differences
    assert (difference.field, difference.got) == ("request", "ff 00 00 00 00 00 00 00 at 0x008c")


def test_a_request_with_another_header_is_another_request() -> None:
    assert against([A], [replace(A, magic_version=0)]) == ["-+"]
    assert against([A], [replace(A, msg_size=23)]) == ["-+"]


def test_ignored_fields_do_not_count() -> None:
    assert against([disk(0, 5)], [disk(0, 7)]) == ["-+"]
    assert against([disk(0, 5)], [disk(0, 7)], "mmio_irq") == ["="]
    assert against([overlapping(0)], [A, overlapping(0)], "ret", "msg_size") == ["+="]
    two = [pci_request(MessageType.ADD_PCI, 0, slot) for slot in (1, 2)]
    assert against([two[0]], [two[1]], "slot") == ["="]
    with pytest.raises(WrongUsage, match=r"'irq' is no field; there are .*mmio_irq.* ret"):
        against([A], [A], "irq")


def script(*replies: int | None) -> Script:
    records = connect()
    for place, ret in enumerate(replies):
        records.append(ask(ADD_MEM, place * 10))
        records += [] if ret is None else [answer(ADD_MEM, place * 10 + 1, ret=ret)]
    return script_of(records)


def test_silence_is_another_answer_even_at_the_end_of_a_recording() -> None:
    (found,) = align(script(-1, None), script(-1, -1))
    assert kinds(found.pairs) == "=!"
    assert [d.field for d in found.pairs[1].differences] == ["answer"]
    (found,) = align(script(-1, None), script(-1, None))
    assert kinds(found.pairs) == "=="
    (found,) = align(script(-1, None), script(-1, -1), ["answer"])
    assert kinds(found.pairs) == "=="


def test_cpus_are_compared_by_their_ids_alone() -> None:
    stale = cpu_request(T.ADD_CPU, [1])
    assert isinstance(stale, CpuRequestX86)
    left_over = replace(stale, apic_ids=b"\x01\x07" + stale.apic_ids[2:])
    assert against([stale], [left_over]) == ["="]
    assert against([stale], [cpu_request(T.ADD_CPU, [2])], "apic_ids") == ["="]
