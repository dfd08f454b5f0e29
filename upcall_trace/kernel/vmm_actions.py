"""What was done beside the channel, in the words of a capture, and as the orders that do it again.

An order is what a control socket takes, such as `{"start_vcpu": 1}`. A capture tells in words that
it was followed (`vCPU 1 created`). docs/guest.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from .cpus import NoSuchCpu
from .model import Guest
from .world import PciDevice

_MIB: Final = 1 << 20
_CREATED: Final = re.compile(r"vCPU (\d{1,3}) created")
_PLUGGED: Final = re.compile(r"PCI device (\d{1,3}):(\d{1,2}) (plugged|unplugged)")
_SWITCHED: Final = re.compile(
    r"in the guest: echo ([01]) > /sys/devices/system/cpu/cpu(\d{1,4})/online"
)
_RESIZED: Final = re.compile(r"virtio-mem requested-size (\d{1,9})( MiB)?")


def vcpu_created(cpu: int) -> str:
    """How a capture tells that the VMM runs a vCPU."""
    return f"vCPU {cpu} created"


def pci_plugged(bus: int, slot: int, gone: bool = False) -> str:
    """How a capture tells that something answers at a PCI slot, or nothing any more."""
    return f"PCI device {bus}:{slot} {'unplugged' if gone else 'plugged'}"


def memory_resized(size: int) -> str:
    """How a capture tells that virtio-mem should have `size` bytes plugged."""
    return f"virtio-mem requested-size {f'{size // _MIB} MiB' if size else 0}"


def cpu_switched(number: int, on: bool) -> str:
    """How a capture tells that the guest set one of its CPUs on or off by itself."""
    return f"in the guest: echo {int(on)} > /sys/devices/system/cpu/cpu{number}/online"


def order_of(action: str) -> dict[str, Any] | None:
    """The order that does again what a capture says was done; None where there is none."""
    if found := _CREATED.fullmatch(action):
        return {"start_vcpu": int(found[1])}
    if found := _PLUGGED.fullmatch(action):
        name = "plug_pci" if found[3] == "plugged" else "unplug_pci"
        return {name: {"bus": int(found[1]), "slot": int(found[2])}}
    if found := _SWITCHED.fullmatch(action):
        return {"online_cpu" if found[1] == "1" else "offline_cpu": int(found[2])}
    if found := _RESIZED.fullmatch(action):
        return {"resize_memory": int(found[1]) * (_MIB if found[2] else 1)}
    return None


def words_of(order: Mapping[str, Any]) -> str | None:
    """How a capture tells that this order was followed; None where it changes nothing there."""
    match order:
        case {"start_vcpu": int(cpu)}:
            return vcpu_created(cpu)
        case {"plug_pci": {"bus": int(bus), "slot": int(slot)}}:
            return pci_plugged(bus, slot)
        case {"unplug_pci": {"bus": int(bus), "slot": int(slot)}}:
            return pci_plugged(bus, slot, gone=True)
        case {"online_cpu": int(number)}:
            return cpu_switched(number, True)
        case {"offline_cpu": int(number)}:
            return cpu_switched(number, False)
        case {"resize_memory": int(size)}:
            return memory_resized(size)
    return None


def carry_out(guest: Guest, action: str) -> None:
    """Do to a guest what a capture says was done; what it cannot see changes nothing."""
    match order_of(action):
        case {"start_vcpu": int(cpu)}:
            guest.start_vcpu(cpu)
        case {"plug_pci": {"bus": int(bus), "slot": int(slot)}}:
            guest.plug_pci(PciDevice(bus, slot))
        case {"unplug_pci": {"bus": int(bus), "slot": int(slot)}}:
            guest.unplug_pci(PciDevice(bus, slot))
        case {"online_cpu": int(number)}:
            _switch(guest, number, True)
        case {"offline_cpu": int(number)}:
            _switch(guest, number, False)


def _switch(guest: Guest, number: int, on: bool) -> None:
    with suppress(NoSuchCpu):
        guest.switch_cpu(number, on)
