"""What the VMM did, in a capture's words, and done again to a modelled guest."""

from __future__ import annotations

import pytest

from upcall_trace.kernel.model import Guest
from upcall_trace.kernel.vmm_actions import carry_out, order_of, words_of
from upcall_trace.kernel.world import PciDevice, World


@pytest.mark.parametrize(
    "order",
    [
        {"start_vcpu": 3},
        {"plug_pci": {"bus": 0, "slot": 9}},
        {"unplug_pci": {"bus": 0, "slot": 9}},
        {"resize_memory": 256 << 20},
        {"resize_memory": 0},
    ],
)
def test_what_a_capture_says_of_an_order_is_that_order_again(order: dict[str, object]) -> None:
    words = words_of(order)
    assert words is not None
    assert order_of(words) == order


def test_what_changes_nothing_has_no_words() -> None:
    assert words_of({"state": True}) is None
    assert words_of({"reset": True}) is None


def test_a_guest_sees_what_the_vmm_plugs_and_starts() -> None:
    guest = Guest(World(nr_cpu_ids=4))
    carry_out(guest, "vCPU 2 created")
    carry_out(guest, "PCI device 0:9 plugged")
    assert 2 in guest.running
    assert PciDevice(0, 9) in guest.plugged
    carry_out(guest, "PCI device 0:9 unplugged")
    assert PciDevice(0, 9) not in guest.plugged


@pytest.mark.parametrize("action", ["", "vCPU created", "PCI device 0:9 looked at", "tea made"])
def test_what_nobody_understands_changes_nothing(action: str) -> None:
    guest = Guest(World())
    before = guest.state()
    carry_out(guest, action)
    assert guest.state() == before
