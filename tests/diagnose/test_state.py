"""What a guest had: against the model, against consoles, and by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissectors.constants import EBUSY, EEXIST, EINVAL, EIO, ENODEV, MESSAGE_SIZE, Arch, MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request
from tests.kernel import random_guests
from tests.kernel.recordings import RECORDINGS, console_samples, name_of, replay, sample, worlds
from tests.support import TRANSCRIPTS, answer, ask, connect, records_of
from upcall_trace.capture.records import LEFT_OUT, Begins, Chunk, Close, Gap, Header, Open, Record
from upcall_trace.diagnose.finding import Ref
from upcall_trace.diagnose.ledger import (
    Claim,
    Cpu,
    CpusOnline,
    Dead,
    Entry,
    Lock,
    Mmio,
    Pci,
    Thing,
)
from upcall_trace.diagnose.run import diagnose
from upcall_trace.diagnose.state import Device, Following, GuestState, Waiting, state_of
from upcall_trace.kernel.model import Guest
from upcall_trace.kernel.world import PciDevice, Window, World, kata_pod
from upcall_trace.trace.opening import load

KNOWN = [path for path in RECORDINGS if "_5_10" not in path.name]
"""For Linux 5.10 there are no rules yet."""
each_recording = pytest.mark.parametrize("recording", KNOWN, ids=name_of)
X86 = Header("test", arch="x86_64")
ARM = Header("test", arch="aarch64")
ADD_CPU, DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU
ADD_MMIO, DEL_MMIO = MessageType.ADD_MMIO, MessageType.DEL_MMIO
ADD_PCI, DEL_PCI = MessageType.ADD_PCI, MessageType.DEL_PCI


def things(state: GuestState, there: bool = True) -> set[Thing]:
    return {entry.thing for entry in state.entries if entry.there is there}


def as_guest(state: GuestState) -> Guest:
    """The state in the shape that `sample` looks at."""
    found = things(state)
    guest = SimpleNamespace(
        cpus=SimpleNamespace(online={thing.number for thing in found if isinstance(thing, Cpu)}),
        windows=[
            Window(thing.mmio_base, thing.mmio_size, thing.mmio_irq)
            for thing in found
            if isinstance(thing, Mmio)
        ],
        pci={
            PciDevice(thing.busno, thing.devfn >> 3, thing.devfn & 7)
            for thing in found
            if isinstance(thing, Pci)
        },
    )
    return cast(Guest, guest)


def of_guest(guest: Guest) -> dict[str, Any]:
    """`Guest.state()` as far as a recording can tell it."""
    told = guest.state()
    return {key: told[key] for key in ("cpus_online", "apic_ids", "mmio", "pci", "hotplug_lock")}


def of_state(state: GuestState) -> dict[str, Any]:
    """The same of a state."""
    found = [entry.thing for entry in state.entries if entry.there]
    cpus = sorted((t for t in found if isinstance(t, Cpu)), key=lambda cpu: cpu.number or 0)
    return {
        "cpus_online": [cpu.number for cpu in cpus],
        "apic_ids": [cpu.name for cpu in cpus],
        "mmio": [
            {"base": t.mmio_base, "size": t.mmio_size, "irq": t.mmio_irq, "role": t.role}
            for t in found
            if isinstance(t, Mmio)
        ],
        "pci": [
            {"bus": t.busno, "slot": t.devfn >> 3, "function": t.devfn & 7, "role": t.role}
            for t in found
            if isinstance(t, Pci)
        ],
        "hotplug_lock": state.lock.state,
    }


def comparable(told: dict[str, Any]) -> dict[str, Any]:
    """Windows in no order, and each once: of a single byte a guest may register one twice."""
    return {**told, "mmio": {tuple(window.items()) for window in told["mmio"]}}


@each_recording
def test_at_the_end_it_is_what_the_model_has_and_what_the_console_saw_last(
    recording: Path,
) -> None:
    replayed = replay(recording)
    world = worlds()[replayed.machine]
    state = state_of(recording, load(recording), world=world)
    assert state.model == "in step"
    assert all(entry.why == "" for entry in state.entries)
    assert comparable(of_state(state)) == comparable(of_guest(replayed.guest))
    samples = console_samples(name_of(recording))
    assert sample(replayed.machine, as_guest(state)) == samples[-1]


@each_recording
def test_before_each_operation_it_is_what_the_model_had(recording: Path) -> None:
    replayed = replay(recording)
    capture = load(recording)
    world = worlds()[replayed.machine]
    assert len(capture.operations) == len(replayed.states) - 1
    for row in range(len(capture.operations)):
        state = state_of(recording, capture, row, world)
        assert sample(replayed.machine, as_guest(state)) == replayed.states[row]
        assert state.devices is None


@each_recording
def test_without_a_world_nothing_is_known_that_is_not_so(recording: Path) -> None:
    capture = load(recording)
    world = worlds()[replay(recording).machine]
    for row in [*range(len(capture.operations)), None]:
        told = state_of(recording, capture, row)
        check_against(told, things(state_of(recording, capture, row, world)))


def check_against(told: GuestState, true: set[Thing]) -> int:
    """What is known without a world has to be true; returns how much that is."""
    known = [entry for entry in told.entries if not entry.why]
    for entry in known:
        if isinstance(entry.thing, Mmio) and entry.thing.mmio_size == 1:
            continue  # there may be two of it
        if isinstance(entry.thing, CpusOnline):
            assert entry.thing.count == sum(isinstance(thing, Cpu) for thing in true)
        else:
            assert entry.there is (entry.thing in true), entry
    return len(known)


class Visit:
    """A random guest, asked at random over a few connections; its records as they come."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.world = random_guests.world(rng)
        self.guest = Guest(self.world)
        self.connections = {conn: self.guest.connect() for conn in (1, 2, 3)}
        self.now_ns = 0

    def begin(self) -> list[Record]:
        return [record for conn in self.connections for record in connect(conn)]

    def step(self) -> list[Record]:
        """A send, and its replies if there are any."""
        conn = self.rng.choice(list(self.connections))
        sent = random_guests.send(self.rng)
        self.now_ns += 1000
        records: list[Record] = [Chunk(self.now_ns, conn, True, sent)]
        for at in range(0, len(sent), MESSAGE_SIZE):
            reply = self.connections[conn].receive(sent[at : at + MESSAGE_SIZE]).reply
            if reply is not None:
                records.append(Chunk(self.now_ns + 1, conn, False, reply))
        return records


