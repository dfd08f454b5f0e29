"""A recording moved onto a guest where everything is elsewhere."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from dissectors.constants import Arch, MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    decode_request,
    mmio_request,
    pci_request,
)
from tests.replay.playing import differing, guest_like, played, recording_of, script_of
from tests.support import ask, connect
from upcall_trace.capture.records import Chunk, Record, Vmm
from upcall_trace.compare.replies import values
from upcall_trace.errors import UnreadableInput
from upcall_trace.kernel.model import Guest
from upcall_trace.kernel.vmm_actions import order_of
from upcall_trace.kernel.world import PciDevice, Window, World, kata_pod
from upcall_trace.replay.plan import make_plan
from upcall_trace.replay.rebase import Rebase, read_map, work_out
from upcall_trace.trace.script import Key, Send

_T = MessageType
POD = kata_pod()
ELSEWHERE = World(
    kernel="6.1",
    arch=Arch.X86_64,
    nr_cpu_ids=16,
    cpus_online=(0, 1, 2),
    boot_table=(0, 1, 2),
    vcpus_running=(0, 1, 2, 8, 9, 10, 11),
    mmio=(Window(0xE0006000, 0x2000, 7, "blk"), Window(0xE0008000, 0x2000, 9, "vsock")),
    pci=(PciDevice(0, 3), PciDevice(0, 20), PciDevice(0, 30)),
)
"""What the pod's first devices would be given is taken here, and other CPUs can come up."""


def add(base: int, size: int = 0x2000, irq: int = 5) -> Request:
    return mmio_request(_T.ADD_MMIO, base, size, irq)


def remove(base: int, size: int = 0x2000, irq: int = 5) -> Request:
    return mmio_request(_T.DEL_MMIO, base, size, irq)


SESSION: list[Request | str] = [
    cpu_request(_T.ADD_CPU, [1, 2]),
    add(0xE0006000),
    add(0xE0008000, irq=7),
    add(0xE0006000),  # a second time
    add(0xE0000000),  # where a boot device is
    add(0xE000A000, irq=7),  # an interrupt that is in use
    add(0xE000C000, irq=0),
    add(0xE0007000, 0x100, 9),  # within another one
    add(0xE000C000, 0),
    pci_request(_T.ADD_PCI, 0, 4),
    pci_request(_T.DEL_PCI, 0, 4),
    pci_request(_T.DEL_PCI, 0, 4),
    pci_request(_T.ADD_PCI, 0, 4),
    pci_request(_T.ADD_PCI, 0, 20),  # nothing is there
    pci_request(_T.ADD_PCI, 3, 1),  # no such bus
    "PCI device 0:17 plugged",
    pci_request(_T.ADD_PCI, 0, 17),
    cpu_request(_T.ADD_CPU, [1]),
    cpu_request(_T.DEL_CPU, [2, 1]),
    cpu_request(_T.DEL_CPU, [0]),
    cpu_request(_T.ADD_CPU, [2]),
    remove(0xE0006000),
    remove(0xE0006000),
    remove(0xE0002000),  # a boot device
    bare_request(77),
]


def recorded_in(world: World, session: list[Request | str]) -> list[Record]:
    """What a recording of the session in this world is."""
    guest = Guest(world)
    connection = guest.connect()
    connection.service(ord("d"))
    records = connect(1)
    for place, item in enumerate(session):
        at = (place + 1) * 1_000_000
        if isinstance(item, str):
            order = order_of(item)
            assert order is not None
            (where,) = order.values()
            guest.plug_pci(PciDevice(**where))
            records.append(Vmm(at, item))
            continue
        records.append(ask(item, at))
        outcome = connection.receive(item.encode())
        assert outcome.reply is not None
        records.append(Chunk(at + 1000, 1, False, outcome.reply))
    return records


