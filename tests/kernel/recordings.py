"""Recordings of real guests put to the model: sends, replies, labelled causes, console samples."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dissectors.constants import MESSAGE_SIZE
from tests.support import GOLDEN, PCAPS, TRANSCRIPTS, records_of
from upcall_trace.capture.records import Begins, Chunk, Open, Record, Vmm
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.outcome import Outcome
from upcall_trace.kernel.vmm_actions import order_of
from upcall_trace.kernel.world import Window, World, load_worlds

REAL_CLIENT = GOLDEN / "real_client_simple.vsockmon.pcap"
"""Dragonball's own client; it exists only as packets captured inside the guest."""
RECORDINGS = [*TRANSCRIPTS, REAL_CLIENT]
INSIDE = [path for path in PCAPS if path != REAL_CLIENT]
"""The same as the transcripts, as packets captured inside the guests."""
_SAMPLE = re.compile(r"STATE cpus=(\S+) present=(\S+) blk=(\S+) virtio=(\S*) ")


def name_of(recording: Path) -> str:
    """`cpu_lifecycle` for both of its forms."""
    return recording.name.split(".")[0]


@cache
def worlds() -> dict[str, World]:
    """What each machine looked like at boot."""
    return load_worlds(GOLDEN / "worlds.toml")


def follow(guest: Guest, record: Record) -> None:
    """What a record says that happened outside the channel: a vCPU runs, a CPU is set off."""
    match order_of(record.action) if isinstance(record, Vmm) else None:
        case {"start_vcpu": int(cpu)}:
            guest.start_vcpu(cpu)
        case {"online_cpu": int(number)}:
            guest.switch_cpu(number, True)
        case {"offline_cpu": int(number)}:
            guest.switch_cpu(number, False)


def labels(name: str) -> dict[tuple[int, int], list[set[str]]]:
    """(connection, request) -> what must be found there: one code of each set."""
    rows = json.loads((GOLDEN / f"{name}.findings.json").read_text("ascii"))
    found = {(row["conn"], row["request"]): [set(codes) for codes in row["codes"]] for row in rows}
    return {key: codes for key, codes in found.items() if codes}


class Sample(NamedTuple):
    """What the guest's init saw at one moment, or what the model has."""

    cpus: frozenset[int]
    devices: int
    """Virtio devices that have a driver."""
    disks: int

    def lies_between(self, before: Sample, after: Sample) -> bool:
        """True for a moment at or between two states: init also looks in mid-operation."""
        cpus = before.cpus & after.cpus <= self.cpus <= before.cpus | after.cpus
        counts = zip(self[1:], before[1:], after[1:], strict=True)
        return cpus and all(min(a, b) <= seen <= max(a, b) for seen, a, b in counts)


def console_samples(name: str) -> list[Sample]:
    """The STATE lines of the guest's console, in order."""
    text = (GOLDEN / f"{name}.console.log").read_text("utf-8", "replace")
    return [
        Sample(frozenset(_numbers(cpus)), _named(devices), _named(disks))
        for cpus, _, disks, devices in _SAMPLE.findall(text)
    ]


def last_present(name: str) -> frozenset[int]:
    """The CPUs that the guest took for plugged at the end, by its console."""
    text = (GOLDEN / f"{name}.console.log").read_text("utf-8", "replace")
    return frozenset(_numbers(_SAMPLE.findall(text)[-1][1]))


def _named(names: str) -> int:
    """How many names `vda,vdb,` holds."""
    return names.count(",")


def _numbers(ranges: str) -> Iterator[int]:
    """`0,2-3` as 0, 2, 3."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


_MICROVMS = ("microvm", "microvm_6_12", "microvm_5_10")
_TRANSPORTS = {
    **dict.fromkeys(_MICROVMS, (0xFEB00000, 5)),
    "aarch64": (0xA000000, 16),
}
"""QEMU's virtio-mmio slots: number n is at base + n * 0x200 with the IRQ first + n."""
_NO_DISK = {name: {0} for name in _MICROVMS}
"""Of those the ones that are no disk: vsock."""
_PCI_DEVICES = {"pc": {3, 4, 6, 8, 16}, "pc_5_10": {3, 4, 6, 8, 16}, "aarch64": {4}}
"""Slots with a virtio function behind them, and those of them that are disks."""
_PCI_DISKS = {"pc": {4, 6}, "pc_5_10": {4, 6}, "aarch64": {4}}
_ELSEWHERE = {"aarch64": 1}
"""Virtio devices that upcall cannot reach: the vsock device is in the device tree."""


