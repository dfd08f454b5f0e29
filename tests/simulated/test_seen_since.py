"""docs/protocol.md section 7, line by line: what a real guest answered, and what ours does.

Where there is a recording, the real answer is read from it; the others were watched and are
written down here. Ours is asked with the clock running, as a real one would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from dissectors.constants import MESSAGE_SIZE, RET_OFFSET, MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request
from tests.kernel.recordings import worlds
from tests.support import golden
from upcall_trace.kernel.world import PciDevice, Window, World
from upcall_trace.simulated.in_process import MemoryGuest, MemoryStream
from upcall_trace.simulated.machine import Backend, Habits, Pace
from upcall_trace.trace.opening import load

ADD_CPU, DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU
ADD_MMIO, DEL_MMIO = MessageType.ADD_MMIO, MessageType.DEL_MMIO
SILENCE = "silence"
MICROVM, PC = worlds()["microvm_5_10"], worlds()["pc_5_10"]
DISK = (0xFEB00600, 0x200)


@dataclass(frozen=True)
class Ask:
    """A request on a connection; the last one of a row is the one that it is about."""

    request: Request | bytes
    conn: int = 1


@dataclass(frozen=True)
class Order:
    """What happens outside the channel."""

    order: dict[str, object]


@dataclass(frozen=True)
class Later:
    """Time passes."""

    ns: int


Step = Ask | Order | Later


@dataclass(frozen=True)
class Row:
    """`real` is what the real guest answered; `recorded` says where that can be looked up."""

    what: str
    world: World
    steps: Sequence[Step]
    real: str
    recorded: tuple[str, int, int] | None = None
    kernels: tuple[str, ...] = ("5.10",)
    late_ns: int = 0
    """How long it took, as far as that is part of the line."""
    others: dict[str, str] = field(default_factory=dict)
    """What the same gets on other series, where that was seen too."""


def add(*ids: int, conn: int = 1) -> Ask:
    return Ask(cpu_request(ADD_CPU, list(ids)), conn)


def remove(*ids: int, conn: int = 1) -> Ask:
    return Ask(cpu_request(DEL_CPU, list(ids)), conn)


def plug(base: int, size: int = 0x1000, irq: int = 5, conn: int = 1) -> Ask:
    return Ask(mmio_request(ADD_MMIO, base, size, irq), conn)


def unplug(base: int, size: int = 0x1000, irq: int = 5, conn: int = 1) -> Ask:
    return Ask(mmio_request(DEL_MMIO, base, size, irq), conn)


def scan(slot: int, function: int = 0, conn: int = 1) -> Ask:
    return Ask(pci_request(MessageType.ADD_PCI, 0, slot, function), conn)


def drop(slot: int, function: int = 0, conn: int = 1) -> Ask:
    return Ask(pci_request(MessageType.DEL_PCI, 0, slot, function), conn)


def memory(conn: int = 1) -> Ask:
    return Ask(bare_request(MessageType.ADD_MEM), conn)


STARTED = Order({"start_vcpu": 1})
FAILED_ONCE: list[Step] = [add(1), Later(10_000_000_000), STARTED]
HOLE: list[Step] = [*FAILED_ONCE, Order({"start_vcpu": 2}), Order({"start_vcpu": 3}), add(2, 3)]
LOST: list[Step] = [remove(1), add(3)]
ROOM = replace(MICROVM, nr_cpu_ids=8, vcpus_running=(0, 1, 2, 3, 4), boot_table=tuple(range(8)))
SLOW_PCI = replace(PC, pci=(*PC.pci, PciDevice(0, 9, probe_ms=4000)), vcpus_running=(0, 1))
PROBING: list[Step] = [drop(9, conn=9), scan(9, conn=9)]
OFFLINE = Order({"offline_cpu": 3})
WRONG = plug(*DISK, irq=12)
HANGING: list[Step] = [plug(*DISK, irq=12, conn=9)]
STUCK: list[Step] = [remove(1, 2, 3, conn=9)]
ARM = replace(worlds()["aarch64"], mmio=())
SEVERAL = replace(PC, mmio=MICROVM.mmio, needs_boot_mmio=False)

ROWS = [
    Row("a CPU that failed once, its vCPU running now", PC, [*FAILED_ONCE, add(1)], "-5",
        ("cpu_retry_5_10", 1, 1), others={"6.1": "0"}),
    Row("the hole that it leaves hides the highest CPU", PC, [*HOLE, remove(3)], SILENCE,
        ("cpu_retry_5_10", 1, 6)),
    Row("ADD_CPU of one that is online and out of reach", MICROVM, LOST, "-17",
        ("cpu_lookup_5_10", 1, 8), ("5.10", "6.1")),
    Row("and of an id twice in one list", ROOM, [add(4, 4)], "-17", None, ("5.10", "6.1", "6.12")),
    Row("a later removal kills the thread", MICROVM, [*LOST, add(1), remove(3)], SILENCE,
        ("cpu_lookup_5_10", 2, 0), ("5.10", "6.1")),
    Row("ADD_CPU during a PCI probe", SLOW_PCI, [*PROBING, add(1)], "-16", None, ("5.10", "6.1")),
    Row("DEL_CPU during a PCI probe", replace(SLOW_PCI, cpus_online=(0, 1)),
        [*PROBING, remove(1)], "-16", None, ("5.10", "6.1")),
    Row("and when it is over", SLOW_PCI, [*PROBING, Later(4_000_000_000), add(1)], "0"),
    Row("DEL_CPU of one that the guest set offline", MICROVM, [OFFLINE, remove(3)], "1",
        ("cpu_offlined_5_10", 1, 1), ("5.10", "6.12")),
    Row("a later ADD_CPU of it", MICROVM, [OFFLINE, remove(3), add(3)], "-22",
        ("cpu_offlined_5_10", 1, 2), ("5.10", "6.12")),
    Row("ADD_CPU of 255", ROOM, [add(255)], "-22", None, ("6.1",)),
    Row("a wrong interrupt on a working disk", MICROVM, [WRONG], SILENCE,
        ("mmio_wrong_interrupt_5_10", 2, 0), ("5.10", "6.1", "6.12")),
    Row("the same window again", MICROVM, [*HANGING, WRONG], SILENCE,
        ("mmio_wrong_interrupt_5_10", 3, 0), ("5.10", "6.1", "6.12")),
    Row("a CPU request then", MICROVM, [remove(3), *HANGING, add(3)], SILENCE,
        ("mmio_wrong_interrupt_5_10", 4, 0), ("5.10", "6.1", "6.12")),
    Row("the wrong IRQ 5, once the channel raises it", MICROVM, [plug(*DISK)], "0"),
    Row("a disk whose first read takes 3 s",
        replace(MICROVM, mmio_hidden=(Window(*DISK, 8, "blk", 3000),)), [plug(*DISK, irq=8)], "0",
        late_ns=3_000_000_000),
    Row("and the lock is held meanwhile",
        replace(MICROVM, mmio_hidden=(Window(*DISK, 8, "blk", 3000),)),
        [plug(*DISK, irq=8, conn=9), remove(3)], "0", late_ns=3_000_000_000),
    Row("PCI removal while a vCPU is being started", PC, [add(1, conn=9), drop(6)], "0", None,
        ("5.10", "6.1"), late_ns=10_000_000_000),
    Row("a window that ends at 2^64", MICROVM, [plug((1 << 64) - 0x100, 0x100, 14)], "-16",
        ("mmio_edges_5_10", 1, 8), ("5.10", "6.1")),
    Row("one beyond it", MICROVM, [plug((1 << 64) - 0x100, 0x200, 13)], "-16",
        ("mmio_edges_5_10", 1, 7), ("5.10", "6.1")),
    Row("one beyond the CPU's address bits", MICROVM, [plug(1 << 52, irq=22)], "-16",
        ("mmio_edges_5_10", 1, 19), ("5.10", "6.1")),
    Row("one that shares a byte at the edge", MICROVM, [plug(0xFEB003FF, 0x200, 10)], "-16",
        ("mmio_edges_5_10", 1, 0)),
    Row("one that reaches into RAM", MICROVM, [plug(0x1FFFF000, 0x2000, 10)], "-16",
        ("mmio_edges_5_10", 1, 2)),
    Row("one inside RAM", MICROVM, [plug(0x10000000, irq=10)], "0", ("mmio_edges_5_10", 1, 3)),
    Row("one of one byte, twice", MICROVM, [plug(0xD0000000, 1, 15), plug(0xD0000000, 1, 16)],
        "0", ("mmio_edges_5_10", 1, 10)),
    Row("no boot device: ADD_MMIO", PC, [plug(0xD0000000, irq=7)], SILENCE,
        ("mmio_without_boot_device_5_10", 1, 2)),
    Row("no boot device: DEL_MMIO", PC, [unplug(0xD0000000, irq=7)], SILENCE,
        ("mmio_without_boot_device_5_10", 2, 1)),
    Row("no boot device: an empty window", PC, [plug(0xFEB00600, 0, 8)], SILENCE,
        ("mmio_without_boot_device_5_10", 3, 4)),
    Row("no boot device: the -22 checks come before", PC, [plug(0xD0000000, irq=0)], "-22",
        ("mmio_without_boot_device_5_10", 1, 0)),
    Row("no boot device: the lock is free", replace(PC, vcpus_running=(0, 1)),
        [plug(0xD0000000, irq=7, conn=9), add(1)], "0", ("mmio_without_boot_device_5_10", 4, 0)),
    Row("lock lost: DEL_CPU with the boot CPU first", MICROVM, [*STUCK, remove(0)], "-22",
        ("guest_oops_5_10", 7, 0), ("5.10", "6.1")),
    Row("lock lost: ADD_CPU with an empty list", MICROVM, [*STUCK, add()], "0",
        ("guest_oops_5_10", 8, 0), ("5.10", "6.1")),
    Row("lock lost: DEL_CPU with an empty list", MICROVM, [*STUCK, remove()], "0",
        ("guest_oops_5_10", 8, 1), ("5.10", "6.1")),
    Row("lock lost on 6.12: the boot CPU, and an empty list", MICROVM,
        [*HANGING, remove(0, conn=2), add()], "0", None, ("6.12",)),
    Row("lock lost on arm: a count of 0", replace(ARM, cpus_online=(0, 1)),
        [Ask(cpu_request(ADD_CPU, 3), 9), Ask(cpu_request(ADD_CPU, 0))], "0", None, ("6.1",)),
    Row("ADD_PCI scans the whole slot", SEVERAL,
        [drop(1, 1), drop(1, 3), scan(1), drop(1, 3)], "0"),
    Row("the channel's device removed", MICROVM, [unplug(0xFEB00000, 0x200, 5)], SILENCE,
        ("channel_removed_5_10", 1, 0)),
    Row("and another connection then", MICROVM,
        [memory(2), unplug(0xFEB00000, 0x200, 5), memory(2)], SILENCE,
        ("channel_removed_5_10", 2, 1)),
    Row("arm: a bare ADD_MMIO header first", ARM,
        [Ask(mmio_request(ADD_MMIO, 0, 0, 0).encode()[:16])], "0", None, ("6.1",)),
]  # fmt: skip


class Asker:
    """Our guest with its own clock, as a client sees it."""

    def __init__(self, world: World, kernel: str) -> None:
        self.guest = MemoryGuest(
            replace(world, kernel=kernel), Habits(Backend.VHOST, pace=Pace.REAL)
        )
        self._streams: dict[int, MemoryStream] = {}

    def take(self, step: Step) -> tuple[str, int]:
        """What comes of a step, and how long it took."""
        match step:
            case Order():
                self.guest.control(dict(step.order))
            case Later():
                self.guest.advance(step.ns)
            case Ask():
                return self._ask(step)
        return "", 0

    def _ask(self, step: Ask) -> tuple[str, int]:
        stream = self._streams.get(step.conn)
        if stream is None:
            stream = self._streams[step.conn] = self.guest.connect()
            stream.send(b"CONNECT 219\n")
            stream.send(b"d")
            assert len(stream.receive()) == len(b"OK 219\n") + MESSAGE_SIZE
        sent = step.request if isinstance(step.request, bytes) else step.request.encode()
        asked_ns = self.guest.now_ns
        stream.send(sent)
        late = step.conn == 9  # the other connection, which nobody waits for
        answer = stream.receive()
        while not answer and not late and self.guest.now_ns < asked_ns + 20_000_000_000:
            due = stream.due_ns()
            if due is None:
                break
            self.guest.advance(due - self.guest.now_ns)
            answer = stream.receive()
        if not answer:
            return SILENCE, 0
        ret = int.from_bytes(answer[RET_OFFSET : RET_OFFSET + 4], "little", signed=True)
        return str(ret), self.guest.now_ns - asked_ns


def answered(row: Row, kernel: str) -> tuple[str, int]:
    asker = Asker(row.world, kernel)
    return [asker.take(step) for step in row.steps][-1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_ours_answers_as_the_real_one_did(row: Row) -> None:
    for kernel in row.kernels:
        assert answered(row, kernel) == (row.real, row.late_ns), kernel
    for kernel, real in row.others.items():
        assert answered(row, kernel)[0] == real, kernel


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.recorded is not None], ids=lambda row: row.what
)
def test_the_recordings_say_so(row: Row) -> None:
    assert row.recorded is not None
    name, conn, request = row.recorded
    (operation,) = [
        op for op in load(golden(name)).operations if (op.conn, op.request) == (conn, request)
    ]
    last = row.steps[-1]
    assert isinstance(last, Ask)
    assert isinstance(last.request, Request)
    assert operation.msg_type == last.request.msg_type
    assert (SILENCE if operation.ret is None else str(operation.ret)) == row.real


def test_a_connect_after_that_is_neither_answered_nor_closed() -> None:
    """The recording channel_removed_5_10 waits for ten seconds in vain."""
    asker = Asker(MICROVM, "5.10")
    asker.take(unplug(0xFEB00000, 0x200, 5))
    stream = asker.guest.connect()
    stream.send(b"CONNECT 219\n")
    asker.guest.advance(60_000_000_000)
    assert (stream.receive(), stream.closed, stream.silent) == (b"", False, True)


def test_all_of_the_slot_is_there_again() -> None:
    asker = Asker(SEVERAL, "5.10")
    for step in (drop(1, 1), drop(1, 3), scan(1)):
        asker.take(step)
    functions = [d["function"] for d in asker.guest.state()["pci"] if d["slot"] == 1]
    assert functions == [0, 1, 3]


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12"])
def test_a_lost_cpu_stays_online_without_an_id(kernel: str) -> None:
    asker = Asker(ROOM, kernel)
    asker.take(add(4, 4))
    state = asker.guest.state()
    assert (state["cpus_online"], state["apic_ids"]) == ([0, 1, 2, 3, 4], [0, 1, 2, 3])
    assert state["hotplug_lock"] == "free"
