"""Tables about the simulated guest, made by asking it: answers, faults, orders, keys of a world.

`tools.generate_docs` names them in its table of blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from dissectors.constants import MESSAGE_SIZE, RET_OFFSET, Arch, MessageType, errno_name
from dissectors.messages import (
    CpuReplyX86,
    Request,
    bare_request,
    cpu_request,
    decode_reply,
    mmio_request,
    pci_request,
)
from upcall_trace.control.orders import BadOrder
from upcall_trace.kernel.faults import ACTIONS, CONDITIONS
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.outcome import Fate, Outcome
from upcall_trace.kernel.world import PciDevice, Window, World, kata_pod
from upcall_trace.simulated.machine import Machine

from .markdown import code, fenced, table

# What the model answers.

_VSOCK: Final = Window(0xE0000000, 0x2000, 5, "vsock")
_DISK: Final = Window(0xE0002000, 0x2000, 6, "blk")
_HIDDEN: Final = Window(0xE0008000, 0x2000, 7, "blk")
_RAM_END: Final = 0xBFFFFFFF
WORLD: Final = World(
    nr_cpu_ids=8,
    cpus_online=(0, 1, 2, 3),
    boot_table=tuple(range(8)),
    vcpus_running=tuple(range(16)),
    mmio=(_VSOCK, _DISK),
    mmio_hidden=(_HIDDEN,),
    pci=(PciDevice(0, 0), PciDevice(0, 1), PciDevice(0, 1, 1), PciDevice(0, 4)),
    iomem=((0x100000, _RAM_END),),
)
"""The guest of docs/kernel-model.md, in all its kernels."""
COLUMNS: Final = {
    "x86-64, 5.10": (Arch.X86_64, ("5.10",)),
    "x86-64, 6.1": (Arch.X86_64, ("6.1",)),
    "x86-64, 6.12 and 6.18": (Arch.X86_64, ("6.12", "6.18")),
    "aarch64": (Arch.AARCH64, ("5.10", "6.1", "6.12", "6.18")),
}
_FATES: Final = {
    Fate.THREAD_DIED: "silence, the thread dies",
    Fate.HANGS: "silence, it hangs",
    Fate.CUT_OFF: "silence, the channel is gone",
}
_ADD_CPU, _DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU


@dataclass(frozen=True, slots=True)
class Other:
    """A request that another connection sends."""

    request: Request


@dataclass(frozen=True, slots=True)
class Happens:
    """Something that is no request: the VMM's doing, or the guest's own."""

    doing: Callable[[Guest], None]


Step = Request | bytes | Other | Happens


@dataclass(frozen=True, slots=True)
class Situation:
    """What is sent on a fresh connection; the answer to the last of it fills the cells.

    An architecture without steps gets no answer. `changes` are made to the world before boot.
    """

    text: str
    x86: Sequence[Step] = ()
    arm: Sequence[Step] = ()
    changes: dict[str, Any] = field(default_factory=dict)


def _both(text: str, *steps: Step, **changes: Any) -> Situation:
    return Situation(text, steps, steps, changes)


def _add(*ids: int) -> Request:
    return cpu_request(_ADD_CPU, list(ids))


def _del(*ids: int) -> Request:
    return cpu_request(_DEL_CPU, list(ids))


def _add_n(count: int) -> Request:
    return cpu_request(_ADD_CPU, count)


def _del_n(count: int) -> Request:
    return cpu_request(_DEL_CPU, count)


def _plug(base: int, size: int = 0x2000, irq: int = 5) -> Request:
    return mmio_request(MessageType.ADD_MMIO, base, size, irq)


def _unplug(base: int, size: int = 0x2000, irq: int = 5) -> Request:
    return mmio_request(MessageType.DEL_MMIO, base, size, irq)


def _scan(slot: int, bus: int = 0, function: int = 0) -> Request:
    return pci_request(MessageType.ADD_PCI, bus, slot, function)


def _remove(slot: int, bus: int = 0, function: int = 0) -> Request:
    return pci_request(MessageType.DEL_PCI, bus, slot, function)


def _bad_magic(request: Request) -> Request:
    return replace(request, magic_version=0x444D0200)


_FREE: Final = 0xE0004000
_ADD_DISK: Final = _plug(_DISK.base, _DISK.size, _DISK.irq)
_DEL_DISK: Final = _unplug(_DISK.base, _DISK.size, _DISK.irq)
_ADD_MEM: Final = bare_request(MessageType.ADD_MEM)
_FEW_RUN: Final = {"vcpus_running": tuple(range(5))}
_WRONG: Final = _plug(_HIDDEN.base, irq=9)


def _probing(guest: Guest) -> None:
    guest.cpus.forbidden = True


_PROBED: Final = Happens(_probing)
_OFF: Final = Happens(lambda guest: guest.switch_cpu(3, on=False))
_STARTED: Final = Happens(lambda guest: guest.start_vcpu(5))

CPUS: Final = (
    Situation("ADD_CPU of one that is off", [_add(4)], [_add_n(1)]),
    Situation("ADD_CPU of two", [_add(4, 5)], [_add_n(2)]),
    Situation("ADD_CPU with an empty list, or a count of 0", [_add()], [_add_n(0)]),
    Situation("ADD_CPU of one that is on", [_add(2)]),
    Situation("ADD_CPU of 4 and 2, where 2 is on", [_add(4, 2)]),
    Situation(
        "ADD_CPU of a vCPU that the VMM does not run; the answer takes 10 s",
        [_add(5)],
        [_add_n(1), _add_n(1)],
        _FEW_RUN,
    ),
    Situation(
        "ADD_CPU of two, where the VMM runs only the first", [_add(4, 5)], [_add_n(2)], _FEW_RUN
    ),
    Situation(
        "the same vCPU again, once the VMM runs it",
        [_add(5), _STARTED, _add(5)],
        [_add_n(1), _add_n(1), _STARTED, _add_n(1)],
        _FEW_RUN,
    ),
    Situation("ADD_CPU of an id that is not in the firmware's table", [_add(9)]),
    Situation("ADD_CPU of five, where four fit", [_add(4, 5, 6, 7, 8)], [_add_n(5)]),
    Situation("ADD_CPU of 4 twice in one list", [_add(4, 4)]),
    Situation("ADD_CPU of 4 twice in one list, then DEL_CPU of 4", [_add(4, 4), _del(4)]),
    Situation("ADD_CPU of 255", [_add(255)]),
    Situation(
        "ADD_CPU while the driver of a PCI device starts", [_PROBED, _add(4)], [_PROBED, _add_n(1)]
    ),
    Situation("DEL_CPU of the last one", [_del(3)], [_del_n(1)]),
    Situation("DEL_CPU of 3, 2, 1, or of three", [_del(3, 2, 1)], [_del_n(3)]),
    Situation("DEL_CPU of 1, 2, 3", [_del(1, 2, 3)]),
    Situation("DEL_CPU of 1, then DEL_CPU of 3", [_del(1), _del(3)]),
    Situation("DEL_CPU of 1, then ADD_CPU of 3, which is on", [_del(1), _add(3)]),
    Situation("DEL_CPU of all", [_del(0, 1, 2, 3)], [_del_n(4)]),
    Situation("DEL_CPU of 3 and the boot CPU", [_del(3, 0)]),
    Situation("DEL_CPU of an id that was never added", [_del(9)]),
    Situation("DEL_CPU of 3 twice in one list", [_del(3, 3)]),
    Situation("DEL_CPU of one that the guest itself has set off", [_OFF, _del(3)]),
    Situation("and ADD_CPU of it after that", [_OFF, _del(3), _add(3)]),
    Situation(
        "DEL_CPU while the driver of a PCI device starts", [_PROBED, _del(3)], [_PROBED, _del_n(1)]
    ),
    Situation("DEL_CPU with an empty list, or a count of 0", [_del()], [_del_n(0)]),
)
MMIO: Final = (
    _both("ADD_MMIO of a free window, IRQ 5", _plug(_FREE)),
    _both("ADD_MMIO of a window in RAM", _plug(0x200000)),
    _both("ADD_MMIO of the disk's window", _ADD_DISK),
    _both("ADD_MMIO of a window that overlaps the disk's", _plug(_DISK.base + 0x1000)),
    _both("ADD_MMIO with the IRQ of the disk", _plug(_FREE, irq=6)),
    _both("ADD_MMIO of two windows that share IRQ 5", _plug(_FREE), _plug(_FREE + 0x2000)),
    _both(
        "ADD_MMIO of two windows that share IRQ 32", _plug(_FREE, irq=32),
        _plug(_FREE + 0x2000, irq=32),
    ),
    _both("ADD_MMIO that has one byte in common with the disk's", _plug(_DISK.end)),
    _both("ADD_MMIO of a window across the end of RAM", _plug(_RAM_END - 0xFFF)),
    _both("ADD_MMIO with `mmio_size` 0", _plug(_FREE, 0)),
    _both("ADD_MMIO of a window beyond 2^64", _plug((1 << 64) - 0x1000)),
    _both("ADD_MMIO of a window up to 2^64", _plug((1 << 64) - 0x2000)),
    _both("ADD_MMIO of a window that the CPU cannot address", _plug(1 << 52)),
    _both("ADD_MMIO of the hidden disk", _plug(_HIDDEN.base, irq=_HIDDEN.irq)),
    _both("ADD_MMIO of the hidden disk with IRQ 9", _WRONG),
    _both("and once more on another connection", Other(_WRONG), _WRONG),
    _both("ADD_MMIO of the hidden disk with IRQ 5, which the channel has", _plug(_HIDDEN.base)),
    _both("the bare header of an ADD_MMIO, as the first request", _plug(0).encode()[:16], mmio=()),
    _both("ADD_MMIO with IRQ 0", _plug(_FREE, irq=0)),
    _both("ADD_MMIO with IRQ 2000", _plug(_FREE, irq=2000)),
    _both("ADD_MMIO with `msg_size` 20", replace(_plug(_FREE), msg_size=20)),
    _both("ADD_MMIO, where the kernel needs a boot-time device and has none", _plug(_FREE),
          mmio=(), needs_boot_mmio=True),
    _both("DEL_MMIO, where it has none", _unplug(_FREE), mmio=(), needs_boot_mmio=True),
    _both("DEL_MMIO of the disk", _DEL_DISK),
    _both("DEL_MMIO of the disk, with another IRQ", _unplug(_DISK.base)),
    _both("DEL_MMIO of the disk twice", _DEL_DISK, _DEL_DISK),
    _both("DEL_MMIO of the channel's own device", _unplug(_VSOCK.base)),
)  # fmt: skip
PCI: Final = (
    _both("ADD_PCI of a slot with a device", _scan(4)),
    _both("ADD_PCI of the same slot twice", _scan(4), _scan(4)),
    _both("ADD_PCI of an empty slot", _scan(9)),
    _both("DEL_PCI of 1.1, then ADD_PCI of 1.0, then DEL_PCI of 1.1 again", _remove(1, function=1),
          _scan(1), _remove(1, function=1)),
    _both("ADD_PCI on a bus that does not exist", _scan(4, bus=9)),
    _both("DEL_PCI of a device", _remove(4)),
    _both("DEL_PCI of a device twice", _remove(4), _remove(4)),
    _both("ADD_PCI that fails, then ADD_PCI that works", _scan(9), _scan(4)),
    _both("ADD_PCI that fails, ADD_MMIO that works, ADD_PCI that works", _scan(9), _plug(_FREE),
          _scan(4)),
)  # fmt: skip
BUFFERS: Final = (
    _both("ADD_MEM or DEL_MEM", _ADD_MEM),
    _both("type 77", bare_request(77)),
    _both("CONNECT", bare_request(MessageType.CONNECT)),
    _both("a wrong magic, as the first request", _bad_magic(_plug(_FREE))),
    _both("a wrong magic after an error", _scan(9), _bad_magic(_plug(_FREE))),
    Situation(
        "a wrong magic after ADD_CPU of one",
        [_add(4), _bad_magic(_plug(_FREE))],
        [_add_n(1), _bad_magic(_plug(_FREE))],
    ),
    Situation("ADD_MEM after ADD_CPU of one", [_add(4), _ADD_MEM], [_add_n(1), _ADD_MEM]),
    Situation("DEL_CPU of all after ADD_CPU of one", [_add(4), _del(*range(5))],
              [_add_n(1), _del_n(5)]),
    _both("500 bytes of ADD_MMIO", _plug(_FREE).encode()[:500]),
    _both("and the other 524", _plug(_FREE).encode()[:500], _plug(_FREE).encode()[500:]),
    _both("the header of an ADD_MMIO, after ADD_MMIO of that window", _plug(_FREE),
          _plug(_FREE).encode()[:16]),
    _both("1500 bytes: ADD_MEM and 476 zeros", _ADD_MEM.encode() + bytes(476)),
)  # fmt: skip
_STUCK_X86: Final = Other(_del(3, 3))
_STUCK_ARM: Final = Other(_add_n(5))


def _stuck(text: str, x86: Step, arm: Step | None = None) -> Situation:
    """After another connection's thread has died with the lock."""
    return Situation(text, [_STUCK_X86, x86], [_STUCK_ARM, arm] if arm else ())