def sample(machine: str, guest: Guest) -> Sample:
    """What the guest's init would see now."""
    slots = {device.slot for device in guest.pci}
    windows = _behind_windows(machine, guest)
    functions = slots & _PCI_DEVICES.get(machine, set())
    return Sample(
        frozenset(guest.cpus.online),
        len(windows) + len(functions) + _ELSEWHERE.get(machine, 0),
        len(windows - _NO_DISK.get(machine, set())) + len(slots & _PCI_DISKS.get(machine, set())),
    )


def _behind_windows(machine: str, guest: Guest) -> set[int]:
    """Slots whose window and IRQ are those that QEMU has a device behind."""
    if machine not in _TRANSPORTS:
        return set()
    base, first_irq = _TRANSPORTS[machine]
    slots = {(window.base - base) // 0x200: window for window in guest.windows}
    found = {
        n for n, window in slots.items()
        if window.base == base + n * 0x200 and window.irq == first_irq + n
    }  # fmt: skip
    # A disk whose driver hangs has its name already: it waits for the partition table.
    hanging: Window | None = getattr(guest, "hanging", None)
    return found | ({(hanging.base - base) // 0x200} if hanging else set())


def with_what_the_vmm_did(inside: list[Record], outside: list[Record]) -> list[Record]:
    """The packets of a guest with what its VMM did, before the same request as outside.

    A request has 16 bytes at least.
    """
    by_count: dict[int, list[Record]] = defaultdict(list)
    count = 0
    for record in outside:
        if isinstance(record, Vmm):
            by_count[count].append(record)
        count += isinstance(record, Chunk) and record.to_guest and len(record.data) >= 16
    merged: list[Record] = []
    count = 0
    for record in inside:
        if isinstance(record, Chunk) and record.to_guest and len(record.data) >= 16:
            merged += by_count[count]
            count += 1
        merged.append(record)
    return merged


@dataclass(slots=True)
class Replayed:
    """What the model made of a recording, beside what the real guest did."""

    guest: Guest
    machine: str
    predicted: dict[int, bytes] = field(default_factory=lambda: defaultdict(bytes))
    recorded: dict[int, bytes] = field(default_factory=lambda: defaultdict(bytes))
    """Everything from the guest on each connection, without the multiplexer's OK line."""
    outcomes: dict[tuple[int, int], Outcome] = field(default_factory=dict)
    states: list[Sample] = field(default_factory=list)
    """At boot and after each request."""


def replay(recording: Path) -> Replayed:
    """Put every send of a recording to a model of its machine, in the recorded order."""
    header, records = records_of(recording)
    if recording in INSIDE:  # it knows neither its machine nor what the VMM did
        outside, with_vmm = records_of(GOLDEN / f"{name_of(recording)}.jsonl")
        header = outside
        records = with_what_the_vmm_did(records, with_vmm)
    machine = header.notes.get("machine", "microvm")
    replayed = Replayed(Guest(worlds()[machine]), machine)
    replayed.states.append(sample(machine, replayed.guest))
    lines: set[int] = set()
    answered: set[int] = set()
    connections: dict[int, ServiceThread] = {}
    counts: dict[int, int] = defaultdict(int)
    for record in records:
        if isinstance(record, Vmm):
            follow(replayed.guest, record)
        match record:
            case Open(conn=conn, begins=begins) if begins is not Begins.LINE:
                lines.add(conn)
                answered.add(conn)
            case Chunk(conn=conn, to_guest=True) if conn not in lines:
                lines.add(conn)
            case Chunk(conn=conn, to_guest=True) if conn not in connections:
                assert len(record.data) == 1, "a service byte"
                connections[conn] = replayed.guest.connect()
                hello = connections[conn].service(record.data[0])
                replayed.predicted[conn] += hello or b""
            case Chunk(conn=conn, to_guest=True):
                for begin in range(0, len(record.data), MESSAGE_SIZE):
                    piece = record.data[begin : begin + MESSAGE_SIZE]
                    outcome = connections[conn].receive(piece)
                    replayed.outcomes[conn, counts[conn]] = outcome
                    replayed.predicted[conn] += outcome.reply or b""
                    replayed.states.append(sample(machine, replayed.guest))
                    counts[conn] += 1
            case Chunk(conn=conn) if conn not in answered:
                answered.add(conn)
            case Chunk(conn=conn):
                replayed.recorded[conn] += record.data
    return replayed