@settings(max_examples=60)
@given(rng=st.randoms(use_true_random=False), steps=st.integers(1, 40))
def test_of_a_random_guest_the_known_is_true_and_with_its_world_all_is(
    rng: Random, steps: int
) -> None:
    visit = Visit(rng)
    header = ARM if visit.world.arch is Arch.AARCH64 else X86
    without, within = Following(header), Following(header, visit.world)
    for record in visit.begin():
        without.feed(record)
        within.feed(record)
    for _ in range(steps):
        for record in visit.step():
            without.feed(record)
            within.feed(record)
        state = within.state()
        assert state.model == "in step"
        assert comparable(of_state(state)) == comparable(of_guest(visit.guest))
        check_against(without.state(), things(state))


def test_of_random_guests_much_is_known() -> None:
    rng = Random(219)
    known = 0
    for _ in range(20):
        visit = Visit(rng)
        following = Following(ARM if visit.world.arch is Arch.AARCH64 else X86)
        for record in [*visit.begin(), *(r for _ in range(30) for r in visit.step())]:
            following.feed(record)
        known += sum(1 for entry in following.state().entries if not entry.why)
    assert known > 60


# By hand.


def x86(kind: MessageType, *ids: int) -> Request:
    return cpu_request(kind, list(ids))


def window(kind: MessageType, base: int, irq: int = 5, size: int = 0x1000) -> Request:
    return mmio_request(kind, base, size, irq)


def pci(kind: MessageType, slot: int) -> Request:
    return pci_request(kind, 0, slot)


Asked = tuple[Request, int | None] | Request
"""A request with the `ret` of its answer; None or nothing but the request: no answer."""


def told(*asked: Asked, header: Header = X86, load_word: int | None = None) -> GuestState:
    """The state after one connection's requests."""
    following = Following(header)
    for record in conversation(asked, load_word):
        following.feed(record)
    return following.state()


