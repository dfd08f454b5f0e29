"""Small recordings made by hand, for what no recording of a real guest shows.

`Scene` asks the kernel model and writes down what a recorder would: the order, the number and the
certainty of the findings are the engine's part, and that is what these tests look at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import (
    EBUSY,
    EINVAL,
    EIO,
    ENODEV,
    EPERM,
    MESSAGE_SIZE,
    RECONNECT_LIMIT,
    Arch,
    MessageType,
)
from dissectors.messages import Reply, Request, bare_request, cpu_request, mmio_request, pci_request
from tests.support import ADD_MEM, DISK, HELLO, answer, ask, connect, write_capture
from upcall_trace.capture.records import (
    CUT_OFF,
    DAMAGED,
    LEFT_OUT,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.diagnose.engine import Diagnosis, sort_key
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.run import diagnose
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.world import PciDevice, Window, World
from upcall_trace.simulated.in_process import MemoryGuest

ADD_CPU, DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU
ADD_MMIO, DEL_MMIO = MessageType.ADD_MMIO, MessageType.DEL_MMIO
ADD_PCI, DEL_PCI = MessageType.ADD_PCI, MessageType.DEL_PCI
SECOND = 1_000_000_000
MS = 1_000_000
FOUR_CPUS = World(
    nr_cpu_ids=4,
    cpus_online=(0, 1, 2, 3),
    vcpus_running=(0, 1, 2, 3),
    mmio=(Window(0xE0000000, 0x2000, 5, "vsock"),),
    pci=(PciDevice(0, 0), PciDevice(0, 3), PciDevice(0, 4, role="vsock")),
)
ARM = World(
    arch=Arch.AARCH64, nr_cpu_ids=4, cpus_online=(0, 1, 2), boot_table=(), vcpus_running=(0, 1, 2)
)
STUCK = cpu_request(DEL_CPU, [1, 2, 3])
"""On an old kernel with these four CPUs: its thread dies with the hotplug lock held."""


class Scene:
    """A recording in the making; its guest is the kernel model."""

    def __init__(self, world: World = FOUR_CPUS) -> None:
        self.world = world
        self.guest = Guest(world)
        self.records: list[Record] = []
        self.now_ns = 0
        self._connections: dict[int, ServiceThread] = {}

    def connect(self, conn: int) -> None:
        self.records += connect(conn, self.now_ns)
        self._connections[conn] = self.guest.connect()

    def ask(
        self,
        request: Request | bytes,
        conn: int = 1,
        takes_ns: int = MS,
        ret: int | None = None,
        reply: bytes | None = None,
    ) -> None:
        """A request and what comes back: the model's reply, or one with `ret`, or `reply`."""
        if conn not in self._connections:
            self.connect(conn)
        sent = request if isinstance(request, bytes) else request.encode()
        self.records.append(ask(sent, self.now_ns, conn))
        connection = self._connections[conn]
        for begin in range(0, len(sent), MESSAGE_SIZE):
            piece = sent[begin : begin + MESSAGE_SIZE]
            outcome = connection.receive(piece) if ret is None else connection.refuse(piece, ret)
            received = outcome.reply if reply is None else reply
            if received is not None:
                self.records.append(Chunk(self.now_ns + takes_ns, conn, False, received))
        self.now_ns += takes_ns + MS

    def close(self, conn: int = 1, by_guest: bool = False) -> None:
        self.records.append(Close(self.now_ns, conn, by_guest))


def found(
    records: Iterable[Record],
    world: World | None = None,
    dragonball: bool = True,
    arch: Arch | None = None,
    waits_ns: int = 3 * SECOND,
) -> list[Finding]:
    """The findings in the order in which they are shown; the recording ends `waits_ns` later."""
    records = list(records)
    last_ns = max((getattr(record, "t_ns", 0) for record in records), default=0)
    records.append(Vmm(last_ns + waits_ns, "nothing"))
    header = Header("test", arch=arch.value if arch else None)
    diagnosis = Diagnosis(header, world, dragonball)
    findings = [finding for record in records for finding in diagnosis.feed(record)]
    return sorted(findings + diagnosis.finish(), key=sort_key)


def told(findings: Iterable[Finding]) -> str:
    """`1.0 UP201, 1.0 UP602?`: places and codes, with a mark at what is inferred."""
    return ", ".join(
        f"{f.conn}"
        + ("" if f.request is None else f".{f.request}")
        + f" {f.code}"
        + "?" * f.inferred
        for f in findings
    )


# How connections begin.


def refusals(count: int, every_ns: int = 10 * MS, first: int = 1) -> list[Record]:
    """Connections to the upcall port that end without OK."""
    records: list[Record] = []
    for conn in range(first, first + count):
        t_ns = conn * every_ns
        records += [
            Open(t_ns, conn),
            Chunk(t_ns, conn, True, b"CONNECT 219\n"),
            Close(t_ns + MS, conn, by_guest=True, how=How.RESET),
        ]
    return records


