"""A simulated guest behind a hybrid-vsock socket, without the socket: bytes and times in and out.

`Machine` is the guest, its faults and the multiplexer's habits; `Link` is one connection to it.
Both the real socket (`guest.py`) and the in-memory form (`memory.py`) drive them, with the clock
of their choice. docs/guest.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, Final

from dissectors.constants import (
    MESSAGE_SIZE,
    SERVICE_BYTE_LIMIT_NS,
    UPCALL_PORT,
)
from dissectors.hvsock import line_end, ok_line, parse_connect

from ..control.orders import BadOrder, name_and_value, pci_device, vcpu
from ..kernel.faults import Fault, Faults
from ..kernel.model import Guest
from ..kernel.outcome import Fate, Outcome
from ..kernel.world import World

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


@dataclass(frozen=True, slots=True)
class Step:
    """What a link does next, not before `at_ns`: send these bytes, or with None close."""

    at_ns: int
    sent: bytes | None


class _LinkPhase(Enum):
    LINE = auto()
    SERVICE = auto()
    REQUESTS = auto()
    ECHO = auto()
    SILENT = auto()
    CLOSED = auto()


class Link:
    """One connection to a machine's socket.

    Give it no more than `read_size` bytes at a time, as its thread in the guest would read;
    `deadline_ns` is when it closes if nothing comes.
    """

    def __init__(self, machine: Machine, now_ns: int) -> None:
        machine.links += 1
        self.number = machine.links
        self._machine = machine
        self._connection = machine.guest.connect()
        self._phase = _LinkPhase.LINE
        self._line = b""
        self._request = -1
        self._now_ns = now_ns
        self.deadline_ns: int | None = None

    @property
    def read_size(self) -> int:
        """Bytes that the next read may take; 0 when nobody reads any more."""
        match self._phase:
            case _LinkPhase.REQUESTS:
                return MESSAGE_SIZE
            case _LinkPhase.LINE:
                # Dragonball reads up to the newline, so what follows is left for the guest.
                dragonball = self._machine.habits.backend is Backend.DRAGONBALL
                return 1 if dragonball else _BULK_SIZE
            case _LinkPhase.SERVICE:
                return 1
            case _LinkPhase.ECHO:
                return _BULK_SIZE
        return 0

    @property
    def silent(self) -> bool:
        """True when the guest's thread is gone: the connection stays open and says nothing."""
        return self._phase is _LinkPhase.SILENT

    def receive(self, received: bytes, now_ns: int) -> list[Step]:
        """What comes of a read, or with `b""` of the client's end of file."""
        self._now_ns = now_ns
        if not received:
            return self._close() if self._phase is not _LinkPhase.CLOSED else []
        match self._phase:
            case _LinkPhase.REQUESTS:
                return self._answer(received)
            case _LinkPhase.LINE:
                return self._connect(received)
            case _LinkPhase.SERVICE:
                self.deadline_ns = None
                greeting = self._connection.service(received[0])
                if greeting is None or self._machine.guest.cut_off:
                    return self._close()
                self._phase = _LinkPhase.REQUESTS
                return [Step(now_ns, greeting)]
            case _LinkPhase.ECHO if not self._machine.guest.cut_off:
                return [Step(now_ns, received)]
        return []

    def expire(self, now_ns: int) -> list[Step]:
        """The deadline has passed."""
        self._now_ns = now_ns
        self.deadline_ns = None
        return self._close()

    def _close(self) -> list[Step]:
        self._phase = _LinkPhase.CLOSED
        return [Step(self._now_ns, None)]

    def _connect(self, received: bytes) -> list[Step]:
        self._line += received
        end = line_end(self._line)
        if end == 0:
            return []
        habits = self._machine.habits
        port = parse_connect(self._line[:end]) if end > 0 else None
        listened = {habits.port} | habits.echo
        if port not in listened or self._machine.guest.cut_off:
            return self._close()
        if port == habits.port:
            self._phase = _LinkPhase.SERVICE
            self.deadline_ns = self._now_ns + SERVICE_BYTE_LIMIT_NS
        else:
            self._phase = _LinkPhase.ECHO
        dragonball = habits.backend is Backend.DRAGONBALL
        local_port = _FIRST_LOCAL_PORT + self.number - 1 if dragonball else port
        return [Step(self._now_ns, ok_line(local_port).raw)]

    def _answer(self, piece: bytes) -> list[Step]:
        machine = self._machine
        self._request += 1
        fault = None
        if machine.faults.rules:
            fault = machine.faults.strike(self._connection.peek_type(piece))
        if fault is not None:
            machine.on_strike(
                f"fault {fault.text} strikes connection {self.number}, request {self._request}"
            )
        if fault is not None and fault.action == "ret":
            outcome = self._connection.refuse(piece, fault.value)
        else:
            outcome = self._connection.receive(piece)
        if outcome.fate is not Fate.ANSWERED and not (fault and fault.action == "close"):
            self._phase = _LinkPhase.SILENT
            return []
        return self._steps(outcome, fault, self._due(outcome))

    def _due(self, outcome: Outcome) -> int:
        """When the reply is ready: a guest works slower, and one at a time under the lock."""
        machine = self._machine
        if machine.habits.pace is Pace.NONE:
            return self._now_ns
        begin = max(self._now_ns, machine.lock_free_ns) if outcome.takes_lock else self._now_ns
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
                self._now_ns = due_ns
                return self._close()
            case Fault(action="delay", value=delay_ns):
                return [Step(due_ns + delay_ns, reply)]
            case Fault(action="split", value=size):
                return [Step(due_ns, reply[:size]), Step(due_ns + _SPLIT_PAUSE_NS, reply[size:])]
            case Fault(action="garbage"):
                return [Step(due_ns, self._machine.faults.garbage(MESSAGE_SIZE))]
        return [Step(due_ns, reply)]