LOCK: Final = (
    _stuck("ADD_CPU of one that is off", _add(4), _add_n(1)),
    _stuck("ADD_CPU of one that is on", _add(0)),
    _stuck("DEL_CPU of one", _del(2), _del_n(1)),
    _stuck("DEL_CPU of the boot CPU first", _del(0, 2)),
    _stuck("DEL_CPU of all", _del(*range(8)), _del_n(8)),
    _stuck("ADD_CPU with an empty list, or a count of 0", _add(), _add_n(0)),
    _stuck("DEL_CPU with an empty list, or a count of 0", _del(), _del_n(0)),
    _stuck("ADD_MMIO of a free window", _plug(_FREE), _plug(_FREE)),
    _stuck("ADD_MMIO of the disk's window", _ADD_DISK, _ADD_DISK),
    _stuck("ADD_MMIO with the IRQ of the disk", _plug(_FREE, irq=6), _plug(_FREE, irq=6)),
    _stuck("ADD_MMIO with `mmio_size` 0", _plug(_FREE, 0), _plug(_FREE, 0)),
    _stuck(
        "ADD_MMIO with `msg_size` 20",
        replace(_plug(_FREE), msg_size=20),
        replace(_plug(_FREE), msg_size=20),
    ),
    _stuck("DEL_MMIO of the disk", _DEL_DISK, _DEL_DISK),
    _stuck("DEL_MMIO of a device that is not there", _unplug(_FREE), _unplug(_FREE)),
    _stuck("ADD_PCI of a slot with a device", _scan(4), _scan(4)),
    _stuck("ADD_MEM", _ADD_MEM, _ADD_MEM),
    _stuck("a wrong magic", _bad_magic(_plug(_FREE)), _bad_magic(_plug(_FREE))),
)