def test_a_refused_connection_is_one_finding() -> None:
    assert told(found(refusals(1))) == "1 UP101"
    assert told(found(refusals(2))) == "1 UP101, 2 UP101"


def test_refusals_far_apart_are_no_loop() -> None:
    assert told(found(refusals(4, every_ns=SECOND))) == "1 UP101, 2 UP101, 3 UP101, 4 UP101"


def test_a_client_that_closes_by_itself_was_not_refused() -> None:
    records: list[Record] = [
        Open(0, 1),
        Chunk(1, 1, True, b"CONNECT 219\n"),
        Close(2, 1, by_guest=False),
    ]
    assert told(found(records)) == ""


def test_a_loop_of_refusals_is_told_once_and_at_501_for_good() -> None:
    findings = found(refusals(RECONNECT_LIMIT))
    assert told(findings) == f"1 UP101, 2 UP101, {RECONNECT_LIMIT} UP102"
    assert "501 connections in a row" in findings[-1].what
    assert "10ms apart" in findings[-1].what
    assert "for the rest of the VM's life" in findings[-1].so
    before = found(refusals(RECONNECT_LIMIT - 1))[-1]
    assert "500 connections in a row" in before.what
    assert "for the rest of the VM's life" not in before.so


def test_a_loop_that_ends_with_success_is_told_when_it_ends() -> None:
    diagnosis = Diagnosis(Header("test"))
    loop = [f for record in refusals(7) for f in diagnosis.feed(record)]
    assert told(loop) == "1 UP101, 2 UP101"
    end = [f for record in connect(8, 80 * MS) for f in diagnosis.feed(record)]
    assert told(end) == "7 UP102"
    assert "7 connections in a row" in end[0].what
    # The count begins anew.
    again = [f for record in refusals(2, first=9) for f in diagnosis.feed(record)]
    assert told(again + diagnosis.finish()) == "9 UP101, 10 UP101"


def test_another_port_may_refuse() -> None:
    records: list[Record] = [
        Open(0, 1),
        Chunk(1, 1, True, b"CONNECT 1024\n"),
        Close(2, 1, by_guest=True),
    ]
    assert told(found(records)) == ""


def test_no_hello() -> None:
    records = connect(1)[:-1]
    assert told(found([*records, Close(SECOND, 1, by_guest=True)])) == "1 UP106"
    assert told(found([*records, Close(SECOND, 1, by_guest=False)])) == "1 UP106"
    # A recording that stops does not show that none would have come.
    assert told(found(records)) == ""


@pytest.mark.parametrize("at", [0, 4, 8, 12], ids=["magic", "msg_size", "msg_type", "msg_flags"])
def test_a_bad_hello_is_told_once(at: int) -> None:
    bad = bytearray(HELLO)
    bad[at] ^= 1
    records = [*connect(1)[:-1], Chunk(1, 1, False, bytes(bad)), ask(ADD_MEM, 2)]
    findings = found([*records, answer(ADD_MEM, 3, ret=EPERM)])
    assert told(findings) == "1 UP107, 1.0 UP511"


def test_an_early_service_byte_is_told_once() -> None:
    opening: list[Record] = [
        Open(0, 1),
        Chunk(1, 1, True, b"CONNECT 219\nd"),
        Chunk(2, 1, False, b"OK 1\n"),
    ]
    good = found([*opening, Chunk(3, 1, False, HELLO)])
    assert told(good) == "1 UP108"
    lost = found([*opening, Close(10 * SECOND, 1, by_guest=True)])
    assert told(lost) == "1 UP106, 1 UP108"


def test_an_empty_recording_has_no_findings() -> None:
    assert found([]) == found([Mark(0, None, None, "x"), End(5)]) == []


# CPUs.


@pytest.mark.parametrize("world", [None, FOUR_CPUS], ids=["blind", "world"])
def test_removal_in_ascending_order(world: World | None) -> None:
    scene = Scene()
    scene.ask(STUCK)
    certain = "1.0 UP207, 1.0 UP602, 1.0 UP702"
    likely = "1.0 UP206?, 1.0 UP207?, 1.0 UP602, 1.0 UP702"
    assert told(found(scene.records, world)) == (certain if world else likely)


def test_a_cpu_that_cannot_be_taken_offline() -> None:
    guest = MemoryGuest(FOUR_CPUS, faults=[parse_fault("del_cpu:ret=-16")])
    stream = guest.connect()
    records: list[Record] = [Open(0, 1)]
    for sent in (b"CONNECT 219\n", b"d", cpu_request(DEL_CPU, [3]).encode()):
        stream.send(sent)
        records += [Chunk(1, 1, True, sent), Chunk(2, 1, False, stream.receive())]
    assert guest.strikes
    for world in (None, FOUR_CPUS):
        assert told(found(records, world)) == "1.0 UP208, 1.0 UP702"
        assert told(found(records, world, dragonball=False)) == "1.0 UP208"


