"""A script put to the kernel model: what each request would be answered, and would change.

No IO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dissectors.constants import ADDING_TYPES, MESSAGE_SIZE
from dissectors.messages import (
    MmioRequest,
    PciRequest,
)
from dissectors.services import DEVICE_MANAGER, ServiceReply, ServiceRequest
from dissectors.slots import positional

from .. import codes
from ..codes import Code
from ..kernel.model import Guest, ServiceThread
from ..kernel.outcome import Fate
from ..kernel.vmm_actions import carry_out
from ..kernel.world import Window, World
from ..trace.script import Act, Asked, Key, Send, Step


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What the model makes of one request.

    `reply` is None for silence. `changes` says in words what the guest has more or less of then;
    `undo` has the `send` operations that take it back, None when nothing can.
    """

    asked: Asked
    reply: ServiceReply | None
    raw: bytes
    fate: Fate
    codes: tuple[Code, ...] = ()
    changes: tuple[str, ...] = ()
    undo: tuple[str, ...] | None = ()
    delay_ns: int = 0


_rehearsed = positional(Rehearsed)


class Rehearsal:
    """A guest in its world; `take` the steps of a script in their order."""

    def __init__(self, world: World) -> None:
        self.guest = Guest(world)
        self._connections: dict[int, ServiceThread | None] = {}
        self._things: _Things | None = None
        """What the guest has after the last request; None when others may have changed it."""
        self._replies: dict[tuple[bytes, type], tuple[bytes, ServiceReply]] = {}
        """Nearly all replies were given before: they are decoded, and kept, once."""

    def take(self, step: Step, asked: Mapping[Key, Asked]) -> Iterator[Rehearsed]:
        """What comes of a step; only sends with requests come to anything."""
        if isinstance(step, Act):
            carry_out(self.guest, step.action)
            self._things = None
        elif isinstance(step, Send) and step.what == "service":
            connection = self.guest.connect()
            known = connection.service(step.data[0]) is not None
            self._connections[step.conn] = connection if known else None
        elif isinstance(step, Send):
            for place, request in enumerate(step.requests):
                piece = step.data[place * MESSAGE_SIZE : (place + 1) * MESSAGE_SIZE]
                yield self._request(asked[step.conn, request], piece)

    def _request(self, asked: Asked, piece: bytes) -> Rehearsed:
        connection = self._connections.get(asked.conn)
        if connection is None:  # another service's, or nobody listens
            return Rehearsed(asked, None, b"", Fate.CUT_OFF)
        before = self._things or _Things(self.guest)
        outcome = connection.receive(piece)
        raw, reply = b"", None
        if outcome.reply is not None:
            raw, reply = self._reply(outcome.reply, asked)
        self._things = _Things(self.guest)
        changes, undo = before.until(self._things, self.guest)
        lost = codes.CPU_LOST_ITS_ID in outcome.causes
        if lost:
            changes = (*changes, "a CPU loses its APIC id")
        alive = outcome.fate is Fate.ANSWERED and not lost
        rehearsed: Rehearsed = _rehearsed(
            asked, reply, raw, outcome.fate, outcome.causes, changes, undo if alive else None,
            outcome.delay_ns,
        )  # fmt: skip
        return rehearsed

    def _reply(self, raw: bytes, asked: Asked) -> tuple[bytes, ServiceReply]:
        about = (raw, type(asked.message))
        known = self._replies.get(about)
        if known is None:
            reply = DEVICE_MANAGER.decode_reply(raw, self.guest.world.arch, asked.message)
            known = self._replies[about] = raw, reply
        return known


class _Things:
    """What a guest has at one moment."""

    def __init__(self, guest: Guest) -> None:
        self.cpus = frozenset(guest.cpus.online)
        self.ids = guest.cpus.online_ids()
        self.windows = frozenset(guest.windows)
        self.pci = frozenset(guest.pci)

    def until(self, after: _Things, guest: Guest) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What changed, and the `send` operations that take it back."""
        if (self.cpus, self.windows, self.pci) == (after.cpus, after.windows, after.pci):
            return (), ()
        changes: list[str] = []
        undo: list[str] = []
        one, other = set(self.ids), set(after.ids)
        counted = guest.world.arch.value == "aarch64"
        for ids, word, name in (
            (other - one, "comes up", "del-cpu"), (one - other, "goes", "add-cpu"),
        ):  # fmt: skip
            changes += [f"CPU {cpu} {word}" for cpu in sorted(ids)]
            if ids:
                # The highest first: the order in which no kernel loses one on the way.
                undo.append(f"{name} {len(ids) if counted else _words(sorted(ids, reverse=True))}")
        for windows, word, name in (
            (after.windows - self.windows, "appears", "del-mmio"),
            (self.windows - after.windows, "goes", "add-mmio"),
        ):
            for window in sorted(windows, key=lambda w: w.base):
                changes.append(f"window {window_text(window)} {word}")
                undo.append(f"{name} {window.base:#x} {window.size:#x} {window.irq}")
        for devices, word, name in (
            (after.pci - self.pci, "appears", "del-pci"),
            (self.pci - after.pci, "goes", "add-pci"),
        ):
            for device in sorted(devices):
                where = f"{device.slot}.{device.function}"
                changes.append(f"PCI device {device.bus}:{where} {word}")
                undo.append(f"{name} {device.bus} {where}")
        return tuple(changes), tuple(undo)


def _words(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def window_text(window: Window) -> str:
    """`0xe0006000+0x2000 irq 5`."""
    return f"{window.base:#x}+{window.size:#x} irq {window.irq}"


def thing_of(request: ServiceRequest) -> object | None:
    """Where a device request's device is: its window's base, or its PCI slot; None for CPUs."""
    match request:
        case MmioRequest():
            return request.mmio_base
        case PciRequest():
            return (request.busno, request.devfn)
    return None


def adds(request: ServiceRequest) -> bool:
    """True for the three requests that add."""
    return getattr(request, "msg_type", None) in ADDING_TYPES
