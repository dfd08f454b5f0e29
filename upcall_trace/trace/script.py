"""What a replay does, in order: a recording's sends, what to wait for between, the VMM's actions.

Records in, steps out; no IO. A step waits for everything that had come before it in the recording,
whatever the connection, so the recorded order is kept without looking at clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from dissectors.events import (
    ConnectLine,
    Event,
    Hello,
    Incomplete,
    Lost,
    OkLine,
    Opaque,
    PassFd,
    ReplyReceived,
    RequestReceived,
    ServiceByte,
)
from dissectors.hvsock import connect_line
from dissectors.services import DEVICE_MANAGER, ServiceReply, ServiceRequest
from dissectors.slots import positional

from ..capture.records import LEFT_OUT, Begins, Chunk, Close, Gap, Header, How, Open, Record, Vmm
from .decoding import Session
from .operations import NoTable

Key = tuple[int, int]
"""(connection, request) of an operation."""


def key_name(key: Key) -> str:
    """`1.3`, as operations are named everywhere."""
    return f"{key[0]}.{key[1]}"


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection."""

    t_ns: int
    conn: int


@dataclass(frozen=True, slots=True)
class Send:
    """One write; `requests` are those that the guest received of it.

    `what` is `line`, which only a Unix socket takes, `service` or `request`.
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
    were received for this one. `place` counts the recording's requests from 0. Of one without an
    answer, `cut_off` says that the recording does not tell an answer from silence, and `watched_ns`
    for how long nothing came.
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
    watched_ns: int = 0

    @property
    def key(self) -> Key:
        """Connection and request."""
        return self.conn, self.request

    @property
    def name(self) -> str:
        """The two as `1.3`."""
        return key_name(self.key)


@dataclass(slots=True)
class Script:
    """A recording as it can be sent again; `asked` is in the order in which requests were sent.

    `left_out` tells in sentences what is not sent again. `accepted` are the connections that got
    through to the guest; `greetings` says of those with a CONNECT message whether it was a good
    one; on those in `talkative` the guest said more than it was asked.
    """

    header: Header
    steps: list[Step] = field(default_factory=list)
    asked: dict[Key, Asked] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    accepted: set[int] = field(default_factory=set)
    greetings: dict[int, bool] = field(default_factory=dict)
    talkative: set[int] = field(default_factory=set)

    @property
    def actions(self) -> list[str]:
        """What the VMM's side did."""
        return [step.action for step in self.steps if isinstance(step, Act)]

    def only(self, keys: Set[Key]) -> Script:
        """The same without other operations, and without connections that then have none.

        What the VMM's side did stays, up to the last of the operations: they may rest on it. So
        do operations that went in one write with a wanted one.
        """
        keys = {
            (step.conn, request)
            for step in self.steps
            if isinstance(step, Send) and any((step.conn, r) in keys for r in step.requests)
            for request in step.requests
        }
        conns = {conn for conn, _ in keys}
        last_of = dict(sorted(self.asked))

        def wanted(step: Step) -> bool:
            match step:
                case Act():
                    return True
                case Send(conn=conn, requests=requests) if requests:
                    return any((conn, request) in keys for request in requests)
                case Await(conn=conn, request=request) if request is not None:
                    return (conn, request) in keys
                case Await(conn=conn, what="end") if conn in conns:  # what came of the last one
                    return (conn, last_of[conn]) in keys
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
    session = Session(header, NoTable())
    scripter = Scripter(session, keep_splits, port)
    for record in records:
        scripter.take(record, session.feed(record))
    return scripter.finish()


_Message = TypeVar("_Message")
# Most of a recording is requests and replies: what is made for each is made, and filled in, by its
# slots. Nobody else has an `Asked` before it is filled in.
_asked = positional(Asked)
_send = positional(Send)
_await = positional(Await)
_set_reply, _set_reply_raw, _set_latency_ns, _set_cut_off, _set_watched_ns = (
    getattr(Asked, name).__set__
    for name in ("reply", "reply_raw", "latency_ns", "cut_off", "watched_ns")
)


