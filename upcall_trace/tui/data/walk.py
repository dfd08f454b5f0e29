"""The second reading of a capture, behind the first: findings, and the guest at any operation.

Of a whole recording the findings come first, by columns where that goes, which takes a small part
of the time. Then the guest is followed record by record, and places are kept at many points, packed
small: what a guest had at an operation, and whose bytes a message has, is told by going on from the
place before it.
"""

from __future__ import annotations

import pickle
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from dissectors.events import ReplyReceived, RequestReceived

from ... import codes
from ...capture.reader import CaptureReader
from ...capture.records import Record
from ...capture.runs import MessageRun
from ...diagnose.engine import Diagnosis
from ...diagnose.finding import Finding
from ...diagnose.log_joining import Joining
from ...diagnose.log_matching import ConsoleMatcher
from ...diagnose.state import Following, GuestState
from ...diagnose.successes import feed
from ...diagnose.told_by_logs import Logs
from ...kernel.world import World
from ...sources import Source, open_source
from ...trace.operations import Operation, Operations
from ...trace.provenance import Origins, Run
from ...trace.streams import in_bulk

_PLACE_EVERY: Final = 4000
_PLACE_SHARE: Final = 20
"""Keeping a place may take one part in so many of the time."""
_BEFORE: Final = 200
"""Operations that are gone through at least, so that most bytes are known by their writer."""
_TELL_EVERY_S: Final = 0.1
_TELL_MANY: Final = 512
_LOOK_UP: Final = 16
_PART: Final = 1024
"""Messages that are diagnosed before keys are looked at."""
_REST_S: Final = 0.1
_NAP_S: Final = 0.005
_POLL_S: Final = 0.05
_SLACK_NS: Final = 1_000_000_000
_NEEDED_BY_LOGS: Final = frozenset({codes.LATE_REPLY, codes.UNANSWERED, codes.RESIZE_WEDGED})


