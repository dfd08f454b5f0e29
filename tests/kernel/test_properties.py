"""Whatever a guest is asked: it never raises, never contradicts itself, and never revives."""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissectors.constants import ADDING_TYPES, CPU_TYPES, MAGIC_VERSION, MESSAGE_SIZE, Arch
from tests.kernel import random_guests
from upcall_trace.control.orders import BadOrder
from upcall_trace.kernel.cpus import NoSuchCpu, X86Cpus
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.outcome import Cpus, Fate, Outcome
from upcall_trace.kernel.world import PciDevice, Window, World
from upcall_trace.simulated.in_process import MemoryGuest, MemoryStream
from upcall_trace.simulated.machine import Backend, Habits, Pace

CONNECTIONS = 4
randoms = st.randoms(use_true_random=False)


def check_cpus(guest: Guest) -> None:
    """The boot CPU is there, and every number and id once."""
    cpus = guest.cpus
    assert cpus.online <= set(range(guest.world.nr_cpu_ids))
    assert 0 in cpus.online
    if isinstance(cpus, X86Cpus):
        assert 0 in cpus.table
        assert cpus.lost == cpus.online - cpus.table.keys()
        assert len(set(cpus.table.values())) == len(cpus.table)
        assert cpus.table[0] == guest.world.cpus_online[0]
        assert len(cpus.table | dict.fromkeys(cpus.lost)) <= guest.world.nr_cpu_ids
        if not guest.world.is_old:
            assert set(cpus.table.values()) <= {*guest.world.boot_table, *guest.world.cpus_online}
    assert cpus.online_ids() == sorted(cpus.online_ids()) or isinstance(cpus, X86Cpus)


def overlap(one: Window, other: Window) -> bool:
    """True when they share bytes; a window of a single byte at the other's edge escapes notice."""
    return one.base < other.end and one.end > other.base


def check_windows(guest: Guest) -> None:
    """No two windows overlap, and only IRQ 5 is shared; what was so at boot is not ours."""
    boot = set(guest.world.mmio)
    assert all(0 <= window.base <= window.end < 1 << 64 for window in guest.windows)
    for one, other in combinations(guest.windows, 2):
        if one in boot and other in boot:
            continue
        assert not overlap(one, other)
        assert one.irq != other.irq or one.irq == 5
    if guest.world.arch is Arch.X86_64:
        assert all(window.irq for window in guest.windows)


def check_outcome(outcome: Outcome, msg_type: int) -> None:
    """Silence has its reason; a reply is whole, of the right type, and says why it failed."""
    assert (outcome.reply is None) == (outcome.fate is not Fate.ANSWERED)
    if outcome.reply is None:
        assert outcome.causes
        return
    magic, msg_size, type_, flags, ret = (
        int.from_bytes(outcome.reply[at : at + 4], "little") for at in range(0, 20, 4)
    )
    assert len(outcome.reply) == MESSAGE_SIZE
    assert (magic, type_, flags) == (MAGIC_VERSION, msg_type, 0)
    assert msg_size in ((0, 4) if msg_type in CPU_TYPES else (0,))
    assert ret == 0 or outcome.causes
    slow = outcome.delay_ns > 0
    assert (outcome.cpus is Cpus.START) == ("UP201" in outcome.causes)
    assert not slow or "UP201" in outcome.causes or msg_type in ADDING_TYPES - CPU_TYPES


class Visit:
    """A guest with a few connections, asked at random and looked at after each request."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.guest = Guest(random_guests.world(rng))
        self.connections: list[ServiceThread] = [self.guest.connect() for _ in range(CONNECTIONS)]
        check_cpus(self.guest)

    def step(self) -> None:
        """One receive of one connection, now and then with an order of the VMM's before."""
        rng, guest = self.rng, self.guest
        if rng.random() < 0.1:
            self._order()
        connection = rng.choice(self.connections)
        was_dead = connection.fate is not Fate.ANSWERED or guest.cut_off
        was_stuck = guest.lock.stuck
        cpus, windows = set(guest.cpus.online), list(guest.windows)
        sent = random_guests.send(rng)
        for begin in range(0, len(sent), MESSAGE_SIZE):
            piece = sent[begin : begin + MESSAGE_SIZE]
            msg_type = connection.peek_type(piece)
            outcome = connection.receive(piece)
            if was_dead:
                assert (outcome.reply, outcome.causes) == (None, ())
            else:
                check_outcome(outcome, msg_type)
                was_dead = outcome.fate is not Fate.ANSWERED
        if guest.hanging is not None:
            assert guest.lock.stuck
        if was_stuck:
            assert guest.lock.stuck
            assert (guest.cpus.online, guest.windows) == (cpus, windows)
        if guest.windows != windows:
            check_windows(guest)
        if guest.cpus.online != cpus:
            check_cpus(guest)

    def _order(self) -> None:
        device = PciDevice(self.rng.choice((0, 2)), self.rng.randrange(4))
        match self.rng.randrange(6):
            case 0:
                self.guest.start_vcpu(self.rng.randrange(12))
            case 1:
                self.guest.plug_pci(device)
            case 2:
                self.guest.unplug_pci(device)
            case 3:
                self.guest.cpus.forbidden = not self.guest.cpus.forbidden
            case 4:
                with suppress(NoSuchCpu):
                    self.guest.switch_cpu(self.rng.randrange(9), self.rng.random() < 0.5)
            case _:
                self.connections[self.rng.randrange(CONNECTIONS)] = self.guest.connect()