class Scripter:
    """Makes the script of what a session is fed: `take` each record with its events.

    The other parameters are those of `read_script`.
    """

    def __init__(
        self, session: Session, keep_splits: bool = False, port: int | None = None
    ) -> None:
        header = session.header
        port = header.port if port is None else port
        self._session = session
        self._keep_splits = keep_splits
        self._line = connect_line(port).raw
        self._moved = port != header.port
        self._opened: set[int] = set()
        self._left_out: dict[int, str] = {}
        self._ended: set[int] = set()
        self._script = Script(replace(header, port=port))
        self._timed = header.timed
        self._known: dict[bytes, tuple[bytes, Any]] = {}
        """Bytes and message of each of their kind: nearly all requests were sent before."""

    def take(self, record: Record, events: Sequence[Event]) -> None:
        """A record, and what the session took it for."""
        at = self._session.last_ns - (self._session.first_ns or 0)
        if isinstance(record, Chunk):
            if record.conn not in self._opened:
                self._open(record.conn, Begins.MIDDLE, at)
            self._chunk(record, events, at)
            return
        match record:
            case Open(conn=conn, begins=begins):
                self._opened.discard(conn)
                self._open(conn, begins, at)
            case Close(conn=conn) if conn in self._opened and conn not in self._ended:
                self._close(record, events, at)
            case Vmm(action=action):
                self._script.steps.append(Act(at, action))
            case Gap(reason=reason, size=size, conn=conn) if reason != LEFT_OUT:
                whose = f"of connection {conn}" if conn else "of the recording"
                self._script.left_out.append(f"{size} bytes {whose} are missing: {reason}")
                self._lost(conn, events)

    def _lost(self, conn: int, events: Sequence[Event]) -> None:
        """Replies may be among what is missing: these requests are not known to be unanswered."""
        asked = self._script.asked
        numbers = {n for event in events if isinstance(event, Lost) for n in event.replies}
        for key, each in asked.items():
            if each.reply is None and (conn == 0 or (key[0] == conn and key[1] in numbers)):
                _set_cut_off(each, True)

    def finish(self) -> Script:
        """No more records will come."""
        script = self._script
        end_ns = self._session.last_ns - (self._session.first_ns or 0)
        begin_ns = self._session.first_ns or 0
        for key, asked in script.asked.items():
            if asked.reply is not None:
                continue
            connection = self._session.connections[asked.conn]
            given_up = connection.gave_up_ns or connection.closed_ns
            watched = (begin_ns + end_ns if given_up is None else given_up) - begin_ns - asked.t_ns
            if given_up is None and watched < SILENCE_NS:
                _set_cut_off(asked, True)
                script.left_out.append(f"the recording ends before {key[0]}.{key[1]} is answered")
            _set_watched_ns(asked, watched)
        for conn, connection in self._session.connections.items():
            elsewhere = connection.port not in (None, self._session.header.port)
            refused = connection.closed_by_guest and not connection.accepted
            if connection.begins is Begins.OTHER or (elsewhere and not refused):
                self._left_out[conn] = f"is to port {connection.port}"
            if connection.accepted or connection.begins is Begins.MIDDLE:
                script.accepted.add(conn)
            if connection.unsolicited:
                script.talkative.add(conn)
        gone = self._left_out
        script.left_out += [f"connection {conn} {why}" for conn, why in sorted(gone.items())]
        script.steps = [s for s in script.steps if isinstance(s, Act) or s.conn not in gone]
        script.asked = {key: asked for key, asked in script.asked.items() if key[0] not in gone}
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
            self._script.greetings[conn] = True
            self._script.left_out.append(
                f"connection {conn} was recorded from its middle: it is sent on a new one"
            )

    def _chunk(self, chunk: Chunk, events: Sequence[Event], at: int) -> None:
        steps, conn = self._script.steps, chunk.conn
        for event in events:
            match event:
                case RequestReceived():
                    self._request(chunk, event, at)
                case ReplyReceived(number=int(number)):
                    self._reply(conn, event, number, at)
                case ConnectLine(raw=raw, port=port):
                    moved = self._moved and port == self._session.header.port
                    steps.append(Send(at, conn, "line", self._line if moved else raw))
                case PassFd():
                    self._left_out[conn] = "was handed over as a descriptor"
                case OkLine():
                    steps.append(Await(at, conn, "line"))
                case ServiceByte(value=value):
                    steps.append(Send(at, conn, "service", bytes([value])))
                case Hello(valid=valid):
                    self._script.greetings[conn] = valid
                    steps.append(Await(at, conn, "hello"))
                case Opaque(to_guest=True):  # no plan could tell what they do
                    told = f"connection {conn}: bytes without a meaning are not sent"
                    ours = self._session.connections[conn].port == self._session.header.port
                    if ours and told not in self._script.left_out:
                        self._script.left_out.append(told)

    def _request(self, chunk: Chunk, event: RequestReceived, at: int) -> None:
        steps, asked = self._script.steps, self._script.asked
        begin, number = event.position, event.number
        raw, message = self._once(event.raw, event.message)
        asked[chunk.conn, number] = _asked(
            chunk.conn, number, len(asked), at, event.size, message, raw, None, b"", None, False, 0
        )
        piece = chunk.data[begin : begin + event.size]
        if piece == raw:
            piece = raw
        last = steps[-1]
        if self._keep_splits and begin and isinstance(last, Send) and last.requests:
            steps[-1] = replace(last, data=last.data + piece, requests=(*last.requests, number))
        else:
            steps.append(_send(at, chunk.conn, "request", piece, (number,)))

    def _reply(self, conn: int, event: ReplyReceived, number: int, at: int) -> None:
        asked = self._script.asked.get((conn, number))
        if asked is not None:
            raw, reply = self._once(event.raw, event.message)
            _set_reply(asked, reply)
            _set_reply_raw(asked, raw)
            if self._timed:
                _set_latency_ns(asked, at - asked.t_ns)
            self._script.steps.append(_await(at, conn, "reply", number))

    def _once(self, raw: bytes, message: _Message) -> tuple[bytes, _Message]:
        """The two as they were kept before, if they were."""
        known = self._known.setdefault(raw, (raw, message))
        # The same bytes can be another message, behind another service byte.
        return known if known[1] == message else (raw, message)

    def _close(self, close: Close, events: Sequence[Event], at: int) -> None:
        conn, steps = close.conn, self._script.steps
        lineless = not self._session.connections[conn].line
        for event in events:
            if isinstance(event, Incomplete) and event.to_guest and lineless:
                steps.append(Send(at, conn, "line", event.raw))  # it never ended
        if close.how is not How.HALF:
            self._ended.add(conn)
        if not close.by_guest:
            steps.append(Leave(at, conn, close.how))
        elif close.how is not How.HALF:
            steps.append(Await(at, conn, "end"))