def conversation(asked: Iterable[Asked], load_word: int | None = None) -> list[Record]:
    records: list[Record] = connect()
    for number, each in enumerate(asked):
        request, ret = each if isinstance(each, tuple) else (each, None)
        records.append(ask(request, number * 1000))
        if ret is not None:
            raw = request.reply(ret, load_word).encode()
            records.append(Chunk(number * 1000 + 500, 1, False, raw))
    return records


def known(state: GuestState) -> dict[Thing, tuple[bool | None, Ref | None]]:
    return {e.thing: (e.there, e.since) for e in state.entries if not e.why}


def inferred(state: GuestState) -> dict[Thing, tuple[bool | None, Ref | None]]:
    return {e.thing: (e.there, e.since) for e in state.entries if e.why}


def why(state: GuestState, thing: Thing) -> str:
    (found,) = (entry.why for entry in state.entries if entry.thing == thing)
    return found


R = [Ref(1, number) for number in range(10)]
OTHER = Claim(0xD0000000, 0x1000, 6)


def test_an_id_that_is_known_already_is_up() -> None:
    state = told((x86(ADD_CPU, 7), EINVAL))
    assert (known(state), inferred(state)) == ({}, {Cpu(7): (True, None)})
    assert "or there is no number" in why(state, Cpu(7))


def test_an_id_that_was_added_before_explains_the_refusal() -> None:
    state = told((x86(ADD_CPU, 1), 0), (x86(ADD_CPU, 1, 2), EINVAL))
    assert (known(state), inferred(state)) == ({Cpu(1): (True, R[0])}, {})


def test_a_refused_list_leaves_its_ids_open() -> None:
    state = told((x86(ADD_CPU, 1, 2), EINVAL))
    assert inferred(state) == {Cpu(1): (None, R[0]), Cpu(2): (None, R[0])}
    after = told((x86(DEL_CPU, 2), 0), (x86(ADD_CPU, 2), EINVAL))
    assert known(after) == {Cpu(2): (False, R[0])}
    # Once a CPU was removed there may be no number left, or one that is hidden.
    either = told((x86(ADD_CPU, 1), 0), (x86(DEL_CPU, 2), 0), (x86(ADD_CPU, 1, 3), EINVAL))
    assert known(either) == {Cpu(1): (True, R[0]), Cpu(2): (False, R[1])}
    assert inferred(either) == {Cpu(3): (None, R[2])}


def test_of_a_list_whose_end_did_not_start_the_others_are_open() -> None:
    state = told((x86(ADD_CPU, 1, 2, 3), EIO))
    assert inferred(state) == {Cpu(1): (None, R[0]), Cpu(2): (None, R[0])}
    assert known(state) == {Cpu(3): (False, R[0])}
    assert state.lock == Lock("free", R[0])


def test_an_id_that_was_online_is_up_and_a_list_of_them_is_open() -> None:
    assert inferred(told((x86(ADD_CPU, 1), 1))) == {Cpu(1): (True, None)}
    assert inferred(told((x86(ADD_CPU, 1, 2), 1))) == {
        Cpu(1): (None, R[0]), Cpu(2): (None, R[0])
    }  # fmt: skip


def test_a_busy_cpu_was_there_and_stays() -> None:
    state = told((x86(DEL_CPU, 3, 2), EBUSY))
    assert known(state) == {Cpu(2): (True, None)}
    assert inferred(state) == {Cpu(3): (None, R[0])}


def test_what_stands_before_the_boot_cpu_is_gone_unless_all_was_refused() -> None:
    first = (x86(DEL_CPU, 5), 0)
    following = Following(X86)
    boot = x86(DEL_CPU, 3, 0)
    raw = bytearray(boot.reply(EINVAL).encode())
    raw[20] = 1  # left over, so the refusal wrote no zero
    for record in [*conversation([first]), ask(boot, 5000), Chunk(5500, 1, False, bytes(raw))]:
        following.feed(record)
    assert known(following.state())[Cpu(3)] == (False, R[1])
    either = told((x86(DEL_CPU, 3, 0), EINVAL))
    assert (known(either), inferred(either)) == ({}, {Cpu(3): (None, R[0])})
    all_of_them = told((x86(DEL_CPU, 3, 2), EINVAL))
    assert all_of_them.entries == ()
    written = told(first, (x86(DEL_CPU, 3, 0), EINVAL))  # its 0 stands where a 1 was
    assert (known(written), inferred(written)) == ({Cpu(5): (False, R[0])}, {})


