"""The model against recordings of real guests, and every situation of docs/protocol.md section 4.

The recordings decide. What they do not show is written out below by hand, from that section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import MESSAGE_SIZE, REPLY_LOAD_OFFSET, RET_OFFSET, Arch, MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    hello,
    mmio_request,
    pci_request,
)
from tests.kernel.recordings import (
    INSIDE,
    RECORDINGS,
    console_samples,
    labels,
    last_present,
    name_of,
    replay,
)
from upcall_trace.kernel.cpus import CPU_START_LIMIT_NS, NoSuchCpu, X86Cpus
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.outcome import Cpus, Fate, Outcome
from upcall_trace.kernel.world import PciDevice, Window, World

each_recording = pytest.mark.parametrize("recording", RECORDINGS, ids=name_of)


@each_recording
def test_every_byte_of_every_recorded_reply_is_predicted(recording: Path) -> None:
    """Where the real guest was silent, one reply more would show as well."""
    replayed = replay(recording)
    conns = replayed.predicted.keys() | replayed.recorded.keys()
    assert replayed.outcomes
    for conn in sorted(conns):
        assert replayed.predicted[conn] == replayed.recorded[conn], f"connection {conn}"


@pytest.mark.parametrize("recording", INSIDE, ids=name_of)
def test_the_same_is_predicted_of_the_packets_that_were_captured_inside(recording: Path) -> None:
    """One that ended early has a request whose reply it has not."""
    replayed = replay(recording)
    for conn in sorted(replayed.predicted.keys() | replayed.recorded.keys()):
        predicted, recorded = replayed.predicted[conn], replayed.recorded[conn]
        if name_of(recording) == "aarch64_lifecycle":
            predicted = predicted[: len(recorded)]
        assert predicted == recorded, conn


@each_recording
def test_the_causes_are_those_that_the_recordings_are_labelled_with(recording: Path) -> None:
    replayed = replay(recording)
    wanted = labels(name_of(recording))
    assert wanted.keys() <= replayed.outcomes.keys()
    for key, outcome in replayed.outcomes.items():
        codes = set(outcome.causes)
        groups = wanted.get(key, [])
        assert len(codes) == len(outcome.causes) == len(groups), (key, outcome.causes, groups)
        assert all(codes & group for group in groups), (key, outcome.causes, groups)


@each_recording
def test_the_state_goes_the_way_that_the_guests_console_saw(recording: Path) -> None:
    """Each sample fits at or between two states of the model, in order, and the last one ends it.

    Init looks five times a second, so most states are not sampled.
    """
    states = replay(recording).states
    samples = console_samples(name_of(recording))
    assert samples[0] == states[0]
    moments = [*zip(states, [*states[1:], states[-1]], strict=True)]
    for sample in samples:
        while moments and not sample.lies_between(*moments[0]):
            moments.pop(0)
        assert moments, sample
    assert samples[-1] == states[-1]


@each_recording
def test_the_cpus_in_the_table_are_those_that_the_guest_took_for_present(recording: Path) -> None:
    """One that has lost its id is not, though it runs; on aarch64 all are that are possible."""
    guest = replay(recording).guest
    table = guest.cpus.table if isinstance(guest.cpus, X86Cpus) else range(guest.world.nr_cpu_ids)
    assert last_present(name_of(recording)) == set(table)


# Situations by hand.

DISK = Window(0xD0000000, 0x2000, 6)
OLD = World(
    kernel="6.1",
    nr_cpu_ids=8,
    cpus_online=(0, 1, 2, 3),
    vcpus_running=tuple(range(16)),
    mmio=(Window(0xE0000000, 0x2000, 5, "vsock"), DISK),
    pci=(PciDevice(0, 0), PciDevice(0, 4), PciDevice(0, 5), PciDevice(0, 6, role="vsock")),
    pci_buses=(2,),
)
NEW = replace(OLD, kernel="6.12", boot_table=tuple(range(8)))
ARM = replace(OLD, arch=Arch.AARCH64, cpus_online=(0, 1), nr_cpu_ids=4)


def add(*ids: int) -> Request:
    return cpu_request(MessageType.ADD_CPU, list(ids))


def remove(*ids: int) -> Request:
    return cpu_request(MessageType.DEL_CPU, list(ids))


def add_count(count: int) -> Request:
    return cpu_request(MessageType.ADD_CPU, count)


def remove_count(count: int) -> Request:
    return cpu_request(MessageType.DEL_CPU, count)


def add_mmio(base: int, size: int = 0x1000, irq: int = 5) -> Request:
    return mmio_request(MessageType.ADD_MMIO, base, size, irq)


def del_mmio(base: int, size: int = 0x1000, irq: int = 5) -> Request:
    return mmio_request(MessageType.DEL_MMIO, base, size, irq)


def add_pci(slot: int, bus: int = 0, function: int = 0) -> Request:
    return pci_request(MessageType.ADD_PCI, bus, slot, function)


def del_pci(slot: int, bus: int = 0, function: int = 0) -> Request:
    return pci_request(MessageType.DEL_PCI, bus, slot, function)


def bad_magic(request: Request) -> Request:
    return replace(request, magic_version=0x444D0200)


ADD_DISK = add_mmio(DISK.base, DISK.size, DISK.irq)
DEL_DISK = del_mmio(DISK.base, DISK.size, DISK.irq)
DEL_VSOCK = del_mmio(0xE0000000, 0x2000)
_FATES = {Fate.THREAD_DIED: "dies", Fate.HANGS: "hangs", Fate.CUT_OFF: "cut off"}


def said(outcome: Outcome) -> str:
    """`0 load=1`, `-22 UP205`, `dies UP206`: what a client could see, and why it is so.

    The load is the number at offset 20 and left out when it is 0.
    """
    if outcome.reply is None:
        words = [_FATES[outcome.fate]]
    else:
        assert outcome.fate is Fate.ANSWERED
        ret = int.from_bytes(outcome.reply[RET_OFFSET:][:4], "little", signed=True)
        load = int.from_bytes(outcome.reply[REPLY_LOAD_OFFSET:][:4], "little")
        words = [str(ret), *([f"load={load}"] if load else [])]
    return " ".join([*words, *outcome.causes])


class Scene:
    """A guest that is asked by hand; connections are numbered from 1 and open when first used."""

    def __init__(self, world: World) -> None:
        self.guest = Guest(world)
        self._connections: dict[int, ServiceThread] = {}

    def receive(self, piece: bytes, conn: int = 1) -> Outcome:
        if conn not in self._connections:
            self._connections[conn] = self.guest.connect()
            assert self._connections[conn].service(0x64) == hello().encode()
        return self._connections[conn].receive(piece)

    def ask(self, request: Request, conn: int = 1) -> str:
        return said(self.receive(request.encode(), conn))


Step = tuple[Request, str] | tuple[Request, str, int]
"""A request, what comes of it, and the connection when it is not 1."""


def play(world: World, steps: Sequence[Step]) -> Scene:
    """Ask in order; what was said has to be what stands beside."""
    scene = Scene(world)
    expected = [(step[1], *step[2:]) for step in steps]
    assert [(scene.ask(step[0], *step[2:]), *step[2:]) for step in steps] == expected
    return scene


CpuCase = tuple[list[Step], list[int]]
"""Steps, and the CPU numbers that are online at the end."""

BOTH_X86: dict[str, CpuCase] = {
    "several at once": ([(add(4, 5), "0 load=2"), (remove(5, 4), "0 load=2")], [0, 1, 2, 3]),
    "empty lists": ([(add(), "0"), (remove(), "0")], [0, 1, 2, 3]),
    "known id": ([(add(2), "-22 UP202")], [0, 1, 2, 3]),
    "one known id stops the whole list": ([(add(4, 2), "-22 UP202")], [0, 1, 2, 3]),
    "remove all": ([(remove(0, 1, 2, 3), "-22 UP204")], [0, 1, 2, 3]),
    "the remove-all check only counts": ([(remove(9, 9, 9, 9), "-22 UP204")], [0, 1, 2, 3]),
    "one less than all, with the boot CPU last": (
        [(remove(3, 2, 0), "-22 UP205")],
        [0, 1],
    ),
    "the boot CPU alone": ([(remove(0), "-22 UP205")], [0, 1, 2, 3]),
    "the boot CPU, and apic_index is stale": (
        [(add(4), "0 load=1"), (remove(0), "-22 load=1 UP205 UP503")],
        [0, 1, 2, 3, 4],
    ),
    "remove all, and apic_index is 0": (
        [(add(4), "0 load=1"), (remove(*range(5)), "-22 UP204")],
        [0, 1, 2, 3, 4],
    ),
    "an unknown id kills the thread, others go on": (
        [
            (remove(9), "dies UP206"),
            (add(4), "dies"),
            (add(4), "0 load=1", 2),
            (remove(3, 9), "dies UP206", 2),
            (remove(3), "0 load=1", 3),
        ],
        [0, 1, 2, 4],
    ),
    "descending order": ([(remove(3, 2, 1), "0 load=3")], [0]),
    "back in any order": (
        [(remove(3, 2, 1), "0 load=3"), (add(2, 1, 3), "0 load=3")],
        [0, 1, 2, 3],
    ),
    "an id twice in one list is lost, and nobody finds it again": (
        [
            (add(4, 4), "-17 UP213 UP209"),
            (add(4), "-17 UP213"),
            (remove(4), "dies UP206"),
            (add(5), "0 load=1", 2),
        ],
        [0, 1, 2, 3, 4, 5],
    ),
    "255 is no APIC id": ([(add(4, 255), "-22 UP203 UP209")], [0, 1, 2, 3, 4]),
}
OLD_X86: dict[str, CpuCase] = {
    "1, then 3: out of the scan's reach": (
        [(remove(1), "0 load=1"), (remove(3), "dies UP206"), (add(1), "0 load=1", 2)],
        [0, 1, 2, 3],
    ),
    "1, then 3 is not seen as known, and is lost": (
        [
            (remove(1), "0 load=1"),
            (add(3), "-17 load=1 UP213 UP503"),
            (remove(3), "dies UP206"),
            (remove(2, 0), "-22 UP205", 2),  # three are counted, the lost one too
            (remove(0), "-22 UP205", 3),
        ],
        [0, 3],
    ),
    "an id twice, and the table is full before the second": (
        [(add(4, 5, 6, 7, 7), "-22 UP203 UP209")],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ),
    "1, then 1 again repairs the gap": (
        [(remove(1), "0 load=1"), (add(1), "0 load=1"), (remove(3), "0 load=1")],
        [0, 1, 2],
    ),
    "ascending order dies with the lock": (
        [(remove(1, 2, 3), "dies UP207"), (add(4), "hangs UP603", 2)],
        [0, 3],
    ),
    "ascending, not up to the highest": (
        [(remove(1, 2), "0 load=2"), (remove(3), "dies UP206")],
        [0, 3],
    ),
    "never-seen ids take free numbers": ([(add(9, 12), "0 load=2")], [0, 1, 2, 3, 4, 5]),
    "an id keeps its number": (
        [
            (add(9, 10), "0 load=2"),
            (remove(10, 9), "0 load=2"),
            (add(11), "0 load=1"),
            (remove(11), "dies UP206"),  # number 6 of a table of five
            (add(10), "0 load=1", 2),
        ],
        [0, 1, 2, 3, 5, 6],
    ),
    "numbers run out in the middle of a list": (
        [(add(8, 9, 10, 11, 12), "-22 UP203 UP209")],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ),
    "a full table": (
        [(add(4, 5, 6, 7), "0 load=4"), (add(8), "-22 load=4 UP203 UP503")],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ),
    "a number that another id had is not free": (
        [
            (add(4, 5, 6, 7), "0 load=4"),
            (remove(7), "0 load=1"),
            (add(8), "-22 load=1 UP203 UP503"),
            (add(7), "0 load=1"),
        ],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ),
}
NEW_X86: dict[str, CpuCase] = {
    "1, then 3": ([(remove(1), "0 load=1"), (remove(3), "0 load=1")], [0, 2]),
    "1, then 3 is known": (
        [(remove(1), "0 load=1"), (add(3), "-22 load=1 UP202 UP503")],
        [0, 2, 3],
    ),
    "ascending order": ([(remove(1, 2, 3), "0 load=3"), (add(4), "0 load=1", 2)], [0, 4]),
    "ids are what the firmware's table says": ([(add(7), "0 load=1")], [0, 1, 2, 3, 7]),
    "an id that is not in it": ([(add(8), "-22 UP203")], [0, 1, 2, 3]),
    "one such id in the list": ([(add(4, 8, 5), "-22 UP203 UP209")], [0, 1, 2, 3, 4]),
    "an id twice kills with the lock": (
        [(remove(3, 3), "dies UP206"), (add(4), "hangs UP603", 2)],
        [0, 1, 2],
    ),
}
X86_CASES = [
    pytest.param(replace(world, kernel=kernel), *case, id=f"{kernel} {title}")
    for world, cases, series in (
        (OLD, BOTH_X86 | OLD_X86, ("5.10", "6.1")),
        (NEW, BOTH_X86 | NEW_X86, ("6.12", "6.18")),
    )
    for kernel in series
    for title, case in cases.items()
]


@pytest.mark.parametrize(("world", "steps", "online"), X86_CASES)
def test_cpus_on_x86(world: World, steps: list[Step], online: list[int]) -> None:
    assert sorted(play(world, steps).guest.cpus.online) == online


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12", "6.18"])
def test_a_vcpu_that_the_vmm_does_not_run_fails_after_ten_seconds(kernel: str) -> None:
    """And comes up when it runs, but for 5.10, where it never does."""
    world = replace(NEW, kernel=kernel, vcpus_running=(0, 1, 2, 3, 4))
    scene = Scene(world)
    outcome = scene.receive(add(4, 5, 6).encode())
    assert said(outcome) == "-5 UP201 UP209"
    assert outcome.delay_ns == CPU_START_LIMIT_NS == 10_000_000_000
    assert outcome.takes_lock
    assert sorted(scene.guest.cpus.online) == [0, 1, 2, 3, 4]
    assert outcome.cpus is Cpus.START
    assert scene.ask(add(5)) == ("-5 UP212" if kernel == "5.10" else "-5 UP201")
    scene.guest.start_vcpu(5)
    if kernel == "5.10":
        outcome = scene.receive(add(5).encode())
        assert (said(outcome), outcome.delay_ns) == ("-5 UP212", 0)
        scene.guest.start_vcpu(6)
        assert scene.ask(add(6)) == "0 load=1"
        assert scene.ask(remove(6)) == "dies UP206"  # the hole that 5 left hides it
        return
    assert scene.ask(add(5)) == "0 load=1"
    assert scene.guest.state()["apic_ids"] == [0, 1, 2, 3, 4, 5]


def test_a_message_of_the_other_architecture_is_read_as_ones_own() -> None:
    """The guest looks at `msg_type` and nothing else."""
    sized_for_arm = replace(remove_count(1), padding=bytes([0x14, 3]).ljust(1007, b"\0"))
    assert Scene(OLD).ask(sized_for_arm) == "0 load=1"
    assert Scene(ARM).ask(add(0)) == "0 load=3"


ARM_CASES: dict[str, CpuCase] = {
    "the next offline ones come up": ([(add_count(1), "0 load=3")], [0, 1, 2]),
    "the last online ones go": ([(add_count(2), "0 load=4"), (remove_count(3), "0 load=1")], [0]),
    "none at all": ([(add_count(0), "0 load=2"), (remove_count(0), "0 load=2")], [0, 1]),
    "remove all": ([(remove_count(2), "-22 UP204")], [0, 1]),
    "remove more than all": ([(remove_count(9), "-22 UP204")], [0, 1]),
    "remove all, and cpu_id is 0": (
        [(add_count(1), "0 load=3"), (remove_count(3), "-22 UP204")],
        [0, 1, 2],
    ),
    "more than are possible": (
        [
            (add_count(3), "dies UP210"),
            (remove_count(1), "hangs UP603", 2),
            (add_mmio(0xD8000000), "hangs UP603", 3),
        ],
        [0, 1, 2, 3],
    ),
    "msg_size is not checked": ([(replace(add_count(1), msg_size=77), "0 load=3")], [0, 1, 2]),
}


@pytest.mark.parametrize(("steps", "online"), ARM_CASES.values(), ids=ARM_CASES.keys())
@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12", "6.18"])
def test_cpus_on_arm(kernel: str, steps: list[Step], online: list[int]) -> None:
    scene = play(replace(ARM, kernel=kernel), steps)
    assert sorted(scene.guest.cpus.online) == scene.guest.state()["apic_ids"] == online


def test_on_arm_a_vcpu_that_does_not_run_leaves_the_number_online_in_the_load() -> None:
    scene = Scene(replace(ARM, vcpus_running=(0, 1, 2)))
    outcome = scene.receive(add_count(2).encode())
    assert said(outcome) == "-5 load=3 UP201 UP209 UP503"
    assert outcome.delay_ns == CPU_START_LIMIT_NS
    assert sorted(scene.guest.cpus.online) == [0, 1, 2]


# MMIO.

TOP = (1 << 64) - 0x1000
MMIO_CASES: dict[str, list[Step]] = {
    "add, delete, add": [
        (add_mmio(0xD8000000), "0"),
        (del_mmio(0xD8000000), "0"),
        (add_mmio(0xD8000000), "0"),
    ],
    "side by side": [(add_mmio(DISK.base - 0x1000), "0"), (add_mmio(DISK.end + 1), "0")],
    "a boot-time device again": [(ADD_DISK, "-17 UP301")],
    "overlap by two bytes": [(add_mmio(DISK.base - 0xFFE), "-17 UP301")],
    "overlap by two bytes above": [(add_mmio(DISK.end - 1), "-17 UP301")],
    "inside": [(add_mmio(DISK.base + 0x100, 0x10), "-17 UP301")],
    "around": [(add_mmio(DISK.base - 0x1000, 0x10000), "-17 UP301")],
    "one shared byte below": [(add_mmio(DISK.base - 0xFFF), "-16 UP305")],
    "one shared byte above": [(add_mmio(DISK.end), "-16 UP305")],
    "a refused window is not there": [
        (add_mmio(DISK.end), "-16 UP305"),
        (del_mmio(DISK.end), "-19 UP306"),
    ],
    "IRQ 5 is shared": [(add_mmio(0xD8000000), "0"), (add_mmio(0xD8001000), "0")],
    "no other IRQ is": [
        (add_mmio(0xD8000000, irq=6), "-17 UP302"),
        (add_mmio(0xD8000000, irq=7), "0"),
        (add_mmio(0xD8001000, irq=7), "-17 UP302"),
        (del_mmio(0xD8000000, irq=7), "0"),
        (add_mmio(0xD8001000, irq=7), "0"),
    ],
    "an overlap comes before an IRQ": [(add_mmio(DISK.base, irq=6), "-17 UP301")],
    "msg_size is not 24": [
        (replace(ADD_DISK, msg_size=20), "-22 UP303"),
        (replace(DEL_DISK, msg_size=0), "-22 UP303"),
    ],
    "msg_size comes before the IRQ": [
        (replace(add_mmio(0xD8000000, irq=0), msg_size=25), "-22 UP303")
    ],
    "the IRQ comes before the overlap": [(add_mmio(DISK.base, irq=0), "-22 UP304")],
    "empty": [(add_mmio(0xD8000000, 0), "-16 UP305")],
    "empty, in a device": [(add_mmio(DISK.base + 0x100, 0), "-17 UP301")],
    "around the end of memory": [(add_mmio(TOP, 0x1001), "-16 UP305")],
    "far around the end of memory": [(add_mmio(TOP, TOP), "-16 UP305")],
    "no such device": [
        (del_mmio(0xD8000000), "-19 UP306"),
        (del_mmio(DISK.base, DISK.size, 7), "-19 UP306"),
        (del_mmio(DISK.base, 0x1000, DISK.irq), "-19 UP306"),
        (del_mmio(DISK.base + 0x1000, DISK.size, DISK.irq), "-19 UP306"),
    ],
    "removed twice": [(DEL_DISK, "0"), (DEL_DISK, "-19 UP306")],
}


@pytest.mark.parametrize("steps", MMIO_CASES.values(), ids=MMIO_CASES.keys())
@pytest.mark.parametrize("world", [OLD, NEW, ARM], ids=["old", "new", "arm"])
def test_mmio(world: World, steps: list[Step]) -> None:
    if world is ARM:
        steps = [step for step in steps if "UP304" not in step[1]]  # 0 is an SPI like others
    play(world, steps)


@pytest.mark.parametrize("world", [OLD, NEW], ids=["old", "new"])
def test_irq_0_is_refused_on_x86(world: World) -> None:
    play(world, [(add_mmio(0xD8000000, irq=0), "-22 UP304"), (del_mmio(0, irq=0), "-22 UP304")])


def test_on_arm_irqs_are_spi_numbers_with_a_limit() -> None:
    play(
        replace(ARM, max_irq=987),
        [
            (add_mmio(0xD8000000, irq=0), "0"),
            (add_mmio(0xD8001000, irq=987), "0"),
            (add_mmio(0xD8002000, irq=988), "-22 UP304"),
            (del_mmio(0xD8002000, irq=988), "-22 UP304"),
            (add_mmio(0xD8003000, irq=32), "0"),
            (add_mmio(0xD8004000, irq=32), "-17 UP302"),
            (add_mmio(0xD8005000, irq=5), "0"),
        ],
    )


def test_the_empty_window_at_0_is_all_of_memory_by_the_kernels_own_arithmetic() -> None:
    """Which is more than an x86 CPU can address. A bare header asks for it on aarch64."""
    play(World(), [(add_mmio(0, 0), "-16 UP305")])
    play(OLD, [(add_mmio(0, 0), "-17 UP301")])
    bare = add_mmio(0, 0, 0).encode()[:16]
    scene = Scene(replace(ARM, mmio=()))
    assert said(scene.receive(bare)) == "0"
    assert scene.ask(add_mmio(0xD8000000, irq=9)) == "-17 UP301"
    assert said(Scene(ARM).receive(bare)) == "-17 UP301"
    assert said(Scene(replace(OLD, mmio=())).receive(bare)) == "-22 UP304"


def test_a_window_beyond_what_the_cpu_can_address() -> None:
    """On aarch64 the tree of claimed ranges has 64 bits whatever the CPU has: by reading."""
    world = replace(OLD, phys_bits=40)
    play(world, [(add_mmio((1 << 40) - 0x1000), "0"), (add_mmio((1 << 40) - 1, 2), "-16 UP305")])
    play(OLD, [(add_mmio((1 << 52) - 0x1000), "0"), (add_mmio(1 << 52), "-16 UP305")])
    for old in (OLD, NEW):
        play(old, [(add_mmio(TOP, 0x1000), "-16 UP305")])
    play(ARM, [(add_mmio(TOP, 0x1000), "0")])


def test_a_range_that_something_else_claimed_may_be_nested_but_not_crossed() -> None:
    """As for RAM, for which a guest was seen to answer 0."""
    world = replace(OLD, iomem=((0xC0001000, 0xC0002FFF),))
    play(
        world,
        [
            (add_mmio(0xC0000000, 0x1001), "-16 UP305"),
            (add_mmio(0xC0002FFF, 0x1000), "-16 UP305"),
            (add_mmio(0xC0000000, 0x1000), "0"),
            (add_mmio(0xC0001000, 0x2000), "0"),
        ],
    )
    play(world, [(add_mmio(0xC0001800, 0x10), "0")])
    play(world, [(add_mmio(0xC0000000, 0x4000), "0")])


def test_a_guest_that_needs_a_boot_time_device_dies_of_every_window() -> None:
    """Of what passes the first checks, and the lock stays free."""
    world = World(nr_cpu_ids=2, vcpus_running=(0, 1), needs_boot_mmio=True)
    play(
        world,
        [
            (add_mmio(0xD8000000, irq=0), "-22 UP304"),
            (replace(add_mmio(0xD8000000), msg_size=0), "-22 UP303"),
            (del_mmio(0xD8000000), "dies UP309"),
            (add_mmio(0xD8000000, 0), "dies UP309", 2),
            (add(1), "0 load=1", 3),
            (add_mmio(0xD8000000), "dies UP309", 3),
        ],
    )
    play(replace(world, mmio=(DISK,)), [(add_mmio(0xD8000000), "0")])


HIDDEN = Window(0xD4000000, 0x2000, 7)
WRONG = add_mmio(HIDDEN.base, HIDDEN.size, 9)
RIGHT = add_mmio(HIDDEN.base, HIDDEN.size, 7)


@pytest.mark.parametrize("world", [OLD, NEW, ARM], ids=["old", "new", "arm"])
def test_a_wrong_interrupt_on_a_working_disk_is_waited_for_with_the_lock(world: World) -> None:
    world = replace(world, mmio_hidden=(HIDDEN,))
    another_cpu = add_count(1) if world.arch is Arch.AARCH64 else add(4)
    scene = play(
        world,
        [
            (RIGHT, "0"),
            (del_mmio(HIDDEN.base, HIDDEN.size, 7), "0"),
            (WRONG, "hangs UP310"),
            (WRONG, "hangs UP603", 2),  # it is not registered yet: no -17
            (another_cpu, "hangs UP603", 3),
            (ADD_DISK, "-17 UP301", 4),
            (add_pci(4), "-17 UP502", 4),
            (del_mmio(HIDDEN.base, HIDDEN.size, 9), "-19 UP306", 4),
        ],
    )
    assert scene.guest.hanging == Window(HIDDEN.base, HIDDEN.size, 9)
    assert scene.guest.state()["hotplug_lock"] == "stuck"


def test_a_disk_of_the_boot_is_one_as_well() -> None:
    disk = replace(DISK, role="blk")
    again = add_mmio(DISK.base, DISK.size, 9)
    for role, said_of_it in (("blk", "hangs UP310"), ("fs", "0"), ("", "0")):
        world = replace(OLD, mmio=(replace(disk, role=role),))
        play(world, [(DEL_DISK, "0"), (again, said_of_it)])


def test_a_wrong_interrupt_that_something_raises_or_nothing_can() -> None:
    """The next packet of the channel raises 5. What the kernel does not have fails the probe."""
    world = replace(OLD, mmio_hidden=(HIDDEN,))
    play(world, [(add_mmio(HIDDEN.base, HIDDEN.size, 5), "0")])
    play(world, [(add_mmio(HIDDEN.base, HIDDEN.size, 16), "0")])
    without = replace(world, mmio=())
    play(without, [(add_mmio(HIDDEN.base, HIDDEN.size, 5), "hangs UP310")])
    play(without, [(add_mmio(0xD8000000), "0"), (add_mmio(HIDDEN.base, HIDDEN.size, 5), "0")])
    arm = replace(ARM, mmio_hidden=(HIDDEN,))
    play(arm, [(add_mmio(HIDDEN.base, HIDDEN.size, 16), "hangs UP310")])


def test_a_disk_that_is_slow_to_read_holds_the_lock_meanwhile() -> None:
    world = replace(OLD, mmio_hidden=(replace(HIDDEN, probe_ms=3000),))
    outcome = Scene(world).receive(RIGHT.encode())
    assert (said(outcome), outcome.delay_ns, outcome.takes_lock) == ("0", 3_000_000_000, True)


# PCI.

PCI_CASES: dict[str, list[Step]] = {
    "twice is no error": [(add_pci(4), "0"), (add_pci(4), "0")],
    "remove and scan": [(del_pci(4), "0"), (add_pci(4), "0"), (del_pci(4), "0")],
    "nothing there": [(add_pci(9), "-19 UP402")],
    "another function": [(add_pci(4, function=1), "-19 UP402")],
    "no such bus": [(add_pci(4, bus=1), "-19 UP401")],
    "an empty bus": [(add_pci(4, bus=2), "-19 UP402")],
    "no such device": [(del_pci(9), "-19 UP403"), (del_pci(4, bus=7), "-19 UP403")],
    "removed twice": [(del_pci(4), "0"), (del_pci(4), "-19 UP403")],
    "after an error every success looks like it": [
        (add_pci(9), "-19 UP402"),
        (add_pci(4), "-19 UP502"),
        (del_pci(4), "-19 UP502"),
        (add_pci(4), "0", 2),
        (bare_request(77), "-1 UP504"),
        (add_pci(4), "-1 UP502"),
    ],
    "a window repairs it": [
        (add_pci(9), "-19 UP402"),
        (add_mmio(0xD8000000), "0"),
        (add_pci(4), "0"),
    ],
    "a CPU repairs it": [
        (add_pci(9), "-19 UP402"),
        (add(4), "0 load=1"),
        (add_pci(4), "0 load=1 UP503"),
    ],
    "a window that is refused does not": [
        (add_pci(9), "-19 UP402"),
        (ADD_DISK, "-17 UP301"),
        (add_pci(4), "-17 UP502"),
    ],
}


@pytest.mark.parametrize("steps", PCI_CASES.values(), ids=PCI_CASES.keys())
@pytest.mark.parametrize("world", [OLD, NEW], ids=["old", "new"])
def test_pci(world: World, steps: list[Step]) -> None:
    play(world, steps)


def test_adding_function_0_scans_the_whole_slot() -> None:
    functions = (PciDevice(0, 1), PciDevice(0, 1, 1), PciDevice(0, 1, 3))
    scene = play(
        replace(OLD, pci=functions),
        [
            (del_pci(1, function=1), "0"),
            (del_pci(1, function=3), "0"),
            (add_pci(1, function=2), "-19 UP402"),
            (add_pci(1, function=1), "0", 2),
        ],
    )
    assert sorted(scene.guest.pci) == [functions[0], functions[1]]
    assert scene.ask(add_pci(1), 2) == "0"
    assert sorted(scene.guest.pci) == [*functions]
    assert sorted(play(scene.guest.world, [(del_pci(1), "0"), (add_pci(1), "0")]).guest.pci) == [
        *functions
    ]


@pytest.mark.parametrize("world", [OLD, NEW], ids=["old", "new"])
def test_while_a_pci_device_is_probed_no_cpu_comes_or_goes(world: World) -> None:
    scene = Scene(replace(world, pci=(PciDevice(0, 4, probe_ms=500),)))
    assert scene.ask(del_pci(4)) == "0"
    probing = scene.receive(add_pci(4).encode())
    assert (said(probing), probing.delay_ns, probing.cpus) == ("0", 500_000_000, Cpus.FORBID)
    assert not probing.takes_lock
    scene.guest.cpus.forbidden = True
    assert scene.ask(add(4)) == "-16 UP208"
    assert scene.ask(add(2, 4)) == "-22 UP202"
    assert scene.ask(remove(3)) == "-16 UP208"
    assert scene.ask(remove(0)) == "-22 UP205"
    assert scene.ask(add()) == "0"
    scene.guest.cpus.forbidden = False
    assert scene.ask(add(4)) == "0 load=1"
    assert scene.receive(del_pci(4).encode()).cpus is Cpus.WAIT


def test_while_a_pci_device_is_probed_on_arm() -> None:
    scene = Scene(ARM)
    scene.guest.cpus.forbidden = True
    assert scene.ask(add_count(1)) == "-16 load=2 UP208 UP503"
    assert scene.ask(remove_count(1)) == "-16 load=2 UP208 UP503"
    assert scene.ask(add_count(0)) == "0 load=2"


@pytest.mark.parametrize("world", [OLD, NEW], ids=["old", "new"])
def test_a_cpu_that_the_guest_set_off_by_itself(world: World) -> None:
    scene = Scene(world)
    scene.guest.switch_cpu(3, False)
    assert scene.ask(add(3)) == "-22 UP202"
    assert scene.ask(remove(3)) == "1 UP214"
    assert scene.ask(remove(3, 2)) == "1 UP214"
    assert scene.guest.state()["apic_ids"] == [0, 1, 2]
    scene.guest.switch_cpu(3, True)
    assert scene.ask(remove(3)) == "0 load=1"
    for number in (0, 3, 9):  # the boot CPU, one that is gone, one that never was
        with pytest.raises(NoSuchCpu):
            scene.guest.switch_cpu(number, False)


def test_a_cpu_that_an_arm_guest_set_off_by_itself() -> None:
    scene = Scene(ARM)
    scene.guest.switch_cpu(1, False)
    assert scene.ask(add_count(1)) == "0 load=2"
    for number in (0, 4):
        with pytest.raises(NoSuchCpu):
            scene.guest.switch_cpu(number, True)


def test_the_vmm_plugs_and_unplugs() -> None:
    scene = Scene(OLD)
    device = PciDevice(1, 9)
    assert scene.ask(add_pci(9, bus=1)) == "-19 UP401"
    scene.guest.plug_pci(device)
    assert scene.ask(add_pci(9, bus=1), 2) == "0"
    scene.guest.unplug_pci(device)
    assert scene.ask(del_pci(9, bus=1), 2) == "0"
    assert scene.ask(add_pci(9, bus=1), 2) == "-19 UP402"


# The lock that a dead thread holds.

ANSWERED_WITH_THE_LOCK_STUCK: list[Step] = [
    (bare_request(MessageType.ADD_MEM), "-1 UP511"),
    (bare_request(77), "-1 UP504"),
    (bad_magic(add(4)), "-1 UP512 UP502"),
    (add(2), "-22 UP202"),
    (remove(0, 2), "-22 UP205"),
    (remove(0, 1, 2, 3, 4, 5, 6, 7), "-22 UP204"),
    (replace(ADD_DISK, msg_size=23), "-22 UP303"),
    (add_mmio(0xD8000000, irq=0), "-22 UP304"),
    (ADD_DISK, "-17 UP301"),
    (add_mmio(0xD8000000, irq=6), "-17 UP302"),
    (del_mmio(0xD8000000), "-19 UP306"),
    (add_pci(9), "-19 UP402"),
    (del_pci(4), "-19 UP502"),
    (add(), "0"),
    (remove(), "0"),
    (remove(0), "-22 UP205"),
]
HANGS_WITH_THE_LOCK_STUCK = {
    "a new CPU": add(4),
    "a known CPU removed": remove(2),
    "the boot CPU after another": remove(2, 0),
    "a fresh window": add_mmio(0xD8000000),
    "an empty window": add_mmio(0xD8000000, 0),
    "a window that shares an edge": add_mmio(DISK.end),
    "a registered window removed": DEL_DISK,
}


def stuck(world: World) -> Scene:
    """A guest whose thread died with the lock, on connection 9."""
    scene = Scene(world)
    if world.is_old:
        assert scene.ask(add(4, 5, 6), 8) == "0 load=3"
        assert scene.ask(remove(4, 5, 6), 9) == "dies UP207"
        assert sorted(scene.guest.cpus.online) == [0, 1, 2, 3, 6]
    else:
        assert scene.ask(remove(3, 3), 9) == "dies UP206"
    assert scene.guest.state()["hotplug_lock"] == "stuck"
    return scene


@pytest.mark.parametrize("world", [OLD, NEW], ids=["old", "new"])
def test_what_fails_before_it_needs_the_lock_still_answers(world: World) -> None:
    scene = stuck(world)
    answers = [(scene.ask(step[0]), step[0].op) for step in ANSWERED_WITH_THE_LOCK_STUCK]
    assert answers == [(step[1], step[0].op) for step in ANSWERED_WITH_THE_LOCK_STUCK]
    assert scene.ask(remove(99), 2) == "dies UP206"


@pytest.mark.parametrize(
    "request_", HANGS_WITH_THE_LOCK_STUCK.values(), ids=HANGS_WITH_THE_LOCK_STUCK.keys()
)
@pytest.mark.parametrize("world", [OLD, NEW], ids=["old", "new"])
def test_what_needs_the_lock_hangs_and_changes_nothing(world: World, request_: Request) -> None:
    scene = stuck(world)
    before = scene.guest.state()
    assert scene.ask(request_, 2) == "hangs UP603"
    assert scene.ask(bare_request(77), 2) == "hangs"
    assert scene.ask(request_, 3) == "hangs UP603"
    assert scene.guest.state() == before


# The channel's own device.


@pytest.mark.parametrize("cut", [DEL_VSOCK, del_pci(6)], ids=["mmio", "pci"])
def test_removing_the_channels_own_device_silences_every_connection(cut: Request) -> None:
    steps: list[Step] = [
        (bare_request(77), "-1 UP504", 2),
        (cut, "cut off UP308"),
        (cut, "cut off"),
        (bare_request(77), "cut off", 2),
    ]
    scene = play(OLD, steps)
    assert scene.guest.state()["channel"] == "removed"
    assert said(scene.guest.connect().refuse(cut.encode(), 0)) == "cut off"


def test_a_device_of_another_role_does_not() -> None:
    world = replace(OLD, mmio=(Window(0xE0000000, 0x2000, 5, "blk"),))
    assert Scene(world).ask(DEL_VSOCK) == "0"


# Buffers and framing.


@pytest.mark.parametrize(
    ("msg_type", "cause"),
    [(0, "UP504"), (3, "UP511"), (4, "UP511"), (9, "UP504"), (77, "UP504"), (0xFFFFFFFF, "UP504")],
)
@pytest.mark.parametrize("world", [OLD, NEW, ARM], ids=["old", "new", "arm"])
def test_a_type_without_a_handler(world: World, msg_type: int, cause: str) -> None:
    outcome = Scene(world).receive(bare_request(msg_type).encode())
    assert said(outcome) == f"-1 {cause}"
    assert outcome.reply is not None
    assert outcome.reply[8:12] == msg_type.to_bytes(4, "little")
    assert not any(outcome.reply[4:8] + outcome.reply[20:])


STALE_CASES: dict[str, list[Step]] = {
    "a bad magic on a fresh connection looks like success": [
        (bad_magic(add(4)), "0 UP512 UP501"),
        (remove(4), "dies UP206"),
    ],
    "a bad magic after an error looks like the error": [
        (ADD_DISK, "-17 UP301"),
        (bad_magic(add(4)), "-17 UP512 UP502"),
        (bare_request(77), "-1 UP504"),
        (bad_magic(add_pci(4)), "-1 UP512 UP502"),
    ],
    "a bad magic after a success looks like success": [
        (add_pci(9), "-19 UP402"),
        (add_mmio(0xD8000000), "0"),
        (bad_magic(bare_request(77)), "0 UP512 UP501"),
    ],
    "a failure leaves the load": [
        (add(4, 5), "0 load=2"),
        (add(4), "-22 load=2 UP202 UP503"),
        (bare_request(77), "-1 load=2 UP504 UP503"),
        (add_mmio(0xD8000000), "0 load=2 UP503"),
        (add_pci(4), "0 load=2 UP503"),
        (bad_magic(add(6)), "0 load=2 UP512 UP501 UP503"),
        (remove(0, 1, 2, 3, 4, 5), "-22 UP204"),
        (bare_request(77), "-1 UP504"),
    ],
    "each connection has buffers of its own": [
        (add(4, 5), "0 load=2"),
        (bare_request(77), "-1 UP504", 2),
        (bad_magic(add(6)), "0 load=2 UP512 UP501 UP503"),
    ],
    "msg_flags mean nothing": [
        (replace(add(4), msg_flags=0xFFFFFFFF), "0 load=1"),
        (replace(add(5), msg_size=0), "0 load=1"),
        (replace(add_pci(9), msg_size=77), "-19 load=1 UP402 UP503"),
    ],
}


@pytest.mark.parametrize("steps", STALE_CASES.values(), ids=STALE_CASES.keys())
@pytest.mark.parametrize("world", [OLD, NEW], ids=["old", "new"])
def test_buffers_remember(world: World, steps: list[Step]) -> None:
    play(world, steps)


def test_the_right_magic_is_answered_to_a_wrong_one() -> None:
    outcome = Scene(OLD).receive(bad_magic(add(4)).encode())
    assert outcome.reply == bytes.fromhex("00014d44 00000000 01000000 00000000").ljust(1024, b"\0")


def test_a_request_in_two_pieces_is_two_requests() -> None:
    """Wherever it is cut. All that follows byte 19 are zeros: the second piece has a bad magic.

    Only its last byte, sent alone, has not: the magic begins with a zero itself.
    """
    raw = add(4).encode()
    for cut in range(1, MESSAGE_SIZE - 1):
        scene = Scene(OLD)
        first = said(scene.receive(raw[:cut]))
        second = said(scene.receive(raw[cut:]))
        if cut <= 8:  # no type yet: 0 of the fresh buffer
            assert (first, second) == (
                "0 UP512 UP501" if cut < 4 else "-1 UP504",
                "0 UP512 UP501" if cut < 4 else "-1 UP512 UP502",
            )
        elif cut <= 16:  # a type, and an empty list
            assert (first, second) == ("0", "0 UP512 UP501")
        elif cut <= 18:  # a count, and still no ids: the boot CPU is known
            assert (first, second) == ("-22 UP202", "-22 UP512 UP502")
        else:
            assert (first, second) == ("0 load=1", "0 load=1 UP512 UP501 UP503")
    scene = Scene(OLD)
    assert said(scene.receive(raw[:-1])) == "0 load=1"
    assert said(scene.receive(raw[-1:])) == "-22 load=1 UP202 UP503"


def test_a_short_request_borrows_from_the_one_before() -> None:
    scene = Scene(OLD)
    assert scene.ask(add(4)) == "0 load=1"
    assert said(scene.receive(remove().encode()[:16])) == "0 load=1"
    assert sorted(scene.guest.cpus.online) == [0, 1, 2, 3]
    assert said(scene.receive(b"\xff")) == "0 load=1 UP512 UP501 UP503"


def test_what_exceeds_a_receive_is_not_looked_at() -> None:
    """Cutting longer sends is the caller's work."""
    scene = Scene(OLD)
    assert said(scene.receive(add(4).encode() + b"\xff" * 476)) == "0 load=1"
    assert said(scene.receive(remove().encode()[:16])) == "0 load=1"


def test_a_service_that_is_unknown_is_refused() -> None:
    connection = Guest(OLD).connect()
    assert [byte for byte in range(256) if connection.service(byte) is not None] == [0x64]


def test_the_state_as_json() -> None:
    scene = play(OLD, [(add(9), "0 load=1"), (del_pci(5), "0 load=1 UP503")])
    assert scene.guest.state() == {
        "kernel": "6.1",
        "arch": "x86_64",
        "cpus_online": [0, 1, 2, 3, 4],
        "apic_ids": [0, 1, 2, 3, 9],
        "vcpus_running": list(range(16)),
        "mmio": [
            {"base": 0xE0000000, "size": 0x2000, "irq": 5, "role": "vsock"},
            {"base": 0xD0000000, "size": 0x2000, "irq": 6, "role": ""},
        ],
        "pci": [
            {"bus": 0, "slot": 0, "function": 0, "role": ""},
            {"bus": 0, "slot": 4, "function": 0, "role": ""},
            {"bus": 0, "slot": 6, "function": 0, "role": "vsock"},
        ],
        "hotplug_lock": "free",
        "channel": "present",
    }