def answers(situations: Sequence[Situation]) -> str:
    """A table of situations; the cells are what the model answers, and why."""
    rows = [
        (one.text, *(_cell(one, arch, series) for arch, series in COLUMNS.values()))
        for one in situations
    ]
    return table(("situation", *COLUMNS), rows)


def _cell(situation: Situation, arch: Arch, series: Sequence[str]) -> str:
    """One answer for all kernels of a column, which must agree."""
    steps = situation.arm if arch is Arch.AARCH64 else situation.x86
    if not steps:
        return "-"
    (text,) = {
        _said(_last(steps, replace(WORLD, arch=arch, kernel=kernel, **situation.changes)))
        for kernel in series
    }
    return text


def _last(steps: Sequence[Step], world: World) -> Outcome:
    """What comes of the last step."""
    guest = Guest(world)
    connection = guest.connect()
    outcome: Outcome | None = None
    for step in steps:
        match step:
            case Other():
                guest.connect().receive(step.request.encode())
            case Happens():
                step.doing(guest)
            case _:
                outcome = _send(connection, step if isinstance(step, bytes) else step.encode())
    assert outcome is not None
    return outcome


def _send(connection: ServiceThread, sent: bytes) -> Outcome:
    """What comes of the last receive of a send."""
    pieces = [sent[at : at + MESSAGE_SIZE] for at in range(0, len(sent), MESSAGE_SIZE)]
    return [connection.receive(piece) for piece in pieces][-1]


