"""UP307 and UP404: devices that are plugged, and whose drivers fail. docs/protocol.md section 4."""

from __future__ import annotations

from ... import codes
from ..finding import Told
from ..situation import Situation
from .registry import rule
from .wording import console_lines, quote


def _driver_failed(at: Situation, verb: str, meaning: str, use: str, advice: str) -> Told:
    lines = console_lines(at)
    said = f": the console has {quote(lines)}" if lines else ", as the guest's console shows"
    return Told(
        what=f"The guest {verb} the device of {at.op}, but its driver failed.",
        why=f"The reply only means that {meaning}; the driver gave up later{said}.",
        so=f"Dragonball believes the device is plugged; the user finds {use}.",
        next=advice,
        evidence=lines,
    )


@rule(codes.MMIO_DRIVER_FAILED)
def mmio_driver_failed(at: Situation) -> Told:
    """The device is registered, but its driver does not work.

    **What it says.** ADD_MMIO succeeded, which means that the window is registered. Then the virtio
    driver looked at the registers and gave up.

    **Why it matters.** To the VMM this is a success in every way. The user finds a missing disk or
    interface, and no error anywhere but in the guest's console.

    **On the wire.** Nothing: reply type 5 with ret 0.

    **Example.** `mmio_lifecycle`, request 1.5: nothing is behind 0xd0000000, and the console says
    `Wrong magic value 0x00000000!`.

    **Limits.** It needs the guest's console. A driver that fails without printing is not found.

    **What to do.** Compare the address with the one at which the VMM created the device. A wrong
    magic value means that no virtio device answers there.
    """
    return _driver_failed(
        at,
        "registered",
        "the window is registered",
        "none that can be used",
        "Compare the address with the one that the VMM gave to a virtio device.",
    )


@rule(codes.PCI_DRIVER_FAILED)
def pci_driver_failed(at: Situation) -> Told:
    """The device was found, but its driver does not work.

    **What it says.** ADD_PCI found and scanned the device. Its driver then failed, for instance
    because the kernel could not give the device its BARs (the address ranges of its registers).

    **Why it matters.** To the VMM this is a success in every way. The user finds a device that is
    listed in the guest and cannot be used.

    **On the wire.** Nothing: reply type 7 with ret 0, or with an errno left over from before.

    **Example.** No recording has it.

    **Limits.** It needs the guest's console. A driver that fails without printing is not found.

    **What to do.** Read the console's lines on this device. If BARs are not assigned, look at the
    address ranges that the VMM gives to the PCI bus.
    """
    return _driver_failed(
        at,
        "found",
        "the slot was scanned",
        "one that cannot be used",
        "Read the console's lines on this device, above all whether its BARs were assigned.",
    )
