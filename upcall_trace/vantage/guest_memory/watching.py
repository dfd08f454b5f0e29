"""Watching a running VM's memory: reads what it knows every so often, and looks for what is new.

Nothing is written into the VM and nothing in it is stopped. How often it looks, and what share of
a processor it takes at most, is the user's to say; while nothing crosses it looks less often.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

from dissectors.constants import UPCALL_PORT

from ...capture.records import COMMENT, Mark
from ...errors import Unreachable
from ..recorder import Recorder
from .following import Counts, follow, likely_shifts, quick_place, read_counts, socket_of
from .locating import OBJECT_SIZE, ConnectionObject, locate
from .processes import RunningVmm
from .searching import QuickSearch, near, thorough_steps
from .tracking import Tally, Tracked

DEFAULT_INTERVAL_NS: Final = 200_000
DEFAULT_SHARE: Final = 0.1
WATCHED_LIMIT: Final = 64
"""Connections that are watched at once; a guest that fakes more is not believed."""
_IDLE_NS: Final = 2_000_000_000
_IDLE: Final = ((_IDLE_NS, 2), (60_000_000_000, 10))
"""After so long without traffic, how many times longer it is from one look to the next."""
_READS_LIMIT: Final = 8
_SETTLE_NS: Final = 1_000_000_000
_CHORES_EVERY: Final = 8
"""Looks from one turn of everything else to the next."""
_NEAR_EVERY_NS: Final = 20_000_000
_SEARCH_NS: Final = 2_000_000
_SEARCH_IDLE_NS: Final = 10_000_000
_SEARCH_BUSY_NS: Final = 40_000_000
"""From one step of the search to the next: without a connection, with an idle one, a busy one."""
_QUICK_PAUSE_NS: Final = 100_000_000
_THOROUGH_PAUSE_NS: Final = 30_000_000_000
_WHOLE_EVERY: Final = 256
"""So often the object is read though the counts stand still: it may have been freed."""
_SAMPLES: Final = 1 << 16
_SLACK: Final = 29
"""PR_SET_TIMERSLACK: a sleep must not last 50 us longer than it was meant to."""
_NICE: Final = 10
"""The VM goes first: whoever is woken to look must not take a processor from a vCPU."""
_OWN_PART: Final = 0.9
_SHRINK: Final = 0.5
_LONGEST: Final = 50
"""Bounds of an interval: not less than half of the one before, nor so many times what was asked."""


@dataclass(slots=True)
class WatchReport:
    """How a watch went."""

    looks: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    connections: int = 0
    intervals: list[int] = field(default_factory=list)
    """A sample of the times between two looks, in nanoseconds."""
    ended: str = ""
    """Why it ended by itself; empty when it was told to stop."""
    tally: Tally = field(default_factory=Tally)

    def note(self, interval_ns: int) -> None:
        """Keep a sample of how far two looks were apart."""
        if len(self.intervals) < _SAMPLES:
            self.intervals.append(interval_ns)


@dataclass(slots=True)
class _Looked:
    """A tracked object, and the bytes that are read at each look: they change with everything."""

    tracked: Tracked
    address: int
    size: int
    raw: bytes = b""


def _where_it_shows(tracked: Tracked) -> tuple[int, int]:
    """The socket's counts where they are known, else the object itself."""
    if tracked.counts is None:
        return tracked.begin, OBJECT_SIZE
    return quick_place(tracked.counts)


