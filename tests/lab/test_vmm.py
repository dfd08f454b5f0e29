"""The lab as the VMM: what it asks of QEMU for each order, and what it believes afterwards."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import TRANSCRIPTS, records_of
from upcall_trace.capture.records import Vmm
from upcall_trace.control.orders import BadOrder
from upcall_trace.errors import Unreachable, WrongUsage
from upcall_trace.kernel.vmm_actions import order_of
from upcall_trace.lab import vmm
from upcall_trace.lab.machines import (
    DISK_SIZE,
    MICROVM,
    PC,
    Boot,
    LabMachine,
    hidden_disks,
    qemu_arguments,
    world,
)
from upcall_trace.lab.monitor import Monitor
from upcall_trace.lab.vmm import ORDERS, VmmSide, parse_size
from upcall_trace.simulated.machine import Machine as SimulatedMachine

MIB: Final = 1 << 20


class RecordingMonitor(Monitor):
    """Keeps commands instead of sending them; refuses those in `refusals` so many times."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.refusals: dict[str, int] = {}
        self.gone = False

    def execute(self, command: str, **arguments: Any) -> Any:
        if self.gone:
            raise Unreachable(f"QEMU did not answer {command} in time")
        self.commands.append((command, arguments))
        if self.refusals.get(command, 0):
            self.refusals[command] -= 1
            raise BadOrder(f"QEMU refused {command}: no")

    def taken(self) -> list[tuple[str, dict[str, Any]]]:
        """What came since this was asked last."""
        commands, self.commands = self.commands, []
        return commands


class Lab:
    """The VMM's side of one machine, before a monitor that does nothing."""

    def __init__(self, machine: LabMachine, cpus: int = 4, own_kernel: bool = False) -> None:
        self.boot = Boot(machine, Path("vmlinuz"), Path("initramfs"), cpus, own_kernel)
        self.monitor = RecordingMonitor()
        self.notes: list[str] = []
        self.side = VmmSide(self.boot, self.monitor, self.notes.append)

    def follow(self, **order: Any) -> dict[str, Any]:
        return self.side.follow(order)

    def refuses(self, **order: Any) -> str:
        """Why; nothing was asked of QEMU, and nothing is different."""
        before, notes = self.side.state(), list(self.notes)
        with pytest.raises(BadOrder) as refused:
            self.follow(**order)
        assert self.monitor.taken() == []
        assert (self.side.state(), self.notes) == (before, notes)
        return str(refused.value)


@pytest.fixture
def pc() -> Lab:
    return Lab(PC)


@pytest.fixture
def microvm() -> Lab:
    return Lab(MICROVM, 1)


def monitor_line(text: str) -> tuple[str, dict[str, Any]]:
    return "human-monitor-command", {"command-line": text}


# vCPUs.


def test_a_vcpu_is_made_once(pc: Lab) -> None:
    assert 5 not in pc.side.state()["vcpus_running"]
    assert pc.follow(start_vcpu=5) == {"ok": True}
    place = {"socket-id": 0, "core-id": 5, "thread-id": 0}
    assert pc.monitor.taken() == [
        ("device_add", {"driver": "max-x86_64-cpu", "id": "cpu5", **place})
    ]
    assert 5 in pc.side.state()["vcpus_running"]
    assert pc.follow(start_vcpu=5) == {"ok": True}
    assert pc.monitor.taken() == []
    assert pc.notes == ["vCPU 5 created"]
    assert pc.side.state()["vcpus_running"] == [0, 5]


def test_the_boot_cpu_runs_already(pc: Lab, microvm: Lab) -> None:
    for lab in (pc, microvm):
        assert lab.follow(start_vcpu=0) == {"ok": True}
        assert lab.monitor.taken() == []


def test_a_kernel_of_ones_own_starts_with_one_cpu_and_gets_no_more_than_it_has_room_for() -> None:
    own = Lab(PC, 3, own_kernel=True)
    assert own.side.state()["vcpus_running"] == [0]
    own.follow(start_vcpu=2)
    ((_, added),) = own.monitor.taken()
    assert (added["socket-id"], added["core-id"]) == (2, 0)
    assert own.refuses(start_vcpu=3) == "vCPUs 0 to 2 can be started on pc"


