"""A guest that answers from a recording: bytes and times in and out, no socket.

`RecordedMachine` is the recording and what of it is still to be asked for; like a machine it gives
a `Link` for each connection. docs/guest.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from dissectors.constants import Arch
from dissectors.events import ConnectLine, Hello, OkLine, ServiceByte
from dissectors.hvsock import ok_line
from dissectors.messages import hello
from dissectors.services import DEVICE_MANAGER, Service, ServiceRequest, service_for

from ..capture.records import Begins, Header, How, Open, Record
from ..compare.replies import request_values
from ..control.target_note import RECORDING, TargetNote
from ..kernel.world import kata_pod
from ..trace.decoding import Connection, Session
from ..trace.operation_table import NoTable
from ..trace.script import Asked
from ..trace.scripting import read_script
from ..trace.streams import distinct_connections
from ..views.messages import request_text
from .machine import Pace
from .multiplexer import Acceptance, Link, Step

_OK: Final = ok_line(1 << 30).raw


@dataclass(slots=True)
class Recorded:
    """One upcall connection as it was recorded; `ok` or `greeting` None where none came."""

    number: int
    ok: bytes | None = _OK
    service: int | None = DEVICE_MANAGER.byte
    greeting: bytes | None = field(default=None, repr=False)
    asked: deque[Asked] = field(default_factory=deque)
    closed: bool = False
    """The guest ended it."""


def recorded_connections(header: Header, records: Iterable[Record]) -> list[Recorded]:
    """The upcall connections of a recording in their order, those that were refused too."""
    kept = distinct_connections(records)
    session = Session(header, NoTable())
    heard: dict[int, Recorded] = {}
    for record in kept:
        if isinstance(record, Open) and record.begins is Begins.SERVICE:
            heard[record.conn] = Recorded(record.conn, service=None)
        for event in session.feed(record):
            conn = getattr(record, "conn", 0)
            match event:
                case ConnectLine(port=port) if port == header.port:
                    heard[conn] = Recorded(conn, None, None)
                case OkLine(raw=raw, port=int()) if conn in heard:
                    heard[conn].ok = raw
                case ServiceByte(value=value):
                    heard.setdefault(conn, Recorded(conn)).service = value
                case Hello(raw=raw):
                    heard.setdefault(conn, Recorded(conn)).greeting = raw
    for (conn, _), asked in read_script(header, kept).asked.items():
        heard.setdefault(conn, Recorded(conn, greeting=hello().encode())).asked.append(asked)
    for conn, told in heard.items():
        told.closed = _guest_closed(session.connections[conn])
        if session.connections[conn].begins is Begins.MIDDLE and told.greeting is None:
            told.greeting = hello().encode()
    return list(heard.values())


def _guest_closed(connection: Connection) -> bool:
    over = connection.closed_ns is not None and connection.how is not How.HALF
    return over and connection.closed_by_guest


class RecordedMachine:
    """What a recording has to answer. Not for two threads at once.

    In strict order the client's k-th connection is the recording's k-th, and its requests are the
    recorded ones, one by one. With `matching` a request is the first equal one that nobody has
    asked yet, on any connection. `on_fault` hears in a sentence of everything that the recording
    does not have.
    """

    def __init__(
        self,
        header: Header,
        connections: list[Recorded],
        matching: bool = False,
        pace: Pace = Pace.NONE,
        on_fault: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.on_fault = on_fault
        self.port = header.port
        self.arch = Arch.named(header.arch) or Arch.X86_64
        self.matching = matching
        self.pace = pace
        self.faults = 0
        self.asked = 0
        self.links = 0
        self._left = deque(connections)
        self._begun: list[Recorded] = []
        self._equal: dict[str, deque[Asked]] = {}
        if matching:
            every = [asked for each in connections for asked in each.asked]
            for asked in sorted(every, key=lambda asked: asked.place):
                self._equal.setdefault(_identity(asked.message), deque()).append(asked)

    def link(self) -> Link:
        """A new connection."""
        self.links += 1
        return Link(_RecordedEnd(self, self.links))

    def note(self, control: str | None = None) -> TargetNote:
        """What stands beside its socket."""
        # What it looks like inside nobody knows; that nothing in it can break is certain.
        return TargetNote("simulated", RECORDING, RECORDING, kata_pod(self.arch), control)

    def fault(self, what: str) -> None:
        """The recording does not have something that was asked."""
        self.faults += 1
        self.on_fault(what)

    def connection(self) -> Recorded | None:
        """What the recording has for the next connection, None for nothing."""
        if self.matching:
            return Recorded(self.links, greeting=hello().encode())
        if not self._left:
            return None
        self._begun.append(self._left.popleft())
        return self._begun[-1]

    def answer(self, recorded: Recorded, message: ServiceRequest) -> Asked | str:
        """The recorded request that this one is, or what the recording has in its place."""
        self.asked += 1
        if self.matching:
            equal = self._equal.get(_identity(message))
            return equal.popleft() if equal else "no such request, or not once more"
        if not recorded.asked:
            return "no more requests"
        if _identity(recorded.asked[0].message) != _identity(message):
            return f"{recorded.asked[0].name} {request_text(recorded.asked[0].message)}"
        return recorded.asked.popleft()

    def unused(self) -> Iterator[str]:
        """The recorded requests that nobody has asked."""
        every: list[Asked] = [asked for equal in self._equal.values() for asked in equal]
        if not self.matching:
            every = [asked for each in (*self._begun, *self._left) for asked in each.asked]
        for asked in sorted(every, key=lambda asked: asked.place):
            yield f"never asked: {asked.name} {request_text(asked.message)}"


def _identity(message: ServiceRequest) -> str:
    return f"{message.op} {request_values(message)}"


class _RecordedEnd:
    """The guest's end of one connection, as a recording has it."""

    line_size = 1
    silent = False

    def __init__(self, machine: RecordedMachine, number: int) -> None:
        self._machine = machine
        self._number = number
        self._recorded = Recorded(0)
        self._service: Service = DEVICE_MANAGER
        self._buffer = b""
        self._requests = -1

    @property
    def request_size(self) -> int:
        return self._service.request_size

    def accept(self, port: int | None) -> Acceptance | None:
        if port != self._machine.port:
            return None
        recorded = self._machine.connection()
        if recorded is None:
            self._machine.fault(f"connection {self._number}: the recording has no more")
            return None
        self._recorded = recorded
        return None if recorded.ok is None else Acceptance(recorded.ok)

    def greet(self, service: int, now_ns: int) -> list[Step]:
        recorded = self._recorded
        if recorded.service is not None and service != recorded.service:
            self._machine.fault(
                f"connection {self._number}: recorded service byte {recorded.service:#04x}, "
                f"got {service:#04x}"
            )
            return [Step(now_ns, None)]
        self._service = service_for(service) or DEVICE_MANAGER
        self._buffer = bytes(self._service.request_size)
        steps = [Step(now_ns, recorded.greeting)] if recorded.greeting else []
        return steps + self._after(now_ns)

    def answer(self, piece: bytes, now_ns: int) -> list[Step]:
        self._requests += 1
        self._buffer = piece + self._buffer[len(piece) :]
        message = self._service.decode_request(self._buffer, self._machine.arch)
        found = self._machine.answer(self._recorded, message)
        if isinstance(found, str):
            self._machine.fault(
                f"connection {self._number}, request {self._requests}: recorded {found}; "
                f"got {request_text(message)}"
            )
            return [Step(now_ns, None)]
        real = self._machine.pace is Pace.REAL
        due_ns = now_ns + (found.latency_ns or 0 if real else 0)
        steps = [Step(due_ns, found.reply_raw)] if found.reply_raw else []
        return steps + self._after(due_ns)

    def _after(self, due_ns: int) -> list[Step]:
        """The guest's end, where it came before the client's and nothing else is left."""
        if self._machine.matching or self._recorded.asked or not self._recorded.closed:
            return []
        return [Step(due_ns, None)]
