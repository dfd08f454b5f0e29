"""A guest that answers from a recording: bytes and times in and out, no socket.

`RecordedMachine` is the recording and what of it is still to be asked for; `RecordedLink` is one
connection to it, and has the shape of `machine.Link`. docs/guest.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from dissectors.constants import SERVICE_BYTE_LIMIT_NS, Arch
from dissectors.events import ConnectLine, Hello, OkLine, ServiceByte
from dissectors.hvsock import line_end, ok_line, parse_connect
from dissectors.messages import hello
from dissectors.services import DEVICE_MANAGER, Service, ServiceRequest, service_for

from ..capture.records import Begins, Header, How, Open, Record
from ..compare.replies import request_values
from ..trace.decoding import Connection, Session
from ..trace.operations import NoTable
from ..trace.script import Asked, read_script
from ..trace.streams import distinct_connections
from ..views.messages import request_text
from .machine import Pace, Step

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


class _RecordedPhase(Enum):
    LINE = auto()
    SERVICE = auto()
    REQUESTS = auto()
    SILENT = auto()
    CLOSED = auto()


class RecordedLink:
    """One connection to a recorded guest; `deadline_ns` and the rest as in `machine.Link`."""

    def __init__(self, machine: RecordedMachine, now_ns: int) -> None:
        machine.links += 1
        self.number = machine.links
        self._machine = machine
        self._recorded = Recorded(0)
        self._service: Service = DEVICE_MANAGER
        self._phase = _RecordedPhase.LINE
        self._line = b""
        self._buffer = b""
        self._requests = -1
        self._now_ns = now_ns
        self.deadline_ns: int | None = None

    @property
    def read_size(self) -> int:
        """Bytes that the next read may take; 0 when nobody reads any more."""
        match self._phase:
            case _RecordedPhase.LINE | _RecordedPhase.SERVICE:
                return 1
            case _RecordedPhase.REQUESTS:
                return self._service.request_size
        return 0

    @property
    def silent(self) -> bool:
        """True when the connection stays open and says nothing more."""
        return self._phase is _RecordedPhase.SILENT

    def receive(self, received: bytes, now_ns: int) -> list[Step]:
        """What comes of a read, or with `b""` of the client's end of file."""
        self._now_ns = now_ns
        if not received:
            return self._close()
        match self._phase:
            case _RecordedPhase.LINE:
                return self._connect(received)
            case _RecordedPhase.SERVICE:
                return self._greet(received[0])
            case _RecordedPhase.REQUESTS:
                return self._answer(received)
        return []

    def expire(self, now_ns: int) -> list[Step]:
        """The deadline has passed."""
        self._now_ns, self.deadline_ns = now_ns, None
        return self._close()

    def _close(self) -> list[Step]:
        self._phase = _RecordedPhase.CLOSED
        return [Step(self._now_ns, None)]

    def _fault(self, what: str) -> list[Step]:
        self._machine.faults += 1
        self._machine.on_fault(what)
        return self._close()

    def _connect(self, received: bytes) -> list[Step]:
        self._line += received
        end = line_end(self._line)
        if end == 0:
            return []
        if end < 0 or parse_connect(self._line[:end]) != self._machine.port:
            return self._close()
        recorded = self._machine.connection()
        if recorded is None:
            return self._fault(f"connection {self.number}: the recording has no more")
        self._recorded = recorded
        if recorded.ok is None:
            return self._close()
        self._phase = _RecordedPhase.SERVICE
        self.deadline_ns = self._now_ns + SERVICE_BYTE_LIMIT_NS
        return [Step(self._now_ns, recorded.ok)]

    def _greet(self, value: int) -> list[Step]:
        self.deadline_ns = None
        recorded = self._recorded
        if recorded.service is not None and value != recorded.service:
            return self._fault(
                f"connection {self.number}: recorded service byte {recorded.service:#04x}, "
                f"got {value:#04x}"
            )
        self._service = service_for(value) or DEVICE_MANAGER
        self._buffer = bytes(self._service.request_size)
        self._phase = _RecordedPhase.REQUESTS
        steps = [Step(self._now_ns, recorded.greeting)] if recorded.greeting else []
        return steps + self._after(self._now_ns)

    def _answer(self, piece: bytes) -> list[Step]:
        self._requests += 1
        self._buffer = piece + self._buffer[len(piece) :]
        message = self._service.decode_request(self._buffer, self._machine.arch)
        found = self._machine.answer(self._recorded, message)
        if isinstance(found, str):
            return self._fault(
                f"connection {self.number}, request {self._requests}: recorded {found}; "
                f"got {request_text(message)}"
            )
        real = self._machine.pace is Pace.REAL
        due_ns = self._now_ns + (found.latency_ns or 0 if real else 0)
        steps = [Step(due_ns, found.reply_raw)] if found.reply_raw else []
        return steps + self._after(due_ns)

    def _after(self, due_ns: int) -> list[Step]:
        """The guest's end, where it came before the client's and nothing else is left."""
        if self._machine.matching or self._recorded.asked or not self._recorded.closed:
            return []
        self._phase = _RecordedPhase.CLOSED
        return [Step(due_ns, None)]
