"""Links to a simulated guest, read by read: lines, service byte, requests, faults and pace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dissectors.constants import Arch, MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    decode_reply,
    hello,
    mmio_request,
    pci_request,
)
from upcall_trace.control.orders import BadOrder
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import PciDevice, Window, kata_pod
from upcall_trace.simulated.machine import Backend, Busy, Habits, Machine, Pace
from upcall_trace.simulated.multiplexer import Link, Step

SECOND = 1_000_000_000
NOW = 7 * SECOND
ADD_MEM = bare_request(MessageType.ADD_MEM)
ADD_1 = cpu_request(MessageType.ADD_CPU, [1])
DEL_9 = cpu_request(MessageType.DEL_CPU, [9])
PLUG = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
DEL_VSOCK = mmio_request(MessageType.DEL_MMIO, 0xE0004000, 0x2000, 5)
POD = kata_pod(cpus=2)
CLOSED = [Step(NOW, None)]


def machine(*faults: str, pace: Pace = Pace.NONE, **habits: Any) -> Machine:
    return Machine(POD, Habits(pace=pace, **habits), [parse_fault(text) for text in faults])


def feed(link: Link, sent: bytes, now_ns: int = NOW) -> list[Step]:
    """Read as much as the link wants at a time, until nobody reads or all is read."""
    steps: list[Step] = []
    while sent and (size := link.read_size):
        steps += link.receive(sent[:size], now_ns)
        sent = sent[size:]
    return steps


def connected(to: Machine, now_ns: int = NOW) -> Link:
    """A link with the CONNECT message behind it."""
    link = to.link()
    ok, greeting = feed(link, b"CONNECT 219\nd", now_ns)
    assert ok.sent is not None
    assert ok.sent.startswith(b"OK ")
    assert greeting == Step(now_ns, hello().encode())
    return link


def ret_of(step: Step) -> int:
    assert step.sent is not None
    return decode_reply(step.sent).ret


# The multiplexer.


def test_dragonball_reads_the_line_byte_by_byte_and_what_follows_reaches_the_guest() -> None:
    link = machine().link()
    assert link.read_size == 1
    assert feed(link, b"CONNECT 219\nd" + ADD_MEM.encode()) == [
        Step(NOW, b"OK 1073741824\n"),
        Step(NOW, hello().encode()),
        Step(NOW, ADD_MEM.reply(-1).encode()),
    ]


def test_dragonballs_local_ports_are_its_own_and_differ() -> None:
    ours = machine()
    ports = [feed(ours.link(), b"CONNECT 219\n")[0].sent for _ in range(3)]
    assert ports == [b"OK 1073741824\n", b"OK 1073741825\n", b"OK 1073741826\n"]


def test_vhost_says_the_guests_port_and_loses_what_came_early() -> None:
    link = machine(backend=Backend.VHOST).link()
    assert feed(link, b"CONNECT 219\nd" + ADD_MEM.encode()) == [Step(NOW, b"OK 219\n")]
    assert feed(link, b"d") == [Step(NOW, hello().encode())]


@pytest.mark.parametrize("backend", Backend)
def test_a_line_in_pieces(backend: Backend) -> None:
    link = machine(backend=backend).link()
    assert [feed(link, bytes([byte])) for byte in b"connect 219"] == [[]] * 11
    (ok,) = feed(link, b"\n")
    assert ok.sent is not None


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize(
    "line",
    [b"HELLO\n", b"CONNECT\n", b"CONNECT abc\n", b"CONNECT 220\n", b"CONNECT 4294967515\n", b"\n",
     b"CONNECT -1\n", b"CONNECT 0219 \n", b"x" * 32],
)  # fmt: skip
def test_any_other_line_or_port_is_closed_without_a_word(backend: Backend, line: bytes) -> None:
    link = machine(backend=backend).link()
    assert feed(link, line) == CLOSED
    assert link.read_size == 0
    assert not link.silent


def test_a_line_without_an_end_is_given_up_after_32_bytes() -> None:
    link = machine().link()
    assert feed(link, b"CONNECT 219".ljust(31)) == []
    assert feed(link, b" ") == CLOSED


def test_another_port_for_upcall() -> None:
    ours = machine(port=1024)
    assert feed(ours.link(), b"CONNECT 219\n") == CLOSED
    assert len(feed(ours.link(), b"CONNECT 1024\nd")) == 2


def test_echo_ports() -> None:
    ours = machine(echo=frozenset({7, 5000}))
    link = ours.link()
    assert feed(link, b"CONNECT 5000\n") == [Step(NOW, b"OK 1073741824\n")]
    assert feed(link, b"d" * 100) == [Step(NOW, b"d" * 100)]
    assert link.deadline_ns is None
    assert feed(ours.link(), b"CONNECT 5001\n") == CLOSED


# The service byte.


def test_the_service_byte_has_ten_seconds() -> None:
    link = machine().link()
    assert link.deadline_ns is None
    feed(link, b"CONNECT 219\n", NOW)
    assert link.read_size == 1
    assert link.deadline_ns == NOW + 10 * SECOND
    assert link.expire(NOW + 10 * SECOND) == [Step(NOW + 10 * SECOND, None)]
    assert link.deadline_ns is None
    assert link.read_size == 0


def test_with_the_service_byte_the_limit_is_gone() -> None:
    assert connected(machine()).deadline_ns is None


@pytest.mark.parametrize("byte", [0, ord("x"), ord("D"), 255])
def test_an_unknown_service_is_closed_without_a_word(byte: int) -> None:
    link = machine().link()
    feed(link, b"CONNECT 219\n")
    assert feed(link, bytes([byte])) == CLOSED


def test_an_end_of_file_ends_a_link_once() -> None:
    link = connected(machine())
    assert link.receive(b"", NOW) == CLOSED
    assert link.receive(b"", NOW) == []


# Requests.


def test_no_read_is_longer_than_a_message() -> None:
    link = connected(machine())
    assert link.read_size == 1024
    assert [ret_of(step) for step in feed(link, ADD_MEM.encode() + ADD_MEM.encode()[:476])] == [
        -1,
        -1,
    ]


@pytest.mark.parametrize("fault", ["any:when=9:drop", "any:garbage", "any:delay=1s", "any:split=5"])
def test_a_dead_thread_is_silence_and_no_reading(fault: str) -> None:
    link = connected(machine(fault))
    assert feed(link, DEL_9.encode()) == []
    assert link.silent
    assert link.read_size == 0
    assert link.receive(ADD_MEM.encode(), NOW) == []


def test_links_share_the_guest() -> None:
    ours = machine()
    one, other = connected(ours), connected(ours)
    assert ret_of(feed(one, cpu_request(MessageType.ADD_CPU, [2]).encode())[0]) == 0
    assert ret_of(feed(other, cpu_request(MessageType.ADD_CPU, [2]).encode())[0]) == -22


def test_without_its_own_device_the_channel_is_gone_for_good() -> None:
    ours = machine(echo=frozenset({7}))
    idle, echo, waiting = connected(ours), ours.link(), ours.link()
    feed(echo, b"CONNECT 7\n")
    feed(waiting, b"CONNECT 219\n")
    assert feed(connected(ours), DEL_VSOCK.encode()) == []
    assert feed(idle, ADD_MEM.encode()) == []
    assert idle.silent
    assert feed(echo, b"x") == []
    assert feed(waiting, b"d") == CLOSED
    late = ours.link()
    assert feed(late, b"CONNECT 219\n") == []
    assert feed(late, b"d") == []
    assert (late.silent, late.deadline_ns) == (False, NOW + 2_000_000_000)
    assert late.expire(NOW + 2_000_000_000) == [Step(NOW + 2_000_000_000, None)]
    assert feed(ours.link(), b"HELLO\n") == CLOSED
    ours.reset()
    connected(ours)


def test_behind_vhost_device_vsock_a_connect_without_the_channel_is_never_answered() -> None:
    ours = machine(backend=Backend.VHOST)
    link = ours.link()
    assert len(feed(link, b"CONNECT 219\n")) == len(feed(link, b"d")) == 1
    assert feed(link, DEL_VSOCK.encode()) == []
    late = ours.link()
    assert feed(late, b"CONNECT 219\n") == []
    assert (late.silent, late.deadline_ns, late.read_size) == (True, None, 0)


# Time.


def test_a_pci_device_is_removed_when_no_vcpu_is_being_started() -> None:
    ours = machine(pace=Pace.REAL)
    starting, removing = connected(ours), connected(ours)
    (failed,) = feed(starting, cpu_request(MessageType.ADD_CPU, [200]).encode())
    (gone,) = feed(removing, pci_request(MessageType.DEL_PCI, 0, 4).encode())
    assert failed.at_ns == gone.at_ns == NOW + 10_000_000_000
    (scanned,) = feed(removing, pci_request(MessageType.ADD_PCI, 0, 4).encode())
    assert scanned.at_ns == NOW


def test_no_cpu_comes_or_goes_while_a_pci_device_is_probed() -> None:
    world = replace(kata_pod(), pci=(PciDevice(0, 4, probe_ms=500),))
    ours = Machine(world, Habits(pace=Pace.REAL))
    one, other = connected(ours), connected(ours)
    feed(one, pci_request(MessageType.DEL_PCI, 0, 4).encode())
    (probed,) = feed(one, pci_request(MessageType.ADD_PCI, 0, 4).encode())
    assert probed.at_ns == NOW + 500_000_000
    assert ret_of(feed(other, ADD_1.encode())[0]) == -16
    (later,) = other.receive(ADD_1.encode(), NOW + 500_000_000)
    assert ret_of(later) == 0


def test_a_slow_disk_holds_the_lock() -> None:
    world = replace(kata_pod(), mmio_hidden=(Window(0xE0006000, 0x2000, 5, "blk", 3000),))
    ours = Machine(world, Habits(pace=Pace.REAL))
    (added,) = feed(connected(ours), PLUG.encode())
    (waiting,) = feed(connected(ours), ADD_1.encode())
    assert added.at_ns == waiting.at_ns == NOW + 3_000_000_000


# Faults.


def reply_steps(request: Request, *faults: str, pace: Pace = Pace.NONE) -> list[Step]:
    return feed(connected(machine(*faults, pace=pace)), request.encode())


def test_ret_is_answered_and_nothing_executed() -> None:
    ours = machine("add_cpu:ret=-16:when=1", "add_cpu:ret=1:when=2", "add_cpu:ret=0:when=3")
    link = connected(ours)
    before = ours.guest.state()
    steps = feed(link, cpu_request(MessageType.ADD_CPU, [2]).encode() * 4)
    assert [ret_of(step) for step in steps] == [-16, 1, 0, 0]
    assert steps[0] == Step(NOW, ADD_1.reply(-16).encode())
    assert ours.guest.state()["cpus_online"] == [*before["cpus_online"], 2]


def test_delay() -> None:
    (step,) = reply_steps(ADD_MEM, "any:delay=300ms")
    assert (step.at_ns, ret_of(step)) == (NOW + 300_000_000, -1)


def test_drop_executes() -> None:
    ours = machine("add_mmio:drop")
    link = connected(ours)
    assert feed(link, PLUG.encode()) == []
    assert len(ours.guest.windows) == 4
    assert not link.silent
    assert len(feed(link, ADD_MEM.encode())) == 1


def test_split() -> None:
    first, second = reply_steps(ADD_MEM, "any:split=500")
    assert first.sent is not None
    assert second.sent is not None
    assert (len(first.sent), first.sent + second.sent) == (500, ADD_MEM.reply(-1).encode())
    assert first.at_ns < second.at_ns


def test_close_executes_and_closes() -> None:
    ours = machine("add_mmio:close")
    assert feed(connected(ours), PLUG.encode()) == CLOSED
    assert len(ours.guest.windows) == 4


def test_close_ends_even_a_connection_that_would_fall_silent() -> None:
    assert reply_steps(DEL_9, "del_cpu:close") == CLOSED


def test_garbage_executes() -> None:
    ours = machine("add_mmio:garbage")
    (step,) = feed(connected(ours), PLUG.encode())
    assert step.sent is not None
    assert len(step.sent) == 1024
    assert step.sent != PLUG.reply().encode()
    assert len(ours.guest.windows) == 4


def test_a_strike_is_told_with_its_connection_and_request() -> None:
    told: list[str] = []
    faults = [parse_fault("add_mem:drop:when=2")]
    ours = Machine(POD, None, faults, on_strike=told.append)
    connected(ours)
    feed(connected(ours), ADD_MEM.encode() * 3)
    assert told == ["fault add_mem:drop:when=2 strikes connection 2, request 1"]


def test_the_operation_is_what_the_guest_would_take_it_for() -> None:
    """A piece without a type is of the type of the request before."""
    ours = machine("add_mem:ret=-5")
    link = connected(ours)
    assert ret_of(link.receive(ADD_MEM.encode(), NOW)[0]) == -5
    assert ret_of(link.receive(b"\0\x01\x4d\x44", NOW)[0]) == -5


# Pace.


def test_with_pace_none_ten_seconds_pass_at_once() -> None:
    world = replace(POD, vcpus_running=(0, 1))
    link = connected(Machine(world))
    (step,) = feed(link, cpu_request(MessageType.ADD_CPU, [2]).encode())
    assert (step.at_ns, ret_of(step)) == (NOW, -5)


def test_with_pace_real_a_vcpu_that_does_not_start_holds_the_lock_for_ten_seconds() -> None:
    ours = Machine(replace(POD, vcpus_running=(0, 1)), Habits(pace=Pace.REAL))
    one, two, three = connected(ours), connected(ours), connected(ours)
    (late,) = feed(one, cpu_request(MessageType.ADD_CPU, [2]).encode(), NOW)
    assert (late.at_ns, ret_of(late)) == (NOW + 10 * SECOND, -5)
    (waits,) = feed(two, PLUG.encode(), NOW + SECOND)
    assert (waits.at_ns, ret_of(waits)) == (NOW + 10 * SECOND, 0)
    for request in (ADD_MEM, pci_request(MessageType.ADD_PCI, 0, 1), PLUG, ADD_1):
        (at_once,) = feed(three, request.encode(), NOW + 2 * SECOND)
        assert at_once.at_ns == NOW + 2 * SECOND, request.op
    (free,) = feed(three, cpu_request(MessageType.DEL_CPU, [1]).encode(), NOW + 11 * SECOND)
    assert (free.at_ns, ret_of(free)) == (NOW + 11 * SECOND, 0)


def test_with_pace_real_two_such_vcpus_wait_for_each_other() -> None:
    ours = Machine(replace(POD, vcpus_running=(0, 1)), Habits(pace=Pace.REAL))
    links = [connected(ours), connected(ours)]
    steps = [feed(link, cpu_request(MessageType.ADD_CPU, [2]).encode())[0] for link in links]
    assert [step.at_ns for step in steps] == [NOW + 10 * SECOND, NOW + 20 * SECOND]


# The VMM's side.


def test_orders() -> None:
    ours = machine()
    assert ours.control({"start_vcpu": 200}) == {"ok": True}
    assert 200 in ours.guest.running
    assert ours.control({"plug_pci": {"bus": 1, "slot": 9}}) == {"ok": True}
    assert PciDevice(1, 9) in ours.guest.plugged
    assert ours.control({"unplug_pci": {"bus": 1, "slot": 9}}) == {"ok": True}
    assert PciDevice(1, 9) not in ours.guest.plugged
    assert ours.control({"state": True}) == {"ok": True, "state": ours.guest.state()}


def test_a_reset_boots_the_same_world_again() -> None:
    ours = machine(pace=Pace.REAL)
    booted = ours.guest.state()
    link = connected(ours)
    feed(link, PLUG.encode() + DEL_9.encode())
    ours.control({"start_vcpu": 200})
    ours.busy.lock_ns = NOW * 9
    assert ours.control({"reset": True}) == {"ok": True}
    assert ours.guest.state() == booted
    assert ours.busy == Busy()


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (3, "an order is an object with one key"),
        ({}, "an order is an object with one key"),
        ({"reset": True, "state": True}, "an order is an object with one key"),
        ({"stop": 1}, "'stop' is no order; known are start_vcpu, plug_pci, unplug_pci, "),
        ({"offline_cpu": -1}, "offline_cpu needs a CPU number from 0 to 8191, not -1"),
        ({"offline_cpu": 0}, "offline_cpu: the guest cannot do that with CPU 0"),
        ({"online_cpu": 40}, "online_cpu: the guest cannot do that with CPU 40"),
        ({"start_vcpu": 256}, "start_vcpu needs a vCPU from 0 to 255, not 256"),
        ({"start_vcpu": True}, "start_vcpu needs a vCPU from 0 to 255, not True"),
        ({"start_vcpu": "1"}, "start_vcpu needs a vCPU from 0 to 255, not '1'"),
        ({"plug_pci": 4}, "[plug_pci] is not a table"),
        ({"plug_pci": {"bus": 0}}, "[plug_pci] has no 'slot'"),
        ({"unplug_pci": {"bus": 0, "slot": 32}}, "[unplug_pci] slot must be a number from 0"),
        ({"plug_pci": {"bus": 0, "slot": 1, "domain": 0}}, "[plug_pci] has an unknown key "),
        ({"reset": 1}, "reset needs true, not 1"),
        ({"state": None}, "state needs true, not None"),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_followed_is_answered(order: object, answer: str) -> None:
    ours = machine()
    before = ours.guest
    with pytest.raises(BadOrder) as raised:
        ours.control(order)
    assert str(raised.value).startswith(answer)
    assert ours.guest is before


def test_an_arm_machine_names_its_cpus_by_number() -> None:
    ours = Machine(kata_pod(Arch.AARCH64, cpus=2))
    (step,) = feed(connected(ours), cpu_request(MessageType.ADD_CPU, 1).encode())
    assert step.sent is not None
    assert step.sent[20:24] == (3).to_bytes(4, "little")
