"""A script put to the kernel model: what each request would be answered, and would change.

No IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dissectors.constants import ADDING_TYPES, MESSAGE_SIZE, Arch
from dissectors.messages import (
    MmioRequest,
    PciRequest,
    Request,
)
from dissectors.services import DEVICE_MANAGER, ServiceReply, ServiceRequest
from dissectors.slots import positional

from .. import codes
from ..codes import Code
from ..kernel.model import Guest, ServiceThread
from ..kernel.outcome import Fate
from ..kernel.vmm_actions import carry_out
from ..kernel.world import PciDevice, Window, World
from ..trace.script import Act, Asked, Script, Send, Step


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

    def __init__(self, world: World, script: Script) -> None:
        self.guest = Guest(world)
        self._asked = script.asked
        self._same_arch = script.arch is world.arch
        self._connections: dict[int, ServiceThread | None] = {}
        self._replies: dict[tuple[bytes, type], tuple[bytes, ServiceReply]] = {}
        """Nearly all replies were given before: they are decoded, and kept, once."""

    def take(self, step: Step) -> Sequence[Rehearsed]:
        """What comes of a step; only sends with requests come to anything."""
        if isinstance(step, Send) and step.requests:
            conn, data = step.conn, step.data
            return [
                self._request(
                    self._asked[conn, request],
                    data[place * MESSAGE_SIZE : (place + 1) * MESSAGE_SIZE],
                )
                for place, request in enumerate(step.requests)
            ]
        if isinstance(step, Act):
            carry_out(self.guest, step.action)
        elif isinstance(step, Send) and step.what == "service":
            connection = self.guest.connect()
            known = connection.service(step.data[0]) is not None
            self._connections[step.conn] = connection if known else None
        return ()

    def _request(self, asked: Asked, piece: bytes) -> Rehearsed:
        connection = self._connections.get(asked.conn)
        if connection is None:  # another service's, or nobody listens
            return Rehearsed(asked, None, b"", Fate.CUT_OFF)
        outcome = connection.receive(piece, self._meant(asked, piece))
        raw, reply = b"", None
        if outcome.reply is not None:
            raw, reply = self._reply(outcome.reply, asked)
        changes, undo = _told(self.guest)
        lost = codes.CPU_LOST_ITS_ID in outcome.causes
        if lost:
            changes = (*changes, "a CPU loses its APIC id")
        alive = outcome.fate is Fate.ANSWERED and not lost
        rehearsed: Rehearsed = _rehearsed(
            asked, reply, raw, outcome.fate, outcome.causes, changes, undo if alive else None,
            outcome.delay_ns,
        )  # fmt: skip
        return rehearsed

    def _meant(self, asked: Asked, piece: bytes) -> Request | None:
        """What a whole request means to this guest, if the recording's was of its architecture."""
        if self._same_arch and piece == asked.raw and isinstance(asked.message, Request):
            return asked.message
        return None

    def _reply(self, raw: bytes, asked: Asked) -> tuple[bytes, ServiceReply]:
        if self._same_arch and asked.reply is not None and raw == asked.reply_raw:
            return asked.reply_raw, asked.reply
        about = (raw, type(asked.message))
        known = self._replies.get(about)
        if known is None:
            reply = DEVICE_MANAGER.decode_reply(raw, self.guest.world.arch, asked.message)
            known = self._replies[about] = raw, reply
        return known


def _told(guest: Guest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the last request has changed, and the `send` operations that take it back."""
    changes: list[str] = []
    undo: list[str] = []
    for things, came in ((guest.changes.came, True), (guest.changes.went, False)):
        if not things:
            continue
        name, word = ("del", "appears") if came else ("add", "goes")
        cpus: list[int] = []
        devices: list[PciDevice] = []
        for thing in things:
            if isinstance(thing, Window):
                changes.append(f"window {window_text(thing)} {word}")
                undo.append(f"{name}-mmio {thing.base:#x} {thing.size:#x} {thing.irq}")
            elif isinstance(thing, PciDevice):
                devices.append(thing)
            else:
                cpus.append(thing)
        if cpus:
            changes += [f"CPU {cpu} {'comes up' if came else 'goes'}" for cpu in sorted(cpus)]
            # The highest first: the order in which no kernel loses one on the way.
            counted = guest.world.arch is Arch.AARCH64
            told = len(cpus) if counted else " ".join(map(str, sorted(cpus, reverse=True)))
            undo.append(f"{name}-cpu {told}")
        for device in sorted(devices):
            where = f"{device.slot}.{device.function}"
            changes.append(f"PCI device {device.bus}:{where} {word}")
            undo.append(f"{name}-pci {device.bus} {where}")
    return tuple(changes), tuple(undo)


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
