"""Requests that succeed at once and leave nothing to say: told from a run of messages by columns.

Most operations of most recordings are such. What they change is noted, in the history, the guest's
buffers and the kernel model, and no rule is asked: each would have to be silent. Which messages
these are is decided for a whole run with numpy; whether the moment is one at which they are as
harmless as they look is decided at each. All others go through `Diagnosis.feed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import (
    ADDING_TYPES,
    CALLER_TIMEOUT_NS,
    CPU_MSG_SIZE,
    CPU_REPLY_MSG_SIZE,
    CPU_TYPES,
    MAGIC_VERSION,
    MMIO_MSG_SIZE,
    MMIO_TYPES,
    PCI_MSG_SIZE,
    PCI_TYPES,
    REPLY_LOAD_OFFSET,
    Arch,
)
from dissectors.events import ReplyReceived, RequestReceived
from dissectors.messages import Reply, Request, decode_reply, decode_request
from dissectors.slots import positional

from .. import codes
from ..capture.records import Begins, Record
from ..capture.runs import MessageRun
from ..kernel.model import Guest
from ..trace.decoding import Watch
from ..trace.operation_table import NoTable
from .causes import learn_cpus, learn_device
from .engine import Diagnosis
from .finding import Finding, Ref
from .lasting import Buffer, PlainSuccess
from .rules.registry import Cue
from .watched import Watched

_SILENT: Final = frozenset(
    {
        codes.GUEST_REBOOTED,
        codes.STALE_LOAD,
        codes.LATE_REPLY,
        codes.REPLY_IN_PIECES,
        codes.REPLY_MISMATCH,
    }
)
"""The codes whose rules listen to every request or reply: each is known here to have nothing to
say of what `_plain` lets pass. With any other that listens, nothing passes."""
_request_received = positional(RequestReceived)
_reply_received = positional(ReplyReceived)
_SIZES: Final = {
    **dict.fromkeys(MMIO_TYPES, MMIO_MSG_SIZE),
    **dict.fromkeys(PCI_TYPES, PCI_MSG_SIZE),
}


def feed(diagnosis: Diagnosis, item: Record | MessageRun, offset: int = 0) -> list[Finding]:
    """What a record that stands at `offset` brings to light, or a run of them."""
    if isinstance(item, MessageRun):
        return take_run(diagnosis, item)
    return diagnosis.feed(item, offset)


def take_run(diagnosis: Diagnosis, run: MessageRun) -> list[Finding]:
    """What a run of messages brings to light: the same as to feed each of its records."""
    found: list[Finding] = []
    if not _may_pass(diagnosis):
        for offset, chunk in run.records():
            found += diagnosis.feed(chunk, offset)
        return found
    passing = _Passing(diagnosis, run)
    in_turn = _in_turn(run)
    pairs = in_turn.tolist()
    arch = diagnosis.arch
    plain = _plain(run, in_turn, arch)
    place, count = 0, len(run)
    while place < count:
        if pairs[place] and (line := passing.line(place)) is not None:
            if not (plain[place] and passing.passes(place, line)):
                found += passing.look_at(place, line)
            place += 2
        else:
            offset, chunk = run.record(place)
            passing.settle(chunk.conn)
            found += diagnosis.feed(chunk, offset)
            place += 1
        if diagnosis.arch is not arch:  # a request has told it
            arch = diagnosis.arch
            plain = _plain(run, in_turn, arch)
    passing.settle_all()
    session = diagnosis.session
    session.last_ns = max(session.last_ns, int(run.t_ns.max()))
    diagnosis.now_ns = int(run.t_ns[-1])
    diagnosis.events = ()
    return found


def _may_pass(diagnosis: Diagnosis) -> bool:
    """Whether nobody wants to see each request."""
    listening = {*diagnosis.telling.listening(Cue.REQUEST), *diagnosis.telling.listening(Cue.REPLY)}
    return (
        diagnosis.witness is None
        and diagnosis.judging.console is None
        and isinstance(diagnosis.session.table, NoTable)
        and listening <= _SILENT
    )


def _in_turn(run: MessageRun) -> NDArray[np.bool_]:
    """Of each message: whether it is a request, and the next one its answer."""
    found = np.zeros(len(run), np.bool_)
    found[:-1] = run.to_guest[:-1] & ~run.to_guest[1:] & (run.conn[:-1] == run.conn[1:])
    return found


def _plain(run: MessageRun, in_turn: NDArray[np.bool_], arch: Arch | None) -> list[bool]:
    """Of each of these: whether it is success, at once, of the usual form."""
    places = np.arange(len(run) - 1)
    after = places + 1
    plain = in_turn[:-1] & (run.t_ns[1:] - run.t_ns[:-1] <= CALLER_TIMEOUT_NS)
    head = run.numbers(places, 0, 8)
    msg_type = run.numbers(places, 8, 4)
    fits = np.zeros(len(places), np.bool_)
    load = np.zeros(len(places), np.uint64)
    sizes: dict[int, int] = {int(number): size for number, size in _SIZES.items()}
    if arch is not None:
        sizes |= {int(number): CPU_MSG_SIZE[arch] for number in CPU_TYPES}
    for number, size in sizes.items():
        mine = msg_type == number
        fits |= mine & (head == np.uint64(size << 32 | MAGIC_VERSION))
        if number in CPU_TYPES:
            load[mine] = CPU_REPLY_MSG_SIZE
    plain &= fits
    plain &= run.numbers(after, 0, 8) == (load << np.uint64(32) | np.uint64(MAGIC_VERSION))
    plain &= run.numbers(after, 8, 8) == msg_type
    plain &= run.numbers(after, 16, 4) == 0
    plain &= run.size[1:] <= REPLY_LOAD_OFFSET + load.astype(np.int64)
    found: list[bool] = plain.tolist()
    return [*found, False]


@dataclass(slots=True)
class _PassingLine:
    """A connection on which requests pass; `count` did so since anybody was told."""

    watched: Watched
    watch: Watch
    number: int
    seen_by_client: bool
    count: int = 0
    failed: int = 0
    last: int = 0
    """Where the last one's request stands."""
    last_ret: int = 0