def test_windows_and_what_stood_in_the_way() -> None:
    add = window(ADD_MMIO, 0xD0000000, 6)
    state = told((add, 0), (window(ADD_MMIO, 0xD0000800), EEXIST))
    assert (known(state), inferred(state)) == ({Mmio(0xD0000000, 0x1000, 6): (True, R[0])}, {})
    state = told((add, EEXIST))
    assert inferred(state) == {OTHER: (True, R[0])}
    assert "overlaps it, or has IRQ 6" in why(state, OTHER)
    shared = told((window(ADD_MMIO, 0xD0000000), EEXIST))
    assert why(shared, Claim(0xD0000000, 0x1000, 5)).endswith("overlaps it")
    claimed = told((window(ADD_MMIO, 0xD0000000), EBUSY))
    assert "claimed" in why(claimed, Claim(0xD0000000, 0x1000, 5))
    assert told((window(ADD_MMIO, 0xD0000000, size=0), EBUSY)).entries == ()


def test_a_claim_is_settled_by_a_window_that_comes_or_goes_there() -> None:
    refused = (window(ADD_MMIO, 0xD0000000, 6), EEXIST)
    assert not inferred(told(refused, (window(ADD_MMIO, 0xD0000000, 6), 0)))
    assert not inferred(told(refused, (window(DEL_MMIO, 0xD0000800), 0)))
    assert not inferred(told(refused, (window(DEL_MMIO, 0xE0000000, 6), 0)))
    for elsewhere in (window(ADD_MMIO, 0xE0000000, 6), window(DEL_MMIO, 0xE0000000, 7)):
        assert OTHER in inferred(told(refused, (elsewhere, 0)))


def test_what_cannot_be_removed_because_it_is_not_there_is_absent() -> None:
    state = told((window(DEL_MMIO, 0xD0000000), ENODEV), (pci(DEL_PCI, 4), ENODEV))
    assert known(state) == {
        Mmio(0xD0000000, 0x1000, 5): (False, R[0]), Pci(0, 32): (False, R[1])
    }  # fmt: skip
    again = told((window(DEL_MMIO, 0xD0000000), 0), (window(DEL_MMIO, 0xD0000000), ENODEV))
    assert known(again) == {Mmio(0xD0000000, 0x1000, 5): (False, R[0])}


def test_pci_results_that_may_be_left_over_leave_an_add_open_and_settle_a_removal() -> None:
    nobody = (pci(ADD_PCI, 9), ENODEV)
    state = told(nobody, (pci(ADD_PCI, 4), ENODEV), (pci(DEL_PCI, 5), ENODEV))
    assert known(state) == {Pci(0, 72): (False, R[0]), Pci(0, 40): (False, R[2])}
    assert inferred(state) == {Pci(0, 32): (None, R[1])}
    there = told((pci(ADD_PCI, 4), 0), nobody, (pci(ADD_PCI, 4), ENODEV))
    assert known(there)[Pci(0, 32)] == (True, R[0])
    unplugged = told((pci(ADD_PCI, 4), 0), (pci(ADD_PCI, 4), ENODEV))
    assert known(unplugged) == {Pci(0, 32): (True, R[0])}
    stale = told((bare_request(MessageType.ADD_MEM), EEXIST), (pci(ADD_PCI, 4), EEXIST))
    assert known(stale) == {Pci(0, 32): (True, R[1])}


def test_a_bad_magic_changes_nothing() -> None:
    assert told((replace(x86(ADD_CPU, 1), magic_version=0), 0)).entries == ()


def test_aarch64_counts() -> None:
    add = cpu_request(ADD_CPU, 2)
    state = told((add, 0), header=ARM, load_word=4)
    assert known(state) == {CpusOnline(): (True, R[0])}
    assert [entry.thing.fields() for entry in state.entries] == [{"count": 4}]
    assert inferred(told((add, 0), add, header=ARM, load_word=4)) == {
        CpusOnline(): (None, R[1])
    }  # fmt: skip
    refused = told((add, 0), (cpu_request(DEL_CPU, 9), EINVAL), header=ARM, load_word=4)
    assert known(refused) == {CpusOnline(): (True, R[0])}