def test_what_the_vmm_plugs_and_unplugs_is_known_to_the_model() -> None:
    """A device that the VMM offered only later, and one that it took away again."""
    add, remove = (pci_request(kind, 0, 9) for kind in (ADD_PCI, DEL_PCI))
    scene = Scene()
    scene.ask(add)
    scene.guest.plug_pci(PciDevice(0, 9))
    scene.records.append(Vmm(scene.now_ns, "PCI device 0:9 plugged"))
    scene.ask(add, conn=2)
    scene.ask(remove, conn=2)
    scene.guest.unplug_pci(PciDevice(0, 9))
    scene.records.append(Vmm(scene.now_ns, "PCI device 0:9 unplugged"))
    scene.ask(add, conn=3)
    causes = "1.0 UP402, 3.0 UP402"
    findings = found(scene.records, FOUR_CPUS)
    assert told(f for f in findings if f.code < "UP6") == causes
    # Without these lines the model does not understand the success, and leaves.
    deaf = found([r for r in scene.records if not isinstance(r, Vmm)], FOUR_CPUS)
    assert told(f for f in deaf if f.conn == 3 and f.code < "UP6") != "3.0 UP402"


def test_an_add_that_came_half_way() -> None:
    world = World(nr_cpu_ids=4, vcpus_running=(0, 1))
    scene = Scene(world)
    scene.ask(cpu_request(ADD_CPU, [1, 2]), takes_ns=10 * SECOND)
    rest = "1.0 UP601, 1.0 UP702"
    assert told(found(scene.records, world)) == f"1.0 UP201, 1.0 UP209, {rest}"
    # That the first one came up is likely, but the wire does not tell which one failed.
    assert told(found(scene.records)) == f"1.0 UP201, 1.0 UP209?, {rest}"


def test_more_cpus_than_possible_on_aarch64() -> None:
    scene = Scene(ARM)
    scene.ask(cpu_request(ADD_CPU, 2))  # the first has no vCPU behind it: refused, and no more
    scene.guest.start_vcpu(3)
    scene.records.append(Vmm(scene.now_ns, "vCPU 3 created"))
    scene.ask(cpu_request(ADD_CPU, 2))
    scene.ask(DISK, conn=2)
    end = "1.1 UP602, 1.1 UP702, 2.0 UP602"
    with_world = "1.0 UP201, 1.0 UP503, 1.0 UP702, 1.1 UP210, 1.1 UP602, 1.1 UP702, "
    assert told(found(scene.records, ARM)) == with_world + "2.0 UP602, 2.0 UP603"
    blind = told(found(scene.records))
    assert "1.1 UP210?" in blind
    assert "2.0 UP603?" in blind
    assert end.split(", ")[0] in blind
    # The vCPU that the VMM created made the difference.
    assert "UP210, " not in told(found([r for r in scene.records if not isinstance(r, Vmm)], ARM))


def test_a_cpu_that_was_in_the_wanted_state() -> None:
    scene = Scene()
    scene.ask(cpu_request(ADD_CPU, [9]), ret=1)
    assert told(found(scene.records)) == "1.0 UP599, 1.0 UP702"
    assert told(found(scene.records, FOUR_CPUS)) == "1.0 UP599, 1.0 UP702"


@pytest.mark.parametrize(
    ("request_", "ret", "codes"),
    [
        (cpu_request(ADD_CPU, [9]), -12, "1.0 UP599, 1.0 UP702"),
        (cpu_request(DEL_CPU, [3]), -5, "1.0 UP599, 1.0 UP702"),
        (mmio_request(ADD_MMIO, 0xE0006000, 0x2000, 5), -12, "1.0 UP599, 1.0 UP701"),
        (mmio_request(ADD_MMIO, 0xE0006000, 0x2000, 5), ENODEV, "1.0 UP599, 1.0 UP701"),
        (mmio_request(DEL_MMIO, 0xE0006000, 0x2000, 5), EBUSY, "1.0 UP599"),
        (pci_request(ADD_PCI, 0, 3), -12, "1.0 UP599, 1.0 UP701"),
        (pci_request(DEL_PCI, 0, 3), 7, "1.0 UP599"),
        (ADD_MEM, -12, "1.0 UP599"),
        (ADD_MEM, 0, "1.0 UP599"),
    ],
    ids=lambda value: value.op if isinstance(value, Request) else str(value),
)
def test_a_result_that_is_in_no_table(request_: Request, ret: int, codes: str) -> None:
    records = [*connect(1), ask(request_, 1), answer(request_, 2, ret=ret)]
    for world in (None, FOUR_CPUS):
        leaked = [f for f in found(records, world) if f.code != "UP704"]
        assert told(leaked) == codes


# MMIO and PCI.


