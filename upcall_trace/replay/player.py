"""Plays a script to an address: one thread, real sockets, what happens goes out as it happens.

The player decides nothing about what came; whoever drives it compares. docs/replay.md.

How it works. A script is a list of steps in the recorded order, over all connections: connect,
send, await, leave, act. The player takes one after the other, never two at once. Order comes from
the awaits, not from a clock: a step is taken when everything that had come before it in the
recording has come again, or has failed to come in time. So at the default speed a replay is as fast
as the guest answers.

Between two steps the player waits for a time only where no answer could tell it to go on:

- A tempo (`--speed`) says when each step is due.
- A short send is kept apart from the next one, or the guest would receive them together.
- A request that was sent while another one had no answer yet is sent as long after it as in the
  recording, unless the other is answered sooner. The other may be at work in the guest, hold the
  hotplug lock, or have its thread die of it, and what comes next depends on how far it is
  (docs/protocol.md section 4). A simulated guest settles that when it receives a request.

While it waits it reads from all connections. What comes is a record of a capture, goes through the
same `Session` that decodes captures, and settles the request that it answers: each request of the
script is settled once, as answered, as silent, or as not sent. A connection that goes otherwise
than recorded is `lost`: nothing more is sent on it, and the others go on.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from dissectors.constants import MESSAGE_SIZE
from dissectors.events import Event, Hello, Incomplete, OkLine, ReplyReceived

from ..capture.records import Begins, Chunk, Close, GaveUp, Header, How, Open, Record, Vmm
from ..compare.replies import Got
from ..errors import PeerDied, Unreachable
from ..kernel.vmm_actions import order_of
from ..sockets.addresses import Address, UnixAddress
from ..trace.decoding import Session
from ..trace.operation_table import NoTable
from ..trace.script import SILENCE_NS, Act, Asked, Await, Connect, Key, Leave, Script, Send, Step
from .happening import Answered, Happening, NotSent, Parted, Remark
from .played_stream import PlayedStream, open_stream
from .tempo import Patience, Tempo

_APART_NS: Final = 100_000_000
"""Between a short send and the next one, so that the guest receives them apart."""
_BULK: Final = 64 << 10
_NO_LIMIT_NS: Final = 1 << 62
_LOOK_UP_NS: Final = 50_000_000
_FINE_NS: Final = 2_000_000
_EXTRA_LIMIT: Final = 1 << 16
"""Bytes that a guest may send beyond its answers before the connection is given up."""


class Player:
    """Plays one script once. `keep` gets every record of what happens, with times from 0 on.

    `order` follows an order on the VMM's side and returns why it could not, None where there is no
    such side; `before` is called before each request is sent. `stopped` ends the play between two
    steps or while it waits. `is_target` tells after each connect whether this is still the guest
    that the play is meant for.
    """

    def __init__(
        self,
        address: Address,
        script: Script,
        pace: Tempo,
        patience: Patience,
        keep: Callable[[Record], None] = lambda _: None,
        order: Callable[[dict[str, object]], str | None] | None = None,
        before: Callable[[Asked], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
        is_target: Callable[[socket.socket], bool] = lambda _: True,
    ) -> None:
        self._address = address
        self._script = script
        self._pace = pace
        self._patience = patience
        self._keep = keep
        self._order = order
        self._before = before
        self._stopped = stopped
        self._is_target = is_target
        self._has_line = isinstance(address, UnixAddress)
        header = script.header
        self._session = Session(Header("replay", arch=header.arch, port=header.port), NoTable())
        self._streams: dict[int, PlayedStream] = {}
        self._by_descriptor: dict[int, PlayedStream] = {}
        self._poll = select.poll()
        self._happened: list[Happening] = []
        self._settled: set[Key] = set()
        self._begin_ns = 0
        self._longest_gap_ns = pace.max_gap_ns if pace.max_gap_ns is not None else _NO_LIMIT_NS
        self.interrupted = False
        self.late_ns: list[int] = []
        """How long after its moment each request left, in nanoseconds."""

    def play(self) -> Iterator[Happening]:
        """Do it; what happens comes in the order in which it becomes certain.

        Raises Unreachable when nobody answers at the address to begin with, and PeerDied when
        the address goes away on the way.
        """
        self._begin_ns = time.monotonic_ns()
        try:
            steps = self._script.steps
            for step, due_ns in zip(steps, self._pace.due(steps), strict=True):
                if not isinstance(step, Await):
                    self._wait_until(self._begin_ns + due_ns)
                if self._stopped():
                    break
                self._take(step, due_ns)
                yield from self._drain()
            self._watch_silence(list(self._streams.values()))
            self.interrupted = self._stopped()
            yield from self._drain()
        finally:
            for stream in list(self._streams.values()):
                self._close(stream)
        yield from self._drain()
        if not self.interrupted:
            for key, asked in self._script.asked.items():
                if key not in self._settled:
                    yield NotSent(asked, "its connection was never opened")

    def _drain(self) -> Iterator[Happening]:
        happened, self._happened = self._happened, []
        yield from happened

    def _now(self) -> int:
        return time.monotonic_ns() - self._begin_ns

    def _record(self, record: Record) -> None:
        self._keep(record)
        events = self._session.feed(record)
        stream = self._streams.get(getattr(record, "conn", 0))
        if stream is None:
            return
        if isinstance(record, Chunk) and not record.to_guest:
            self._received(stream, len(record.data), events)
        stream.extra += sum(
            len(event.raw) for event in events
            if isinstance(event, Incomplete) and not event.to_guest
        )  # fmt: skip

    # Steps.

    def _take(self, step: Step, due_ns: int) -> None:
        match step:
            case Connect():
                self._connect(step.conn)
            case Send():
                self._send(step, due_ns)
            case Await():
                self._await(step)
            case Leave():
                self._leave(step)
            case Act():
                self._act(step.action)

    def _connect(self, conn: int) -> None:
        if conn in self._streams:
            self._close(self._streams[conn])
        address = self._address
        try:
            stream = open_stream(address, self._script.header.port)
        except OSError as error:
            what = f"{address} cannot be reached: {error.strerror or error}"
            raise (PeerDied(f"{what}, connection {conn}") if self._session.connections
                   else Unreachable(what)) from None  # fmt: skip
        if not self._is_target(stream):
            stream.close()
            raise PeerDied(f"{address} is not the guest any more that the plan was made for")
        stream.settimeout(self._patience.reply_s)
        opened = PlayedStream(conn, stream, accepted=not self._has_line)
        self._streams[conn] = self._by_descriptor[stream.fileno()] = opened
        self._poll.register(stream, select.POLLIN)
        begins = Begins.LINE if self._has_line else Begins.SERVICE
        port = None if self._has_line else self._script.header.port
        accepted = None if self._has_line else True
        self._record(Open(self._now(), conn, begins, port, accepted))

    def _send(self, step: Send, due_ns: int) -> None:
        if step.what == "line" and not self._has_line:
            return
        stream = self._streams.get(step.conn)
        why = "its connection is not open" if stream is None else stream.lost
        asked = [self._script.asked[step.conn, request] for request in step.requests]
        if stream is None or why:
            self._leave_out(asked, why)
            return
        for each in asked:
            self._before(each)
        if asked:
            self._let_others_work(step)
        if self._stopped():
            return
        if stream.short and stream.waiting:
            self._keep_apart(stream, step)
        now = self._now()
        if asked and self._pace.speed is not None:
            self.late_ns.append(now - due_ns)
        try:
            stream.socket.sendall(step.data)
        except OSError as error:
            stream.lost = f"its connection broke: {error.strerror or error}"
            self._leave_out(asked, stream.lost)
            return
        stream.short = len(step.data) % MESSAGE_SIZE != 0
        stream.last_sent_ns, stream.last_t_ns = time.monotonic_ns(), step.t_ns
        stream.sent += step.requests
        for request in step.requests:
            stream.waiting[request] = stream.last_sent_ns
        self._record(Chunk(now, step.conn, True, step.data))

    def _let_others_work(self, step: Send) -> None:
        """Let requests on other connections get as far as they were when this one was sent."""
        for stream in list(self._streams.values()):
            if stream.conn == step.conn:
                continue  # their thread reads one after the other by itself
            for request, sent_ns in list(stream.waiting.items()):
                gap_ns = step.t_ns - self._script.asked[stream.conn, request].t_ns
                until_ns = sent_ns + min(gap_ns, self._patience.work_ns, self._longest_gap_ns)
                self._wait(until_ns, partial(stream.is_over, request))

    def _keep_apart(self, stream: PlayedStream, step: Send) -> None:
        """Let the guest receive the piece before on its own."""
        if self._pace.keep_splits:
            gap = step.t_ns - stream.last_t_ns
            self._wait_until(stream.last_sent_ns + min(gap, self._pace.max_gap_ns or gap))
        else:
            self._wait(stream.last_sent_ns + _APART_NS, lambda: not stream.waiting)

    def _leave_out(self, asked: list[Asked], why: str) -> None:
        for each in asked:
            self._settle(each, NotSent(each, why))

    def _await(self, step: Await) -> None:
        stream = self._streams.get(step.conn)
        if stream is None or (step.what == "line" and not self._has_line):
            return
        if stream.lost and not stream.waiting:
            return
        known = max(0, step.t_ns - stream.last_t_ns)
        deadline = time.monotonic_ns() + self._limit_ns(known)
        match step.what:
            case "line":
                self._wait(deadline, lambda: stream.accepted or stream.ended)
                if not stream.accepted:
                    self._part(stream, "accepted", "closed" if stream.ended else "no OK line")
            case "hello":
                self._wait(deadline, lambda: stream.greeted or stream.ended)
                if not stream.greeted:
                    got = "closed" if stream.ended else "no CONNECT message"
                    self._part(stream, "greeted by the service", got)
            case "end":
                further = "accepted" if step.conn not in self._script.accepted else ""
                further = further or ("greeted" if step.conn not in self._script.greetings else "")
                self._wait(deadline, lambda: stream.ended or bool(getattr(stream, further, False)))
                if further and getattr(stream, further):
                    self._part(stream, f"closed, not {further}", further)
                elif not stream.ended:
                    self._part(stream, "closed by the guest", "still open")
            case _:
                self._await_reply(stream, step.request or 0)

    def _await_reply(self, stream: PlayedStream, request: int) -> None:
        if request not in stream.waiting:
            return
        known = self._script.asked[stream.conn, request].latency_ns or 0
        deadline = stream.waiting[request] + self._limit_ns(known)
        self._wait(deadline, partial(stream.is_over, request))
        if request in stream.waiting and not self._stopped():
            if not stream.ended:
                waited = time.monotonic_ns() - stream.waiting[request]
                self._record(GaveUp(self._now(), stream.conn, waited))
            stream.lost = stream.lost or f"request {stream.conn}.{request} got no answer"
            self._give_up(stream)

    def _limit_ns(self, known_ns: int) -> int:
        """How long something is waited for that took so long in the recording."""
        return max(int(self._patience.reply_s * 1e9), 2 * known_ns)

    def _give_up(self, stream: PlayedStream) -> None:
        """Nothing is expected on this connection any more."""
        for request in list(stream.waiting):
            asked = self._script.asked[stream.conn, request]
            self._settle(asked, Answered(asked, Got(None)))
        stream.waiting.clear()

    def _leave(self, step: Leave) -> None:
        stream = self._streams.get(step.conn)
        if stream is None:
            return
        if step.how is How.HALF:
            try:
                stream.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is over already
            self._record(Close(self._now(), step.conn, by_guest=False, how=How.HALF))
            return
        self._watch_silence([stream])
        self._serve(0)
        if stream.ended and not stream.lost:
            self._part(stream, "open until the client closed", "closed by the guest")
        self._close(stream)

    def _watch_silence(self, streams: list[PlayedStream]) -> None:
        """Requests that the recording has no answer to may be answered even so."""
        waiting = [stream for stream in streams if stream.waiting and not stream.ended]
        deadline = max(
            (
                sent + self._silence_ns(self._script.asked[stream.conn, request])
                for stream in waiting
                for request, sent in stream.waiting.items()
            ),
            default=0,
        )
        if deadline:
            self._wait(deadline, lambda: not any(s.waiting and not s.ended for s in waiting))
        if self._stopped():
            return
        for stream in streams:
            self._give_up(stream)

    def _silence_ns(self, asked: Asked) -> int:
        if self._patience.silence_s is not None:
            return int(self._patience.silence_s * 1e9)
        return min(max(asked.watched_ns, SILENCE_NS), int(self._patience.reply_s * 1e9))

    def _act(self, action: str) -> None:
        order = order_of(action)
        if order is None:
            refused: str | None = "there is no order for it"
        elif self._order is None:
            refused = "no --control was given"
        else:
            refused = self._order(order)
        if refused is None:
            self._record(Vmm(self._now(), action))
        else:
            self._happened.append(Remark(f"not done on the VMM's side: {action}: {refused}"))

    # What comes.

    def _wait_until(self, due_ns: int) -> None:
        while (left := due_ns - time.monotonic_ns()) > 0 and not self._stopped():
            if left > _FINE_NS:
                self._serve(min(left - _FINE_NS, _LOOK_UP_NS))
            else:
                time.sleep(left / 1e9)

    def _wait(self, deadline_ns: int, over: Callable[[], bool]) -> None:
        while not over() and not self._stopped():
            left = deadline_ns - time.monotonic_ns()
            if left <= 0:
                return
            self._serve(min(left, _LOOK_UP_NS))

    def _serve(self, limit_ns: int) -> None:
        """Take what comes within a time span; returns as soon as something has."""
        for descriptor, _ in self._poll.poll(-(-limit_ns // 1_000_000)):
            stream = self._by_descriptor[descriptor]
            try:
                received = stream.socket.recv(_BULK)
            except OSError:
                self._end(stream, How.RESET)
                continue
            if received:
                self._record(Chunk(self._now(), stream.conn, False, received))
            else:
                self._end(stream, How.CLOSE)

    def _end(self, stream: PlayedStream, how: How) -> None:
        stream.ended = True
        self._poll.unregister(stream.socket)
        self._record(Close(self._now(), stream.conn, by_guest=True, how=how))

    def _received(self, stream: PlayedStream, size: int, events: Sequence[Event]) -> None:
        stream.received += size
        for event in events:
            match event:
                case OkLine():
                    stream.accepted = event.port is not None
                case Hello(valid=valid):
                    stream.greeted = True
                    if valid != self._script.greetings.get(stream.conn, True):
                        told = ("greeted by the service", "greeted with another message")
                        self._part(stream, *(told if not valid else reversed(told)))
                case ReplyReceived():
                    self._replied(stream, event)
        expected = MESSAGE_SIZE * (len(stream.sent) + 2)
        if stream.received > expected + _EXTRA_LIMIT and not stream.flooded:
            stream.flooded = True
            self._part(stream, "nothing but answers", "flooded with bytes")
            self._poll.unregister(stream.socket)

    def _replied(self, stream: PlayedStream, event: ReplyReceived) -> None:
        request = -1
        if event.number is not None and event.number < len(stream.sent):
            request = stream.sent[event.number]
        if request not in stream.waiting:
            stream.extra += len(event.raw)
            return
        latency = time.monotonic_ns() - stream.waiting.pop(request)
        asked = self._script.asked[stream.conn, request]
        self._settle(asked, Answered(asked, Got(event.message, event.raw, latency)))

    def _settle(self, asked: Asked, happening: Answered | NotSent) -> None:
        self._settled.add(asked.key)
        self._happened.append(happening)

    def _part(self, stream: PlayedStream, recorded: str, got: str) -> None:
        if self._stopped():
            return
        stream.lost = stream.lost or f"its connection was {got}"
        self._happened.append(Parted(stream.conn, recorded, got))

    def _close(self, stream: PlayedStream) -> None:
        if not stream.ended:
            self._record(Close(self._now(), stream.conn, by_guest=False))
        if stream.extra and not stream.lost and stream.conn not in self._script.talkative:
            self._part(stream, "nothing but answers", f"{stream.extra} bytes more")
        self._streams.pop(stream.conn, None)
        self._by_descriptor.pop(stream.socket.fileno(), None)
        try:
            self._poll.unregister(stream.socket)
        except KeyError:
            pass  # the guest's end came first
        stream.socket.close()
