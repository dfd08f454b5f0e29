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

from dissectors.constants import CONNECT_LIMIT_NS, MESSAGE_SIZE, UPCALL_PORT
from dissectors.hvsock import ok_line

from ..control.orders import BadOrder, cpu_number, name_and_value, pci_device, vcpu
from ..control.target_note import TargetNote
from ..kernel.cpus import NoSuchCpu
from ..kernel.faults import Fault, Faults
from ..kernel.model import Guest
from ..kernel.outcome import Cpus, Fate, Outcome
from ..kernel.world import World
from .multiplexer import Acceptance, Link, NoAnswer, Step

ORDERS: Final = (
    "start_vcpu", "plug_pci", "unplug_pci", "offline_cpu", "online_cpu", "reset", "state",
)  # fmt: skip
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


@dataclass(slots=True)
class Busy:
    """Until when a guest is held up, with Pace.REAL; in nanoseconds of the caller's clock."""

    lock_ns: int = 0
    """Somebody has the hotplug lock."""
    start_ns: int = 0
    """A vCPU is being started."""
    probe_ns: int = 0
    """A driver tries a PCI device."""


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
        self.busy = Busy()
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
        self.busy = Busy()

    def control(self, order: object) -> dict[str, Any]:
        """The VMM's side: one order of the control socket, and its answer.

        `{"start_vcpu": 1}`, `{"plug_pci": {"bus": 0, "slot": 6}}`, `{"unplug_pci": …}`,
        `{"offline_cpu": 3}`, `{"online_cpu": 3}`, `{"reset": true}`, `{"state": true}`. Raises
        BadOrder.
        """
        name, value = name_and_value(order)
        match name:
            case "start_vcpu":
                self.guest.start_vcpu(vcpu(name, value))
            case "plug_pci":
                self.guest.plug_pci(pci_device(name, value))
            case "unplug_pci":
                self.guest.unplug_pci(pci_device(name, value))
            case "offline_cpu" | "online_cpu":
                number = cpu_number(name, value)
                try:
                    self.guest.switch_cpu(number, name == "online_cpu")
                except NoSuchCpu:
                    raise BadOrder(f"{name}: the guest cannot do that with CPU {number}") from None
            case "reset" if value is True:
                self.reset()
            case "state" if value is True:
                return {"ok": True, "state": self.guest.state()}
            case "reset" | "state":
                raise BadOrder(f"{name} needs true, not {value!r}")
            case _:
                raise BadOrder(f"{name!r} is no order; known are {', '.join(ORDERS)}")
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

    def accept(self, port: int | None) -> Acceptance | NoAnswer | None:
        habits = self._machine.habits
        dragonball = habits.backend is Backend.DRAGONBALL
        if self._machine.guest.cut_off and port is not None:
            # Nobody takes the request from the queue; Dragonball gives it up (by reading).
            return NoAnswer(CONNECT_LIMIT_NS if dragonball else None)
        if port not in {habits.port} | habits.echo:
            return None
        self._echoes = port != habits.port
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
        machine.guest.cpus.forbidden = now_ns < machine.busy.probe_ns
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
        busy = self._machine.busy
        if self._machine.habits.pace is Pace.NONE:
            return now_ns
        begin = max(now_ns, busy.lock_ns) if outcome.takes_lock else now_ns
        if outcome.cpus is Cpus.WAIT:
            begin = max(begin, busy.start_ns)
        end = begin + outcome.delay_ns
        if outcome.takes_lock:
            busy.lock_ns = end
        if outcome.cpus is Cpus.START:
            busy.start_ns = end
        if outcome.cpus is Cpus.FORBID:
            busy.probe_ns = max(busy.probe_ns, end)
        return end

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