@pytest.mark.parametrize(
    ("request_", "also"),
    [
        (mmio_request(DEL_MMIO, 0xE0000000, 0x2000, 5), "1.0 UP309?, "),
        (pci_request(DEL_PCI, 0, 4), ""),
    ],
    ids=["mmio", "pci"],
)
def test_the_channels_own_device_is_removed(request_: Request, also: str) -> None:
    scene = Scene()
    scene.ask(request_)
    assert told(found(scene.records, FOUR_CPUS)) == "1.0 UP308, 1.0 UP602"
    assert told(found(scene.records)) == f"1.0 UP308?, {also}1.0 UP602"
    scene.close(by_guest=True)
    assert told(found(scene.records, FOUR_CPUS)) == "1.0 UP308, 1.0 UP602, 1.0 UP605"


def test_a_guest_without_boot_time_devices_dies_of_every_mmio_request() -> None:
    """The lock stays free: the second one dies of the same."""
    world = World(needs_boot_mmio=True)
    scene = Scene(world)
    scene.ask(DISK)
    scene.ask(DISK, conn=2)
    certain = "1.0 UP309, 1.0 UP602, 2.0 UP309, 2.0 UP602"
    assert told(found(scene.records, world)) == certain
    assert "1.0 UP309?" in told(found(scene.records))
    # Once a device was there, that cannot be the reason.
    other = Scene()
    other.ask(DISK)
    other.records.append(ask(mmio_request(ADD_MMIO, 0xE0008000, 0x2000, 6), other.now_ns))
    assert "UP309" not in told(found(other.records))


def test_an_overlap_that_the_recording_shows_is_likely_and_not_certain() -> None:
    """Somebody else may have removed the window meanwhile, and taken its interrupt."""
    add, other = (mmio_request(ADD_MMIO, base, 0x1000, 9) for base in (0xE0010000, 0xE0010800))
    scene = Scene()
    scene.ask(add)
    scene.ask(other)
    assert told(f for f in found(scene.records) if f.request == 1) == "1.1 UP301?, 1.1 UP701?"
    # With requests open on two connections their order in the guest is not known.
    overlapped = [*scene.records[:5], *connect(2), ask(ADD_MEM, 0, conn=2), *scene.records[5:]]
    assert told(f for f in found(overlapped) if f.code in ("UP301", "UP302")) == (
        "1.1 UP301?, 1.1 UP302?"
    )


def test_minus_one_of_a_pci_request_may_be_left_over_or_mean_no_handler() -> None:
    scene = Scene()
    scene.ask(pci_request(ADD_PCI, 0, 3), ret=EPERM)
    assert told(found(scene.records)) == "1.0 UP504, 1.0 UP701"
    scene = Scene()
    scene.ask(ADD_MEM)
    scene.ask(pci_request(ADD_PCI, 0, 3))
    causes = [f for f in found(scene.records) if f.code in ("UP502", "UP504")]
    assert told(causes) == "1.1 UP502?, 1.1 UP504?"


# Replies that do not fit.


def other_type(request: Request) -> bytes:
    return Reply(0x444D0100, 0, 8, 0, 0, bytes(MESSAGE_SIZE - 20)).encode()


def test_a_reply_of_another_type_or_magic() -> None:
    for reply in (other_type(DISK), b"\xff" + DISK.reply().encode()[1:]):
        records = [*connect(1), ask(DISK, 1), Chunk(2, 1, False, reply)]
        for world in (None, FOUR_CPUS):
            codes = [f.code for f in found(records, world) if f.code != "UP704"]
            assert codes == ["UP509"]


def test_what_a_misfit_says_is_not_taken_for_certain() -> None:
    misfit = mmio_request(DEL_MMIO, 0, 1, 5).reply(ENODEV).encode()
    request = pci_request(DEL_PCI, 0, 3)
    records = [*connect(1), ask(request, 1), Chunk(2, 1, False, misfit)]
    assert told(found(records)) == "1.0 UP403?, 1.0 UP509"


def test_a_reply_that_nobody_asked_for_is_told_once() -> None:
    reply = ADD_MEM.reply(EPERM).encode()
    records = [*connect(1), Chunk(1, 1, False, reply), Chunk(2, 1, False, reply)]
    assert told(found(records)) == "1 UP510"
    # What the guest wrote then is in its buffer, and comes again.
    refused, scan = DISK.reply(EINVAL).encode(), pci_request(ADD_PCI, 0, 3)
    records += [Chunk(3, 1, False, refused), ask(scan, 4), answer(scan, 5, ret=EINVAL)]
    assert told(found(records)) == "1 UP510, 1.0 UP502, 1.0 UP704"


# Time.