@pytest.mark.parametrize(
    ("request_", "thing", "lock"),
    [
        (x86(DEL_CPU, 9), Cpu(9), "unknown"),
        (x86(DEL_CPU, 1, 2), Cpu(1), "stuck"),
        (window(DEL_MMIO, 0xD0000000), Mmio(0xD0000000, 0x1000, 5), "unknown"),
        (pci(DEL_PCI, 4), Pci(0, 32), "free"),
    ],
    ids=["one CPU", "upwards", "window", "PCI"],
)
def test_silence_leaves_the_thing_the_lock_and_the_connection_open(
    request_: Request, thing: Thing, lock: str
) -> None:
    state = told((window(ADD_MMIO, 0xE0000000), 0), request_)
    assert inferred(state)[thing] == (None, R[1])
    assert (state.lock.state, bool(state.lock.why)) == (lock, lock != "free")
    assert state.dead == (Dead(R[1], "silent", "no answer to it"),)
    assert [(w.ref, w.answered) for w in state.waiting] == [(R[1], False)]


@pytest.mark.parametrize(
    "after",
    [
        (x86(ADD_CPU), 0),
        (x86(ADD_CPU, 1), EINVAL),
        (window(ADD_MMIO, 0xE0000000), EEXIST),
        (pci(ADD_PCI, 4), 0),
    ],
    ids=["no CPUs", "known CPU", "known window", "PCI"],
)
def test_what_needs_no_lock_does_not_free_it(after: tuple[Request, int]) -> None:
    """These are answered while a dead thread holds the lock, so they prove nothing."""
    following = Following(X86)
    for record in conversation([(window(ADD_MMIO, 0xE0000000), 0), x86(DEL_CPU, 1, 2)]):
        following.feed(record)
    request, ret = after
    for record in [*connect(2, 5000), ask(request, 6000, 2), answer(request, 7000, 2, ret)]:
        following.feed(record)
    following.feed(Close(10**10, 1, by_guest=False))
    assert following.state().lock.state == "stuck"
    for record in [ask(x86(ADD_CPU, 5), 8000, 2), answer(x86(ADD_CPU, 5), 9000, 2)]:
        following.feed(record)
    assert following.state().lock.state == "free"


def test_what_was_seen_after_an_unanswered_request_counts_more() -> None:
    second: list[Record] = [
        *connect(2, 5000), ask(x86(ADD_CPU, 3), 6000, 2), answer(x86(ADD_CPU, 3), 7000, 2)
    ]  # fmt: skip
    following = Following(X86)
    for record in [*conversation([x86(DEL_CPU, 3)]), *second]:
        following.feed(record)
    state = following.state()
    assert known(state) == {Cpu(3): (True, Ref(2, 0))}
    assert state.lock == Lock("free", Ref(2, 0))
    assert [dead.since for dead in state.dead] == [R[0]]


def at(
    records: Iterable[Record], before: int, world: World | None = None, **more: Any
) -> GuestState:
    """The state before an operation of the records."""
    following = Following(X86, world, before=before, **more)
    for record in records:
        following.feed(record)
    assert following.stopped_at is not None
    return following.stopped_at


def test_a_request_that_waits_is_told_and_what_the_model_makes_of_it_is_inferred() -> None:
    add = x86(ADD_CPU, 1)
    records = [
        *connect(1), *connect(2),
        ask(add, 1000), ask(pci(ADD_PCI, 3), 1500, 2), answer(add, 2000),
        answer(pci(ADD_PCI, 3), 2500, 2),
    ]  # fmt: skip
    state = at(records, 1, kata_pod(), answered=lambda _: True)
    assert state.waiting == (Waiting(R[0], "add_cpu apic_ids=1", True),)
    assert state.dead == ()
    assert inferred(state) == {Cpu(1): (True, R[0])}
    assert at(records, 1, answered=lambda _: True).entries == ()


def test_within_one_send_each_request_has_its_own_state() -> None:
    both = x86(ADD_CPU, 1).encode() + x86(ADD_CPU, 2).encode()
    records = [*connect(), ask(both, 1000)]
    assert Cpu(1) not in things(at(records, 0, kata_pod()))
    second = things(at(records, 1, kata_pod()))
    assert Cpu(1) in second
    assert Cpu(2) not in second