def _said(outcome: Outcome) -> str:
    """`-22 EINVAL (UP202)`, `0, load 2`, `silence, it hangs (UP603)`."""
    if outcome.reply is None:
        text = _FATES[outcome.fate]
    else:
        reply = decode_reply(outcome.reply)
        text = f"{reply.ret} {errno_name(reply.ret) or ''}".strip()
        load = int.from_bytes(outcome.reply[RET_OFFSET + 4 : RET_OFFSET + 8], "little")
        if load or isinstance(reply, CpuReplyX86):
            text += f", load {load}"
    return f"{text} ({', '.join(outcome.causes)})" if outcome.causes else text


def kernel_cpus() -> str:
    """What CPU requests are answered."""
    return answers(CPUS)


def kernel_mmio() -> str:
    """What MMIO requests are answered."""
    return answers(MMIO)


def kernel_pci() -> str:
    """What PCI requests are answered."""
    return answers(PCI)


def kernel_buffers() -> str:
    """What comes of buffers that are never cleared."""
    return answers(BUFFERS)


def kernel_lock() -> str:
    """What is answered while the lock is lost."""
    return answers(LOCK)


# Faults.


def fault_actions() -> str:
    """What a faulty guest can do."""
    shown = {"ret": "ret=NUMBER", "delay": "delay=TIME", "split": "split=BYTES"}
    rows = [(code(shown.get(name, name)), meaning) for name, meaning in ACTIONS.items()]
    return table(("action", "what happens"), rows)


