"""Walks a recording once and says what went wrong in it, as it is found.

Memory grows with the connections and the findings, not with the operations.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from dissectors.constants import (
    CALLER_TIMEOUT_NS,
    CPU_MSG_SIZE,
    CPU_TYPES,
    EBUSY,
    EIO,
    HEADER_SIZE,
    MAGIC_VERSION,
    MMIO_MSG_SIZE,
    PCI_MSG_SIZE,
    REPLY_LOAD_OFFSET,
    SERVICE_BYTE_LIMIT_NS,
    Arch,
    MessageType,
)
from dissectors.events import Event, Lost, ReplyReceived, RequestReceived, ServiceByte
from dissectors.messages import (
    CpuRequestArm,
    CpuRequestX86,
    MmioRequest,
    PciRequest,
    Reply,
    Request,
)
from dissectors.services import DEVICE_MANAGER

from .. import codes
from ..capture.records import (
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
from ..codes import Code
from ..kernel.noted_world import noted_world
from ..kernel.world import World
from ..trace.decoding import Connection, Session
from ..trace.operations import NoTable
from .causes import Cause, ModelGuest, learn, of_reply, of_silence, softened
from .finding import Finding, Ref
from .history import History
from .log_decisions import decide
from .log_matching import ConsoleMatcher
from .rules.registry import rules
from .situation import ConnectionSituation, Situation

_CREATED: Final = re.compile(r"vCPU (\d+) created")
_LAYOUTS: Final = {msg_size: arch for arch, msg_size in CPU_MSG_SIZE.items()}
_LOOP_INTERVAL_NS: Final = 100_000_000
_LOOP_LENGTH: Final = 3
_NEARLY: Final = 9 / 10
_KEPT_BUSY: Final = 64
LOCK_HOLDERS: Final = frozenset(
    {codes.REMOVAL_ORDER, codes.ADD_BEYOND_POSSIBLE, codes.MMIO_WITHOUT_BOOT_DEVICE}
)
_SEEN_IN_CONSOLE: Final = frozenset(
    {
        codes.VCPU_NOT_STARTED,
        codes.CPU_ALREADY_KNOWN,
        codes.NO_CPU_NUMBER,
        codes.REMOVE_ALL_CPUS,
        codes.REMOVE_BOOT_CPU,
        codes.REMOVE_UNFINDABLE_CPU,
        codes.REMOVAL_ORDER,
        codes.CPU_BUSY,
        codes.PARTIAL_CPU_ADD,
        codes.ADD_BEYOND_POSSIBLE,
        codes.MMIO_RESOURCE_BUSY,
        codes.PCI_NO_SUCH_BUS,
        codes.PCI_NOTHING_THERE,
        codes.PCI_NO_SUCH_DEVICE,
        codes.STALE_ERROR,
    }
)


@dataclass(slots=True)
class _Watched:
    """What is remembered of one connection."""

    open: dict[int, Situation] = field(default_factory=dict)
    last_ret: int | None = 0
    last_load: int | None = 0
    last_ref: Ref | None = None
    load_ref: Ref | None = None
    ok_ns: int | None = None
    early_told: bool = False
    unsolicited_told: bool = False
    hello_told: bool = False
    torn: bool = False
    """What the guest's request buffer holds is not known."""
    short: Situation | None = None
    """The last request, when it was short and its rest may still come."""

    def forget(self) -> None:
        """What the guest's buffers hold is not known any more."""
        self.torn = True
        self.last_ret = self.last_load = self.last_ref = self.load_ref = None


class Witness(Protocol):
    """Whoever wants to know of each request as the diagnosis comes to it."""

    def asked(self, at: Situation) -> None:
        """It was sent, and the model has not executed it yet."""

    def judged(self, at: Situation, causes: list[Cause]) -> None:
        """It was answered, or never will be; the history knows of it."""

    def lost(self, at: Situation) -> None:
        """Its answer is not in the recording."""