def test_with_the_model_in_step_a_dead_thread_and_the_stuck_lock_are_known() -> None:
    world = replace(kata_pod(cpus=4), nr_cpu_ids=4)
    second: list[Record] = [*connect(2, 5000), ask(x86(ADD_CPU, 5), 6000, 2)]
    following = Following(X86, world)
    for record in [*conversation([x86(DEL_CPU, 1, 2, 3)]), *second]:
        following.feed(record)
    state = following.state()
    assert state.dead == (Dead(R[0], "died"), Dead(Ref(2, 0), "hangs"))
    assert state.lock == Lock("stuck", R[0])
    assert Entry(Cpu(1), False, R[0]) in state.entries


def test_removing_the_channels_own_device_cuts_the_connection_off() -> None:
    (vsock,) = (device for device in kata_pod().mmio if device.role == "vsock")
    following = Following(X86, kata_pod())
    for record in conversation([mmio_request(DEL_MMIO, vsock.base, vsock.size, vsock.irq)]):
        following.feed(record)
    assert following.state().dead == (Dead(R[0], "cut-off"),)


def test_once_the_model_parts_only_what_was_seen_is_known() -> None:
    following = Following(X86, kata_pod())
    for record in conversation(
        [(x86(ADD_CPU, 1), 0), (window(ADD_MMIO, 0xE0000000), 0), (x86(ADD_CPU, 2), 0)]
    ):  # the second answer is not what that guest would say
        following.feed(record)
    state = following.state()
    assert (state.model, state.parted) == ("parted", R[1])
    assert known(state) == {
        Cpu(1): (True, R[0]), Cpu(2): (True, R[2]),
        Mmio(0xE0000000, 0x1000, 5): (True, R[1]),
    }  # fmt: skip
    assert inferred(state)[Cpu(0)] == (True, None)
    assert not known(state).keys() & inferred(state).keys()
    assert Mmio(0xE0000000, 0x2000, 5) in inferred(state)


def test_a_capture_that_lacks_connections_leaves_the_world_to_inference() -> None:
    following = Following(X86, kata_pod())
    for record in [*connect(2), ask(x86(ADD_CPU, 1), 1000, 2), answer(x86(ADD_CPU, 1), 2000, 2)]:
        following.feed(record)
    state = following.state()
    assert (state.model, state.parted) == ("incomplete", None)
    assert known(state) == {Cpu(1): (True, Ref(2, 0))}
    assert Cpu(0) in inferred(state)


@pytest.mark.parametrize(("conn", "to_guest"), [(0, False), (1, True)])
def test_after_a_gap_nothing_from_before_it_is_known(conn: int, to_guest: bool) -> None:
    following = Following(X86)
    gap = Gap(3000, conn, to_guest, 1024, LEFT_OUT)
    for record in [*conversation([(x86(ADD_CPU, 1), 0)]), gap]:
        following.feed(record)
    state = following.state()
    assert (known(state), inferred(state)) == ({}, {Cpu(1): (True, R[0])})
    assert state.lock.why


def test_a_lost_reply_takes_nothing_away_from_what_was_seen() -> None:
    following = Following(X86)
    for record in [*conversation([(x86(ADD_CPU, 1), 0)]), Gap(3000, 1, False, 1024, LEFT_OUT)]:
        following.feed(record)
    assert known(following.state()) == {Cpu(1): (True, R[0])}


@pytest.mark.parametrize("conn", [0, 1])
def test_a_request_whose_reply_was_lost_is_open_and_its_connection_lives(conn: int) -> None:
    following = Following(X86)
    records = [
        *conversation([(window(ADD_MMIO, 0xE0000000), 0), x86(ADD_CPU, 1)]),
        Gap(3000, conn, False, 1024, LEFT_OUT),
        ask(pci(ADD_PCI, 4), 4000), answer(pci(ADD_PCI, 4), 5000),
    ]  # fmt: skip
    for record in records:
        following.feed(record)
    state = following.state()
    assert inferred(state)[Cpu(1)] == (None, R[1])
    assert (state.dead, state.waiting, state.lock.state) == ((), (), "free")


