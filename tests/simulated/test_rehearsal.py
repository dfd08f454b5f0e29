"""What a rehearsal says that a request changes is what the guest has more or less of then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import Arch, MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request
from tests.replay.playing import script_of
from tests.support import ask, connect
from upcall_trace.capture.records import Chunk, Header, Record
from upcall_trace.kernel.cpus import X86Cpus
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.world import PciDevice, Window, World, kata_pod
from upcall_trace.simulated.rehearsal import Rehearsal, Rehearsed
from upcall_trace.trace.script import Script

T = MessageType
IDS: tuple[list[int], ...] = ([1], [5], [2, 1], [1, 2], [3], [0], [], [4, 4], [9, 5], [31], [255])
WINDOWS = ((0xE0006000, 0x2000, 5), (0xE0008000, 0x2000, 5), (0xE0000000, 0x2000, 5),
           (0xE0004000, 0x2000, 5), (0xE0009000, 0x2000, 7), (0xD0000000, 0, 5))  # fmt: skip
REQUESTS = st.sampled_from(
    [
        *(cpu_request(kind, ids) for kind in (T.ADD_CPU, T.DEL_CPU) for ids in IDS),
        *(mmio_request(kind, *window) for kind in (T.ADD_MMIO, T.DEL_MMIO) for window in WINDOWS),
        *(pci_request(kind, 0, slot) for kind in (T.ADD_PCI, T.DEL_PCI) for slot in (1, 4, 9)),
        bare_request(77),
    ]
)
WORLDS = st.sampled_from(
    [kata_pod(), kata_pod(cpus=3), kata_pod(kernel="5.10", cpus=4), kata_pod(kernel="6.12", cpus=2),
     replace(kata_pod(), pci=(PciDevice(0, 1), PciDevice(0, 1, 1)), phys_bits=40)]
)  # fmt: skip


def had(guest: Guest) -> dict[str, Any]:
    """Everything that a request can change; CPUs by their ids, with their numbers."""
    assert isinstance(guest.cpus, X86Cpus)
    table = guest.cpus.table
    return {
        "cpus": {table[number]: number for number in guest.cpus.online & table.keys()},
        "online": set(guest.cpus.online),
        "windows": set(guest.windows),
        "pci": {*guest.pci},
    }


@given(WORLDS, st.lists(REQUESTS, max_size=30))
def test_the_model_tells_what_a_request_changes(world: World, asked: list[Request]) -> None:
    guest = Guest(world)
    threads = [guest.connect() for _ in asked]  # one that dies takes no other with it
    for thread, request in zip(threads, asked, strict=True):
        before = had(guest)
        thread.receive(request.encode())
        after = had(guest)
        came, went = guest.changes.came, guest.changes.went
        assert {t for t in came if isinstance(t, Window)} == after["windows"] - before["windows"]
        assert {t for t in went if isinstance(t, Window)} == before["windows"] - after["windows"]
        assert {t for t in came if isinstance(t, PciDevice)} == after["pci"] - before["pci"]
        assert {t for t in went if isinstance(t, PciDevice)} == before["pci"] - after["pci"]
        assert {t for t in came if isinstance(t, int)} == after["cpus"].keys() - before["cpus"]
        # One that has lost its id runs on.
        gone = {cpu for cpu, number in before["cpus"].items() if number not in after["online"]}
        assert {t for t in went if isinstance(t, int)} == gone
        assert len(came) == len(set(came))


def answered(world: World, asked: list[Request], arch: str) -> Script:
    """What this guest answers, as a recording of it; after a death there is silence."""
    thread: ServiceThread = Guest(world).connect()
    records: list[Record] = connect(1)
    for place, request in enumerate(asked):
        sent = ask(request, (place + 1) * 1_000_000)
        records.append(sent)
        reply = thread.receive(sent.data).reply
        if reply is not None:
            records.append(Chunk((place + 1) * 1_000_000 + 400, 1, False, reply))
    return script_of(records, Header("test", arch=arch))


def rehearsed(world: World, script: Script, knowing: bool) -> list[Rehearsed]:
    rehearsal = Rehearsal(world, script)
    if not knowing:
        rehearsal._same_arch = False
    return [each for step in script.steps for each in rehearsal.take(step)]


@given(WORLDS, WORLDS, st.lists(REQUESTS, max_size=30), st.sampled_from(["x86_64", "aarch64"]))
def test_what_the_recording_has_decoded_already_is_what_it_would_decode(
    recorded: World, world: World, asked: list[Request], arch: str
) -> None:
    """Answered by another guest or by the same, of this architecture or another."""
    script = answered(recorded, asked, arch)
    assert rehearsed(world, script, knowing=True) == rehearsed(world, script, knowing=False)


def test_messages_of_the_recording_are_taken_over() -> None:
    """They are: else the other would compare a way with itself."""
    asked: list[Request] = [
        mmio_request(T.ADD_MMIO, *WINDOWS[0]),
        mmio_request(T.DEL_MMIO, *WINDOWS[0]),
    ]
    script = answered(kata_pod(), asked, "x86_64")
    for each in rehearsed(kata_pod(), script, knowing=True):
        assert each.reply is each.asked.reply
    for each in rehearsed(kata_pod(Arch.AARCH64), script, knowing=True):
        assert each.reply is not each.asked.reply
