"""Walks a recording once and says what went wrong in it, as it is found.

How it works, before how it is written:

A capture's records come in one by one. `Session` turns their bytes into events: a line, a request,
a reply. The engine keeps what a judgement needs beyond the event itself, and keeps it small, since
recordings are long: per connection the open requests and what the guest's buffers hold (`Watched`),
per guest what was seen to come and go (`History`), who may hold the hotplug lock (`LockWatch`), how
connections follow each other (`Lives`), and with a world the kernel model (`ModelGuest`). Memory
grows with the connections and the findings, not with the operations.

At certain moments (a `Cue` in `rules/registry.py`) it gathers that into a `Situation` or a
`ConnectionSituation` and asks every rule that listens to the cue whether it has something to
say. Rules look at the situation and at nothing else. They know no order among themselves; findings
are put in order at the end, by place and by number, so a cause stands before its consequence.

Why a request failed is not asked rule by rule, since explanations exclude each other. There are
three witnesses, and the better one wins:

1. The kernel model, where the world is known. It executes what the guest executes, in step. While
   it predicts every byte that was recorded its causes are certain. The first byte that it does not
   predict ends its testimony for good.
2. The wire. The family of the request (`@explains`) names what the reply proves, or all that it may
   mean. What rests on earlier requests is inferred, since a recording may lack connections.
3. The guest's console, which is joined by content and decides between what is possible.

Silence is the hardest. That a request has no answer shows when its connection ends, or the
recording does, and how that came about decides what it means: a guest that closes is no guest that
hangs, and a client that leaves at once has not waited. What rests on a lock that is held for ever
is kept back until the recording is over: one later answer that needs the lock refutes it.

When bytes are missing the engine does not guess. A gap makes the history unsure, what the buffers
hold unknown and the model end, and whatever is still said says that it is inferred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dissectors.constants import (
    CPU_MSG_SIZE,
    CPU_TYPES,
    Arch,
)
from dissectors.events import (
    ConnectLine,
    Event,
    Incomplete,
    Lost,
    ReplyReceived,
    RequestReceived,
    ServiceByte,
)
from dissectors.messages import Reply, Request
from dissectors.services import DEVICE_MANAGER

from .. import codes
from ..capture.records import (
    LEFT_OUT,
    THREAD_DIED,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from ..kernel.noted_world import noted_world
from ..kernel.world import World
from ..trace.decoding import Session
from ..trace.operation_table import NoTable, OperationTable
from .causes import ModelGuest
from .finding import Cause, Finding, Ref, sure
from .judging import Judging
from .lives import Lives
from .lock import RESTS_ON_IT
from .other_services import OtherServices
from .rules.registry import Cue
from .situation import LONG_NS, ConnectionSituation, Situation, WaitEnd
from .telling import Telling
from .watched import REPLY_SIZE, Watched, Witness, is_whole

if TYPE_CHECKING:
    from .log_matching import ConsoleMatcher

_LAYOUTS: Final = {msg_size: arch for arch, msg_size in CPU_MSG_SIZE.items()}
_RESTS_ON_THE_CHANNEL: Final = frozenset({codes.CHANNEL_REMOVED})


class Diagnosis:
    """Feed it a capture's records in order; it returns findings as they become certain.

    `world` is what the guest looked like at boot, where the user knows; else the one that the
    header notes. `dragonball` says that Dragonball is the client, which decides the consequences.
    `table` takes the operations of who wants them as well.
    """

    def __init__(
        self,
        header: Header,
        world: World | None = None,
        dragonball: bool = True,
        console: ConsoleMatcher | None = None,
        table: OperationTable | None = None,
    ) -> None:
        world = world or noted_world(header.notes)
        if world:
            header = replace(header, arch=world.arch.value)
        self.session = Session(header, NoTable() if table is None else table)
        self.witness: Witness | None = None
        self.events: Sequence[Event] = ()
        """What the last record was taken for."""
        self._header = header
        self._seen_dead: set[tuple[int | None, int | None]] = set()
        self.judging = Judging(world, console)
        self.telling = Telling(header, dragonball)
        self._others = OtherServices(header.wall_ns)
        self.watched: dict[int, Watched] = {}
        self.now_ns = 0
        self._lives = Lives()
        self._highest = 0
        """The highest number of a connection: they are counted from 1."""
        self.unanswered = 0
        self.arch = Arch.named(header.arch)
        """Until the first CPU request tells, None when nobody said."""

    @property
    def model(self) -> ModelGuest | None:
        """The kernel model beside the recording, None without a world."""
        return self.judging.model

    def if_never_answered(self, at: Situation) -> list[Cause]:
        """What would explain an open request, if no answer to it ever comes."""
        return self.judging.if_never_answered(at, self.session.last_ns)

    @property
    def has_every_connection(self) -> bool:
        """False when a number is missing: the guest may be in another state than it seems."""
        return len(self.session.connections) >= self._highest

    def feed(self, record: Record, offset: int = 0) -> list[Finding]:
        """What one record brings to light."""
        if not isinstance(record, Chunk):  # nearly every record is one
            if isinstance(record, Mark) and record.name == THREAD_DIED:
                self._seen_dead.add((record.conn, record.request))
            if isinstance(record, (Mark, Header, End)):
                return []
        self.events = events = self.session.feed(record, offset)
        self.session.finished_rows.clear()
        self.now_ns = record.t_ns
        if isinstance(record, Chunk):
            return self._chunk(record, events)
        match record:
            case Open():
                self._opened(record)
            case Close(how=How.HALF):
                self._half_closed(record)
            case Close() | GaveUp() if record.conn not in self.watched:
                # The other side closes what is over, or something was never seen to open.
                if self.model and self.session.connections[record.conn].begins is Begins.MIDDLE:
                    self.model.part()
            case Close() if record.how.by_us:
                self._cut(record.conn)
                return list(self._over(record.conn, (), closed=False))
            case Close():
                return list(self._over(record.conn, events, closed=True))
            case Gap():
                self._lost(record)
                return self._lost_replies(record.conn, events)
            case Vmm():
                self.judging.vmm(record.action)
        return []

    def finish(self) -> list[Finding]:
        """The recording is over: what is still open, looping or plugged."""
        self.now_ns = max(self.now_ns, self.session.last_ns)
        found: list[Finding] = []
        for conn in list(self.watched):
            found += self._over(conn, (), closed=False)
        row, idle = self._lives.finish()
        if row is not None:
            found += self.telling.of_connection(Cue.REFUSED, row, self.now_ns)
        for connection in idle:
            found += self.telling.of_connection(Cue.END, connection, self.now_ns)
        for added in self.judging.plugged.values():
            at = added if isinstance(added, Situation) else added.situation()
            found += self.telling.of_request(Cue.END, at)
        return found + self.telling.last()

    # What happens to connections.

    def _opened(self, record: Open) -> None:
        connection = self.session.connections[record.conn]
        watched = Watched(
            ConnectionSituation(
                connection,
                worked_before=self._lives.worked,
                broke_before=self._lives.broke,
                in_guest=record.begins is Begins.SERVICE,
            )
        )
        self.watched[record.conn] = watched
        self._highest = max(self._highest, record.conn)
        watched.line_ns = record.t_ns if record.begins is Begins.SERVICE else None
        if record.accepted:
            watched.ok_ns = record.t_ns
        if record.begins is Begins.MIDDLE:
            self._from_middle(record.conn)
        elif record.begins is Begins.SERVICE:
            self._lives.opened()

    def _from_middle(self, conn: int) -> None:
        self._highest = max(self._highest, conn)
        self.watched[conn].forget()
        self.judging.part()

    def _cut(self, conn: int) -> None:
        """The recorder closed it: what was open then tells nothing of the guest."""
        watched = self.watched[conn]
        self.unanswered -= len(watched.open)
        for at in watched.open.values():
            self.judging.lost(at)
        watched.open.clear()

    def _half_closed(self, record: Close) -> None:
        watched = self.watched.get(record.conn)
        if watched is not None and not record.by_guest and watched.ok_ns is None:
            watched.situation.half_closed = not watched.situation.received

    def _lost(self, gap: Gap) -> None:
        self.judging.part()
        for conn in [gap.conn] if gap.conn else list(self.watched):
            if conn in self.watched:
                self.watched[conn].forget()
                self.watched[conn].piece_ns = None
                if (gap.to_guest or not gap.conn) and gap.reason != LEFT_OUT:
                    self.watched[conn].short = None  # the gap may have its rest
                for situation in self.watched[conn].open.values():
                    situation.doubtful |= gap.conn == 0 or not is_whole(situation)

    def _lost_replies(self, conn: int, events: Sequence[Event]) -> list[Finding]:
        """Replies that the recording lacks: their requests are neither judged nor unanswered."""
        found: list[Finding] = []
        for event in events if conn in self.watched else ():
            if isinstance(event, ReplyReceived):  # a size limit cut it behind all that it means
                found += self.answered(self.watched[conn], event)
            for number in event.replies if isinstance(event, Lost) else ():
                situation = self.watched[conn].open.pop(number, None)
                if situation:
                    self.unanswered -= 1
                    self.judging.lost(situation)
                    if self.witness:
                        self.witness.lost(situation)
        return found

    def _chunk(self, chunk: Chunk, events: Sequence[Event]) -> list[Finding]:
        conn = chunk.conn
        found: list[Finding] = []
        if conn not in self.watched:
            at = ConnectionSituation(self.session.connections[conn])
            self.watched[conn] = Watched(at)
            self._from_middle(conn)
        watched = self.watched[conn]
        for event in events:
            if isinstance(event, RequestReceived):
                found += self.asked(conn, watched, event)
            elif isinstance(event, ReplyReceived):
                found += self.answered(watched, event)
                watched.piece_ns = None
            elif isinstance(event, Lost):
                self._lost_replies(conn, [event])
            else:
                found += self._handshake(conn, watched, event)
        if not chunk.to_guest and (watched.piece_ns is not None or len(chunk.data) != REPLY_SIZE):
            watched.take_piece(self.session.awaited(conn, 1), chunk.t_ns)
        return found

    def _handshake(self, conn: int, watched: Watched, event: Event) -> Iterator[Finding]:
        at, connection = watched.situation, watched.situation.connection
        if isinstance(event, ConnectLine) and connection.port == self._header.port:
            watched.line_ns = self.now_ns
            self._lives.opened()
        if connection.answer and not connection.accepted:
            at.received = connection.answer
        if connection.accepted and watched.ok_ns is None:
            watched.ok_ns = self.now_ns
            self._channel_was_there(watched.line_ns or connection.opened_ns)
            row = self._lives.accepted(at)
            if row is not None:
                yield from self.telling.of_connection(Cue.REFUSED, row, self.now_ns)
        if isinstance(event, ServiceByte):
            at.early |= event.early
            if event.service is DEVICE_MANAGER and self.model:
                self.model.connect(conn, from_start=True)
        if connection.port == self._header.port or connection.port is None:
            yield from self.telling.of_connection(Cue.HANDSHAKE, at, self.now_ns)
        if connection.hello:
            self._lives.ready(connection)

    def _over(self, conn: int, events: Sequence[Event], closed: bool) -> Iterator[Finding]:
        """The connection ended, or the recording did: nothing will be answered any more."""
        watched = self.watched.pop(conn)
        yield from self._others.over(conn)
        at, connection = watched.situation, watched.situation.connection
        if self.model:
            self.model.disconnect(conn)
        at.unanswered, at.at_end = len(watched.open), not closed
        for event in events:
            if isinstance(event, Incomplete) and event.to_guest and not connection.line:
                at.unfinished = event.raw
            elif isinstance(event, Incomplete) and watched.ok_ns is None:
                at.received = at.received or event.raw
        self.unanswered -= len(watched.open)
        self.judging.history.unsure |= bool(watched.open)
        if watched.short is not None:
            yield from self.telling.of_request(Cue.WHOLE, watched.short)
        for situation in watched.open.values():
            situation.received, situation.piece_ns = watched.received, watched.piece_ns
            situation.piece = watched.piece
            yield from self._silent(situation, closed and connection.closed_by_guest, not closed)
        since = watched.ok_ns or watched.line_ns or connection.opened_ns
        at.waited_ns = self.now_ns - since
        ours = connection.begins is not Begins.OTHER
        at.to_upcall = upcall = connection.port == self._header.port and ours
        at.cut_off_by = self.judging.cut_off_by
        if not closed:
            if upcall:
                yield from self.telling.of_connection(Cue.END, at, self.now_ns)
            return
        if upcall and connection.accepted:
            self._lives.ended(at)
        elif upcall and watched.torn and connection.begins is not Begins.MIDDLE:
            return  # what is missing of the recording may be its OK
        elif upcall and connection.closed_by_guest and not at.received and not at.half_closed:
            self._lives.refused(at, self.now_ns)
        if upcall or connection.port is None:
            yield from self.telling.of_connection(Cue.CLOSED, at, self.now_ns)

    # What happens to requests.

    def asked(self, conn: int, watched: Watched, event: RequestReceived) -> list[Finding]:
        request = event.message
        if not isinstance(request, Request):
            self._others.asked(conn, event, self.now_ns)
            return []
        ref = Ref(conn, event.number)
        if self.arch is None and request.msg_type in CPU_TYPES:
            self.arch = _LAYOUTS.get(request.msg_size)
        at = Situation(
            ref,
            event,
            request,
            self.now_ns,
            self.judging.history,
            self.arch or Arch.X86_64,
            arch_told=self.arch is not None,
            seen_by_client=watched.situation.connection.begins is not Begins.SERVICE,
        )
        watched.give_buffers(at)
        at.doubtful = watched.torn and not is_whole(at)
        watched.torn &= event.size < len(event.raw)
        watched.open[event.number] = at
        self.judging.history.unsure |= self.unanswered > 0
        self.unanswered += 1
        if self.witness:
            self.witness.asked(at)
        self.judging.asked(at)
        found: list[Finding] = []
        short, watched.short = watched.short, None
        if short is not None and event.continues != short.ref.request:
            found += self.telling.of_request(Cue.WHOLE, short)
        found += self.telling.of_request(Cue.REQUEST, at)
        begins = event.continues is None and event.rest_of is None
        if not begins or event.overlaps is not None:
            found += self.telling.of_request(Cue.PIECE, at)
        if begins and event.size < len(event.raw):
            watched.short = at  # unless its rest follows
        return found

    def answered(self, watched: Watched, event: ReplyReceived) -> list[Finding]:
        reply = event.message
        if not isinstance(reply, Reply):
            return list(self._others.answered(watched.situation.connection.number, event))
        at = None if event.number is None else watched.open.pop(event.number, None)
        if at is None:
            watched.remember_unasked(reply)
            if event.number is not None:
                return []
            surplus = watched.situation
            return list(self.telling.of_connection(Cue.HANDSHAKE, surplus, self.now_ns))
        self.unanswered -= 1
        # Earlier replies on this connection may have come since the request was sent.
        watched.give_buffers(at)
        at.reply, at.reply_raw = reply, event.raw
        at.replied_ns, at.latency_ns = self.now_ns, self.now_ns - at.sent_ns
        at.piece_ns, at.piece = watched.piece_ns, watched.piece
        found = self._answered(at)
        watched.remember(at, reply)
        return found

    def _answered(self, at: Situation) -> list[Finding]:
        self.judging.answered(at, self.now_ns, self.has_every_connection)
        found = self.telling.of_causes(at)
        found += self.telling.of_request(Cue.REPLY, at)
        if at.ret:
            found += self.telling.of_request(Cue.REFUSAL, at)
        for other in self.judging.learnt(at, self.now_ns):
            found += self.telling.under(codes.VCPU_NOT_STARTED, other, inferred=True)
        if self.telling.keeps_back:
            self.telling.refute(_RESTS_ON_THE_CHANNEL, at.sent_ns)
            if self.judging.lock.free_at == at.ref:
                self.telling.refute(RESTS_ON_IT, at.sent_ns)
        if self.witness:
            self.witness.judged(at, at.causes)
        return found

    def _channel_was_there(self, asked_ns: int) -> None:
        self.judging.channel_was_there(asked_ns)
        self.telling.refute(_RESTS_ON_THE_CHANNEL, asked_ns)

    def _silent(self, at: Situation, by_guest: bool, at_end: bool) -> Iterator[Finding]:
        """A request was not answered, and now never will be."""
        gave_up = self.session.connections[at.ref.conn].gave_up_ns is not None
        at.ended = WaitEnd.CLIENT if not gave_up else WaitEnd.GAVE_UP
        at.ended = WaitEnd.GUEST if by_guest else WaitEnd.RECORDING if at_end else at.ended
        # Without times nobody knows how long it waited: it may only have been asked just now.
        at.waited_ns = self.now_ns - at.sent_ns if self._header.timed else LONG_NS
        self.judging.silent(at, self.has_every_connection and self._header.timed, self.now_ns)
        if at.causes and (at.ref.conn, at.ref.request) in self._seen_dead:
            at.causes = [*sure(at.causes[0].code), *at.causes[1:]]
        yield from self.telling.of_causes(at)
        yield from self.telling.of_request(Cue.SILENCE, at)
        if self.witness:
            self.witness.judged(at, at.causes)
        self.judging.over(at)


def sort_key(finding: Finding) -> tuple[int, int, str]:
    """By place in the recording; at one request causes, then times, then consequences."""
    request = -1 if finding.request is None else finding.request
    return finding.conn or 0, request, finding.code
