"""A recording moved onto another guest: its windows, interrupts, CPUs and PCI slots written anew.

What a request found in the recorded guest, it shall find in the new one: something free, something
the guest booted with, or nothing. The same value becomes the same value throughout. Whether the
answers then are those of the recording is for the model to say. No IO. docs/replay.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dissectors.constants import (
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENODEV,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    SHAREABLE_IRQ,
    Arch,
)
from dissectors.messages import (
    CpuRequestX86,
    MmioRequest,
    PciRequest,
    Request,
    decode_request,
)

from ..capture.toml_files import BadToml, read_toml
from ..errors import UnreadableInput
from ..kernel.vmm_actions import order_of, pci_plugged, vcpu_created
from ..kernel.world import World
from ..simulated.rehearsal import adds
from ..trace.script import Act, Asked, Script, Send, Step

_PAGE: Final = 0x1000
_U64: Final = 1 << 64
_MMIO_END: Final = 36
_PCI_END: Final = 18
_IDS: Final = 18
_PCI_NAME: Final = re.compile(r"(\d{1,3}):(\d{1,2})(?:\.(\d))?")

Slot = tuple[int, int]
"""PCI bus and devfn."""
Triple = tuple[int, int, int]
"""A window's base, size and interrupt."""


@dataclass(slots=True)
class Rebase:
    """Old value -> new value; what is not in it stays. `windows` go before bases and interrupts."""

    mmio: dict[int, int] = field(default_factory=dict)
    irq: dict[int, int] = field(default_factory=dict)
    apic_id: dict[int, int] = field(default_factory=dict)
    pci: dict[Slot, Slot] = field(default_factory=dict)
    windows: dict[Triple, Triple] = field(default_factory=dict)

    def told(self) -> Iterator[str]:
        """Every change in words."""
        for old, new in self.windows.items():
            yield f"window {_triple(old)} -> {_triple(new)}"
        for (name, form), values in (
            (("MMIO base", "{:#x}"), self.mmio),
            (("IRQ", "{}"), self.irq),
            (("APIC id", "{}"), self.apic_id),
        ):
            for a, b in values.items():
                if a != b:
                    yield f"{name} {form.format(a)} -> {form.format(b)}"
        for slot, to in self.pci.items():
            if slot != to:
                yield f"PCI {_slot(slot)} -> {_slot(to)}"

    def apply(self, script: Script) -> Script:
        """The script with everything written anew; short pieces too small for a field stay."""
        buffers: dict[int, bytes] = {}
        asked = dict(script.asked)
        steps: list[Step] = []
        arch = script.arch
        for step in script.steps:
            if isinstance(step, Act):
                step = replace(step, action=self._action(step.action))
            elif isinstance(step, Send) and step.requests:
                moved = b""
                for request in step.requests:
                    old = asked[step.conn, request]
                    piece = self._moved(old, arch)
                    before = buffers.get(step.conn, bytes(MESSAGE_SIZE))
                    raw = buffers[step.conn] = piece + before[len(piece) :]
                    if isinstance(old.message, Request):
                        old = replace(old, message=decode_request(raw, arch), raw=raw)
                    asked[old.key] = old
                    moved += piece
                step = replace(step, data=moved)
            steps.append(step)
        return replace(script, steps=steps, asked=asked)

    def _moved(self, asked: Asked, arch: Arch) -> bytes:
        message = asked.message
        match message:
            case MmioRequest() if asked.size >= _MMIO_END:
                old = (message.mmio_base, message.mmio_size, message.mmio_irq)
                base, size, irq = self.windows.get(
                    old, (self.mmio.get(old[0], old[0]), old[1], self.irq.get(old[2], old[2]))
                )
                message = replace(message, mmio_base=base, mmio_size=size, mmio_irq=irq)
            case PciRequest() if asked.size >= _PCI_END:
                slot = (message.busno, message.devfn)
                busno, devfn = self.pci.get(slot, slot)
                message = replace(message, busno=busno, devfn=devfn)
            case CpuRequestX86() if asked.size >= _IDS + message.count:
                ids = message.apic_ids[: message.count]
                new = bytes(self.apic_id.get(cpu, cpu) for cpu in ids)
                message = replace(message, apic_ids=new + message.apic_ids[message.count :])
            case _:
                return asked.raw[: asked.size]
        return message.encode()[: asked.size]

    def _action(self, action: str) -> str:
        match order_of(action):
            case {"start_vcpu": int(cpu)}:
                return vcpu_created(self.apic_id.get(cpu, cpu))
            case {"plug_pci": {"bus": bus, "slot": slot}}:
                bus, devfn = self.pci.get((bus, slot << 3), (bus, slot << 3))
                return pci_plugged(bus, devfn >> 3)
            case {"unplug_pci": {"bus": bus, "slot": slot}}:
                bus, devfn = self.pci.get((bus, slot << 3), (bus, slot << 3))
                return pci_plugged(bus, devfn >> 3, gone=True)
        return action


