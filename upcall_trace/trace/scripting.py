"""How a recording becomes a script: records and their events in, steps out. No IO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

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
from dissectors.services import DEVICE_MANAGER, ServiceReply
from dissectors.slots import positional

from ..capture.records import LEFT_OUT, Begins, Chunk, Close, Gap, Header, How, Open, Record, Vmm
from ..capture.runs import MessageRun
from .bulk import pieces
from .decoding import Session
from .operation_table import NoTable
from .script import SILENCE_NS, Act, Asked, Await, Connect, Leave, Script, Send

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
        scripter.feed(record)
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
    """Makes the script of what its session is fed by way of it.

    Without `steps` it has what was asked and answered alone. The other parameters are those of
    `read_script`.
    """

    def __init__(
        self,
        session: Session,
        keep_splits: bool = False,
        port: int | None = None,
        steps: bool = True,
    ) -> None:
        header = session.header
        port = header.port if port is None else port
        self._session = session
        self._keep_splits = keep_splits
        self._with_steps = steps
        self._line = connect_line(port).raw
        self._moved = port != header.port
        self._opened: set[int] = set()
        self._left_out: dict[int, str] = {}
        self._ended: set[int] = set()
        self._script = Script(replace(header, port=port))
        self._timed = header.timed
        self._known: dict[bytes, tuple[bytes, Any]] = {}
        """Bytes and message of each of their kind: nearly all requests were sent before."""
        self._whole: dict[bytes | tuple[bytes, type], tuple[bytes, Any]] = {}
        """The same of whole messages without the zeros at their end; of replies, by request."""
        self._last_ns: int | None = None

    def feed(self, item: Record | MessageRun) -> None:
        """A record or a run of them, which the session takes here."""
        if isinstance(item, MessageRun):
            self._run(item)
        else:
            self._take(item, self._session.feed(item))

    def _run(self, run: MessageRun) -> None:
        for piece in pieces(self._session, run):
            if isinstance(piece, MessageRun):
                self._pairs(piece)
            else:
                self._take(*piece)
        self._session.finished_rows.clear()

    def _pairs(self, run: MessageRun) -> None:
        """Requests and their replies, each connection's one after the other."""
        asked, watched = self._script.asked, self._session.watched
        times = np.maximum.accumulate(run.t_ns)
        if self._last_ns is not None:
            times = np.maximum(times, self._last_ns)
        self._last_ns = self._session.last_ns
        times -= self._session.first_ns or 0
        conns, counts = np.unique(run.conn[run.to_guest], return_counts=True)
        numbers = {
            conn: watched[conn].observer.next_number for conn in np.unique(run.conn).tolist()
        }
        for conn, count in zip(conns.tolist(), counts.tolist(), strict=True):
            numbers[conn] -= count
        for conn in numbers.keys() - self._opened:
            self._open(conn, Begins.MIDDLE, int(times[0]))
        steps: list[Any] = [None] * len(run)
        answers, begun = _answers(run)
        for place in begun:  # what they answer stands before this run
            conn, at = int(run.conn[place]), int(times[place])
            number = numbers[conn] - 1
            steps[place] = _await(at, conn, "reply", number)
            if (each := asked.get((conn, number))) is not None:
                self._answer(each, *self._reply_of(_stored(run, place), each.message), at)
        known, whole, timed = self._whole, run.whole, self._timed
        places = np.flatnonzero(run.to_guest)
        answers = answers[places]
        for place, conn, at, stored, answered, answered_at, answer in zip(
            places.tolist(), run.conn[places].tolist(), times[places].tolist(),
            _all_stored(run, places), answers.tolist(), times[answers].tolist(),
            _all_stored(run, answers), strict=True,
        ):  # fmt: skip
            number = numbers[conn]
            numbers[conn] = number + 1
            raw, message = known.get(stored) or self._request_of(stored)
            steps[place] = _send(at, conn, "request", raw, (number,))
            reply_raw, reply, latency_ns = b"", None, None
            if answered > place:
                about = (answer, type(message))
                reply_raw, reply = known.get(about) or self._reply_of(answer, message)
                latency_ns = answered_at - at if timed else None
                steps[answered] = _await(answered_at, conn, "reply", number)
            asked[conn, number] = _asked(
                conn, number, len(asked), at, whole, message, raw, reply, reply_raw, latency_ns,
                False, 0,
            )  # fmt: skip
        if self._with_steps:
            self._script.steps += steps

    def _request_of(self, stored: bytes) -> tuple[bytes, Any]:
        """Bytes and message of a whole request whose zeros at the end are not stored."""
        raw = stored.ljust(DEVICE_MANAGER.request_size, b"\0")
        message = DEVICE_MANAGER.decode_request(raw, self._session.arch)
        found = self._whole[stored] = self._once(raw, message)
        return found

    def _reply_of(self, stored: bytes, request: Any) -> tuple[bytes, Any]:
        """The same of a reply to this request."""
        raw = stored.ljust(DEVICE_MANAGER.reply_size, b"\0")
        reply = DEVICE_MANAGER.decode_reply(raw, self._session.arch, request)
        found = self._whole[stored, type(request)] = self._once(raw, reply)
        return found

    def _answer(self, asked: Asked, raw: bytes, reply: ServiceReply, at: int) -> None:
        _set_reply(asked, reply)
        _set_reply_raw(asked, raw)
        if self._timed:
            _set_latency_ns(asked, at - asked.t_ns)

    def _take(self, record: Record, events: Sequence[Event]) -> None:
        """A record, and what the session took it for."""
        self._last_ns = self._session.last_ns
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
        cut = (event.number for event in events if isinstance(event, ReplyReceived))
        numbers.update(number for number in cut if number is not None)
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
        if gone:
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
        if not self._with_steps:
            return
        last = steps[-1]
        if self._keep_splits and begin and isinstance(last, Send) and last.requests:
            steps[-1] = replace(last, data=last.data + piece, requests=(*last.requests, number))
        else:
            steps.append(_send(at, chunk.conn, "request", piece, (number,)))

    def _reply(self, conn: int, event: ReplyReceived, number: int, at: int) -> None:
        asked = self._script.asked.get((conn, number))
        if asked is not None:
            self._answer(asked, *self._once(event.raw, event.message), at)
            if self._with_steps:
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


def _answers(run: MessageRun) -> tuple[NDArray[np.int64], list[int]]:
    """Of each message of a run where its connection's next one stands, 0 for the last one's.

    And the replies that answer what stands before the run.
    """
    order = np.argsort(run.conn, kind="stable")
    conns = run.conn[order]
    following = np.zeros(len(run), np.int64)
    alike = conns[1:] == conns[:-1]
    following[order[:-1][alike]] = order[1:][alike]
    firsts = order[np.concatenate(([True], ~alike))]
    return following, np.sort(firsts[~run.to_guest[firsts]]).tolist()


def _stored(run: MessageRun, place: int) -> bytes:
    begin = int(run.begin[place])
    return run.block[begin : begin + int(run.size[place])]


def _all_stored(run: MessageRun, places: NDArray[np.int64]) -> list[bytes]:
    """The bytes of these messages without the zeros at their end."""
    block = run.block
    begins = run.begin[places]
    ends = begins + run.size[places]
    return [block[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