class _Passing:
    """Takes in what plain successes change, as long as the moment is right for them."""

    def __init__(self, diagnosis: Diagnosis, run: MessageRun) -> None:
        self._diagnosis = diagnosis
        self._run = run
        self._lines: dict[int, _PassingLine | None] = {}
        self._arch = diagnosis.session.arch
        self._requests: dict[bytes, tuple[bytes, Request]] = {}
        self._replies: dict[tuple[bytes, type], tuple[bytes, Reply]] = {}
        self._calm: bool | None = None
        places = np.arange(len(run))
        self._conn: list[int] = run.conn.tolist()
        self._t_ns: list[int] = run.t_ns.tolist()
        self._type: list[int] = run.numbers(places, 8, 4).tolist()
        self._loads: list[int] = run.numbers(places, REPLY_LOAD_OFFSET, 4).tolist()
        self._first: list[int] = run.numbers(places, 16, 8).tolist()
        self._second: list[int] = run.numbers(places, 24, 8).tolist()
        self._third: list[int] = run.numbers(places, 32, 4).tolist()
        self._begin: list[int] = run.begin.tolist()
        self._size: list[int] = run.size.tolist()

    def line(self, place: int) -> _PassingLine | None:
        """The connection of a message, None where its next ones may be more than they seem."""
        conn = self._conn[place]
        return self._lines[conn] if conn in self._lines else self._found(conn)

    def look_at(self, place: int, line: _PassingLine) -> list[Finding]:
        """What the request and its answer that begin there bring to light."""
        diagnosis, number = self._diagnosis, line.number + line.count
        raw, request = self._request(place)
        answer, reply = self._reply(place + 1, request)
        asked = _request_received(number, len(raw), request, raw, 0, None, None, None)
        diagnosis.now_ns = self._t_ns[place]
        found = diagnosis.asked(self._conn[place], line.watched, asked)
        diagnosis.now_ns = self._t_ns[place + 1]
        found += diagnosis.answered(line.watched, _reply_received(number, reply, answer))
        line.count += 1
        line.failed += reply.ret < 0
        line.last, line.last_ret = place, reply.ret
        self._calm = None
        return found

    def passes(self, place: int, line: _PassingLine) -> bool:
        """Take in the success that begins there; False when it has to be looked at."""
        if self._calm is None:
            self._calm = self._is_calm()
        if not self._calm:
            return False
        conn = self._conn[place]
        diagnosis, msg_type, sent_ns = self._diagnosis, self._type[place], self._t_ns[place]
        judging, history = diagnosis.judging, diagnosis.judging.history
        adding = msg_type in ADDING_TYPES
        key: Any
        ids = b""
        load: int | None = None
        if msg_type in MMIO_TYPES:
            key = self._first[place], self._second[place], self._third[place]
            if adding and key in history.windows:
                return False
        elif msg_type in PCI_TYPES:
            first = self._first[place]
            key = first & 0xFF, first >> 8 & 0xFF
        else:
            load = self._loads[place + 1]
            key = None
            if diagnosis.arch is not Arch.AARCH64:
                ids = self._ids(place)
            if adding and not history.cpus.keys().isdisjoint(ids):
                return False
        predicted = False
        if (model := judging.model) is not None and model.guest is not None:
            if key is None:
                predicted = model.agrees(conn, load, Guest.execute, self._request(place)[1])
            else:
                command = Guest.mmio if msg_type in MMIO_TYPES else Guest.pci_function
                predicted = model.agrees(conn, load, command, adding, *key)
        ref = Ref(conn, line.number + line.count)
        line.count += 1
        line.last, line.last_ret = place, 0
        if judging.removals:
            judging.channel_was_there(sent_ns)
        elif sent_ns > judging.answered_ns:
            judging.answered_ns = sent_ns
        watched = line.watched
        if key is None:
            learn_cpus(history, ref, ids, adding)
            if self._first[place] & 0xFF:
                judging.lock.was_free(ref, sent_ns)
        else:
            if msg_type in MMIO_TYPES:
                history.mmio_works = True
                judging.lock.was_free(ref, sent_ns)
                learn_device(history.windows, history.removed_windows, ref, key, adding)
            else:
                learn_device(history.pci, history.removed_pci, ref, key, adding)
            if adding:
                judging.plugged[key] = self._kept(place, ref, line, predicted)
            else:
                judging.plugged.pop(key, None)
        watched.torn = False
        watched.hold(ref, msg_type in PCI_TYPES, 0, load or 0, load is not None)
        return True

    def _request(self, place: int) -> tuple[bytes, Request]:
        """The request there, with its bytes; most were sent before."""
        stored = self._stored(place)
        found = self._requests.get(stored)
        if found is None:
            raw = self._run.data(place)
            found = self._requests[stored] = raw, decode_request(raw, self._arch)
        return found

    def _reply(self, place: int, request: Request) -> tuple[bytes, Reply]:
        """The same of a reply to this request."""
        about = self._stored(place), type(request)
        found = self._replies.get(about)
        if found is None:
            raw = self._run.data(place)
            found = self._replies[about] = raw, decode_reply(raw, self._arch, request)
        return found

    def _stored(self, place: int) -> bytes:
        begin = self._begin[place]
        return self._run.block[begin : begin + self._size[place]]

    def _ids(self, place: int) -> bytes:
        """The APIC ids that a request means."""
        begin = self._begin[place] + 18
        count = self._first[place] & 0xFF
        stored = self._run.block[begin : min(begin + count, self._begin[place] + self._size[place])]
        return stored.ljust(count, b"\0")

    def _kept(self, place: int, ref: Ref, line: _PassingLine, predicted: bool) -> PlainSuccess:
        watched, block = line.watched, self._run.block
        begin, end = self._begin[place], self._begin[place + 1]
        return PlainSuccess(
            ref,
            block[begin : begin + self._size[place]],
            block[end : end + self._size[place + 1]],
            self._t_ns[place],
            self._t_ns[place + 1],
            Buffer(watched.last_ret, watched.last_load, watched.last_ref, watched.load_ref),
            self._diagnosis.judging.history,
            self._diagnosis.arch,
            line.seen_by_client,
            predicted,
        )

    def _is_calm(self) -> bool:
        """No request is open, and nothing is kept that an answer could change."""
        diagnosis = self._diagnosis
        judging = diagnosis.judging
        return (
            diagnosis.unanswered == 0
            and not judging.open_pci
            and judging.lock.is_idle
            and not diagnosis.telling.keeps_back
        )

    def _found(self, conn: int) -> _PassingLine | None:
        """A connection as it is now."""
        line = None
        session = self._diagnosis.session
        watch, watched = session.watched.get(conn), self._diagnosis.watched.get(conn)
        if (
            watch is not None
            and watched is not None
            and watch.file_gaps == session.file_gaps
            and watch.observer.whole_in_flight == 0
            and not watch.open_rows
            and not watched.open
            and watched.short is None
            and watched.piece_ns is None
        ):
            in_guest = watched.situation.connection.begins is Begins.SERVICE
            line = _PassingLine(watched, watch, watch.observer.next_number, not in_guest)
        self._lines[conn] = line
        return line

    def settle(self, conn: int) -> None:
        """Tell of what passed on a connection, of which a message is looked at now."""
        self._calm = None
        line = self._lines.pop(conn, None)
        if line is None or not line.count:
            return
        connection = line.watch.connection
        connection.requests += line.count
        connection.replies += line.count
        connection.failures += line.failed
        connection.payload += 2 * self._run.whole * line.count
        line.watch.last_ret = line.last_ret
        raw = self._run.data(line.last)
        line.watch.observer.pass_over(line.count, raw, None)
        if self._diagnosis.judging.model is not None:
            self._diagnosis.judging.model.received(conn, raw)

    def settle_all(self) -> None:
        """The same of all of them."""
        for conn in [*self._lines]:
            self.settle(conn)