def test_a_short_request_over_bytes_that_were_lost_makes_nothing_known() -> None:
    add = window(ADD_MMIO, 0xD0000000)
    records = [
        *conversation([(add, 0)]), Gap(2000, 1, True, 1024, LEFT_OUT), answer(add, 2500),
        ask(add.encode()[:16], 3000), answer(add, 4000),
    ]  # fmt: skip
    following = Following(X86)
    for record in records:
        following.feed(record)
    state = following.state()
    assert (known(state), inferred(state)) == ({}, {DISK: (True, R[2])})
    assert "other bytes" in why(state, DISK)


def test_a_connection_from_the_middle_and_a_world() -> None:
    following = Following(X86, kata_pod())
    add = x86(ADD_CPU, 1)
    records: list[Record] = [Open(0, 1, Begins.MIDDLE), ask(add, 1000), answer(add, 2000)]
    for record in records:
        following.feed(record)
    state = following.state()
    assert state.model == "parted"
    assert known(state) == {Cpu(1): (True, R[0])}
    assert Cpu(0) in inferred(state)


def test_an_operation_of_another_service_has_a_state(nasty_service: Path, tmp_path: Path) -> None:
    add = x86(ADD_CPU, 1)
    records = [
        *conversation([(add, 0)]),
        Open(3000, 2, Begins.SERVICE, 219, True), Chunk(3000, 2, True, b"n"),
        Chunk(3100, 2, True, b"12345678"), ask(x86(ADD_CPU, 2), 4000), Close(5000, 2, False),
    ]  # fmt: skip
    assert known(at(records, 1)) == {Cpu(1): (True, R[0])}
    assert known(at(records, 2)) == {Cpu(1): (True, R[0])}


# At the end.


def left(*asked: Asked, dragonball: bool = True) -> list[tuple[str, Ref, Thing, bool]]:
    following = Following(X86, dragonball=dragonball)
    for record in conversation(asked):
        following.feed(record)
    return [
        (device.code, device.since, device.thing, device.inferred)
        for device in following.devices()
        if isinstance(device, Device)
    ]


DISK = Mmio(0xD0000000, 0x1000, 5)


def test_devices_that_vmm_and_guest_disagree_about() -> None:
    add, remove = window(ADD_MMIO, 0xD0000000), window(DEL_MMIO, 0xD0000000)
    assert left((add, 0)) == [("UP704", R[0], DISK, False)]
    assert left((add, 0), (remove, 0)) == []
    assert left((add, 0), (remove, EINVAL)) == [("UP704", R[0], DISK, False)]
    refused = ("UP701", R[0], DISK, False)
    assert [each[:3] for each in left((add, EEXIST))] == [refused[:3]]
    assert left((add, EEXIST), dragonball=False) == []
    assert left((add, EEXIST), (remove, ENODEV)) == []
    assert left((add, EEXIST), (add, 0)) == [("UP704", R[1], DISK, False)]
    # The guest has it, so adding it twice is no disagreement.
    assert left((add, 0), (add, EEXIST)) == [("UP704", R[0], DISK, False)]
    assert left((pci(ADD_PCI, 4), 0)) == [("UP704", R[0], Pci(0, 32), False)]
    assert left((pci(ADD_PCI, 4), 0), (pci(DEL_PCI, 4), 0)) == []


def test_taking_a_state_changes_nothing_that_is_seen_later() -> None:
    records = conversation([(x86(ADD_CPU, 1), 0), x86(DEL_CPU, 9)])
    once, often = Following(X86), Following(X86)
    for record in records:
        once.feed(record)
        often.feed(record)
        often.state()
    assert once.state() == often.state()


@pytest.mark.parametrize("known", [False, True], ids=["blind", "world"])
@pytest.mark.parametrize("recording", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_state_at_the_end_contradicts_no_finding(recording: Path, known: bool) -> None:
    """A lock that a finding says is held is never known to be free, with and without the world."""
    header, _ = records_of(recording)
    world = worlds()[header.notes["machine"]] if known else None
    held = {"UP207", "UP210", "UP310", "UP603"}
    stuck = {str(f.code) for f in diagnose(recording, world).findings} & held
    lock = state_of(recording, load(recording), world=world).lock
    assert lock.state != "free" or lock.why or not stuck
    if stuck and known:
        assert lock.state == "stuck"
