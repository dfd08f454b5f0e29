"""The lab as the VMM: what it does on its side before the guest is asked to notice."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..control.orders import (
    BadOrder,
    name_and_value,
    pci_device,
    vcpu,
)
from ..errors import WrongUsage
from ..kernel.vmm_actions import memory_resized, pci_plugged, vcpu_created
from ..kernel.world import PciDevice, Window
from .bars import assign_bars
from .machines import (
    APIC_IDS,
    DISK_SIZE,
    GROWN_MEMORY_MIB,
    MEMORY_ID,
    MEMORY_MIB,
    PC,
    Boot,
    disk_id,
    hidden_disks,
    world,
)
from .monitor import Monitor

ORDERS: Final = {
    "start_vcpu": "the VMM runs this vCPU from now on, so that it can come up",
    "plug_disk": "a new disk: in a PCI slot, or the next virtio-mmio one; says where it is",
    "unplug_disk": "take the disk at this PCI slot away",
    "plug_pci": "a disk answers at this PCI slot",
    "unplug_pci": "nothing answers there any more",
    "resize_memory": "virtio-mem should have this many bytes plugged",
    "save_memory": "an image of the guest's memory into this file: raw, or an ELF core",
    "reset": "boot anew: connections end, everything is as at the start",
    "state": "CPUs, disks, virtio devices and memory, as the guest's init sees them",
}
_MIB: Final = 1 << 20
_EJECT_PORT: Final = 0xAE08
_BUS_PORT: Final = 0xAE10
_GONE_S: Final = 5.0
_PAUSE_S: Final = 0.02
_SIZE: Final = re.compile(r"(\d+)([KMG]?)", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of `256M`, `1G` or a plain number; raises WrongUsage."""
    found = _SIZE.fullmatch(text)
    if not found or len(found[1]) > 15:
        raise WrongUsage(f"{text!r} is not a size such as 256M")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