def test_a_late_reply_names_who_held_the_lock() -> None:
    world = World(nr_cpu_ids=4, mmio=(Window(0xD0000000, 0x1000, 5),))
    start, wait = cpu_request(ADD_CPU, [1]), 10 * SECOND
    records = [
        *connect(1), *connect(2),
        ask(start, MS),
        ask(DISK, 2 * MS, conn=2),
        answer(start, wait, ret=EIO),
        answer(DISK, wait + MS, conn=2),
    ]  # fmt: skip
    for known in (None, world):
        findings = found(records, known)
        assert told(findings) == "1.0 UP201, 1.0 UP601, 1.0 UP702, 2.0 UP601, 2.0 UP704"
        late = findings[3]
        assert "Request 1.0 held the guest's hotplug lock" in late.why
        assert [(e.conn, e.request) for e in late.evidence] == [(1, 0)]
        assert "hotplug lock" not in findings[1].why  # it waited for its own vCPU
    # On its own connection it waits for its turn, whatever the lock.
    own = [*records[:5], ask(start, MS), ask(DISK, 2 * MS), answer(start, wait, ret=EIO),
           answer(DISK, wait + MS)]  # fmt: skip
    assert not any("held" in f.why for f in found(own))
    # The same delay with nobody else about.
    alone = found([*connect(2), ask(DISK, 2 * MS, conn=2), answer(DISK, wait, conn=2)])
    assert "hotplug lock" not in alone[0].why


@pytest.mark.parametrize(("latency_ns", "late"), [(250 * MS, ""), (250 * MS + 1, "1.0 UP601")])
def test_late_is_more_than_a_quarter_of_a_second(latency_ns: int, late: str) -> None:
    request = mmio_request(DEL_MMIO, 0xE0000000, 0x2000, 5)
    records = [*connect(1), ask(request, 0), answer(request, latency_ns)]
    assert told(found(records)) == late
    # Nobody waits for what no VMM sends.
    records = [*connect(1), ask(ADD_MEM, 0), answer(ADD_MEM, latency_ns, ret=EPERM)]
    assert told(found(records)) == "1.0 UP511"


def test_a_stuck_lock_holds_up_other_connections() -> None:
    scene = Scene()
    scene.ask(STUCK)
    scene.ask(DISK, conn=2)
    scene.ask(pci_request(ADD_PCI, 0, 3), conn=3)  # needs no lock
    assert told(found(scene.records, FOUR_CPUS)) == (
        "1.0 UP207, 1.0 UP602, 1.0 UP702, 2.0 UP602, 2.0 UP603, 3.0 UP704"
    )
    (stuck,) = [f for f in found(scene.records, FOUR_CPUS) if f.code == "UP603"]
    assert "Request 1.0 took the guest's hotplug lock" in stuck.why
    blind = told(found(scene.records))
    assert "2.0 UP603?" in blind
    assert "3.0 UP6" not in blind


def test_a_reset_with_a_request_open() -> None:
    request = cpu_request(ADD_CPU, [9])
    records = [*connect(1), ask(request, 1), Close(2, 1, by_guest=True, how=How.RESET)]
    assert told(found(records)) == "1.0 UP602, 1.0 UP605"  # a reset counts as success: no UP702
    records[-1] = Close(2, 1, by_guest=False)
    assert told(found(records)) == "1.0 UP602"  # the client left, and nobody waits any more
    records[-1:] = [GaveUp(2 * SECOND, 1, 2 * SECOND), Close(2 * SECOND, 1, by_guest=False)]
    assert told(found(records)) == "1.0 UP602, 1.0 UP702"
    # Closing one half is not the end.
    records[-2:] = [Close(2, 1, by_guest=False, how=How.HALF), answer(request, 3, ret=EINVAL)]
    assert told(found(records)) == "1.0 UP202?, 1.0 UP203?, 1.0 UP702"


def test_what_follows_on_a_dead_connection_is_not_explained_again() -> None:
    scene = Scene()
    scene.ask(STUCK)
    scene.ask(DISK)
    scene.ask(cpu_request(DEL_CPU, [3]))
    findings = [f for f in found(scene.records, FOUR_CPUS) if f.request]
    assert told(findings) == "1.1 UP507, 1.1 UP602, 1.2 UP507, 1.2 UP602, 1.2 UP702"
    assert all("Request 1.0 was the last one" in f.why for f in findings if f.code == "UP602")
    assert told(f for f in found(scene.records) if f.request) == told(findings)


# Consequences.


def test_what_dragonball_makes_of_it_is_left_out_for_another_vmm() -> None:
    scene = Scene()
    scene.ask(cpu_request(ADD_CPU, [1]))
    scene.ask(mmio_request(ADD_MMIO, 0xE0000000, 0x2000, 5))
    scene.ask(mmio_request(DEL_MMIO, 0x1000, 0x2000, 5))
    both = "1.0 UP202, {}1.1 UP301, {}1.2 UP306"
    assert told(found(scene.records, FOUR_CPUS)) == both.format("1.0 UP702, ", "1.1 UP701, ")
    assert told(found(scene.records, FOUR_CPUS, dragonball=False)) == both.format("", "")


def test_a_refused_removal_or_a_stale_errno_loses_no_device() -> None:
    scene = Scene()
    scene.ask(pci_request(ADD_PCI, 0, 9))
    scene.ask(pci_request(ADD_PCI, 0, 3))  # works, and repeats the errno
    scene.ask(pci_request(DEL_PCI, 0, 9))
    assert told(found(scene.records, FOUR_CPUS)) == (
        "1.0 UP402, 1.0 UP701, 1.1 UP502, 1.1 UP704, 1.2 UP403"
    )