@settings(max_examples=100)
@given(rng=randoms, steps=st.integers(1, 60))
def test_a_guest_never_contradicts_itself(rng: Random, steps: int) -> None:
    visit = Visit(rng)
    for _ in range(steps):
        visit.step()
    check_windows(visit.guest)
    check_cpus(visit.guest)
    visit.guest.state()


def test_twenty_thousand_requests() -> None:
    requests(20_000, seed=219)


@pytest.mark.torture
def test_a_million_requests() -> None:
    requests(1_000_000, seed=1)


def requests(count: int, seed: int) -> None:
    """Guests of a hundred requests each; every fate has to occur."""
    rng = Random(seed)
    fates: set[Fate] = set()
    for _ in range(count // 100):
        visit = Visit(rng)
        for _ in range(100):
            visit.step()
        fates |= {connection.fate for connection in visit.connections}
    assert fates == set(Fate)


FAULTS = [
    parse_fault(f"any:{action}:chance=0.1")
    for action in ("ret=-16", "delay=300ms", "drop", "split=20", "close", "garbage")
]
ORDERS: tuple[dict[str, Any], ...] = (
    {"start_vcpu": 3},
    {"plug_pci": {"bus": 0, "slot": 3}},
    {"unplug_pci": {"bus": 0, "slot": 1}},
    {"offline_cpu": 1},
    {"online_cpu": 1},
    {"state": True},
    {"reset": False},
    {},
)
BEGINNINGS = (b"CONNECT 219\nd", b"CONNECT 219\n", b"connect 7\n", b"CONNECT 8\n", b"\n", b"x" * 40)


@settings(max_examples=100)
@given(rng=randoms, steps=st.integers(1, 40))
def test_behind_the_multiplexer_nothing_raises_and_what_fell_silent_stays_silent(
    rng: Random, steps: int
) -> None:
    habits = Habits(rng.choice(list(Backend)), rng.choice(list(Pace)), echo=frozenset({7}))
    faults = [fault for fault in FAULTS if rng.random() < 0.2]
    guest = MemoryGuest(random_guests.world(rng), habits, faults, seed=rng.randrange(100))
    streams: list[MemoryStream] = []
    silent: set[MemoryStream] = set()
    for _ in range(steps):
        if not streams or rng.random() < 0.1:
            streams.append(guest.connect())
            streams[-1].send(rng.choice(BEGINNINGS))
        stream = rng.choice(streams)
        stream.receive()
        if stream.closed:
            with pytest.raises(BrokenPipeError):
                stream.send(b"d")
        else:
            stream.send(random_guests.send(rng) if rng.random() < 0.9 else b"d")
        if rng.random() < 0.3:
            guest.advance(rng.choice((0, 1, 20_000_000, 300_000_000, 10_000_000_000)))
        if rng.random() < 0.1:
            try:
                guest.control(rng.choice(ORDERS))
            except BadOrder:
                pass  # two of them are none
        assert not any(one.receive() for one in silent)
        silent |= {one for one in streams if one.silent or one.closed}
        for one in silent:
            one.receive()
    now = guest.now_ns
    guest.advance(10_000_000_000)
    guest.advance(60_000_000_000)
    assert guest.now_ns == now + 70_000_000_000
    due = [at for one in streams if (at := one.due_ns()) is not None]
    assert all(at > guest.now_ns for at in due)


def test_every_kind_of_world_is_tried() -> None:
    rng = Random(0)
    worlds: list[World] = [random_guests.world(rng) for _ in range(200)]
    assert {(world.arch, world.kernel) for world in worlds} == {
        (arch, kernel) for arch in Arch for kernel in ("5.10", "6.1", "6.12", "6.18")
    }
    assert any(world.needs_boot_mmio for world in worlds)