def test_the_same_happens_where_everything_is_elsewhere(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", recorded_in(POD, SESSION))
    with guest_like(ELSEWHERE, tmp_path) as guest:
        assert len(differing(played(recording, guest))) > 5
    with guest_like(ELSEWHERE, tmp_path) as guest:
        rebase = work_out(recording.script, ELSEWHERE)
        replay = played(recording, guest, rebase=rebase)
    assert differing(replay) == []
    assert replay.verdict.exit_code == 0
    assert list(rebase.told()) == [
        "window 0xe0000000+0x2000 irq 5 -> 0xe0006000+0x2000 irq 5",
        "window 0xe0002000+0x2000 irq 5 -> 0xe0006000+0x2000 irq 7",
        "MMIO base 0xe0006000 -> 0xe000a000",
        "MMIO base 0xe0008000 -> 0xe000c000",
        "MMIO base 0xe000a000 -> 0xe000e000",
        "MMIO base 0xe000c000 -> 0xe0010000",
        "MMIO base 0xe0007000 -> 0xe000b000",
        "IRQ 7 -> 6",
        "IRQ 9 -> 8",
        "APIC id 1 -> 8",
        "APIC id 2 -> 9",
        "PCI 0:4.0 -> 0:3.0",
        "PCI 0:20.0 -> 0:1.0",
    ]


def test_where_nothing_is_in_the_way_nothing_moves() -> None:
    script = script_of(recorded_in(POD, SESSION))
    rebase = work_out(script, POD)
    # A device that the guest booted with stands for any other one.
    assert {text.split()[0] for text in rebase.told()} <= {"window"}
    assert unlike(rebase, POD, SESSION) == []


def unlike(rebase: Rebase, world: World, session: list[Request | str]) -> list[Key]:
    """Requests that the model of `world` answers otherwise than the recording has it."""
    script = rebase.apply(script_of(recorded_in(POD, session)))
    plan = make_plan(script, world)
    return [
        key for key, asked in script.asked.items()
        if values(plan.rehearsed[key].reply) != values(asked.reply)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_plugging_and_unplugging_of_all_kinds_can_be_moved(seed: int) -> None:
    """Invariant: devices and CPUs that a session adds behave alike wherever they are moved to."""
    random = Random(seed)
    windows = [(0xE0006000 + n * 0x2000, 0x2000, random.choice([5, 20 + n])) for n in range(4)]
    session: list[Request | str] = []
    for _ in range(40):
        kind = random.randrange(3)
        if kind == 0:
            window = random.choice(windows)
            session.append(random.choice([add, remove])(*window))
        elif kind == 1:
            session.append(cpu_request(random.choice([_T.ADD_CPU]), [random.randint(1, 3)]))
        else:
            which = random.choice([_T.ADD_PCI, _T.DEL_PCI])
            session.append(pci_request(which, 0, random.choice([2, 3, 5])))
    script = script_of(recorded_in(POD, session))
    rebase = work_out(script, ELSEWHERE)
    assert unlike(rebase, ELSEWHERE, session) == []
    targets = [*rebase.mmio.values(), *(window[0] for window in rebase.windows.values())]
    assert len(set(rebase.apic_id.values())) == len(rebase.apic_id)
    assert len(set(targets)) == len(targets)


def test_pieces_and_what_was_executed_over_them_move_along() -> None:
    raw = add(0xE0006000).encode()
    records = [*connect(1), ask(raw[:500], 1), ask(raw[500:], 2), ask(raw[:16], 3)]
    script = Rebase(mmio={0xE0006000: 0xF0000000}).apply(script_of(records))
    sends = [step.data for step in script.steps if isinstance(step, Send) and step.requests]
    moved = add(0xF0000000).encode()
    assert sends == [moved[:500], raw[500:], raw[:16]]
    assert script.asked[1, 2].message == decoded_over(moved[:500], raw[500:], raw[:16])


def decoded_over(*pieces: bytes) -> Request:
    buffer = bytes(1024)
    for piece in pieces:
        buffer = piece + buffer[len(piece) :]
    return decode_request(buffer)


def test_the_vmms_side_moves_along() -> None:
    script = script_of([*connect(1), Vmm(1, "vCPU 1 created"), Vmm(2, "PCI device 0:9 plugged")])
    moved = Rebase(apic_id={1: 7}, pci={(0, 9 << 3): (2, 4 << 3)}).apply(script)
    assert moved.actions == ["vCPU 7 created", "PCI device 2:4 plugged"]


def test_a_map_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "map.toml"
    file.write_text(
        '[mmio]\n"0xe0006000" = "0xf0000000"\n[irq]\n7 = 9\n'
        '[apic_id]\n1 = 4\n[pci]\n"0:6" = "0:9.1"\n'
    )
    assert list(read_map(file).told()) == [
        "MMIO base 0xe0006000 -> 0xf0000000",
        "IRQ 7 -> 9",
        "APIC id 1 -> 4",
        "PCI 0:6.0 -> 0:9.1",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "is not a TOML file"),
        ("[slots]\n", r"\[slots\] is none of the tables mmio, irq, apic_id, pci"),
        ("[irq]\nseven = 8\n", r"\[irq\] seven = 8 cannot be"),
        ("[apic_id]\n1 = 256\n", "1 = 256 cannot be"),
        ('[pci]\n"0:32" = "0:1"\n', "cannot be"),
    ],
)
def test_a_map_that_is_wrong_is_told_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "map.toml"
    file.write_text(text)
    with pytest.raises(UnreadableInput, match=says):
        read_map(file)