def test_a_device_that_stays() -> None:
    scene = Scene()
    other = mmio_request(ADD_MMIO, 0xE0008000, 0x2000, 6)
    remove = mmio_request(DEL_MMIO, 0xE0006000, 0x2000, 5)
    scene.ask(DISK)
    scene.ask(other)
    scene.ask(pci_request(ADD_PCI, 0, 3))
    scene.ask(remove)
    assert told(found(scene.records)) == "1.1 UP704, 1.2 UP704"
    scene.ask(pci_request(DEL_PCI, 0, 3))
    scene.ask(DISK)
    scene.ask(mmio_request(DEL_MMIO, 0xE0008000, 0x2000, 7))  # another interrupt: it stays
    assert told(found(scene.records)) == "1.1 UP704, 1.5 UP704, 1.6 UP306"


# Several findings on one request.


def test_cause_then_time_then_consequence() -> None:
    request = cpu_request(ADD_CPU, [1])
    records = [
        *connect(1),
        ask(cpu_request(ADD_CPU, [9]), 0),
        answer(cpu_request(ADD_CPU, [9]), 1),
        ask(request.encode() + request.encode()[:500], 2),
        answer(request, SECOND, ret=EIO),
    ]
    stale = bytearray(request.reply(EIO).encode())
    stale[20] = 1
    records[-1] = Chunk(SECOND, 1, False, bytes(stale))
    assert told(found(records)) == (
        "1.1 UP201?, 1.1 UP212?, 1.1 UP503, 1.1 UP601, 1.1 UP702, "
        "1.2 UP506, 1.2 UP507, 1.2 UP602, 1.2 UP702"
    )


def test_findings_stand_in_the_order_of_the_recording() -> None:
    scene = Scene()
    for conn in (2, 1):
        scene.ask(cpu_request(ADD_CPU, [1]), conn=conn)
        scene.ask(ADD_MEM, conn=conn)
    places = [(f.conn, f.request) for f in found(scene.records, FOUR_CPUS)]
    assert places == [(1, 0), (1, 0), (1, 1), (2, 0), (2, 0), (2, 1)]


# Without everything.


def test_a_recording_that_begins_in_the_middle() -> None:
    """The buffers hold something that is not known, and so does the guest."""
    remove = cpu_request(DEL_CPU, [0])
    header_only = DISK.encode()[:16]
    records: list[Record] = [
        Open(0, 1, Begins.MIDDLE),
        ask(remove, 1), answer(remove, 2, ret=EINVAL),
        ask(pci_request(ADD_PCI, 0, 3), 3), answer(pci_request(ADD_PCI, 0, 3), 4, ret=EINVAL),
    ]  # fmt: skip
    codes = "1.0 UP204?, 1.0 UP205?, 1.0 UP702, 1.1 UP502, 1.1 UP704"
    for world in (None, FOUR_CPUS):
        assert told(found(records, world)) == codes
    # A send that is completed by unknown bytes is not certain either, until a whole one came.
    short: list[Record] = [
        Open(0, 1, Begins.MIDDLE),
        ask(header_only, 1), answer(DISK, 2, ret=EINVAL),
        ask(mmio_request(ADD_MMIO, 0xE0006000, 0x2000, 0), 3), answer(DISK, 4, ret=EINVAL),
        ask(header_only, 5), answer(DISK, 6, ret=EINVAL),
    ]  # fmt: skip
    causes = [f for f in found(short) if f.code == "UP304"]
    assert told(causes) == "1.0 UP304?, 1.1 UP304, 1.2 UP304"


def test_a_connection_that_nothing_opens_is_seen_from_the_middle() -> None:
    records = [ask(ADD_MEM, 1), answer(ADD_MEM, 2, ret=EPERM)]
    assert told(found(records)) == "1.0 UP511"


def test_from_the_middle_a_reply_of_type_0_is_no_hello() -> None:
    """The header of a refused CONNECT is that of a CONNECT message."""
    wrong = bare_request(MessageType.CONNECT)
    records: list[Record] = [
        Open(0, 1, Begins.MIDDLE),
        ask(wrong, 1), answer(wrong, 2, ret=EPERM),
        ask(ADD_MEM, 3), answer(ADD_MEM, 4, ret=EPERM),
    ]  # fmt: skip
    assert told(found(records)) == "1.0 UP504, 1.1 UP511"


def test_a_connection_whose_opening_alone_is_missing_is_understood() -> None:
    records = [*connect(1)[1:], ask(ADD_MEM, 1), answer(ADD_MEM, 2, ret=EPERM)]
    assert told(found(records)) == "1.0 UP511"
    assert told(found([*connect(1)[1:2], Close(1, 1, by_guest=True)])) == "1 UP101"