def fault_conditions() -> str:
    """When it does so."""
    shown = {"when": "when=OCCASIONS", "chance": "chance=NUMBER"}
    rows = [(code(shown[name]), meaning) for name, meaning in CONDITIONS.items()]
    return table(("condition", "when the action strikes"), rows)


# The control socket.

_ORDERS: Final[tuple[tuple[object, str], ...]] = (
    ({"start_vcpu": 1}, "The VMM runs vCPU 1 from now on, so that it can come up"),
    ({"plug_pci": {"bus": 0, "slot": 9}}, "Something answers at this slot"),
    ({"unplug_pci": {"bus": 0, "slot": 9}}, "Nothing answers there any more"),
    ({"offline_cpu": 3}, "The guest sets its CPU number 3 off by itself, by way of sysfs"),
    ({"online_cpu": 3}, "The guest sets it on again"),
    ({"reset": True}, "Boot anew: connections end, the world is as at the start"),
    ({"state": True}, "CPUs, devices and locks, below"),
)
_BAD_ORDERS: Final = ({"start_vcpu": 300}, {"stop": True})


def control_orders() -> str:
    """The orders of the control socket."""
    rows = [(code(json.dumps(order)), meaning) for order, meaning in _ORDERS]
    return table(("order", "what it does"), rows)


def control_example() -> str:
    """A conversation on the control socket."""
    machine = Machine(kata_pod())
    lines = []
    for order in (*(order for order, _ in _ORDERS[:2]), *_BAD_ORDERS):
        try:
            answer = machine.control(order)
        except BadOrder as error:
            answer = {"ok": False, "error": str(error)}
        lines += [f"> {json.dumps(order)}", f"< {json.dumps(answer)}"]
    return fenced("\n".join(lines))