def work_out(script: Script, world: World) -> Rebase:
    """A mapping of the recording's values onto those that are the same for a guest of `world`."""
    rebase = Rebase()
    requests = [asked for asked in script.asked.values() if _counts(asked)]
    _windows(rebase, requests, world)
    if world.arch is Arch.X86_64:
        _cpus(rebase, requests, script, world)
    _slots(rebase, requests, script, world)
    return rebase


def _counts(asked: Asked) -> bool:
    message = asked.message
    return isinstance(message, Request) and message.magic_version == MAGIC_VERSION


def _ret(asked: Asked) -> int | None:
    return None if asked.reply is None else asked.reply.ret


def _windows(rebase: Rebase, requests: Iterable[Asked], world: World) -> None:
    """Free windows move together, by one distance; those of boot devices to a boot device's."""
    own: set[Triple] = set()
    free: dict[int, int] = {}
    irqs: list[int] = []
    boot: dict[Triple, str] = {}
    for asked in requests:
        message = asked.message
        if not isinstance(message, MmioRequest) or message.msg_size != MMIO_MSG_SIZE:
            continue
        window = (message.mmio_base, message.mmio_size, message.mmio_irq)
        ret = _ret(asked)
        if adds(message):
            hits = any(_hits(window, other) for other in own)
            if ret == EEXIST and not hits:
                boot[window] = "collides"
                continue
            if ret == EBUSY and window[1]:
                boot[window] = "crosses"
                continue
            if ret == 0:
                own.add(window)
        elif ret == 0 and window in own:
            own.discard(window)
        elif ret in (0, None):
            boot[window] = "channel" if ret is None else "removed"
            continue
        free[window[0]] = max(free.get(window[0], 0), window[1])
        if window[2] not in irqs:
            irqs.append(window[2])
    taken = [(w.base, w.size) for w in world.mmio]
    taken += [(base, end - base + 1) for base, end in world.iomem]
    distance = _distance(free, taken)
    rebase.mmio = {base: base + distance for base in free} if distance else {}
    _irqs(rebase, irqs, world)
    devices = [w for w in world.mmio if w.role != "vsock"] or list(world.mmio)
    channel = [w for w in world.mmio if w.role == "vsock"]
    for place, (window, found) in enumerate(boot.items()):
        if found == "crosses" and world.iomem:
            start, _ = world.iomem[0]
            rebase.windows[window] = (max(0, start - window[1] // 2), window[1], window[2])
        elif found == "collides" and devices:
            there = devices[place % len(devices)]
            irq = rebase.irq.get(window[2], window[2])
            rebase.windows[window] = (there.base, window[1], irq)
        elif found in ("removed", "channel") and (
            alike := channel if found == "channel" else devices
        ):
            there = alike[place % len(alike)]
            rebase.windows[window] = (there.base, there.size, there.irq)


def _hits(window: Triple, other: Triple) -> bool:
    """Whether the kernel refuses `window` for `other`: they overlap, or need the same interrupt."""
    same_irq = window[2] == other[2] != SHAREABLE_IRQ
    return same_irq or _overlap(window[0], window[1], other[0], other[1])


def _overlap(base: int, size: int, other: int, other_size: int) -> bool:
    return base < other + other_size and other < base + size


def _distance(free: dict[int, int], taken: list[tuple[int, int]]) -> int:
    """How far free windows have to move so that none meets anything; 0 when they may stay."""

    def fits(distance: int) -> bool:
        return all(
            base + distance + size <= _U64
            and not any(_overlap(base + distance, max(size, 1), *other) for other in taken)
            for base, size in free.items()
        )

    if not free or fits(0):
        return 0
    lowest = min(free)
    for base, size in sorted(taken):
        distance = -(-(base + size - lowest) // _PAGE) * _PAGE
        if fits(distance):
            return distance
    return 0


def _irqs(rebase: Rebase, irqs: list[int], world: World) -> None:
    used = {window.irq for window in world.mmio} - {SHAREABLE_IRQ}
    arm = world.arch is Arch.AARCH64
    kept = [irq for irq in irqs if irq not in used]
    for irq in irqs:
        special = irq > world.max_irq if arm else irq in (0, SHAREABLE_IRQ)
        if irq in kept or special:
            continue
        taken = used | set(kept) | set(rebase.irq.values()) | {0, SHAREABLE_IRQ}
        for free in range(6, world.max_irq + 1):
            if free not in taken:
                rebase.irq[irq] = free
                break


def _cpus(rebase: Rebase, requests: Iterable[Asked], script: Script, world: World) -> None:
    created = {
        order["start_vcpu"]
        for action in script.actions
        if (order := order_of(action)) and "start_vcpu" in order
    }
    online = set(world.cpus_online)
    startable = set(world.vcpus_running) - online
    kinds: dict[int, str] = {}
    up: set[int] = set()
    for asked in requests:
        message = asked.message
        if not isinstance(message, CpuRequestX86):
            continue
        ids = list(message.apic_ids[: message.count])
        ret = _ret(asked)
        for cpu in ids:
            if adds(message):
                if ret == EINVAL and len(ids) == 1 and cpu not in up:
                    kinds.setdefault(cpu, "online")
                elif ret == EIO and len(ids) == 1:
                    kinds.setdefault(cpu, "created" if cpu in created else "stopped")
                else:
                    kinds.setdefault(cpu, "created" if cpu in created else "startable")
                if ret == 0:
                    up.add(cpu)
            else:
                kinds.setdefault(cpu, "online" if ret == 0 or cpu == 0 else "unknown")
                if ret == 0:
                    up.discard(cpu)
    outside = set(range(1, 255)) - online - set(world.vcpus_running)
    pools: dict[str, set[int]] = {
        "online": online,
        "startable": startable,
        "stopped": outside,
        "created": outside,
        "unknown": outside,
    }
    _assign(kinds, pools, rebase.apic_id)


def _slots(rebase: Rebase, requests: Iterable[Asked], script: Script, world: World) -> None:
    plugged = {
        (where["bus"], where["slot"] << 3)
        for action in script.actions
        for name, where in (order_of(action) or {}).items()
        if name == "plug_pci"
    }
    present = {(device.bus, device.devfn) for device in world.pci if device.role != "vsock"}
    every = {(device.bus, device.devfn) for device in world.pci}
    buses = {device.bus for device in world.pci} | set(world.pci_buses)
    absent = {(bus, slot << 3) for bus in buses or {0} for slot in range(1, 32)} - every
    kinds: dict[Slot, str] = {}
    last: dict[int, int | None] = {}
    for asked in requests:
        message = asked.message
        ret = _ret(asked)
        if isinstance(message, PciRequest):
            slot = (message.busno, message.devfn)
            # Success writes nothing, so the result of the reply before stays (section 4).
            found = ret == 0 or (ret != ENODEV and ret == last.get(asked.conn))
            kind = "plugged" if slot in plugged else "present" if found else "absent"
            kinds[slot] = "present" if kinds.get(slot) == "present" else kind
        last[asked.conn] = ret
    free = {"present": present, "plugged": absent, "absent": absent}
    for slot, kind in list(kinds.items()):
        if kind == "absent" and slot not in every:
            del kinds[slot]  # nothing is there in the new guest either
    _assign(kinds, free, rebase.pci)


def _assign(kinds: dict[Any, str], pools: dict[str, set[Any]], mapping: dict[Any, Any]) -> None:
    """Give each value one of its kind's pool: itself where it is in it, else the lowest free."""
    used = {value for value, kind in kinds.items() if value in pools[kind]}
    for value, kind in kinds.items():
        if value in pools[kind]:
            continue
        left = sorted(pools[kind] - used)
        if left:
            mapping[value] = left[0]
            used.add(left[0])


def read_map(path: Path) -> Rebase:
    """A mapping from a TOML file: tables mmio, irq, apic_id and pci of old and new values.

    Raises UnreadableInput.
    """
    try:
        tables = read_toml(path)
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}") from None
    except BadToml as error:
        raise UnreadableInput(f"{path} is not a TOML file: {error}") from None
    limits: dict[str, Callable[[str], Any]] = {
        "mmio": _below(_U64),
        "irq": _below(1 << 32),
        "apic_id": _below(256),
        "pci": _parse_slot,
    }
    rebase = Rebase()
    for name, table in tables.items():
        if name not in limits or not isinstance(table, dict):
            raise UnreadableInput(f"{path}: [{name}] is none of the tables {', '.join(limits)}")
        for old, new in table.items():
            try:
                getattr(rebase, name)[limits[name](old)] = limits[name](str(new))
            except ValueError:
                raise UnreadableInput(f"{path}: [{name}] {old} = {new!r} cannot be") from None
    return rebase


def _below(limit: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text, 0)
        if not 0 <= value < limit:
            raise ValueError(text)
        return value

    return number


def _parse_slot(text: str) -> Slot:
    found = _PCI_NAME.fullmatch(text)
    if not found or int(found[1]) > 255 or int(found[2]) > 31 or int(found[3] or 0) > 7:
        raise ValueError(text)
    return int(found[1]), int(found[2]) << 3 | int(found[3] or 0)


def _triple(window: Triple) -> str:
    return f"{window[0]:#x}+{window[1]:#x} irq {window[2]}"


def _slot(slot: Slot) -> str:
    return f"{slot[0]}:{slot[1] >> 3}.{slot[1] & 7}"