def test_a_world_says_how_cpu_requests_are_to_be_read() -> None:
    """Their msg_size tells it, but the guest does not look at that."""
    removed_all = replace(cpu_request(DEL_CPU, 3), msg_size=0)
    scene = Scene(ARM)
    scene.ask(removed_all)
    (cause,) = [f for f in found(scene.records, ARM) if f.code == "UP204"]
    assert "count=3" in cause.what


def test_a_gap_ends_what_the_model_can_say() -> None:
    scene = Scene()
    scene.ask(mmio_request(ADD_MMIO, 0xE0010000, 0x1000, 9))
    scene.ask(mmio_request(DEL_MMIO, 0xE0010000, 0x1000, 9))
    scene.ask(mmio_request(ADD_MMIO, 0xE0020000, 0x1000, 9))
    scene.ask(mmio_request(ADD_MMIO, 0xE0030000, 0x1000, 9))
    assert told(found(scene.records, FOUR_CPUS)) == "1.2 UP704, 1.3 UP302, 1.3 UP701"
    at = len(connect(1)) + 2  # the removal is not in the recording
    lost = scene.records[at]
    assert isinstance(lost, Chunk)
    with_gap = [*scene.records[:at], Gap(lost.t_ns, 1, True, MESSAGE_SIZE, "the disk is slow"),
                *scene.records[at + 1:]]  # fmt: skip
    assert told(found(with_gap, FOUR_CPUS)) == (
        "1.0 UP704, 1.2 UP704, 1.3 UP301?, 1.3 UP302?, 1.3 UP701?"
    )


def test_a_reply_that_was_lost_is_not_one_that_never_came() -> None:
    request = cpu_request(DEL_CPU, [3])
    records = [*connect(1), ask(request, 1), Gap(2, 1, False, MESSAGE_SIZE, "the disk is slow")]
    assert told(found(records)) == ""
    damaged = [*connect(1), ask(request, 1), Gap(2, 0, False, 900, DAMAGED),
               ask(ADD_MEM, 3), answer(ADD_MEM, 4, ret=EPERM)]  # fmt: skip
    assert told(found(damaged)) == "1.1 UP511"


def test_after_damage_a_reply_may_be_another_requests() -> None:
    request = mmio_request(ADD_MMIO, 0xE0006000, 0x2000, 5)
    records = [*connect(1), ask(request, 1), Gap(2, 0, False, 900, DAMAGED),
               answer(request, 3, ret=EBUSY),
               ask(request, 4), answer(request, 5, ret=EBUSY)]  # fmt: skip
    causes = [f for f in found(records) if f.code == "UP305"]
    assert told(causes) == "1.0 UP305?, 1.1 UP305"


def test_a_reply_put_together_from_two_tells_nothing_of_the_buffer() -> None:
    gone, scan = mmio_request(DEL_MMIO, 0x1000, 0x2000, 5), pci_request(ADD_PCI, 0, 3)
    reply = gone.reply(ENODEV).encode()
    records = [*connect(1), ask(gone, 1), Chunk(2, 1, False, reply[:500]),
               Gap(3, 0, False, 900, DAMAGED), Chunk(4, 1, False, reply[500:]),
               ask(scan, 5), answer(scan, 6, ret=EINVAL)]  # fmt: skip
    causes = [f for f in found(records) if f.code < "UP6"]
    assert told(causes) == "1.0 UP306?, 1.1 UP502"


def test_what_came_right_after_damage_may_be_no_reply_at_all() -> None:
    scan = pci_request(ADD_PCI, 0, 3)
    refused = DISK.reply(EINVAL).encode()
    records = [*connect(1), Gap(1, 0, False, 900, DAMAGED),
               Chunk(2, 1, False, refused[100:]), Chunk(3, 1, False, refused[:100]),
               ask(scan, 4), answer(scan, 5, ret=EINVAL)]  # fmt: skip
    assert told(f for f in found(records) if f.request == 0 and f.code < "UP6") == "1.0 UP502"


@pytest.mark.parametrize("end", [Close(0, 1, by_guest=False), GaveUp(0, 1, SECOND)])
def test_the_end_of_a_connection_that_nothing_opened_ends_the_model(end: Record) -> None:
    scene = Scene()
    scene.ask(mmio_request(ADD_MMIO, 0xE0010000, 0x1000, 9), conn=2)
    scene.ask(mmio_request(ADD_MMIO, 0xE0020000, 0x1000, 9), conn=2)
    refused = [f for f in found([end, *scene.records], FOUR_CPUS) if f.request == 1]
    assert told(refused) == "2.1 UP301?, 2.1 UP302?, 2.1 UP701?"


