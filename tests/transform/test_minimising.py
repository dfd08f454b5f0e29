"""What a failure needs, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from dissectors.messages import cpu_request, pci_request
from tests.replay.modelled import (
    ADD_MEM,
    TWO_CPUS,
    Asking,
    T,
    disk,
    harmless,
    last,
    overlapping,
    recorded,
    script_of,
)
from upcall_trace.errors import Interrupted
from upcall_trace.kernel.world import World, kata_pod
from upcall_trace.trace.script import Script
from upcall_trace.transform.minimising import (
    Answers,
    Minimiser,
    Part,
    failed,
    first_failed,
    needed,
    on_model,
    shrink,
)
from upcall_trace.views.messages import request_text


def minimised(asking: Sequence[Asking], world: World | None = None) -> tuple[list[str], Minimiser]:
    """The requests and VMM acts that are left around the last one, by the model alone."""
    script = script_of(recorded(asking, world))
    minimiser = Minimiser(script, last(script))
    part = minimiser.run(on_model(world or kata_pod(), last(script)))
    assert part is not None
    left = [request_text(each.message) for key, each in script.asked.items() if key in part.keys]
    return [*(script.actions[act] for act in sorted(part.acts)), *left], minimiser


DEL_TWO = pci_request(T.DEL_PCI, 0, 2)
WITHOUT = {"silence": "cpu", "PCI removed twice": "pci", "an old error on PCI": "mmio cpu"}
"""What must not stand in between, because it would change the answer."""
SHAPES: dict[str, tuple[list[Asking], list[str]]] = {
    "overlap": ([disk(1), overlapping(1)], [
        "add_mmio 0xd0010000+0x2000 irq=5", "add_mmio 0xd0011000+0x2000 irq=5"]),
    "overlap with what came back": ([disk(1), disk(1, gone=True), disk(1), overlapping(1)], [
        "add_mmio 0xd0010000+0x2000 irq=5", "add_mmio 0xd0011000+0x2000 irq=5"]),
    "interrupt taken": ([disk(1, irq=9), disk(2, irq=9)], [
        "add_mmio 0xd0010000+0x2000 irq=9", "add_mmio 0xd0020000+0x2000 irq=9"]),
    "CPU added twice": ([cpu_request(T.ADD_CPU, [25]), cpu_request(T.ADD_CPU, [25])], [
        "add_cpu apic_ids=25", "add_cpu apic_ids=25"]),
    "PCI removed twice": ([DEL_TWO, DEL_TWO], ["del_pci bus=0 slot=2.0", "del_pci bus=0 slot=2.0"]),
    "an old error on PCI": ([ADD_MEM, pci_request(T.ADD_PCI, 0, 3)], [
        "add_mem", "add_pci bus=0 slot=3.0"]),
    "fails alone": ([disk(0, gone=True)], ["del_mmio 0xd0000000+0x2000 irq=5"]),
    "silence": ([cpu_request(T.ADD_CPU, [25]), cpu_request(T.DEL_CPU, [77])], [
        "add_cpu apic_ids=25", "del_cpu apic_ids=77"]),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_two_hundred_operations_become_the_few_that_matter(shape: str) -> None:
    matter, expected = SHAPES[shape]
    barred = WITHOUT.get(shape, "").split()
    background = [each for each in harmless(1500) if not any(name in each.op for name in barred)][
        : 200 - len(matter)
    ]
    chance = random.Random(shape)
    places = sorted(chance.sample(range(len(background)), len(matter) - 1))
    asking: list[Asking] = [*background]
    for place, each in zip(reversed(places), reversed(matter[:-1]), strict=True):
        asking.insert(place, each)
    assert len(asking) == 199
    left, minimiser = minimised([*asking, matter[-1]])
    assert left == expected
    assert minimiser.tries < 120


def test_it_is_the_same_over_several_connections() -> None:
    asking: list[Asking] = [(1 + n % 3, each) for n, each in enumerate(harmless(60))]
    left, _ = minimised([*asking[:20], (2, disk(1)), *asking[20:], (3, overlapping(1))])
    assert left == SHAPES["overlap"][1]


def test_what_the_vmm_did_stays_only_where_it_is_needed() -> None:
    world = World(nr_cpu_ids=8, vcpus_running=(0,))
    created = [f"vCPU {cpu} created" for cpu in (1, 2, 3)]
    two = cpu_request(T.ADD_CPU, [2])
    left, _ = minimised([*created, ADD_MEM, two, two], world)
    assert left == ["vCPU 2 created", "add_cpu apic_ids=2", "add_cpu apic_ids=2"]


def test_short_requests_bring_those_along_that_they_were_laid_over() -> None:
    short = disk(1).encode()[:16]
    script = script_of(recorded([ADD_MEM, disk(1), short, ADD_MEM]))
    assert needed(script) == {(1, 2): [(1, 1)]}
    left, _ = minimised([ADD_MEM, disk(2), disk(1), short])
    assert left == ["add_mmio 0xd0010000+0x2000 irq=5"] * 2


class Guest:
    """Answers a try as the model does, and counts."""

    def __init__(self, script: Script, world: World, limit: int = 1 << 30) -> None:
        self._try = on_model(world, last(script))
        self._limit = limit
        self.tries = 0

    def __call__(self, script: Script) -> Answers | None:
        self.tries += 1
        if self.tries > self._limit:
            raise Interrupted("interrupted")
        return self._try(script)


MANY: list[Asking] = [*harmless(50), disk(1), overlapping(1)]


def test_with_a_model_the_guest_is_seldom_asked() -> None:
    script = script_of(recorded(MANY))
    guest = Guest(script, kata_pod())
    part = Minimiser(script, last(script)).run(guest, on_model(kata_pod(), last(script)))
    assert part is not None
    assert (len(part), guest.tries) == (2, 3)  # all of it, the model's two, the one alone


@pytest.mark.parametrize("wrong", [kata_pod(cpus=2), World(iomem=((0xD0000000, 0xDFFFFFFF),))])
def test_a_model_of_another_guest_costs_tries_and_nothing_else(wrong: World) -> None:
    script = script_of(recorded(MANY))
    guest = Guest(script, kata_pod())
    part = Minimiser(script, last(script)).run(guest, on_model(wrong, last(script)))
    assert part is not None
    assert len(part) == 2


def test_on_a_guest_on_which_it_does_not_fail_there_is_no_part() -> None:
    script = script_of(recorded([cpu_request(T.ADD_CPU, [1])], TWO_CPUS))
    minimiser = Minimiser(script, last(script))
    assert minimiser.run(on_model(kata_pod(), last(script))) is None
    assert (minimiser.best, minimiser.tries) == (None, 1)


def test_what_comes_after_the_operation_is_never_played() -> None:
    script = script_of(recorded([disk(1), overlapping(1), *harmless(5)]))
    minimiser = Minimiser(script, (1, 1))
    assert set(minimiser.whole.asked) == {(1, 0), (1, 1)}


def test_parts_that_must_not_be_played_are_taken_to_be_useless() -> None:
    script = script_of(recorded([disk(1), disk(2), overlapping(1)]))
    model = on_model(kata_pod(), last(script))
    minimiser = Minimiser(script, last(script))
    part = minimiser.run(lambda s: model(s) if (1, 1) in s.asked else None)
    assert part is not None
    assert part.keys == {(1, 0), (1, 1), (1, 2)}
    assert minimiser.refused > 0


@pytest.mark.parametrize("limit", [1, 2])
def test_when_it_is_stopped_the_smallest_part_is_there(limit: int) -> None:
    script = script_of(recorded(MANY))
    told: list[Part] = []
    minimiser = Minimiser(script, last(script), told.append)
    with pytest.raises(Interrupted):
        minimiser.run(Guest(script, kata_pod(), limit))
    assert minimiser.best == told[-1]
    sizes = [len(part) for part in told]
    assert sizes == sorted(sizes, reverse=True)


def test_answers_are_those_of_the_smaller_sequence() -> None:
    left_over = pci_request(T.ADD_PCI, 0, 3)
    script = script_of(recorded([ADD_MEM, disk(1), left_over, overlapping(1)]))
    minimiser = Minimiser(script, last(script))
    part = minimiser.run(on_model(kata_pod(), last(script)))
    assert part is not None
    assert part.answers.keys() == {(1, 1), (1, 3)}


def test_shrinking_ends_where_not_one_more_can_be_left_out() -> None:
    chance = random.Random(1)
    for _ in range(200):
        parts = list(range(chance.randrange(1, 40)))
        needs = {part for part in parts if chance.random() < 0.15}
        tries: list[int] = []

        def still(left: Sequence[int], needs: set[int] = needs, t: list[int] = tries) -> bool:
            t.append(len(left))
            return needs <= set(left)

        assert shrink(parts, still) == sorted(needs)
        assert len(tries) <= 8 * len(needs) * max(1, len(parts)).bit_length() + 2 * len(parts)


def test_which_operation_has_failed_first() -> None:
    script = script_of(recorded([disk(1), ADD_MEM, overlapping(1)]))
    assert [failed(asked) for asked in script.asked.values()] == [False, True, True]
    first = first_failed(script)
    assert first is not None
    assert first.key == (1, 1)
    assert first_failed(script_of(recorded([disk(1)]))) is None


def test_what_the_recording_ends_too_soon_to_tell_has_not_failed() -> None:
    cut = recorded([cpu_request(T.DEL_CPU, [9])], TWO_CPUS)
    assert first_failed(script_of(cut)) is not None
    assert first_failed(script_of(cut[:-1])) is None  # nobody closed, and no time had passed