@dataclass(frozen=True, slots=True)
class Message:
    """A request or reply as bytes. `runs` say whose they are; `size` how many were received."""

    raw: bytes
    size: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known around one operation; `after` and `reply` are None while it is unanswered."""

    row: int
    before: GuestState
    after: GuestState | None
    request: Message
    reply: Message | None


class WalkProgress(NamedTuple):
    """What the walk says now and then."""

    findings: list[Finding]
    passed: int
    """Operations that are diagnosed."""
    followed: int
    """Operations of which it is known what the guest had."""
    offset: int
    ended: bool
    """All findings are there."""
    over: bool
    """Nothing more comes."""


class _Halt(NamedTuple):
    records: int
    offset: int
    rows: int
    packed: bytes


class Walk:
    """One walk over the capture at `path`; `tell` is called from the thread that runs it."""

    def __init__(
        self,
        path: Path,
        world: World | None,
        tell: Callable[[WalkProgress], None],
    ) -> None:
        self._path = path
        self._world = world
        self._tell = tell
        self._places: list[_Halt] = []
        self._for_logs: list[Finding] = []
        self._joining: Joining | None = None
        self._rests_until = 0.0
        self._passed = 0
        self._followed = 0
        self._ended = self._over = False
        self.clock_offset_ns: int | None = None

    def rest(self) -> None:
        """Leave the processor to the screen for a moment; called when a key was pressed."""
        self._rests_until = time.monotonic() + _REST_S

    def run(self, logs: Logs, cancelled: Callable[[], bool]) -> None:
        """Go through the capture, and on as it grows, until its end or until cancelled.

        Raises UnreadableInput.
        """
        with open_source(self._path) as source:
            console = self._join(source, logs)
            if console is not None or source.live:
                self._follow(source, console, cancelled)
                return
            self._diagnose(source, cancelled)
        if self._ended:
            with open_source(self._path) as source:
                self._follow(source, None, cancelled)

    def _diagnose(self, source: Source, cancelled: Callable[[], bool]) -> None:
        """All findings of a recording that is over, and of which there is no console."""
        diagnosis = Diagnosis(source.header, self._world)
        found: list[Finding] = []
        told_s, offset = time.monotonic(), 0
        for count, (offset, item) in enumerate(_in_parts(source)):
            found += feed(diagnosis, item, offset)
            self._passed += _requests_of(item, diagnosis)
            if isinstance(item, MessageRun) or count % _LOOK_UP == 0 or len(found) >= _TELL_MANY:
                now = self._rested()
                if cancelled():
                    return
                if now - told_s >= _TELL_EVERY_S or len(found) >= _TELL_MANY:
                    told_s = now
                    self._say(found, offset)
                    found = []
        found += diagnosis.finish()
        self._end(found, offset)

    def _follow(
        self, source: Source, console: ConsoleMatcher | None, cancelled: Callable[[], bool]
    ) -> None:
        """Keep places; findings are told unless that is done."""
        following = Following(source.header, self._world, console=console)
        self._places = []
        self._keep(following, 0, 0)
        found: list[Finding] = []
        told_s = placed_s = time.monotonic()
        placed, cost_s, offset = 0, 0.0, 0
        for count, step in enumerate(self._steps(source)):
            if step is not None:
                now = 0.0
                offset, record = step
                if count - placed >= _PLACE_EVERY:
                    now = time.monotonic()
                    if now - placed_s >= cost_s * _PLACE_SHARE:
                        self._keep(following, count, offset)
                        placed, placed_s = count, time.monotonic()
                        cost_s = placed_s - now
                told = following.feed(record, offset)
                if not self._ended:
                    found += told
                if count % _LOOK_UP and len(found) < _TELL_MANY:
                    continue
            now = self._rested()
            if cancelled():
                return
            if now - told_s >= _TELL_EVERY_S or len(found) >= _TELL_MANY:
                told_s = now
                self._came_to(following)
                self._say(found, offset)
                found = []
        self._came_to(following)
        self._over = True
        if self._ended:
            self._say([], offset)
        else:
            self._end(found + following.finish(), offset)

    def _rested(self) -> float:
        """Now, or as soon as no key was pressed for a moment."""
        while (now := time.monotonic()) < self._rests_until:
            time.sleep(_NAP_S)
        return now

    def _came_to(self, following: Following) -> None:
        self._followed = following.rows
        if not self._ended:
            self._passed = following.rows
        self.clock_offset_ns = following.clock_offset_ns

    def _join(self, source: Source, logs: Logs) -> ConsoleMatcher | None:
        """The console that goes with the recording."""
        if logs and not source.live:
            self._joining = Joining(self._path, logs)
            return self._joining.matcher
        if logs.consoles:  # how it goes on is not known yet
            return ConsoleMatcher(logs.consoles[0].console.operations)
        return None

    def _steps(self, source: Source) -> Iterator[tuple[int, Record] | None]:
        """Every record, and None while waiting for more."""
        yield from source.records()
        if isinstance(source, CaptureReader):
            live = source.live
            while live:
                live = source.live
                yield from source.grow()
                live |= source.live
                yield None
                time.sleep(_POLL_S)

    def _keep(self, following: Following, records: int, offset: int) -> None:
        packed = zlib.compress(pickle.dumps(following, pickle.HIGHEST_PROTOCOL), 1)
        self._places.append(_Halt(records, offset, following.rows, packed))

    def _end(self, found: list[Finding], offset: int) -> None:
        """These are the last findings."""
        found += self._joining.added(self._for_logs + found) if self._joining else ()
        self._ended = True
        self._say(found, offset)

    def _say(self, found: list[Finding], offset: int) -> None:
        self._for_logs += [
            finding
            for finding in found
            if finding.code in _NEEDED_BY_LOGS
            and all(finding.code != known.code for known in self._for_logs)
        ]
        told = (self._passed, self._followed, offset, self._ended, self._over)
        self._tell(WalkProgress(found, *told))

    def moment(
        self, operations: Operations, row: int, cancelled: Callable[[], bool]
    ) -> Moment | None:
        """What is known around an operation; None when the walk has not come to it yet.

        Takes as long as a few thousand records do, or as the guest took to answer. Raises
        UnreadableInput.
        """
        if row >= self._followed or not self._places:
            return None
        asked = operations.operation(row)
        answered = operations.column("answered")
        later = bisect_right(self._places, row - _BEFORE, key=lambda place: place.rows)
        place = self._places[max(later - 1, 0)]
        following: Following = pickle.loads(zlib.decompress(place.packed))  # noqa: S301  # ours
        following.before = row
        following.answered = lambda n: bool(answered[n : n + 1].any())
        with open_source(self._path) as source:
            if isinstance(source, CaptureReader):
                records = source.records(place.offset or None)
            else:
                records = islice(source.records(), place.records, None)
            return _around(following, Origins(source.header), records, asked, operations, cancelled)


def _in_parts(source: Source) -> Iterator[tuple[int, Record | MessageRun]]:
    """A recording in bulk, in runs so short that keys are answered between them."""
    for offset, item in in_bulk(source):
        if isinstance(item, MessageRun):
            for first in range(0, len(item), _PART):
                part = item.part(first, first + _PART)
                yield int(part.offset[0]), part
        else:
            yield offset, item


def _requests_of(item: Record | MessageRun, diagnosis: Diagnosis) -> int:
    """How many operations began with it."""
    if isinstance(item, MessageRun):
        return int(item.to_guest.sum())
    return sum(isinstance(event, RequestReceived) for event in diagnosis.events)


def _around(
    following: Following,
    origins: Origins,
    records: Iterator[tuple[int, Record]],
    asked: Operation,
    operations: Operations,
    cancelled: Callable[[], bool],
) -> Moment | None:
    """Feed records until the operation and its reply have come."""
    request = reply = after = None
    sent_ns = int(operations.column("t_ns")[asked.row])
    end_ns = sent_ns + (asked.latency_ns or 0) + _SLACK_NS
    for count, (offset, record) in enumerate(records):
        if count % _LOOK_UP == 0 and cancelled():
            return None
        following.feed(record, offset)
        events = following.events
        for event, runs in zip(events, origins.feed(record, events), strict=True):
            if getattr(record, "conn", None) != asked.conn:
                continue
            if following.stopped_at is None:
                continue  # of an earlier use of the same numbers
            if isinstance(event, RequestReceived) and event.number == asked.request:
                request = request or Message(event.raw, event.size, runs)
            elif isinstance(event, ReplyReceived) and event.number == asked.request and request:
                reply = Message(event.raw, len(event.raw), runs)
        if reply is not None and after is None:
            after = following.state()
        waits = asked.latency_ns is not None and reply is None
        if request is not None and not waits:
            break
        if getattr(record, "t_ns", sent_ns) > end_ns:
            break
    if request is None or following.stopped_at is None:
        return None
    return Moment(asked.row, following.stopped_at, after, request, reply)