class VmmSide:
    """Orders for one booted machine, one at a time.

    `note` hears of what was done, in a recording's words.
    """

    def __init__(self, boot: Boot, monitor: Monitor, note: Callable[[str], None]) -> None:
        self._boot = boot
        self._monitor = monitor
        self._note = note
        booted = world(boot)
        on_pc = boot.machine is PC
        self._startable = min(boot.cpus, APIC_IDS) if boot.own_kernel else APIC_IDS if on_pc else 1
        all_run = boot.own_kernel and not on_pc  # microvm starts every CPU that there is
        self._running = set(range(boot.cpus)) if all_run else set(booted.vcpus_running)
        self._pci = {device.slot: device.role for device in booted.pci}
        self._hidden = [] if on_pc else list(hidden_disks(boot.transports))
        self._memory = 0

    def follow(self, order: dict[str, Any]) -> dict[str, Any]:
        """Follow an order of `ORDERS` but the last two; raises BadOrder and Unreachable."""
        name, value = name_and_value(order)
        match name:
            case "start_vcpu":
                self._start_vcpu(vcpu(name, value))
            case "plug_pci":
                self._plug(_slot(pci_device(name, value)))
            case "unplug_pci":
                self._unplug(_slot(pci_device(name, value)))
            case "plug_disk":
                return {"ok": True} | self._plug_disk(value)
            case "unplug_disk":
                self._unplug(_number(name, value, 31))
            case "resize_memory":
                self._resize(_number(name, value, GROWN_MEMORY_MIB * _MIB))
            case "save_memory":
                self._save_memory(value)
            case _:
                raise BadOrder(f"{name!r} is no order; known are {', '.join(ORDERS)}")
        return {"ok": True}

    def _save_memory(self, value: object) -> None:
        """QEMU writes the file, while the guest runs on (raw) or waits for it (ELF)."""
        file = value.get("file") if isinstance(value, dict) else None
        kind = value.get("format", "raw") if isinstance(value, dict) else None
        if not isinstance(file, str) or not Path(file).is_absolute() or kind not in ("raw", "elf"):
            raise BadOrder('save_memory needs {"file": "/path", "format": "raw" or "elf"}')
        if kind == "raw":
            size = MEMORY_MIB * _MIB
            self._monitor.execute("pmemsave", val=0, size=size, filename=file)
        else:
            self._monitor.execute("dump-guest-memory", paging=False, protocol=f"file:{file}")

    def state(self) -> dict[str, Any]:
        """What the VMM has plugged, as JSON values."""
        return {
            "vcpus_running": sorted(self._running),
            "pci_plugged": [{"bus": 0, "slot": slot} for slot in sorted(self._pci)],
            "memory_requested": self._memory,
        }

    def _start_vcpu(self, cpu: int) -> None:
        if cpu in self._running:
            return
        if self._boot.machine is not PC or cpu >= self._startable:
            last = self._startable - 1 if self._boot.machine is PC else self._boot.cpus - 1
            raise BadOrder(f"vCPUs 0 to {last} can be started on {self._boot.machine.name}")
        socket, core = (cpu, 0) if self._boot.own_kernel else (0, cpu)
        self._monitor.execute(
            "device_add",
            driver="max-x86_64-cpu",
            id=f"cpu{cpu}",
            **{"socket-id": socket, "core-id": core, "thread-id": 0},
        )
        self._running.add(cpu)
        self._note(vcpu_created(cpu))

    def _plug_disk(self, value: object) -> dict[str, Any]:
        if self._boot.machine is not PC:
            if value is not True:
                raise BadOrder(f"plug_disk needs true on {self._boot.machine.name}: no PCI slots")
            if not self._hidden:
                raise BadOrder("no disk is left; a reset brings all of them back")
            return {"mmio": _window(self._hidden.pop(0))}
        free = next((slot for slot in range(9, 32) if slot not in self._pci), None)
        slot = free if value is True else _number("plug_disk", value, 31)
        if slot is None or slot in self._pci:
            raise BadOrder("no slot is free" if slot is None else f"slot {slot} is taken")
        self._plug(slot)
        return {"pci": {"bus": 0, "slot": slot}}

    def _plug(self, slot: int) -> None:
        if slot in self._pci:
            return
        if self._boot.machine is not PC:
            raise BadOrder("microvm has no PCI bus")
        name = disk_id(slot)
        blank = {"driver": "null-co", "node-name": name, "size": DISK_SIZE, "read-zeroes": True}
        self._monitor.execute("blockdev-add", **blank)
        try:
            self._monitor.execute(
                "device_add", driver="virtio-blk-pci", id=name, drive=name, addr=f"{slot:x}"
            )
        except BadOrder:
            self._monitor.execute("blockdev-del", **{"node-name": name})
            raise
        if self._boot.own_kernel:
            assign_bars(self._monitor, slot)
        self._pci[slot] = "blk"
        self._note(pci_plugged(0, slot))

    def _unplug(self, slot: int) -> None:
        role = self._pci.get(slot)
        if role is None:
            return
        if role != "blk":
            what = {"vsock": "the channel", "mem": "virtio-mem"}.get(role, "part of the chipset")
            raise BadOrder(f"slot {slot} is {what}; only disks can be taken away")
        name = disk_id(slot)
        self._monitor.execute("device_del", id=name)
        # QEMU waits for the guest to eject the device, and this guest does not listen to ACPI.
        self._monitor.write_port(_BUS_PORT, 0)
        self._monitor.write_port(_EJECT_PORT, 1 << slot)
        self._release(name)
        del self._pci[slot]
        self._note(pci_plugged(0, slot, gone=True))

    def _release(self, node: str) -> None:
        """Delete a blank disk, once QEMU has really let go of the device in front of it."""
        deadline = time.monotonic() + _GONE_S
        while True:
            try:
                self._monitor.execute("blockdev-del", **{"node-name": node})
            except BadOrder:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return

    def _resize(self, size: int) -> None:
        if self._boot.machine is not PC:
            raise BadOrder("microvm has no virtio-mem device")
        path = f"/machine/peripheral/{MEMORY_ID}"
        self._monitor.execute("qom-set", path=path, property="requested-size", value=size)
        self._memory = size
        self._note(memory_resized(size))


def _slot(device: PciDevice) -> int:
    if device.bus or device.function:
        raise BadOrder("the lab plugs disks on bus 0 and as function 0 only")
    return device.slot


def _number(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise BadOrder(f"{name} needs a number from 0 to {most}, not {value!r}")
    return value


def _window(window: Window) -> dict[str, int]:
    return {"base": window.base, "size": window.size, "irq": window.irq}
