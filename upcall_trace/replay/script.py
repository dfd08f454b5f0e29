"""What a replay does, in order: a recording's sends, what to wait for between, the VMM's actions.

Records in, steps out; no IO. A step waits for everything that had come before it in the recording,
whatever the connection, so the recorded order is kept without looking at clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final

from dissectors.events import (
    ConnectLine,
    Event,
    Hello,
    Incomplete,
    OkLine,
    Opaque,
    PassFd,
    ReplyReceived,
    RequestReceived,
    ServiceByte,
)
from dissectors.hvsock import connect_line
from dissectors.services import DEVICE_MANAGER, ServiceReply, ServiceRequest

from ..capture.records import LEFT_OUT, Begins, Chunk, Close, Gap, Header, How, Open, Record, Vmm
from ..operations import NoTable
from ..session import Session

Key = tuple[int, int]
"""(connection, request) of an operation."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection."""

    t_ns: int
    conn: int


@dataclass(frozen=True, slots=True)
class Send:
    """One write; `requests` are those that the guest received of it.

    `what` is `line`, which only a Unix socket takes, `service`, `request`, or `other` for bytes
    without a meaning.
    """

    t_ns: int
    conn: int
    what: str
    data: bytes = field(repr=False)
    requests: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Await:
    """Something had come from the guest here: `line`, `hello`, `reply` or the `end`."""

    t_ns: int
    conn: int
    what: str
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """The client closed, or with `How.HALF` said that it would send no more."""

    t_ns: int
    conn: int
    how: How


@dataclass(frozen=True, slots=True)
class Act:
    """The VMM's side did something."""

    t_ns: int
    action: str


Step = Connect | Send | Await | Leave | Act


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the guest saw it, and what the recording has as its answer, if any.

    `raw` is what the guest's buffer held, bytes of earlier requests included; `size` bytes of it
    were received for this one. `place` counts the recording's requests from 0. `cut_off` says
    that the recording ends too soon after it to tell an answer from silence.
    """

    conn: int
    request: int
    place: int
    t_ns: int
    size: int
    message: ServiceRequest
    raw: bytes = field(repr=False)
    reply: ServiceReply | None = None
    reply_raw: bytes = field(default=b"", repr=False)
    latency_ns: int | None = None
    cut_off: bool = False

    @property
    def key(self) -> Key:
        """Connection and request."""
        return self.conn, self.request


@dataclass(slots=True)
class Script:
    """A recording as it can be sent again; `asked` is in the order in which requests were sent.

    `left_out` tells in sentences what cannot be sent again.
    """

    header: Header
    steps: list[Step] = field(default_factory=list)
    asked: dict[Key, Asked] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def actions(self) -> list[str]:
        """What the VMM's side did."""
        return [step.action for step in self.steps if isinstance(step, Act)]

    def only(self, keys: Set[Key]) -> Script:
        """The same without other operations, and without connections that then have none.

        What the VMM's side did stays, up to the last of the operations: they may rest on it.
        """
        conns = {conn for conn, _ in keys}

        def wanted(step: Step) -> bool:
            match step:
                case Act():
                    return True
                case Send(conn=conn, requests=requests) if requests:
                    return any((conn, request) in keys for request in requests)
                case Await(conn=conn, request=request) if request is not None:
                    return (conn, request) in keys
            return step.conn in conns

        last = max((self.asked[key].t_ns for key in keys if key in self.asked), default=-1)
        steps = [
            step for step in self.steps
            if wanted(step) and not (isinstance(step, Act) and step.t_ns > last)
        ]  # fmt: skip
        asked = {key: request for key, request in self.asked.items() if key in keys}
        return replace(self, steps=steps, asked=asked)


SILENCE_NS: Final = 1_000_000_000
"""A request that a recording has no answer to, and ends this soon after, may have been answered."""
_SERVICE_BYTE: Final = bytes([DEVICE_MANAGER.byte])


def read_script(
    header: Header,
    records: Iterable[Record],
    keep_splits: bool = False,
    port: int | None = None,
) -> Script:
    """The script of a recording; upcall connections go to `port` instead of the recorded one.

    A request is one receive of the guest, and one write: a split one stays two. With
    `keep_splits` the writes are the recorded ones, which may hold several requests.
    """
    scripter = _Scripter(header, keep_splits, header.port if port is None else port)
    for record in records:
        scripter.feed(record)
    return scripter.finish()


