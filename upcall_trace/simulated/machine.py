"""A simulated guest behind a hybrid-vsock socket, without the socket: bytes and times in and out.

`Machine` is the guest, its faults and the multiplexer's habits, and gives a `Link` for each
connection. Both the real socket (`on_socket.py`) and the in-memory form (`in_process.py`) drive
them, with the clock of their choice. docs/guest.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from dissectors.constants import MESSAGE_SIZE, UPCALL_PORT
from dissectors.hvsock import ok_line

from ..control.orders import BadOrder, name_and_value, pci_device, vcpu
from ..control.target_note import TargetNote
from ..kernel.faults import Fault, Faults
from ..kernel.model import Guest
from ..kernel.outcome import Fate, Outcome
from ..kernel.world import World
from .multiplexer import Acceptance, Link, Step

_FIRST_LOCAL_PORT: Final = 1 << 30
_SPLIT_PAUSE_NS: Final = 20_000_000
_BULK_SIZE: Final = 64 << 10


class Backend(StrEnum):
    """Whose multiplexer answers the CONNECT line."""

    DRAGONBALL = "dragonball"
    """OK with a local port of its own; bytes that came before OK reach the guest."""
    VHOST = "vhost-device-vsock"
    """OK with the guest's port; bytes that came before OK are lost."""


class Pace(StrEnum):
    """Whether replies take the time they take in a guest."""

    NONE = "none"
    REAL = "real"


@dataclass(frozen=True, slots=True)
class Habits:
    """What is the same for every connection of a simulated guest."""

    backend: Backend = Backend.DRAGONBALL
    pace: Pace = Pace.NONE
    port: int = UPCALL_PORT
    echo: frozenset[int] = frozenset()
    """Other ports that answer, and echo."""


class Machine:
    """One simulated guest. Not for two threads at once: the socket form holds a lock around it."""

    def __init__(
        self,
        world: World,
        habits: Habits | None = None,
        faults: list[Fault] | None = None,
        seed: int = 0,
        on_strike: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.world = world
        self.habits = habits or Habits()
        self.on_strike = on_strike
        self.faults = Faults(faults or [], seed)
        self.guest = Guest(world)
        self.lock_free_ns = 0
        """When the hotplug lock is free again, with Pace.REAL."""
        self.links = 0

    def link(self) -> Link:
        """A new connection."""
        self.links += 1
        return Link(_GuestEnd(self, self.links))

    def note(self, control: str | None = None) -> TargetNote:
        """What stands beside its socket; `control` is the path of the VMM's side."""
        return TargetNote("simulated", self.habits.backend.value, "simulated", self.world, control)

    def reset(self) -> None:
        """Boot the guest anew; connections made before stay with the old one."""
        self.guest = Guest(self.world)
        self.lock_free_ns = 0

    def control(self, order: object) -> dict[str, Any]:
        """The VMM's side: one order of the control socket, and its answer.

        `{"start_vcpu": 1}`, `{"plug_pci": {"bus": 0, "slot": 6}}`, `{"unplug_pci": …}`,
        `{"reset": true}`, `{"state": true}`. Raises BadOrder.
        """
        name, value = name_and_value(order)
        match name:
            case "start_vcpu":
                self.guest.start_vcpu(vcpu(name, value))
            case "plug_pci":
                self.guest.plug_pci(pci_device(name, value))
            case "unplug_pci":
                self.guest.unplug_pci(pci_device(name, value))
            case "reset" if value is True:
                self.reset()
            case "state" if value is True:
                return {"ok": True, "state": self.guest.state()}
            case "reset" | "state":
                raise BadOrder(f"{name} needs true, not {value!r}")
            case _:
                known = "start_vcpu, plug_pci, unplug_pci, reset, state"
                raise BadOrder(f"{name!r} is no order; known are {known}")
        return {"ok": True}


class _GuestEnd:
    """The guest's end of one connection, behind the multiplexer."""

    def __init__(self, machine: Machine, number: int) -> None:
        self._machine = machine
        self._number = number
        self._thread = machine.guest.connect()
        self._echoes = False
        self._request = -1
        self.silent = False
        """The thread is gone, or waits for ever."""

    @property
    def line_size(self) -> int:
        """Dragonball reads up to the newline, so what follows is left for the guest."""
        return 1 if self._machine.habits.backend is Backend.DRAGONBALL else _BULK_SIZE

    @property
    def request_size(self) -> int:
        return _BULK_SIZE if self._echoes else MESSAGE_SIZE

    def accept(self, port: int | None) -> Acceptance | None:
        habits = self._machine.habits
        if port not in {habits.port} | habits.echo or self._machine.guest.cut_off:
            return None
        self._echoes = port != habits.port
        dragonball = habits.backend is Backend.DRAGONBALL
        local_port = _FIRST_LOCAL_PORT + self._number - 1 if dragonball else port
        return Acceptance(ok_line(local_port).raw, service=not self._echoes)

    def greet(self, service: int, now_ns: int) -> list[Step]:
        greeting = self._thread.service(service)
        closes = greeting is None or self._machine.guest.cut_off
        return [Step(now_ns, None if closes else greeting)]

    def answer(self, piece: bytes, now_ns: int) -> list[Step]:
        machine = self._machine
        if self._echoes:
            return [] if machine.guest.cut_off else [Step(now_ns, piece)]
        self._request += 1
        fault = None
        if machine.faults.rules:
            fault = machine.faults.strike(self._thread.peek_type(piece))
        if fault is not None:
            machine.on_strike(
                f"fault {fault.text} strikes connection {self._number}, request {self._request}"
            )
        if fault is not None and fault.action == "ret":
            outcome = self._thread.refuse(piece, fault.value)
        else:
            outcome = self._thread.receive(piece)
        if outcome.fate is not Fate.ANSWERED and not (fault and fault.action == "close"):
            self.silent = True
            return []
        return self._steps(outcome, fault, self._due(outcome, now_ns))

    def _due(self, outcome: Outcome, now_ns: int) -> int:
        """When the reply is ready: a guest works slower, and one at a time under the lock."""
        machine = self._machine
        if machine.habits.pace is Pace.NONE:
            return now_ns
        begin = max(now_ns, machine.lock_free_ns) if outcome.takes_lock else now_ns
        if outcome.takes_lock:
            machine.lock_free_ns = begin + outcome.delay_ns
        return begin + outcome.delay_ns

    def _steps(self, outcome: Outcome, fault: Fault | None, due_ns: int) -> list[Step]:
        reply = outcome.reply or b""
        if fault is None:
            return [Step(due_ns, reply)]
        match fault:
            case Fault(action="drop"):
                return []
            case Fault(action="close"):
                return [Step(due_ns, None)]
            case Fault(action="delay", value=delay_ns):
                return [Step(due_ns + delay_ns, reply)]
            case Fault(action="split", value=size):
                return [Step(due_ns, reply[:size]), Step(due_ns + _SPLIT_PAUSE_NS, reply[size:])]
            case Fault(action="garbage"):
                return [Step(due_ns, self._machine.faults.garbage(MESSAGE_SIZE))]
        return [Step(due_ns, reply)]