def test_there_are_only_so_many_vcpus(pc: Lab, microvm: Lab) -> None:
    pc.follow(start_vcpu=63)
    pc.monitor.taken()
    assert pc.refuses(start_vcpu=64) == "vCPUs 0 to 63 can be started on pc"
    assert microvm.refuses(start_vcpu=1) == "vCPUs 0 to 0 can be started on microvm"


def test_a_vcpu_that_qemu_refuses_does_not_run(pc: Lab) -> None:
    pc.monitor.refusals = {"device_add": 1}
    with pytest.raises(BadOrder, match="QEMU refused device_add"):
        pc.follow(start_vcpu=1)
    assert 1 not in pc.side.state()["vcpus_running"]
    assert pc.notes == []
    pc.follow(start_vcpu=1)
    assert 1 in pc.side.state()["vcpus_running"]


# Disks on the PCI bus.


def test_a_disk_goes_into_the_first_free_slot_and_says_where(pc: Lab) -> None:
    assert pc.follow(plug_disk=True) == {"ok": True, "pci": {"bus": 0, "slot": 9}}
    assert pc.follow(plug_disk=True) == {"ok": True, "pci": {"bus": 0, "slot": 10}}
    assert [arguments.get("addr") for _, arguments in pc.monitor.taken()] == [None, "9", None, "a"]
    assert {"bus": 0, "slot": 10} in pc.side.state()["pci_plugged"]
    assert {"bus": 0, "slot": 11} not in pc.side.state()["pci_plugged"]
    assert {"bus": 1, "slot": 10} not in pc.side.state()["pci_plugged"]
    assert pc.notes == ["PCI device 0:9 plugged", "PCI device 0:10 plugged"]


def test_qemu_is_given_a_blank_and_then_the_disk_before_it(pc: Lab) -> None:
    pc.follow(plug_disk=31)
    (made, blank), (added, disk) = pc.monitor.taken()
    assert (made, added) == ("blockdev-add", "device_add")
    assert blank["node-name"] == disk["drive"]
    assert disk["driver"] == "virtio-blk-pci"
    assert disk["addr"] == "1f"  # QEMU reads it as hexadecimal
    assert (blank["size"], blank["read-zeroes"]) == (DISK_SIZE, True)


def test_the_state_names_every_slot_that_is_taken(pc: Lab, microvm: Lab) -> None:
    pc.follow(plug_disk=16)
    pc.follow(unplug_disk=6)
    plugged = [{"bus": 0, "slot": slot} for slot in (0, 1, 3, 4, 8, 16)]
    assert pc.side.state() == {
        "vcpus_running": [0],
        "pci_plugged": plugged,
        "memory_requested": 0,
    }
    assert microvm.side.state()["pci_plugged"] == []


def test_every_slot_can_be_filled_and_then_none_is_free(pc: Lab) -> None:
    slots = [pc.follow(plug_disk=True)["pci"]["slot"] for _ in range(9, 32)]
    assert slots == list(range(9, 32))
    pc.monitor.taken()
    assert pc.refuses(plug_disk=True) == "no slot is free"
    pc.follow(unplug_disk=20)
    assert pc.follow(plug_disk=True)["pci"]["slot"] == 20


@pytest.mark.parametrize("slot", [0, 1, 3, 4, 6, 8])
def test_a_slot_that_is_taken_is_refused_to_a_disk_but_answers_already(pc: Lab, slot: int) -> None:
    assert pc.refuses(plug_disk=slot) == f"slot {slot} is taken"
    assert pc.follow(plug_pci={"bus": 0, "slot": slot}) == {"ok": True}
    assert pc.monitor.taken() == []


@pytest.mark.parametrize("value", [32, -1, False, "9", None, 9.0])
def test_what_is_no_slot_is_refused(pc: Lab, value: object) -> None:
    assert pc.refuses(plug_disk=value) == f"plug_disk needs a number from 0 to 31, not {value!r}"
    assert "unplug_disk needs a number from 0 to 31" in pc.refuses(unplug_disk=value)


def test_a_disk_that_qemu_refuses_leaves_no_blank_behind(pc: Lab) -> None:
    pc.monitor.refusals = {"device_add": 1}
    with pytest.raises(BadOrder, match="QEMU refused device_add"):
        pc.follow(plug_disk=9)
    (_, blank), _, (last, arguments) = pc.monitor.taken()
    assert (last, arguments) == ("blockdev-del", {"node-name": blank["node-name"]})
    assert {"bus": 0, "slot": 9} not in pc.side.state()["pci_plugged"]
    assert pc.notes == []
    assert pc.follow(plug_disk=True)["pci"]["slot"] == 9


