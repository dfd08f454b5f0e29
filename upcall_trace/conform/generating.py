"""Requests made up for a guest, by a seed: what a VMM asks, and what goes wrong around it. No IO.

The model is asked about each before it is taken: what is dangerous and not allowed is left out, and
what costs time is rationed. docs/conform.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from random import Random
from typing import Final

from dissectors.constants import MESSAGE_SIZE, SHAREABLE_IRQ, Arch, MessageType
from dissectors.messages import (
    MmioRequest,
    Request,
    bare_request,
    cpu_request,
    mmio_request,
    pci_request,
)

from .. import codes
from ..kernel.world import PciDevice, Window, World
from .cases import Ask, Modelled, Step, Tell

CASE_SIZE: Final = 200
"""Requests of one case; a guest is booted for each."""
_SPAN: Final = 1 << 20
_PLACES: Final = (0xD0000000, 0xE8000000, 0xE0100000, 0x6F000000, 0xF0000000)
"""Where nothing is in the machines that are known; the first is taken that a world leaves free."""
_PAGE: Final = 0x1000
_READ: Final = 4
_SLOT: Final = 0x200
_MOST_PIECES: Final = 2
"""That one request is cut into, or made to."""
_SLOW: Final = 1
_SILENT: Final = 3


def generate(
    world: World, seed: int, number: int, size: int, allowed: Collection[str], orders: bool
) -> list[Step]:
    """Case `number` of a seed: about `size` requests, with `orders` for the VMM's side between.

    The same arguments give the same case.
    """
    return _Writer(world, Random(f"{seed}/{number}"), allowed, orders).write(size)  # noqa: S311


def free_range(world: World) -> range:
    """Addresses where a window can be added and nothing is behind it, as far as a world tells."""
    taken = [*world.iomem, *((one.base, one.end) for one in (*world.mmio, *world.mmio_hidden))]
    for base in _PLACES:
        first, last = base - _PAGE, base + _SPAN + _PAGE
        if all(last < begin or first > end for begin, end in taken):
            return range(base, base + _SPAN)
    return range(_PLACES[0], _PLACES[0] + _SPAN)


class _Writer:
    def __init__(self, world: World, rng: Random, allowed: Collection[str], orders: bool) -> None:
        self._world = world
        self._rng = rng
        self._allowed = set(allowed)
        self._orders = orders
        self._free = free_range(world)
        self._modelled = Modelled(world)
        self._steps: list[Step] = []
        self._conn = 1
        self._left = {"slow": _SLOW, "silent": _SILENT}
        taken = {device.slot for device in world.pci if device.bus == 0}
        self._slots = [slot for slot in range(9, 32) if slot not in taken][:3]
        self._plugged: set[int] = set()

    def write(self, size: int) -> list[Step]:
        asked = 0
        for _ in range(size * 20):  # all may be dangerous in a strange world
            if asked >= size:
                break
            if self._orders and self._rng.random() < 0.05:
                self._give_order()
            if self._rng.random() < 0.03:
                self._conn += 1
            request = self._request()
            few = size - asked < _MOST_PIECES
            for raw in [request] if few else self._pieces(request):
                step = Ask(self._conn, raw)
                if not self._take(step):
                    break
                asked += len(step.pieces)
        return self._steps

    def _take(self, step: Ask) -> bool:
        """Add a write unless it is dangerous, or costs time once too often."""
        if self._modelled.is_silent(step.conn):
            self._conn += 1
            step = Ask(self._conn, step.raw)
        tried = self._modelled.copy()
        expected = tried.ask(step)
        cost = {"slow": int(codes.VCPU_NOT_STARTED in expected.causes),
                "silent": int(expected.silent)}  # fmt: skip
        if (
            not self._allowed.issuperset(expected.dangers)
            or codes.CHANNEL_REMOVED in expected.causes
            or any(cost[kind] > self._left[kind] for kind in cost)
            or not all(map(self._is_harmless, expected.requests))
        ):
            return False
        self._left = {kind: self._left[kind] - cost[kind] for kind in cost}
        self._modelled = tried
        self._steps.append(step)
        return True

    def _is_harmless(self, request: Request) -> bool:
        """Whether a window is added only where nothing is, or where its disk is.

        The stock driver reads four bytes at the beginning. Beyond the window's last page nothing
        is mapped, and the thread of any kernel would crash there; the model does not know that.
        """
        if not isinstance(request, MmioRequest) or request.msg_type != MessageType.ADD_MMIO:
            return True
        first, size = request.mmio_base, request.mmio_size
        known = (*self._world.mmio_hidden, *self._world.mmio)
        if any((first, size) == (one.base, one.size) for one in known):
            return True
        last = first + size - 1
        readable = first % _PAGE <= _PAGE - _READ or last // _PAGE > first // _PAGE
        inside = self._free.start - _PAGE <= first <= last + 1 <= self._free.stop
        return inside and readable

    def _pieces(self, request: bytes) -> Iterator[bytes]:
        """As a whole mostly; else short, in two, too long, or twice at once."""
        match self._rng.randrange(20):
            case 0:
                yield request[: self._rng.randrange(16, 64)]
            case 1:
                cut = self._rng.randrange(1, MESSAGE_SIZE)
                yield request[:cut]
                yield request[cut:]
            case 2:
                yield request + self._rng.randbytes(self._rng.randrange(1, 600))
            case 3:
                yield request + request
            case _:
                yield request

    def _request(self) -> bytes:
        make = self._rng.choice((self._cpus, self._mmio, self._mmio, self._pci, self._unknown))
        raw = make().encode()
        if self._rng.random() < 0.07:  # one header field is another
            offset, value = self._rng.choice((0, 4, 12)), self._rng.choice((0, 1, 25, 0xFFFFFFFF))
            raw = raw[:offset] + value.to_bytes(4, "little") + raw[offset + 4 :]
        return raw

    def _cpus(self) -> Request:
        kind = self._rng.choice((MessageType.ADD_CPU, MessageType.DEL_CPU))
        if self._world.arch is Arch.AARCH64:
            return cpu_request(kind, self._rng.choice((0, 1, 1, 1, 2, 3, 255)))
        few = [*self._world.cpus_online[:8], *self._world.vcpus_running[:8], 1, 2, 3, 7, 200]
        ids = self._rng.choices(few, k=self._rng.randrange(5))
        if self._rng.random() < 0.7:
            ids.sort(reverse=kind is MessageType.DEL_CPU)
        return cpu_request(kind, ids)

    def _mmio(self) -> Request:
        rng = self._rng
        kind = rng.choice((MessageType.ADD_MMIO, MessageType.DEL_MMIO))
        known = [window for window in self._modelled.guest.windows if window.role != "vsock"]
        hidden = self._world.mmio_hidden
        if known and rng.random() < 0.5:
            window = rng.choice(known)
            base, size, irq = window.base, window.size, window.irq
            if rng.random() < 0.3:
                base += rng.choice((-size, 1 - size, -1, 1, size - 1, size))
        elif hidden and rng.random() < 0.4:
            base, size, irq = self._disk(rng.choice(hidden))
        else:
            base = self._free.start + rng.randrange(64) * _SLOT
            size = rng.choice((0, 1, _SLOT, 0x1000, 0x2000))
            irq = rng.choice((0, SHAREABLE_IRQ, SHAREABLE_IRQ, SHAREABLE_IRQ, 6, 9, 11, 4000))
        return mmio_request(kind, base % (1 << 64), size, irq)

    def _disk(self, disk: Window) -> tuple[int, int, int]:
        """A hidden disk; where it is allowed, at times with a wrong interrupt."""
        wrong = codes.DRIVER_HANGS in self._allowed and self._rng.random() < 0.1
        return disk.base, disk.size, self._rng.choice((9, 11)) if wrong else disk.irq

    def _pci(self) -> Request:
        kind = self._rng.choice((MessageType.ADD_PCI, MessageType.DEL_PCI))
        slots = [*(device.slot for device in self._world.pci), *self._slots, 20]
        return pci_request(
            kind,
            self._rng.choice((0, 0, 0, 0, 1, 255)),
            self._rng.choice(slots),
            self._rng.choice((0, 0, 0, 1, 7)),
        )

    def _unknown(self) -> Request:
        return bare_request(self._rng.choice((0, 3, 4, 9, 77, 0xFFFFFFFF)))

    def _give_order(self) -> None:
        """A vCPU that the VMM begins to run, or a disk that it plugs or takes back."""
        rng, guest = self._rng, self._modelled.guest
        idle = [cpu for cpu in range(1, guest.world.nr_cpu_ids) if cpu not in guest.running]
        choices: list[Step] = [Tell({"start_vcpu": cpu}) for cpu in idle[:3]]
        if self._world.pci:
            for slot in self._slots:
                place = {"bus": 0, "slot": slot}
                if slot not in self._plugged:
                    choices.append(Tell({"plug_pci": place}))
                elif PciDevice(0, slot) not in guest.pci:  # a kernel still uses the others
                    choices.append(Tell({"unplug_pci": place}))
        if not choices:
            return
        step = rng.choice(choices)
        assert isinstance(step, Tell)
        for name, add in (("plug_pci", True), ("unplug_pci", False)):
            if name in step.order:
                (self._plugged.add if add else self._plugged.discard)(step.order[name]["slot"])
        self._modelled.tell(step.order)
        self._steps.append(step)
