"""Giving a PCI device its BARs from outside, as a VMM does for a guest that assigns none.

Kata's driver claims the BARs that a hot-plugged device has, and assigns none. QEMU leaves that to
the guest, so the lab does it: by configuration cycles through the ports 0xcf8 and 0xcfc.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from ..control.orders import BadOrder

_ADDRESS: Final = 0xCF8
_DATA: Final = 0xCFC
_ENABLE: Final = 1 << 31
_COMMAND: Final = 0x04
_DECODE: Final = 0b111
"""Ports, memory, and the device's own access to memory."""
_FIRST_BAR: Final = 0x10
_BARS: Final = 6
_TRIES: Final = 3
_ONES: Final = 0xFFFFFFFF
_PORTS: Final = 1
_WIDE: Final = 0b100
MEMORY_BASE: Final = 0xD0000000
MEMORY_SIZE: Final = 1 << 20
"""Of each slot, in the hole below 4 GiB, where the firmware has put nothing."""
PORTS_BASE: Final = 0x2000
PORTS_SIZE: Final = 0x100


class Ports(Protocol):
    """What is needed of QEMU's monitor."""

    def read_port(self, port: int) -> int: ...

    def write_port(self, port: int, number: int) -> None: ...


def assign_bars(machine: Ports, slot: int) -> list[int]:
    """Place every BAR of function 0 in a slot of bus 0, and have it decoded; where they are.

    The machine goes on meanwhile: to stop it would cut the vsock backend off. A guest that is
    asked for nothing does not look at its PCI bus. Raises BadOrder when it did all the same.
    """
    space = _Space(machine, slot)
    for _ in range(_TRIES):
        placed = dict(_place(space, slot))
        space[_COMMAND] = _DECODE
        held = {register: space[register] & ~0b1111 for register in placed}
        if held == placed and space[_COMMAND] & _DECODE == _DECODE:
            return list(placed.values())
    raise BadOrder(f"the disk in slot {slot} does not keep the addresses that it is given")


def _place(space: _Space, slot: int) -> Iterator[tuple[int, int]]:
    """Give each BAR an address; the registers, and what they hold then."""
    memory, ports = MEMORY_BASE + slot * MEMORY_SIZE, PORTS_BASE + slot * PORTS_SIZE
    register = _FIRST_BAR
    while register < _FIRST_BAR + 4 * _BARS:
        space[register] = _ONES
        kind = space[register]
        size = _size(kind)
        wide = not kind & _PORTS and bool(kind & _WIDE)
        if size:
            if kind & _PORTS:
                base = _aligned(ports, size)
                ports = base + size
            else:
                base = _aligned(memory, size)
                memory = base + size
            space[register] = base
            if wide:
                space[register + 4] = 0
            yield register, base
        register += 8 if wide else 4


class _Space:
    """A function's configuration space, by 32-bit registers."""

    def __init__(self, machine: Ports, slot: int) -> None:
        self._machine = machine
        self._base = _ENABLE | slot << 11

    def __getitem__(self, register: int) -> int:
        self._machine.write_port(_ADDRESS, self._base | register)
        return self._machine.read_port(_DATA)

    def __setitem__(self, register: int, number: int) -> None:
        self._machine.write_port(_ADDRESS, self._base | register)
        self._machine.write_port(_DATA, number)


def _size(kind: int) -> int:
    """Bytes that a BAR decodes, from what it holds after all ones were written; 0 for none."""
    mask = kind & ~0b11 & 0xFFFF if kind & _PORTS else kind & ~0b1111
    return mask & -mask


def _aligned(address: int, size: int) -> int:
    return -(-address // size) * size
