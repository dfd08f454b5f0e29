"""Orders for the VMM's side, such as `{"start_vcpu": 1}`.

The simulated guest and the lab take the same orders, so that a replay can give them to either.
What was done stands in a capture in words (`vCPU 1 created`), which are turned into orders again
here. docs/guest.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ..errors import UpcallError
from ..kernel.world import MAX_CPUS, BadWorld, PciDevice, parse_pci

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


class BadOrder(UpcallError, ValueError):
    """An order that cannot be followed."""


def name_and_value(order: object) -> tuple[str, Any]:
    """The two parts of an order such as `{"start_vcpu": 1}`; raises BadOrder."""
    if not isinstance(order, dict) or len(order) != 1:
        raise BadOrder("an order is an object with one key")
    ((name, value),) = order.items()
    return str(name), value


def vcpu(name: str, value: object) -> int:
    """The vCPU that an order names; raises BadOrder."""
    if type(value) is not int or not 0 <= value <= 255:
        raise BadOrder(f"{name} needs a vCPU from 0 to 255, not {value!r}")
    return value


def cpu_number(name: str, value: object) -> int:
    """The guest's CPU number that an order names; raises BadOrder."""
    if type(value) is not int or not 0 <= value < MAX_CPUS:
        raise BadOrder(f"{name} needs a CPU number from 0 to {MAX_CPUS - 1}, not {value!r}")
    return value


def pci_device(name: str, value: object) -> PciDevice:
    """The PCI function that an order names; raises BadOrder."""
    try:
        return parse_pci(name, value)
    except BadWorld as error:
        raise BadOrder(str(error)) from None