class Diagnosis:
    """Feed it a capture's records in order; it returns findings as they become certain.

    `world` is what the guest looked like at boot, where the user knows; else the one that the
    header notes. `dragonball` says that Dragonball is the client, which decides the consequences.
    """

    def __init__(
        self,
        header: Header,
        world: World | None = None,
        dragonball: bool = True,
        console: ConsoleMatcher | None = None,
    ) -> None:
        world = world or noted_world(header.notes)
        if world:
            header = replace(header, arch=world.arch.value)
        self.session = Session(header, NoTable())
        self.witness: Witness | None = None
        self.events: Sequence[Event] = ()
        """What the last record was taken for."""
        self._header = header
        self._dragonball = dragonball
        self._console = console
        self._model = ModelGuest(world) if world else None
        self._history = History.of_world(world) if world else History()
        self._rules = rules()
        self._watched: dict[int, _Watched] = {}
        self._now_ns = 0
        self._busy: deque[tuple[Ref, int, int]] = deque(maxlen=_KEPT_BUSY)
        """Requests that held the hotplug lock for long: (request, from, to)."""
        self._refusals = 0
        self._refused_ns: int | None = None
        self._loop: ConnectionSituation | None = None
        self._added: dict[object, Situation] = {}
        self._highest = 0
        """The highest number of a connection: they are counted from 1."""
        self._unanswered = 0
        self._arch = Arch.named(header.arch)
        """Until the first CPU request tells, None when nobody said."""

    def feed(self, record: Record, offset: int = 0) -> list[Finding]:
        """What one record brings to light."""
        if isinstance(record, (Mark, Header, End)):
            return []
        self.events = events = self.session.feed(record, offset)
        self.session.finished_rows.clear()
        self._now_ns = record.t_ns
        match record:
            case Open():
                self._watched[record.conn] = watched = _Watched()
                self._highest = max(self._highest, record.conn)
                if record.accepted:
                    watched.ok_ns = record.t_ns
                if record.begins is Begins.MIDDLE:
                    self._from_middle(record.conn)
                return []
            case Chunk():
                return list(self._chunk(record.conn, events))
            case Close() | GaveUp() if record.conn not in self._watched:
                # The other side closes what is over, or something was never seen to open.
                if self._model and self.session.connections[record.conn].begins is Begins.MIDDLE:
                    self._model.part()
            case Close() if record.how is not How.HALF:
                return list(self._close(record))
            case Gap():
                self._lost(record)
                self._lost_replies(record.conn, events)
            case Vmm():
                created = _CREATED.search(record.action)
                if created and self._model:
                    self._model.start_vcpu(int(created[1]))
        return []

    def finish(self) -> list[Finding]:
        """The recording is over: what is still open, looping or plugged."""
        found: list[Finding] = []
        for conn in list(self._watched):
            found += self._over(conn, closed_by_guest=False, at_end=True)
        if self._loop is not None:
            found.append(self._of_connection(codes.CONNECT_REFUSED_LOOP, self._loop))
        for situation in self._added.values():
            found.append(self._of_request(Cause(codes.DEVICE_LEAKED), situation))
        return found

    @property
    def model(self) -> ModelGuest | None:
        """The kernel model beside the recording, None without a world."""
        return self._model

    def _from_middle(self, conn: int) -> None:
        self._highest = max(self._highest, conn)
        self._history.unsure = True
        self._watched[conn].forget()
        if self._model:
            self._model.part()

    def _lost(self, gap: Gap) -> None:
        self._history.unsure = True
        if self._model:
            self._model.part()
        for conn in [gap.conn] if gap.conn else list(self._watched):
            if conn in self._watched:
                self._watched[conn].forget()
                for situation in self._watched[conn].open.values():
                    situation.doubtful |= gap.conn == 0 or not _is_whole(situation)

    def _lost_replies(self, conn: int, events: object) -> None:
        """Replies that the recording lacks: their requests are neither judged nor unanswered."""
        if not isinstance(events, (list, tuple)) or conn not in self._watched:
            return
        for event in events:
            for number in event.replies if isinstance(event, Lost) else ():
                situation = self._watched[conn].open.pop(number, None)
                if situation:
                    self._unanswered -= 1
                    if self.witness:
                        self.witness.lost(situation)

    def _chunk(self, conn: int, events: object) -> Iterator[Finding]:
        if conn not in self._watched:
            self._watched[conn] = _Watched()
            self._from_middle(conn)
        watched = self._watched[conn]
        connection = self.session.connections[conn]
        for event in events if isinstance(events, (list, tuple)) else ():
            if isinstance(event, RequestReceived):
                yield from self._request(conn, watched, event)
            elif isinstance(event, ReplyReceived):
                yield from self._reply(conn, watched, event)
            elif isinstance(event, Lost):
                self._lost_replies(conn, [event])
            else:
                yield from self._handshake(conn, watched, connection, event)

    def _handshake(
        self, conn: int, watched: _Watched, connection: Connection, event: Event
    ) -> Iterator[Finding]:
        if connection.accepted and watched.ok_ns is None:
            watched.ok_ns = self._now_ns
            if self._loop is not None:
                yield self._of_connection(codes.CONNECT_REFUSED_LOOP, self._loop)
            self._refusals, self._refused_ns, self._loop = 0, None, None
        if isinstance(event, ServiceByte):
            if event.service is DEVICE_MANAGER and self._model:
                self._model.connect(conn, from_start=True)
            if event.early and not watched.early_told:
                watched.early_told = True
                yield self._of_connection(codes.EARLY_SERVICE_BYTE, ConnectionSituation(connection))
        if connection.hello is False and not watched.hello_told:
            watched.hello_told = True
            yield self._of_connection(codes.BAD_HELLO, ConnectionSituation(connection))

    def _request(self, conn: int, watched: _Watched, event: RequestReceived) -> Iterator[Finding]:
        request = event.message
        if not isinstance(request, Request):
            return
        ref = Ref(conn, event.number)
        if self._arch is None and request.msg_type in CPU_TYPES:
            self._arch = _LAYOUTS.get(request.msg_size)
        situation = Situation(
            ref,
            event,
            request,
            self._now_ns,
            self._history,
            self._arch or Arch.X86_64,
            last_ret=watched.last_ret,
            last_load=watched.last_load,
            last_ref=watched.last_ref,
            load_ref=watched.load_ref,
            arch_told=self._arch is not None,
        )
        situation.doubtful = watched.torn and not _is_whole(situation)
        watched.torn &= event.size < len(event.raw)
        watched.open[event.number] = situation
        self._history.unsure |= self._unanswered > 0
        self._unanswered += 1
        if self.witness:
            self.witness.asked(situation)
        if self._model:
            self._model.request(ref, event.raw[: event.size])
        if self._console and (situation.is_cpu or situation.is_pci) and _executed(situation):
            situation.console = self._console.find(situation)
        short, watched.short = watched.short, None
        if short is not None and event.continues != short.ref.request:
            yield self._of_request(Cause(codes.SHORT_REQUEST), short)
        if event.continues is not None:
            yield self._of_request(Cause(codes.SPLIT_REQUEST), situation)
        elif event.rest_of is not None:
            yield self._of_request(Cause(codes.OVER_LONG_REQUEST), situation)
        else:
            if event.overlaps is not None:
                yield self._of_request(Cause(codes.OVERLAPPING_REQUESTS), situation)
            if event.size < len(event.raw):
                watched.short = situation  # unless its rest follows

    def _reply(self, conn: int, watched: _Watched, event: ReplyReceived) -> Iterator[Finding]:
        reply = event.message
        if not isinstance(reply, Reply):
            return
        situation = None if event.number is None else watched.open.pop(event.number, None)
        if situation is None:
            if event.number is None and not watched.unsolicited_told:
                watched.unsolicited_told = True
                connection = self.session.connections[conn]
                yield self._of_connection(codes.UNSOLICITED_REPLY, ConnectionSituation(connection))
            # After a gap it may be no message at all, but parts of two.
            watched.last_ret = None if watched.torn else reply.ret
            watched.last_load = None
            watched.last_ref = watched.load_ref = None
            return
        self._unanswered -= 1
        # Earlier replies on this connection may have come since the request was sent.
        situation.last_ret, situation.last_load = watched.last_ret, watched.last_load
        situation.last_ref, situation.load_ref = watched.last_ref, watched.load_ref
        situation.reply, situation.reply_raw = reply, event.raw
        situation.latency_ns = self._now_ns - situation.sent_ns
        yield from self._judge(situation)
        self._remember(watched, situation, reply)

    def _judge(self, at: Situation) -> Iterator[Finding]:
        reply = at.reply
        assert reply is not None  # the caller has set it
        predicted = self._model.reply(at.ref, at.reply_raw) if self._model else None
        misfit = reply.magic_version != MAGIC_VERSION or reply.msg_type != at.request.msg_type
        causes = of_reply(at) if predicted is None else predicted
        if predicted is None and (misfit or at.doubtful):
            causes = softened(causes, [])
        elif predicted and not self.has_every_connection:
            causes = softened(causes, of_reply(at))
        if self._console and at.is_mmio and reply.ret in (0, EBUSY) and _executed(at):
            at.console = self._console.find(at)
        if at.console is not None:
            causes = decide(causes, at, at.console)
        for cause in causes:
            yield self._of_request(cause, at)
        if any(at.reply_raw[REPLY_LOAD_OFFSET + reply.msg_size :]):
            yield self._of_request(Cause(codes.STALE_LOAD, misfit or at.doubtful), at)
        if misfit:
            yield self._of_request(Cause(codes.REPLY_MISMATCH), at)
        late = (at.latency_ns or 0) > CALLER_TIMEOUT_NS
        if late and (at.is_cpu or at.is_mmio or at.is_pci):
            at.held_up_by = self._held_up(at)
            yield self._of_request(Cause(codes.LATE_REPLY), at)
        yield from self._consequences(at, causes)
        learn(self._history, at, causes)
        if self.witness:
            self.witness.judged(at, causes)
        self._track_device(at, causes)
        if at.is_cpu and reply.ret == EIO:
            self._busy.append((at.ref, at.sent_ns, self._now_ns))

    def _consequences(self, at: Situation, causes: list[Cause]) -> Iterator[Finding]:
        if not self._dragonball or at.ret == 0 or at.request.magic_version != MAGIC_VERSION:
            return
        told = {cause.code for cause in causes}
        inferred = any(cause.inferred for cause in causes)
        if at.is_cpu:
            yield self._of_request(Cause(codes.RESIZE_WEDGED), at)
        adding = at.request.msg_type in (MessageType.ADD_MMIO, MessageType.ADD_PCI)
        if adding and told != {codes.STALE_ERROR} and at.ret is not None:
            yield self._of_request(Cause(codes.DEVICE_SILENTLY_LOST, inferred), at)

    def _track_device(self, at: Situation, causes: list[Cause]) -> None:
        """Devices that were added in this recording, for what is left at its end."""
        worked = at.ret == 0 or [cause.code for cause in causes] == [codes.STALE_ERROR]
        if not worked or at.request.magic_version != MAGIC_VERSION:
            return
        key: object = None
        if at.mmio is not None:
            key = (at.mmio.mmio_base, at.mmio.mmio_size, at.mmio.mmio_irq)
        elif at.pci is not None:
            key = (at.pci.busno, at.pci.devfn)
        if at.request.msg_type in (MessageType.ADD_MMIO, MessageType.ADD_PCI):
            self._added[key] = at
        elif at.request.msg_type in (MessageType.DEL_MMIO, MessageType.DEL_PCI):
            self._added.pop(key, None)

    def _held_up(self, at: Situation) -> Ref | None:
        """Another connection's request that held the lock while this one waited."""
        for ref, begun, ended in self._busy:
            if ref.conn != at.ref.conn and begun < self._now_ns and ended > at.sent_ns:
                return ref
        return None

    def _remember(self, watched: _Watched, at: Situation, reply: Reply) -> None:
        if at.doubtful:  # it may be put together from two
            watched.last_ret = watched.last_load = watched.last_ref = watched.load_ref = None
            return
        wrote_ret = at.request.magic_version == MAGIC_VERSION and not (
            at.is_pci and reply.ret == watched.last_ret
        )
        if wrote_ret or watched.last_ret is None:
            watched.last_ref = at.ref
        watched.last_ret = reply.ret
        load = int.from_bytes(at.reply_raw[REPLY_LOAD_OFFSET:][:4], "little")
        if reply.msg_size or load != watched.last_load:
            watched.load_ref = at.ref
        watched.last_load = load

    def _close(self, close: Close) -> Iterator[Finding]:
        conn = close.conn
        if close.how.by_us:  # what was open then tells nothing of the guest
            self._unanswered -= len(self._watched[conn].open)
            self._watched[conn].open.clear()
            yield from self._over(conn, closed_by_guest=False, at_end=True)
            return
        connection = self.session.connections[conn]
        yield from self._over(conn, close.by_guest, at_end=False)
        if connection.port == self._header.port and not connection.accepted and close.by_guest:
            yield from self._refused(connection)
        if (
            connection.line
            and connection.port is None
            and not connection.line.startswith(b"passfd")
        ):
            yield self._of_connection(codes.MALFORMED_CONNECT_LINE, ConnectionSituation(connection))

    def _over(self, conn: int, closed_by_guest: bool, at_end: bool) -> Iterator[Finding]:
        """The connection ended, or the recording did: nothing will be answered any more."""
        watched = self._watched.pop(conn)
        connection = self.session.connections[conn]
        if self._model:
            self._model.disconnect(conn)
        self._unanswered -= len(watched.open)
        self._history.unsure |= bool(watched.open)
        if watched.short is not None:
            yield self._of_request(Cause(codes.SHORT_REQUEST), watched.short)
        for situation in watched.open.values():
            predicted = self._model.silence(situation.ref) if self._model else None
            causes = of_silence(situation) if predicted is None else predicted
            if not self.has_every_connection:
                causes = softened(causes, [])
            if situation.console is not None:
                causes = decide(causes, situation, situation.console)
            for cause in causes:
                yield self._of_request(cause, situation)
            yield self._of_request(Cause(codes.UNANSWERED), situation)
            if closed_by_guest:
                yield self._of_request(Cause(codes.RESET_WHILE_BUSY), situation)
            yield from self._consequences(situation, causes)
            if self.witness:
                self.witness.judged(situation, causes)
            self._history.died.setdefault(conn, situation.ref)
            if any(c.code in LOCK_HOLDERS for c in causes) and not self._history.stuck_by:
                self._history.stuck_by = situation.ref
        yield from self._never_ready(connection, watched, closed_by_guest, at_end)

    @property
    def has_every_connection(self) -> bool:
        """False when a number is missing: the guest may be in another state than it seems."""
        return len(self.session.connections) >= self._highest

    def _never_ready(
        self, connection: Connection, watched: _Watched, closed_by_guest: bool, at_end: bool
    ) -> Iterator[Finding]:
        if not connection.accepted or connection.port != self._header.port or at_end:
            return
        waited = self._now_ns - (watched.ok_ns or connection.opened_ns)
        situation = ConnectionSituation(connection, waited_ns=waited)
        known = connection.service == DEVICE_MANAGER.byte
        if connection.service is None:
            if closed_by_guest and waited >= SERVICE_BYTE_LIMIT_NS * _NEARLY:
                yield self._of_connection(codes.SERVICE_BYTE_TIMEOUT, situation)
        elif not known and closed_by_guest and not connection.requests:
            yield self._of_connection(codes.UNKNOWN_SERVICE, situation)
        elif known and connection.hello is None and not connection.lost:
            yield self._of_connection(codes.NO_HELLO, situation)

    def _refused(self, connection: Connection) -> Iterator[Finding]:
        """One refusal is a finding; many in a row are one: Dragonball's loop."""
        interval = None if self._refused_ns is None else self._now_ns - self._refused_ns
        self._refused_ns = self._now_ns
        in_row = interval is not None and interval < _LOOP_INTERVAL_NS
        self._refusals = self._refusals + 1 if in_row else 1
        situation = ConnectionSituation(connection, self._refusals, interval)
        if self._refusals < _LOOP_LENGTH:
            yield self._of_connection(codes.NO_LISTENER, situation)
        else:
            self._loop = situation

    def _of_request(self, cause: Cause, at: Situation) -> Finding:
        rule = self._rules[cause.code]
        told = rule.tell(at)
        if at.console is not None and cause.code in _SEEN_IN_CONSOLE:
            told = replace(told, evidence=(*told.evidence, *at.console.evidence))
        return rule.finding(told, at.ref.conn, at.ref.request, cause.inferred)

    def _of_connection(self, code: Code, at: ConnectionSituation) -> Finding:
        rule = self._rules[code]
        return rule.finding(rule.tell(at), at.connection.number, None, inferred=False)


def _executed(at: Situation) -> bool:
    return at.request.magic_version == MAGIC_VERSION


def _is_whole(at: Situation) -> bool:
    """True when the last receive held everything that the request's meaning hangs on."""
    meant = HEADER_SIZE
    match at.request:
        case MmioRequest():
            meant += MMIO_MSG_SIZE
        case PciRequest():
            meant += PCI_MSG_SIZE
        case CpuRequestX86(count=count):
            meant += 2 + count
        case CpuRequestArm(count=count):
            meant += 2 + count
    return at.event.size >= meant


def sort_key(finding: Finding) -> tuple[int, int, str]:
    """By place in the recording; at one request causes, then times, then consequences."""
    request = -1 if finding.request is None else finding.request
    return finding.conn or 0, request, finding.code