def control_state() -> str:
    """What `state` answers, a line for each key."""
    world = World(cpus_online=(0,), mmio=(_VSOCK,), pci=(PciDevice(0, 4),))
    state = Machine(world).control({"state": True})["state"]
    keys = (f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in state.items())
    return fenced('{\n  "ok": true,\n  "state": {\n' + ",\n".join(keys) + "\n  }\n}", "json")


# Worlds.

KEYS: Final = {
    "kernel": ("text", "series of the guest's kernel: `5.10`, `6.1`, `6.12` or `6.18`"),
    "arch": ("text", "`x86_64` or `aarch64`"),
    "nr_cpu_ids": ("number", "CPU numbers that the kernel has room for, at most 8192"),
    "cpus_online": ("numbers", "CPUs that are on, boot CPU first: APIC ids; on aarch64 numbers"),
    "boot_table": ("numbers", "APIC ids of the firmware's table; 6.12 and 6.18 accept no others"),
    "vcpus_running": ("numbers", "vCPUs that the VMM runs: only they can come up"),
    "mmio": ("tables", "virtio-mmio devices of the boot"),
    "mmio_hidden": ("tables", "disks that work and that the guest does not know at boot; below"),
    "pci": ("tables", "PCI functions that answer"),
    "pci_buses": ("numbers", "buses that exist beside those in `pci`"),
    "iomem": ("tables", "ranges of addresses that something else has claimed, such as RAM"),
    "phys_bits": ("number", "address bits of the CPU, 32 to 52; x86-64 only"),
    "max_irq": ("number", "the highest SPI that the interrupt controller maps; aarch64 only"),
    "needs_boot_mmio": ("true or false", "the kernel dies of every window if `mmio` is empty"),
}
_DEFAULTS: Final = {
    "boot_table": "`cpus_online`",
    "vcpus_running": "`cpus_online`",
    "mmio_hidden": "none; below",
}
"""What is taken for a key that follows another one."""
DEVICE_KEYS: Final = (
    ("mmio", Window, {
        "base": "address of the first byte",
        "size": "bytes",
        "irq": "interrupt; an SPI number on aarch64",
        "role": "what is behind it; `vsock` is the channel's own device, `blk` a disk",
        "probe_ms": "milliseconds that a disk's driver takes to start, as its first read is slow",
    }),
    ("pci", PciDevice, {
        "bus": "0 to 255",
        "slot": "0 to 31",
        "function": "0 to 7; 0 without it",
        "role": "as above",
        "probe_ms": "as above, for any device",
    }),
)  # fmt: skip


def world_keys() -> str:
    """Every key of a world, and what is taken without it."""
    plain = World()
    rows = []
    for one in fields(World):
        kind, meaning = KEYS[one.name]
        default = _DEFAULTS.get(one.name) or _shown(getattr(plain, one.name))
        rows.append((code(one.name), kind, default, meaning))
    return table(("key", "value", "without it", "meaning"), rows)


def _shown(value: object) -> str:
    match value:
        case tuple():
            return code(list(value)) if value else "none"
        case Arch():
            return code(value.value)
        case bool():
            return code(str(value).lower())
    return code(value)


def world_tables() -> str:
    """Every key of the tables in a world."""
    rows = [
        (code(table_name), code(one.name), meanings[one.name])
        for table_name, kind, meanings in DEVICE_KEYS
        for one in fields(kind)
    ]
    rows += [
        (code("iomem"), code("base"), "address of the first byte"),
        (code("iomem"), code("size"), "bytes"),
    ]
    return table(("in", "key", "meaning"), rows)


def kata_pods() -> str:
    """The devices of the default pods."""
    rows = [
        (arch.value, window.role, f"{window.base:#x}", f"{window.size:#x}", window.irq)
        for arch in Arch
        for window in kata_pod(arch).mmio
    ]
    return table(("architecture", "device", "base", "size", "IRQ"), rows)