def test_a_packet_that_was_cut_off_tells_what_it_holds() -> None:
    size_zero = mmio_request(ADD_MMIO, 0xE0006000, 0, 5)

    def cut(kept: int) -> list[Record]:
        sent = size_zero.encode()
        return [
            *connect(1), ask(sent[:kept], 1), Gap(1, 1, True, len(sent) - kept, CUT_OFF),
            answer(size_zero, 2, ret=EBUSY),
        ]  # fmt: skip

    assert told(f for f in found(cut(40)) if f.code == "UP305") == "1.0 UP305"
    assert told(f for f in found(cut(39)) if f.code == "UP305") == "1.0 UP305?"
    assert not [f for f in found(cut(40)) if f.code == "UP506"]


def test_a_request_is_short_only_where_no_gap_may_have_its_rest() -> None:
    short = [*connect(1), ask(mmio_request(ADD_MMIO, 0xE0006000, 0, 5).encode()[:40], 1)]

    def says_so(*gap: Record) -> bool:
        return any(f.code == "UP506" for f in found([*short, *gap]))

    assert says_so()
    assert says_so(Gap(2, 1, False, 100, "the disk is slow"))
    assert says_so(Gap(2, 1, True, MESSAGE_SIZE, LEFT_OUT))
    assert not says_so(Gap(2, 1, True, 984, CUT_OFF))
    assert not says_so(Gap(2, 1, True, 984, "the disk is slow"))
    assert not says_so(Gap(2, 0, False, 984, DAMAGED))


def test_what_was_left_out_on_purpose_ends_the_model_too() -> None:
    scene = Scene()
    scene.ask(pci_request(DEL_PCI, 0, 3))
    scene.ask(pci_request(DEL_PCI, 0, 3))
    kept = [*scene.records[:5], Gap(1, 1, True, MESSAGE_SIZE, LEFT_OUT),
            Gap(1, 1, False, MESSAGE_SIZE, LEFT_OUT), *scene.records[7:]]  # fmt: skip
    assert told(found(scene.records, FOUR_CPUS)) == "1.1 UP403"
    assert told(found(kept, FOUR_CPUS)) == "1.1 UP403?, 1.1 UP502?"


def test_a_missing_connection_makes_the_models_word_an_inference() -> None:
    scene = Scene()
    irq_taken = mmio_request(ADD_MMIO, 0xE0030000, 0x1000, 9)
    scene.ask(mmio_request(ADD_MMIO, 0xE0020000, 0x1000, 9))
    scene.connect(2)
    scene.ask(irq_taken, conn=3)
    scene.ask(ADD_MEM, conn=3)
    assert told(f for f in found(scene.records, FOUR_CPUS) if f.conn == 3) == (
        "3.0 UP302, 3.0 UP701, 3.1 UP511"
    )
    without = [record for record in scene.records if getattr(record, "conn", 0) != 2]
    assert told(f for f in found(without, FOUR_CPUS) if f.conn == 3) == (
        "3.0 UP302?, 3.0 UP701?, 3.1 UP511"
    )


def test_a_world_that_is_not_this_guests_is_given_up() -> None:
    """What the model foretells does not come: from then on the wire alone counts."""
    scene = Scene()
    scene.ask(cpu_request(ADD_CPU, [1]))
    other = World(nr_cpu_ids=4, vcpus_running=(0, 1, 2, 3))
    assert told(found(scene.records, other)) == "1.0 UP202?, 1.0 UP203?, 1.0 UP702"


def test_a_number_in_a_reply_that_the_model_did_not_foretell_ends_it_too() -> None:
    scene = Scene(ARM)
    scene.ask(cpu_request(DEL_CPU, 1))  # two are left, it says
    scene.ask(mmio_request(ADD_MMIO, 0xE0010000, 0x1000, 9))
    scene.ask(mmio_request(ADD_MMIO, 0xE0020000, 0x1000, 9))
    refused = "1.2 UP302{0}, 1.2 UP503, 1.2 UP701{0}"
    two_cpus = replace(ARM, cpus_online=(0, 1))
    with_mmio = [f for f in found(scene.records, ARM) if f.request == 2]
    assert told(with_mmio) == refused.format("")
    parted = [f for f in found(scene.records, two_cpus) if f.request == 2 and f.code != "UP301"]
    assert told(parted) == refused.format("?")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_torn_file_is_diagnosed_as_far_as_it_goes(tmp_path: Path, kept: float) -> None:
    scene = Scene()
    for number in range(40):
        scene.ask(mmio_request(ADD_MMIO, 0xE0000000 + number, 0x2000, 5))
    path = write_capture(tmp_path / "whole.upcap", scene.records)
    whole = diagnose(path, FOUR_CPUS)
    assert whole.complete
    torn_path = tmp_path / "torn.upcap"
    torn_path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    torn = diagnose(torn_path, FOUR_CPUS)
    assert not torn.complete
    assert 0 < torn.operations < whole.operations
    answered = [f for f in torn.findings if f.code in ("UP301", "UP701")]
    assert answered == [f for f in whole.findings if f.code in ("UP301", "UP701")][: len(answered)]
    assert {f.code for f in torn.findings} <= {"UP301", "UP701", "UP309", "UP602", "UP603"}