class _Scripter:
    def __init__(self, header: Header, keep_splits: bool, port: int) -> None:
        self._session = Session(header, NoTable())
        self._keep_splits = keep_splits
        self._line = connect_line(port).raw
        self._moved = port != header.port
        self._opened: set[int] = set()
        self._ended: set[int] = set()
        self._script = Script(replace(header, port=port))

    def feed(self, record: Record) -> None:
        events = self._session.feed(record)
        at = self._session.last_ns - (self._session.first_ns or 0)
        match record:
            case Open(conn=conn, begins=begins):
                self._opened.discard(conn)
                self._open(conn, begins, at)
            case Chunk(conn=conn):
                if conn not in self._opened:
                    self._open(conn, Begins.MIDDLE, at)
                self._chunk(record, events, at)
            case Close(conn=conn) if conn in self._opened and conn not in self._ended:
                self._close(record, events, at)
            case Vmm(action=action):
                self._script.steps.append(Act(at, action))
            case Gap(reason=reason, size=size, conn=conn) if reason != LEFT_OUT:
                whose = f"of connection {conn}" if conn else "of the recording"
                self._script.left_out.append(f"{size} bytes {whose} are missing: {reason}")

    def finish(self) -> Script:
        script = self._script
        end_ns = self._session.last_ns - (self._session.first_ns or 0)
        for key, asked in script.asked.items():
            connection = self._session.connections[asked.conn]
            still_open = connection.closed_ns is None and connection.gave_up_ns is None
            if asked.reply is None and still_open and end_ns - asked.t_ns < SILENCE_NS:
                script.asked[key] = replace(asked, cut_off=True)
                script.left_out.append(f"the recording ends before {key[0]}.{key[1]} is answered")
        for conn, connection in self._session.connections.items():
            elsewhere = connection.port not in (None, self._session.header.port)
            if connection.begins is Begins.OTHER or (elsewhere and connection.accepted):
                script.left_out.append(f"connection {conn} is to port {connection.port}")
                script.steps = [s for s in script.steps if isinstance(s, Act) or s.conn != conn]
        return script

    def _open(self, conn: int, begins: Begins, at: int) -> None:
        steps = self._script.steps
        self._opened.add(conn)
        self._ended.discard(conn)
        steps.append(Connect(at, conn))
        if begins in (Begins.SERVICE, Begins.MIDDLE):
            steps += (Send(at, conn, "line", self._line), Await(at, conn, "line"))
        if begins is Begins.MIDDLE:
            steps += (Send(at, conn, "service", _SERVICE_BYTE), Await(at, conn, "hello"))
            self._script.left_out.append(
                f"connection {conn} was recorded from its middle: it is sent on a new one"
            )

    def _chunk(self, chunk: Chunk, events: Sequence[Event], at: int) -> None:
        steps, conn = self._script.steps, chunk.conn
        for event in events:
            match event:
                case ConnectLine(raw=raw, port=port):
                    moved = self._moved and port == self._session.header.port
                    steps.append(Send(at, conn, "line", self._line if moved else raw))
                case PassFd():
                    steps.append(Send(at, conn, "line", self._line))
                    self._script.left_out.append(
                        f"connection {conn} was handed over as a descriptor: a line asks for it"
                    )
                case OkLine():
                    steps.append(Await(at, conn, "line"))
                case ServiceByte(value=value):
                    steps.append(Send(at, conn, "service", bytes([value])))
                case Hello():
                    steps.append(Await(at, conn, "hello"))
                case RequestReceived():
                    self._request(chunk, event, at)
                case ReplyReceived(number=int(number)):
                    self._reply(conn, event, number, at)
                case Opaque(to_guest=True, raw=raw):
                    steps.append(Send(at, conn, "other", raw))

    def _request(self, chunk: Chunk, event: RequestReceived, at: int) -> None:
        steps, asked = self._script.steps, self._script.asked
        begin, number = event.position, event.number
        asked[chunk.conn, number] = Asked(
            chunk.conn, number, len(asked), at, event.size, event.message, event.raw
        )
        piece = chunk.data[begin : begin + event.size]
        last = steps[-1]
        if self._keep_splits and begin and isinstance(last, Send) and last.requests:
            steps[-1] = replace(last, data=last.data + piece, requests=(*last.requests, number))
        else:
            steps.append(Send(at, chunk.conn, "request", piece, (number,)))

    def _reply(self, conn: int, event: ReplyReceived, number: int, at: int) -> None:
        asked = self._script.asked.get((conn, number))
        if asked is not None:
            self._script.asked[asked.key] = replace(
                asked, reply=event.message, reply_raw=event.raw, latency_ns=at - asked.t_ns
            )
            self._script.steps.append(Await(at, conn, "reply", number))

    def _close(self, close: Close, events: Sequence[Event], at: int) -> None:
        conn, steps = close.conn, self._script.steps
        for event in events:
            if isinstance(event, Incomplete) and event.to_guest:  # of a line that never ended
                steps.append(Send(at, conn, "other", event.raw))
        if close.how is not How.HALF:
            self._ended.add(conn)
        if not close.by_guest:
            steps.append(Leave(at, conn, close.how))
        elif close.how is not How.HALF:
            steps.append(Await(at, conn, "end"))