def test_a_disk_is_ejected_in_the_guests_place(pc: Lab) -> None:
    pc.follow(plug_pci={"bus": 0, "slot": 20})
    (_, blank), (_, disk) = pc.monitor.taken()
    assert pc.follow(unplug_pci={"bus": 0, "slot": 20}) == {"ok": True}
    assert pc.monitor.taken() == [
        ("device_del", {"id": disk["id"]}),
        monitor_line("o/4 0xae10 0x0"),
        monitor_line("o/4 0xae08 0x100000"),
        ("blockdev-del", {"node-name": blank["node-name"]}),
    ]
    assert {"bus": 0, "slot": 20} not in pc.side.state()["pci_plugged"]
    assert pc.notes == ["PCI device 0:20 plugged", "PCI device 0:20 unplugged"]
    pc.follow(unplug_pci={"bus": 0, "slot": 20})
    pc.follow(unplug_disk=20)
    assert pc.monitor.taken() == []


def test_the_disks_of_the_boot_have_the_names_that_qemu_was_started_with(pc: Lab) -> None:
    booted = [device.slot for device in world(pc.boot).pci if device.role == "blk"]
    started = qemu_arguments(pc.boot, Path(), Path(), Path(), Path())
    values = {value for option, value in pairwise(started) if option == "-device"}
    for slot in booted:
        pc.follow(unplug_disk=slot)
        (_, deleted), *_, (_, blank) = pc.monitor.taken()
        node, where = blank["node-name"], f"addr={slot:x}"
        assert f"virtio-blk-pci,id={deleted['id']},{where},drive={node}" in values
    assert len(booted) == 2


@pytest.mark.parametrize(
    ("slot", "what"),
    [(0, "part of the chipset"), (1, "part of the chipset"), (3, "the channel"), (8, "virtio-mem")],
)
def test_only_disks_can_be_taken_away(pc: Lab, slot: int, what: str) -> None:
    for order in ({"unplug_disk": slot}, {"unplug_pci": {"bus": 0, "slot": slot}}):
        why = pc.refuses(**order)
        assert why == f"slot {slot} is {what}; only disks can be taken away"


@pytest.mark.parametrize("place", [{"bus": 1, "slot": 9}, {"bus": 0, "slot": 9, "function": 1}])
def test_disks_are_on_bus_0_and_function_0(pc: Lab, place: dict[str, int]) -> None:
    assert "bus 0" in pc.refuses(plug_pci=place)
    assert "bus 0" in pc.refuses(unplug_pci=place)


def test_qemu_may_let_go_of_a_disk_late(pc: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm, "_PAUSE_S", 0.001)
    pc.monitor.refusals = {"blockdev-del": 3}
    pc.follow(unplug_disk=4)
    assert [command for command, _ in pc.monitor.taken()].count("blockdev-del") == 4
    assert {"bus": 0, "slot": 4} not in pc.side.state()["pci_plugged"]


def test_a_disk_that_qemu_never_lets_go_of_is_still_there(
    pc: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmm, "_PAUSE_S", 0.001)
    monkeypatch.setattr(vmm, "_GONE_S", 0.02)
    pc.monitor.refusals = {"blockdev-del": 1 << 30}
    with pytest.raises(BadOrder, match="QEMU refused blockdev-del"):
        pc.follow(unplug_disk=4)
    assert {"bus": 0, "slot": 4} in pc.side.state()["pci_plugged"]
    assert pc.notes == []


# Disks of microvm, and what it has not.


def test_microvms_disks_come_in_their_order_until_none_is_left(microvm: Lab) -> None:
    answers = [microvm.follow(plug_disk=True) for _ in hidden_disks()]
    assert answers == [
        {"ok": True, "mmio": {"base": disk.base, "size": disk.size, "irq": disk.irq}}
        for disk in hidden_disks()
    ]
    assert microvm.monitor.taken() == []  # QEMU has had them from the start
    assert microvm.refuses(plug_disk=True) == "no disk is left; a reset brings all of them back"
    assert Lab(MICROVM, 1).follow(plug_disk=True) == answers[0]


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ({"plug_disk": 9}, "plug_disk needs true on microvm: no PCI slots"),
        ({"plug_pci": {"bus": 0, "slot": 9}}, "microvm has no PCI bus"),
        ({"resize_memory": 0}, "microvm has no virtio-mem device"),
    ],
)
def test_what_microvm_has_not(microvm: Lab, order: dict[str, Any], why: str) -> None:
    assert microvm.refuses(**order) == why


