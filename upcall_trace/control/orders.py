"""Orders for the VMM's side, such as `{"start_vcpu": 1}`.

The simulated guest and the lab take the same orders, so that a replay can give them to either.
How a capture tells what was done is in `kernel/vmm_actions.py`. docs/guest.md.
"""

from __future__ import annotations

from typing import Any

from ..errors import UpcallError
from ..kernel.world import MAX_CPUS, BadWorld, PciDevice, parse_pci


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