class Watcher:
    """Watches one VM until told to stop, or until it is gone; `watch` records what crosses."""

    def __init__(
        self,
        memory: RunningVmm,
        recorder: Recorder,
        port: int = UPCALL_PORT,
        interval_ns: int = DEFAULT_INTERVAL_NS,
        share: float = DEFAULT_SHARE,
    ) -> None:
        self._memory = memory
        self._recorder = recorder
        self._port = port
        self._interval_ns = interval_ns
        self._share = share
        self._watched: list[_Looked] = []
        self._interval = interval_ns
        self._known: set[int] = set()
        self._places: set[int] = set()
        """Where objects are or were."""
        self.report = WatchReport()

    def begin(self) -> int:
        """Look through all of the memory once; how many connections there are to watch."""
        found = locate(self._memory.windows(), self._memory.aligned, self._port)
        for held in sorted(found.objects.values(), key=lambda each: each.address):
            self._add(held, new=False)
        return len(self._watched)

    def watch(self, stop: threading.Event) -> None:
        """Look until `stop` is set or the VMM is gone; then close what is open."""
        ctypes.CDLL(None).prctl(_SLACK, 1, 0, 0, 0)
        # Of this thread alone; nobody needs a right for less than they have.
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        report = self.report
        began, began_cpu = time.monotonic(), time.thread_time()
        try:
            self._loop(stop)
        except Unreachable as gone:
            report.ended = str(gone)
        report.seconds = time.monotonic() - began
        report.cpu_seconds = time.thread_time() - began_cpu
        now = self._recorder.now()
        for watched in self._watched:
            for record in watched.tracked.end(now, closed=bool(report.ended)):
                self._recorder.record(record)
        self._recorder.record(Mark(time.time_ns(), None, None, COMMENT, account(report)))

    def _loop(self, stop: threading.Event) -> None:
        """Look, sleep, look; everything else has its turn after every few looks."""
        began_ns = time.monotonic_ns() - self._recorder.now()
        monotonic_ns, sleep = time.monotonic_ns, time.sleep
        changed = monotonic_ns() - began_ns
        chores = self._chores()
        next(chores)
        due = looked = changed
        while True:
            t_ns = monotonic_ns() - began_ns
            if self._look_at_all(t_ns, looked):
                changed = t_ns
                self._recorder.settle()
            self.report.looks += 1
            if self.report.looks % _CHORES_EVERY == 0 or not self._watched:
                if stop.is_set():
                    return
                self.report.note(t_ns - looked)
                chores.send((t_ns, changed))
            looked = t_ns
            due = max(due + self._interval, t_ns)
            wait = due - (monotonic_ns() - began_ns)
            if wait > 0:
                sleep(wait / 1e9)

    def _chores(self) -> Generator[None, tuple[int, int]]:
        """What is to be done beside looking; is sent the time, and that of the last change."""
        search = self._searches()
        searched = looked_near = measured = self._recorder.now()
        cpu = time.thread_time_ns()
        while True:
            t_ns, changed = yield
            if t_ns - looked_near >= _NEAR_EVERY_NS:
                looked_near = t_ns
                for held in near(self._memory, self._port, self._places, self._known):
                    self._add(held, new=True)
            if t_ns - searched >= self._search_pause(t_ns - changed):
                searched = t_ns
                next(search)
                if not self._memory.alive():
                    raise Unreachable(f"{self._memory.name} has ended")
            if t_ns - measured >= _SETTLE_NS:
                used, cpu = time.thread_time_ns() - cpu, time.thread_time_ns()
                self._adapt(used / (t_ns - measured), t_ns - changed)
                measured = t_ns

    def _search_pause(self, idle_ns: int) -> int:
        """A connection that is busy is the one there is; who waits for one looks harder."""
        if not self._watched:
            return _SEARCH_NS
        return _SEARCH_BUSY_NS if idle_ns < _IDLE_NS else _SEARCH_IDLE_NS

    def _adapt(self, used: float, idle_ns: int) -> None:
        """Set the time to the next look: longer while idle, and when it takes too much."""
        least = self._interval_ns
        for after_ns, factor in _IDLE:
            if idle_ns > after_ns:
                least = self._interval_ns * factor
        # The rest of the share is for what this thread does not do: encoding and writing.
        wanted = int(self._interval * max(used / (self._share * _OWN_PART), _SHRINK))
        self._interval = max(least, min(wanted, self._interval_ns * _LONGEST))

    def _look_at_all(self, t_ns: int, since: int) -> bool:
        """Whether anything was seen; one read for each connection where nothing was."""
        changed = gone = False
        look, whole = self._memory.look, self.report.looks % _WHOLE_EVERY == 0
        for watched in self._watched:
            raw = look(watched.address, watched.size)
            if raw == watched.raw and not whole:
                continue
            watched.raw = raw
            tracked = watched.tracked
            raw, counts = self._read_until_agreed(tracked)
            if raw == tracked.raw and counts == tracked.counts:
                continue
            # What was read just now was there at this moment, and not at the last look.
            seen_ns = self._recorder.now()
            for record in tracked.look(seen_ns, since, time.time_ns(), raw, counts):
                self._recorder.record(record)
                changed = True
            gone = gone or tracked.gone
        if gone:
            for watched in self._watched:
                if watched.tracked.gone:
                    self._known.discard(watched.tracked.begin + 16)
            self._watched = [each for each in self._watched if not each.tracked.gone]
        return changed

    def _read_until_agreed(self, tracked: Tracked) -> tuple[bytes, Counts | None]:
        """A buffer can be met half written: read until two reads agree."""
        look = self._memory.look
        raw, counts = b"", None
        for _ in range(_READS_LIMIT):
            before = raw, counts
            counts = tracked.counts and read_counts(tracked.counts, look)
            raw = look(tracked.begin, OBJECT_SIZE)
            if (raw, counts) == before:
                break
        return raw, counts

    # New connections.

    def _searches(self) -> Iterator[None]:
        """One step of searching each time; for ever."""
        quick = QuickSearch(self._memory)
        now = self._recorder.now
        thorough_due = now() + _THOROUGH_PAUSE_NS
        while True:
            for held in quick.steps(self._known):
                if held is None:
                    yield
                else:
                    self._add(held, new=True)
            if now() >= thorough_due:
                for held in thorough_steps(self._memory, self._port, self._known):
                    if held is None:
                        yield
                    else:
                        self._add(held, new=True)
                thorough_due = now() + _THOROUGH_PAUSE_NS
            rest = now() + _QUICK_PAUSE_NS
            while now() < rest:
                yield

    def _add(self, held: ConnectionObject, new: bool) -> None:
        if len(self._places) < WATCHED_LIMIT:
            self._places.add(held.request_at)
        if held.scribbled:
            return  # freed; the next connection may well get its place
        self._known.add(held.request_at)
        if len(self._watched) >= WATCHED_LIMIT:
            return
        counts = self._counts_of(held)
        raw = self._memory.look(held.request_at - 16, OBJECT_SIZE)
        tally = self.report.tally
        tally.counted = tally.counted and counts is not None
        self.report.connections += 1
        tracked = Tracked(self.report.connections, held, raw, counts, tally)
        for record in tracked.open(self._recorder.now(), time.time_ns(), self._port, new):
            self._recorder.record(record)
        self._watched.append(_Looked(tracked, *_where_it_shows(tracked)))

    def _counts_of(self, held: ConnectionObject) -> Counts | None:
        """The counts of an object's socket: where the guest's direct mapping has it."""
        shifts = likely_shifts(held, self._memory.ranges)
        socket = socket_of(held, shifts, self._memory.read, self._port)
        led = follow(held, [socket], self._memory.read) if socket is not None else None
        return led.counts if led is not None else None