# Memory.


def test_memory_is_asked_of_virtio_mem(pc: Lab) -> None:
    pc.follow(resize_memory=256 * MIB)
    assert pc.monitor.taken() == [
        (
            "qom-set",
            {
                "path": "/machine/peripheral/vmem0",
                "property": "requested-size",
                "value": 256 * MIB,
            },
        )
    ]
    assert pc.side.state()["memory_requested"] == 256 * MIB
    pc.follow(resize_memory=0)
    assert pc.side.state()["memory_requested"] == 0
    assert pc.notes == ["virtio-mem requested-size 256 MiB", "virtio-mem requested-size 0"]


@pytest.mark.parametrize("size", [-1, 1024 * MIB + 1, True, "256M", None])
def test_memory_has_a_limit(pc: Lab, size: object) -> None:
    why = f"resize_memory needs a number from 0 to {1024 * MIB}, not {size!r}"
    assert pc.refuses(resize_memory=size) == why
    assert pc.follow(resize_memory=1024 * MIB) == {"ok": True}


def test_memory_that_qemu_refuses_was_not_requested(pc: Lab) -> None:
    pc.monitor.refusals = {"qom-set": 1}
    with pytest.raises(BadOrder, match="QEMU refused qom-set"):
        pc.follow(resize_memory=1)
    assert pc.side.state()["memory_requested"] == 0
    assert pc.notes == []


# All orders.


def test_what_is_noted_is_what_recordings_of_real_guests_say(pc: Lab) -> None:
    pc.follow(start_vcpu=1)
    pc.follow(resize_memory=256 * MIB)
    pc.follow(resize_memory=0)
    recorded = {
        record.action
        for path in TRANSCRIPTS
        for record in records_of(path)[1]
        if isinstance(record, Vmm)
    }
    assert set(pc.notes) <= recorded
    assert order_of(pc.notes[0]) == {"start_vcpu": 1}


def test_an_order_that_is_none_is_told_the_others(pc: Lab) -> None:
    why = pc.refuses(unplug_cpu=1)
    assert why == f"'unplug_cpu' is no order; known are {', '.join(ORDERS)}"


@pytest.mark.parametrize("order", [{}, {"start_vcpu": 1, "plug_disk": True}])
def test_one_order_at_a_time(pc: Lab, order: dict[str, Any]) -> None:
    assert pc.refuses(**order) == "an order is an object with one key"


@pytest.mark.parametrize("name", [name for name in ORDERS if name not in ("reset", "state")])
def test_every_order_that_is_listed_is_known(pc: Lab, name: str) -> None:
    assert re.match(rf"{name} needs|\[{name}\]", pc.refuses(**{name: "x"}))


@pytest.mark.parametrize(
    "order",
    [
        {"start_vcpu": 256},
        {"start_vcpu": True},
        {"plug_pci": 9},
        {"plug_pci": {"bus": 0, "slot": 32}},
        {"unplug_pci": {"slot": 9}},
        {},
    ],
)
def test_the_simulated_guest_refuses_the_same_in_the_same_words(
    pc: Lab, order: dict[str, Any]
) -> None:
    why = pc.refuses(**order)
    with pytest.raises(BadOrder) as refused:
        SimulatedMachine(world(pc.boot)).control(order)
    assert str(refused.value) == why


def test_a_monitor_that_is_gone_is_not_taken_for_a_refusal(pc: Lab) -> None:
    pc.monitor.gone = True
    with pytest.raises(Unreachable, match="did not answer device_add"):
        pc.follow(start_vcpu=1)
    assert 1 not in pc.side.state()["vcpus_running"]


# Sizes.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("2K", 2048),
        ("256M", 256 * MIB),
        ("256m", 256 * MIB),
        ("1G", 1 << 30),
        ("9" * 15, 999_999_999_999_999),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.5G", "1 M", "1MiB", "1T", "9" * 16, "0x10", "1\u212a", "\u0663M"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(WrongUsage, match="is not a size such as 256M"):
        parse_size(text)
