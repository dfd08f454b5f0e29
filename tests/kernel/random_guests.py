"""Random worlds and requests, close enough to each other to get in each other's way."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from dissectors.constants import MESSAGE_SIZE, Arch, MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request
from upcall_trace.kernel.world import SERIES, PciDevice, Window, World

_BASE = 0xE0000000
_STEP = 0x1000
_IDS = range(12)
_IRQS = (0, 5, 5, 5, 6, 7, 8, 32, 40, 1 << 31)
_SIZES = (0, 1, 2, _STEP - 1, _STEP, _STEP, _STEP, _STEP + 1, 2 * _STEP, (1 << 64) - 1)


def world(rng: Random) -> World:
    """A guest with few of everything; its boot-time windows are side by side."""
    arch = rng.choice(list(Arch))
    nr_cpu_ids = rng.randint(1, 8)
    others = [*(range(1, nr_cpu_ids) if arch is Arch.AARCH64 else _IDS[1:])]
    rng.shuffle(others)
    online = (0, *others[: rng.randrange(nr_cpu_ids)])
    slots = [n for n in range(8) if rng.random() < 0.3]
    return World(
        kernel=rng.choice(SERIES),
        arch=arch,
        nr_cpu_ids=nr_cpu_ids,
        cpus_online=online,
        boot_table=tuple(cpu for cpu in _IDS if cpu in online or rng.random() < 0.5),
        vcpus_running=tuple(cpu for cpu in _IDS if rng.random() < 0.8),
        mmio=tuple(
            Window(
                _BASE + n * _STEP,
                rng.choice((1, _STEP)),
                5 + rng.choice((0, n)),
                rng.choice(("", "", "", "", "vsock")),
            )
            for n in slots
        ),
        mmio_hidden=tuple(
            Window(_BASE + n * _STEP, _STEP, 5 + n, "blk", rng.choice((0, 0, 3000)))
            for n in range(8)
            if n not in slots and rng.random() < 0.3
        ),
        pci=tuple(
            PciDevice(0, slot, function, rng.choice(("", "", "", "vsock")), rng.choice((0, 0, 500)))
            for slot in range(3)
            for function in rng.choice(((0,), (1,), (0, 1), (0, 1, 3)))
        ),
        pci_buses=(1,),
        iomem=tuple(
            (_BASE + n * _STEP - rng.randrange(2), _BASE + n * _STEP + rng.choice((0, _STEP, 9)))
            for n in range(8)
            if rng.random() < 0.2
        ),
        phys_bits=rng.choice((32, 40, 52)),
        max_irq=rng.choice((7, 987)),
        needs_boot_mmio=rng.random() < 0.1,
    )


def request(rng: Random) -> Request:
    """One that a guest understands, though it may not like it."""
    msg_type = rng.choice(list(MessageType))
    match msg_type:
        case MessageType.ADD_CPU | MessageType.DEL_CPU:
            if rng.random() < 0.3:
                return cpu_request(msg_type, rng.choice((0, 1, 1, 2, 3, 255)))
            ids = [rng.choice(_IDS) for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 12)))]
            if rng.random() < 0.7:
                ids.sort(reverse=rng.random() < 0.5)
            return cpu_request(msg_type, ids)
        case MessageType.ADD_MMIO | MessageType.DEL_MMIO:
            base = _BASE + rng.randrange(8) * _STEP + rng.choice((0, 0, 0, 0, -1, 1))
            if rng.random() < 0.05:
                base = rng.choice((0, (1 << 64) - _STEP, (1 << 64) - 1))
            return mmio_request(msg_type, base, rng.choice(_SIZES), rng.choice(_IRQS))
        case MessageType.ADD_PCI | MessageType.DEL_PCI:
            return pci_request(
                msg_type, rng.choice((0, 0, 1, 9)), rng.randrange(4), rng.randrange(2)
            )
        case _:
            return bare_request(rng.choice((msg_type, 9, 77, 0xFFFFFFFF)))


def send(rng: Random) -> bytes:
    """What a client might write at once: a request, a damaged one, part of one, more than one."""
    raw = request(rng).encode()
    match rng.randrange(12):
        case 0:
            damaged = replace(request(rng), magic_version=rng.choice((0, 0x444D0200, 0x444D01FF)))
            return damaged.encode()
        case 1:
            return replace(request(rng), msg_size=rng.choice((0, 1, 23, 258))).encode()
        case 2:
            return raw[: rng.choice((1, 4, 12, 16, 18, 20, 500, MESSAGE_SIZE - 1))]
        case 3:
            return raw[rng.choice((1, 4, 16, 500, MESSAGE_SIZE - 1)) :]
        case 4:
            return raw + request(rng).encode()[: rng.choice((476, MESSAGE_SIZE))]
        case 5:
            return rng.randbytes(rng.choice((1, 16, MESSAGE_SIZE)))
        case _:
            return raw