def account(report: WatchReport) -> str:
    """What a watch amounts to, in one sentence or two."""
    tally = report.tally
    every = sorted(report.intervals)
    pace = ""
    if every:
        middle, late = every[len(every) // 2], every[int(len(every) * 0.99)]
        pace = f", one every {middle / 1000:.0f} us (99 % within {late / 1000:.0f} us)"
    share = 100 * report.cpu_seconds / report.seconds if report.seconds else 0.0
    told = (
        f"{report.looks} looks in {report.seconds:.1f} s{pace}, {share:.1f} % of a processor; "
        f"{tally.requests} requests and {tally.replies} replies seen"
    )
    if tally.inferred:
        told += f", {tally.inferred} of them inferred from what followed"
    total = tally.requests + tally.missed_requests
    missed = f"{100 * tally.missed_requests / total:.1f} %" if total else "none"
    if tally.counted:
        return (
            f"{told}; by the sockets' own counts {tally.missed_requests} requests ({missed}) and "
            f"{tally.missed_replies} replies crossed between two looks and were not seen"
        )
    return (
        f"{told}; {tally.missed_requests} requests and {tally.missed_replies} replies are known to "
        "be missing. The counts of a socket were not found, so requests that were answered within "
        "one interval may be missing without a trace, and so may repeats in identical bytes"
    )
