"""Cases made up by a seed: the same again, nothing dangerous, and all that is to be asked."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random

import pytest

from dissectors.constants import MESSAGE_SIZE, Arch, MessageType
from dissectors.messages import MmioRequest
from tests.kernel import random_guests
from tests.kernel.recordings import worlds
from upcall_trace import codes
from upcall_trace.conform.cases import BOOT_DEVICES, DANGERS, Ask, Step, Tell, rehearse
from upcall_trace.conform.generating import CASE_SIZE, free_range, generate
from upcall_trace.kernel.world import World, kata_pod

WORLDS = {
    "pod": kata_pod(),
    "arm pod": kata_pod(Arch.AARCH64),
    "new pod": kata_pod(kernel="6.12", cpus=4),
    **worlds(),
}


@cache
def case(world: World, seed: int = 0, number: int = 0, *allowed: str) -> list[Step]:
    return generate(world, seed, number, CASE_SIZE, allowed, orders=True)


def causes(world: World, *allowed: str, seeds: int = 6) -> set[str]:
    """What goes wrong in some cases."""
    return {
        code
        for seed in range(seeds)
        for told in rehearse(world, case(world, seed, 0, *allowed))
        if told is not None
        for code in told.causes
    }


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_a_case_is_the_same_again_and_has_as_many_requests_as_it_should(world: World) -> None:
    first = case(world)
    assert first == case(world)
    assert first != case(world, seed=1)
    assert first != case(world, number=1)
    assert sum(len(step.pieces) for step in first if isinstance(step, Ask)) == CASE_SIZE


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_by_default_nothing_is_dangerous_and_nobody_falls_silent(world: World) -> None:
    for told in rehearse(world, case(world)):
        assert told is None or (told.dangers == () and not told.silent and told.delay_ns == 0)


def test_nothing_is_dangerous_in_any_world() -> None:
    rng = Random(5)
    for seed in range(12):
        world = random_guests.world(rng)
        for told in rehearse(world, case(world, seed)):
            assert told is None or (told.dangers == () and not told.silent)


def test_what_is_asked_goes_wrong_in_every_harmless_way() -> None:
    harmless = {
        codes.CPU_ALREADY_KNOWN, codes.NO_CPU_NUMBER, codes.REMOVE_ALL_CPUS,
        codes.REMOVE_BOOT_CPU, codes.MMIO_OVERLAP, codes.IRQ_CONFLICT, codes.MMIO_BAD_SIZE_FIELD,
        codes.MMIO_BAD_IRQ, codes.MMIO_RESOURCE_BUSY, codes.MMIO_NO_SUCH_DEVICE,
        codes.PCI_NO_SUCH_BUS, codes.PCI_NOTHING_THERE, codes.PCI_NO_SUCH_DEVICE,
        codes.STALE_SUCCESS, codes.STALE_ERROR, codes.STALE_LOAD, codes.UNKNOWN_TYPE,
        codes.RESERVED_MEMORY_OP, codes.BAD_MAGIC, codes.PARTIAL_CPU_ADD,
    }  # fmt: skip
    found = causes(kata_pod(kernel="6.12", cpus=4))
    assert harmless <= found
    assert not found & set(DANGERS)


def test_dangers_come_when_they_are_allowed_by_name() -> None:
    old, arm = worlds()["microvm_5_10"], replace(kata_pod(Arch.AARCH64), nr_cpu_ids=4)
    without = worlds()["pc_5_10"]
    for world, *allowed in (
        (old, codes.REMOVE_UNFINDABLE_CPU),
        (old, codes.REMOVAL_ORDER),
        (old, codes.CPU_LOST_ITS_ID),
        (old, codes.DRIVER_HANGS, codes.HOTPLUG_LOCK_STUCK),
        (without, codes.VCPU_NOT_STARTED),
        (without, codes.MMIO_WITHOUT_BOOT_DEVICE),
        (arm, codes.ADD_BEYOND_POSSIBLE),
    ):
        found = causes(world, *allowed, seeds=6)
        assert set(allowed) <= found & set(DANGERS), allowed
        assert found & set(DANGERS) <= set(allowed)
    steps = case(without, 0, 0, BOOT_DEVICES)
    assert any(told and BOOT_DEVICES in told.dangers for told in rehearse(without, steps))


def test_silence_is_rationed() -> None:
    old = worlds()["microvm_5_10"]
    for seed in range(4):
        told = rehearse(old, case(old, seed, 0, *DANGERS))
        assert 0 < sum(each.silent for each in told if each) <= 3
        assert not any(codes.CHANNEL_REMOVED in each.causes for each in told if each)


def test_without_the_vmms_side_there_are_no_orders() -> None:
    world = worlds()["pc"]
    assert any(isinstance(step, Tell) for step in case(world))
    alone = generate(world, 0, 0, CASE_SIZE, (), orders=False)
    assert not any(isinstance(step, Tell) for step in alone)


def test_windows_are_added_only_where_nothing_else_is() -> None:
    for world in WORLDS.values():
        free, disks = free_range(world), {disk.base for disk in (*world.mmio, *world.mmio_hidden)}
        for told in rehearse(world, case(world)):
            for request in told.requests if told else ():
                if not isinstance(request, MmioRequest):
                    continue
                base = request.mmio_base
                if request.msg_type == MessageType.ADD_MMIO and base not in disks:
                    assert free.start - 0x1000 <= base < free.stop
                    assert not any(first <= base <= last for first, last in world.iomem)


def test_a_range_is_free_of_what_the_world_says_is_taken() -> None:
    assert free_range(World()) == range(0xD0000000, 0xD0100000)
    assert free_range(World(iomem=((0xC0000000, 0xDFFFFFFF),))) == range(0xE8000000, 0xE8100000)


def test_requests_are_cut_and_joined() -> None:
    sizes = {len(step.raw) for step in case(kata_pod()) if isinstance(step, Ask)}
    assert any(size < MESSAGE_SIZE for size in sizes)
    assert {MESSAGE_SIZE, 2 * MESSAGE_SIZE} <= sizes
    assert any(MESSAGE_SIZE < size < 2 * MESSAGE_SIZE for size in sizes)
