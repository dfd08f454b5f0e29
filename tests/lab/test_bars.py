"""BARs that are given from outside, to a device that is only its configuration space."""

from __future__ import annotations

from itertools import pairwise

import pytest

from upcall_trace.control.orders import BadOrder
from upcall_trace.lab.bars import MEMORY_BASE, MEMORY_SIZE, PORTS_BASE, PORTS_SIZE, assign_bars


class Device:
    """One function behind the ports of configuration cycles; `bars` are sizes and kinds.

    A kind is what the lowest bits of a BAR hold: 1 for ports, 4 for the lower half of a wide one.
    """

    def __init__(self, slot: int, bars: dict[int, tuple[int, int]], deaf: bool = False) -> None:
        self._mine = 1 << 31 | slot << 11
        self._bars = bars
        self._deaf = deaf
        self._address = 0x80001234
        self.held: dict[int, int] = {}

    def write_port(self, port: int, number: int) -> None:
        if port == 0xCF8:
            self._address = number
        elif self._address & ~0xFF == self._mine and not self._deaf:
            register = self._address & 0xFF
            self.held[register] = number
            if register in self._bars:
                size, kind = self._bars[register]
                self.held[register] = number & ~(size - 1) & 0xFFFFFFFF | kind
            elif 0x10 <= register < 0x28:
                wide = self._bars.get(register - 4, (0, 0))[1] & 0b101 == 4
                self.held[register] = number if wide else 0

    def read_port(self, port: int) -> int:
        assert port == 0xCFC
        if self._address & ~0xFF != self._mine:
            return 0xFFFFFFFF
        return self.held.get(self._address & 0xFF, 0)


VIRTIO_BLK = {0x10: (0x80, 1), 0x14: (0x1000, 0), 0x20: (0x4000, 0xC)}


@pytest.mark.parametrize("slot", [0, 9, 31])
def test_every_bar_lies_in_its_slots_range_and_on_its_own_boundary(slot: int) -> None:
    device = Device(slot, VIRTIO_BLK)
    memory, ports = MEMORY_BASE + slot * MEMORY_SIZE, PORTS_BASE + slot * PORTS_SIZE
    assert assign_bars(device, slot) == [ports, memory, memory + 0x4000]
    assert device.held[0x10] == ports | 1
    assert device.held[0x20] == memory + 0x4000 | 0xC
    assert device.held[0x24] == 0  # the upper half of a wide one
    assert device.held[0x04] == 0b111


def test_no_range_overlaps_another() -> None:
    bars = {0x10: (0x40, 1), 0x14: (0x20, 1), 0x18: (0x1000, 0), 0x1C: (0x8000, 0), 0x20: (0x10, 8)}
    device = Device(3, bars)
    placed = sorted(zip(assign_bars(device, 3), (size for size, _ in bars.values()), strict=True))
    assert all(base % size == 0 for base, size in placed)
    assert all(a + size <= b for (a, size), (b, _) in pairwise(placed))


def test_a_device_without_bars_only_decodes() -> None:
    device = Device(4, {})
    assert assign_bars(device, 4) == []
    assert device.held[0x04] == 0b111


def test_a_slot_that_does_not_keep_what_it_is_given_is_told() -> None:
    with pytest.raises(BadOrder, match="slot 7 does not keep"):
        assign_bars(Device(7, VIRTIO_BLK, deaf=True), 7)
