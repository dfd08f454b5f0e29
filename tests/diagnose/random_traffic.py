"""Random conversations with the kernel model, written down as the records of a capture.

The model says what really happened: `Traffic.truth` has the outcome of every request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from dissectors.constants import CPU_MSG_SIZE, CPU_TYPES, MESSAGE_SIZE, Arch
from dissectors.messages import Request, decode_request, hello
from tests.kernel import random_guests
from upcall_trace.capture.records import (
    CUT_OFF,
    DAMAGED,
    Begins,
    Chunk,
    Close,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.diagnose.finding import Ref
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.outcome import Outcome
from upcall_trace.kernel.world import World

_CONNECTIONS = 4
_SERVICE_BYTE = b"d"
_ON_ITS_WAY_NS = 500_000_000
"""A reply takes no longer: where one is missing after that, the guest did not write it."""
_PATIENCE_NS = 2_000_000_000
"""How long a client waits before it takes silence for an answer."""


@dataclass(slots=True)
class Traffic:
    """A capture's records and the truth about each request in them.

    `settled` are the requests whose reply or lasting silence the records show. A connection may end
    before a reply that was on its way; then they do not show the silence behind it either.
    """

    header: Header
    world: World
    records: list[Record] = field(default_factory=list)
    asked: list[tuple[Ref, ...]] = field(default_factory=list)
    """For each record the requests that the guest took from it."""
    truth: dict[Ref, Outcome] = field(default_factory=dict)
    settled: set[Ref] = field(default_factory=set)

    def causes(self, ref: Ref) -> tuple[str, ...]:
        """What went wrong with a request, the decisive code first; empty for success."""
        return self.truth[ref].causes

    @property
    def connections(self) -> list[int]:
        """The numbers of the connections, in the order in which they were opened."""
        return [record.conn for record in self.records if isinstance(record, Open)]


@dataclass(slots=True)
class _Talk:
    """One connection as the generator sees it."""

    number: int
    connection: ServiceThread
    buffer: bytes = bytes(MESSAGE_SIZE)
    requests: int = 0
    waiting: deque[tuple[Ref, bytes]] = field(default_factory=deque)
    """Replies that the guest has written and that nobody has received yet."""
    silent: list[Ref] = field(default_factory=list)
    sent_ns: int = 0
    """When the oldest request was sent whose reply may be on its way."""


def traffic(rng: Random, steps: int, patient: bool = False) -> Traffic:
    """A capture of about `steps` sends; a `patient` client waits for every reply to a send."""
    return _Maker(rng, patient).make(steps)


class _Maker:
    def __init__(self, rng: Random, patient: bool) -> None:
        self._rng = rng
        self._patient = patient
        world = random_guests.world(rng)
        arch = rng.choice((None, world.arch.value))
        self._mixed = arch is not None
        """Clients made for the other architecture occur: then the capture has to say which."""
        self._made = Traffic(Header("test", arch=arch), world)
        self._guest = Guest(world)
        self._talks: list[_Talk] = []
        self._opened = 0
        self._now_ns = 0

    def make(self, steps: int) -> Traffic:
        for _ in range(steps):
            self._step()
        for talk in self._talks:
            if self._rng.random() < 0.8:
                self._deliver(talk)
        for talk in [talk for talk in self._talks if self._rng.random() < 0.5]:
            self._close(talk)
        for talk in self._talks:
            self._deliver(talk)
            self._end(talk)
        self._now_ns += _PATIENCE_NS
        self._write(Vmm(self._tick(), "nothing"))  # so the recording ends some time later
        return self._made

    def _step(self) -> None:
        rng = self._rng
        if rng.random() < 0.1:
            cpu = rng.randrange(12)
            self._guest.start_vcpu(cpu)
            self._write(Vmm(self._tick(), f"vCPU {cpu} created"))
        few = len(self._talks) < _CONNECTIONS and rng.random() < 0.15
        if not self._guest.cut_off and (not self._talks or few):
            self._open()
        if not self._talks:
            return
        talk = rng.choice(self._talks)
        self._send(talk, self._fitting(talk))
        if self._patient:
            self._deliver(talk)
        for other in self._talks:
            if rng.random() < 0.7:
                self._deliver(other)
        if rng.random() < 0.05:
            self._close(rng.choice(self._talks))

    def _tick(self) -> int:
        self._now_ns += self._rng.choice((1, 1_000_000, 300_000_000))
        return self._now_ns

    def _write(self, record: Record, *asked: Ref) -> None:
        self._made.records.append(record)
        self._made.asked.append(asked)

    def _open(self) -> None:
        self._opened += 1
        conn = self._opened
        if self._rng.random() < 0.5:
            self._write(Open(self._tick(), conn))
            self._write(Chunk(self._tick(), conn, True, b"CONNECT 219\n"))
            self._write(Chunk(self._tick(), conn, False, b"OK 219\n"))
        else:
            self._write(Open(self._tick(), conn, Begins.SERVICE, 219, True))
        self._write(Chunk(self._tick(), conn, True, _SERVICE_BYTE))
        self._write(Chunk(self._tick(), conn, False, hello().encode()))
        self._talks.append(_Talk(conn, self._guest.connect()))

    def _fitting(self, talk: _Talk) -> bytes:
        """A send whose CPU requests have the guest's own layout, unless others may occur too."""
        while True:
            sent = random_guests.send(self._rng)
            if self._mixed or all(map(self._is_own, _requests(talk.buffer, sent))):
                return sent

    def _is_own(self, request: Request) -> bool:
        own = CPU_MSG_SIZE[self._made.world.arch]
        return request.msg_type not in CPU_TYPES or request.msg_size == own

    def _send(self, talk: _Talk, sent: bytes) -> None:
        asked: list[Ref] = []
        if not talk.waiting:
            talk.sent_ns = self._now_ns
        for begin in range(0, len(sent), MESSAGE_SIZE):
            piece = sent[begin : begin + MESSAGE_SIZE]
            talk.buffer = piece + talk.buffer[len(piece) :]
            ref = Ref(talk.number, talk.requests)
            talk.requests += 1
            asked.append(ref)
            outcome = self._made.truth[ref] = talk.connection.receive(piece)
            if outcome.reply is not None:
                talk.waiting.append((ref, outcome.reply))
            else:
                talk.silent.append(ref)
        self._write(Chunk(self._tick(), talk.number, True, sent), *asked)

    def _deliver(self, talk: _Talk) -> None:
        """All waiting replies, in any slicing."""
        rest = b"".join(reply for _, reply in talk.waiting)
        self._made.settled.update(ref for ref, _ in talk.waiting)
        talk.waiting.clear()
        while rest:
            size = self._rng.choice((len(rest), len(rest), MESSAGE_SIZE, 500))
            self._write(Chunk(self._tick(), talk.number, False, rest[:size]))
            rest = rest[size:]

    def _close(self, talk: _Talk) -> None:
        if talk.silent:
            self._now_ns += _PATIENCE_NS
        if self._now_ns - talk.sent_ns > _ON_ITS_WAY_NS:
            self._deliver(talk)
        if self._rng.random() < 0.3:
            self._write(GaveUp(self._tick(), talk.number, 1_000_000_000))
        how = self._rng.choice((How.CLOSE, How.RESET))
        owes = bool(talk.waiting or talk.silent)  # a guest that works closes when it is done
        by_guest = self._rng.random() < 0.3 and not owes
        self._write(Close(self._tick(), talk.number, by_guest, how))
        self._end(talk)
        self._talks.remove(talk)

    def _end(self, talk: _Talk) -> None:
        if not talk.waiting:
            self._made.settled.update(talk.silent)


def _requests(buffer: bytes, sent: bytes) -> Iterator[Request]:
    for begin in range(0, len(sent), MESSAGE_SIZE):
        piece = sent[begin : begin + MESSAGE_SIZE]
        buffer = piece + buffer[len(piece) :]
        yield decode_request(buffer, Arch.X86_64)


# What a recording may lack. Each gives the records that are left, and the requests in each.

Part = list[tuple[Record, tuple[Ref, ...]]]


def whole(made: Traffic, rng: Random) -> Part:
    """Everything."""
    return list(zip(made.records, made.asked, strict=True))


def ending_early(made: Traffic, rng: Random) -> Part:
    """The recorder was stopped, or the file is torn."""
    return whole(made, rng)[: rng.randrange(len(made.records) + 1)]


def beginning_late(made: Traffic, rng: Random) -> Part:
    """Connections are seen from the middle."""
    return whole(made, rng)[rng.randrange(len(made.records) + 1) :]


def with_gap(made: Traffic, rng: Random) -> Part:
    """One receive was not recorded, and the file says so."""
    part = whole(made, rng)
    at, lost = rng.choice([(n, r) for n, r in enumerate(made.records) if isinstance(r, Chunk)])
    gap = Gap(lost.t_ns, lost.conn, lost.to_guest, len(lost.data), "the disk is slow")
    part[at] = gap, made.asked[at]
    return part


def damaged(made: Traffic, rng: Random) -> Part:
    """Some records in a row are unreadable, and nothing tells which they were."""
    begin = rng.randrange(len(made.records))
    end = begin + rng.randint(1, 6)
    gap = Gap(_time_of(made.records[begin]), 0, False, 1, DAMAGED)
    part = whole(made, rng)
    return [*part[:begin], (gap, ()), *part[end:]]


def cut_short(made: Traffic, rng: Random) -> Part:
    """Of what was sent to the guest only the beginning was kept, as packet captures can do."""
    kept = rng.choice((40, 100, 300))
    part: Part = []
    for record, asked in whole(made, rng):
        if not isinstance(record, Chunk) or not record.to_guest or len(record.data) <= kept:
            part.append((record, asked))
            continue
        part.append((replace(record, data=record.data[:kept]), asked))
        missing = len(record.data) - kept
        part.append((Gap(record.t_ns, record.conn, record.to_guest, missing, CUT_OFF), ()))
    return part


def without_connection(made: Traffic, rng: Random) -> Part:
    """One connection is missing, and nothing says so."""
    left_out = rng.choice(made.connections)
    return [part for part in whole(made, rng) if getattr(part[0], "conn", 0) != left_out]


def _time_of(record: Record) -> int:
    assert not isinstance(record, (Header, Mark))  # they have none, and none is made here
    return record.t_ns
