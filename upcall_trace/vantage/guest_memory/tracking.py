"""One connection object followed from look to look: what crossed between two of them.

Pure: bytes and times in, records out. With the socket's byte counts it is exact how much crossed;
without them a change of the buffers is all that shows. docs/guest-memory.md, what is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from dissectors.constants import MESSAGE_SIZE
from dissectors.services import DEVICE_MANAGER

from ...capture.records import COMMENT, Begins, Chunk, Close, Gap, Mark, Open, Record
from .conversations import waits
from .following import Counts
from .locating import OBJECT_SIZE, ConnectionObject, kept_of_reply, kept_of_request, object_at

EARLIER: Final = "before this recording"
MISSED: Final = "it crossed between two looks"
UNTOLD: Final = "whether it was answered cannot be seen: the reply would be the same bytes"
SAME_BYTES: Final = "inferred: the next request came, so this one was answered, in the same bytes"
ASKED_AGAIN: Final = "inferred: another reply came, so the same request was sent once more"
_SEQUENCE: Final = 1 << 32
_MOST_AT_ONCE: Final = 1 << 16
"""Messages that may cross between two looks; more is no traffic, but another owner's bytes."""


class ReplySeen(StrEnum):
    """Whether the last request was answered, as far as it shows."""

    YES = "yes"
    NO = "no"
    UNTOLD = "untold"


@dataclass(slots=True)
class Tally:
    """What was seen and what was not, over all connections of a recording."""

    requests: int = 0
    replies: int = 0
    missed_requests: int = 0
    missed_replies: int = 0
    inferred: int = 0
    counted: bool = True
    """Whether the counts of every connection's socket were found."""


class _Standing(NamedTuple):
    """The request and the reply that stand in the buffers, None for what cannot be either."""

    request: bytes | None
    reply: bytes | None


class Tracked:
    """A connection object and what is known of it after each look.

    `held` is what the first look showed. Times are nanoseconds of the recording; `since_ns` is
    that of the look before, so that what is first seen at `t_ns` crossed between the two.
    """

    def __init__(
        self, conn: int, held: ConnectionObject, raw: bytes, counts: Counts | None, tally: Tally
    ) -> None:
        self.conn = conn
        self.begin = held.request_at - 16
        self.raw = raw
        self.counts = counts
        self.gone = False
        self._task, self._socket = held.task, held.socket
        self._held = held
        self._tally = tally
        self._requests = counts.requests if counts else int(any(held.request))
        """How many requests there were: recorded, or told as a gap."""
        if counts is not None:
            behind = counts.requests > counts.replies
            self._answered = ReplySeen.NO if behind else ReplySeen.YES
        else:
            told = waits(held.request, held.reply)
            self._answered = ReplySeen.NO if told else ReplySeen.YES

    def open(self, t_ns: int, wall_ns: int, port: int, new: bool) -> Iterator[Record]:
        """The connection's first records.

        One that is `new` began while it was watched, so that its messages so far belong to the
        recording. Of an older one only a request that still waits does.
        """
        where = f"connection object at {self._held.address:#x} of the VMM's process"
        yield Open(t_ns, self.conn, Begins.SERVICE, port, True)
        yield Chunk(t_ns, self.conn, True, bytes([DEVICE_MANAGER.byte]))
        yield Gap(t_ns, self.conn, False, MESSAGE_SIZE, EARLIER)
        yield Mark(wall_ns, self.conn, None, COMMENT, where)
        before, waiting = self._requests, self._answered is ReplySeen.NO
        told = waiting or (new and before > 0)
        hidden = before - told
        if hidden:
            why = MISSED if new else EARLIER
            yield Gap(t_ns, self.conn, True, hidden * MESSAGE_SIZE, why)
            yield Gap(t_ns, self.conn, False, hidden * MESSAGE_SIZE, why)
        if new:
            self._tally.missed_requests += hidden
            self._tally.missed_replies += hidden
        if told:
            self._tally.requests += 1
            yield Chunk(t_ns, self.conn, True, kept_of_request(self._held.request))
            if waiting and not new:
                text = "it was waiting already when this recording first saw it"
                yield Mark(wall_ns, self.conn, before - 1, COMMENT, text)
        if told and not waiting:
            self._tally.replies += 1
            yield Chunk(t_ns, self.conn, False, kept_of_reply(self._held.reply))

    def look(
        self, t_ns: int, since_ns: int, wall_ns: int, raw: bytes, counts: Counts | None
    ) -> list[Record]:
        """What one look showed; `raw` is the object's 2064 bytes, `counts` those of its socket.

        Bytes that are not upcall's any more end the connection, and none of them is recorded.
        """
        if raw == self.raw and counts == self.counts:
            return []
        held = object_at(raw, self.begin, known=True) if len(raw) == OBJECT_SIZE else None
        if (
            held is None
            or held.scribbled
            or (held.task, held.socket) != (self._task, self._socket)
            or (self.counts is not None and counts is None)
        ):
            return self.end(t_ns, closed=True)
        if self.counts is not None and counts is not None:
            return self._by_counts(t_ns, since_ns, held, raw, counts)
        return self._by_changes(t_ns, since_ns, wall_ns, held, raw)

    def end(self, t_ns: int, closed: bool) -> list[Record]:
        """The object is gone, or the recording is over."""
        records: list[Record] = []
        if self._answered is ReplySeen.UNTOLD:
            records.append(Gap(t_ns, self.conn, False, MESSAGE_SIZE, UNTOLD))
            self._tally.missed_replies += 1
        if closed:
            records.append(Close(t_ns, self.conn, by_guest=False))
        self.gone = True
        return records

    def _by_counts(
        self, t_ns: int, since_ns: int, held: ConnectionObject, raw: bytes, counts: Counts
    ) -> list[Record]:
        assert self.counts is not None
        taken = (counts.to_guest - self.counts.to_guest) % _SEQUENCE
        sent = (counts.from_guest - self.counts.from_guest) % _SEQUENCE
        if max(taken, sent) > _MOST_AT_ONCE * MESSAGE_SIZE:
            return self.end(t_ns, closed=True)  # backwards: the socket is another one's by now
        if not taken and not sent:
            return []  # a buffer that is just being written: the counts follow at once
        requests, replies = -(-taken // MESSAGE_SIZE), sent // MESSAGE_SIZE
        size = taken if taken < MESSAGE_SIZE else MESSAGE_SIZE
        open_before = self._answered is ReplySeen.NO
        last_waits = open_before + requests > replies
        # Between two looks a buffer may be written once more before it is counted: then what
        # stands there is not what was counted, and the types no longer fit.
        answers = self.raw[16:1040] if last_waits and requests == 1 else held.request
        misfit = requests > 0 and replies > 0 and waits(answers, held.reply) is True
        self.raw, self.counts = raw, counts
        shown = _Standing(
            None if misfit and not last_waits else kept_of_request(held.request)[:size],
            None if misfit and last_waits and requests == 1 else kept_of_reply(held.reply),
        )
        return self._in_turn(t_ns, since_ns, shown, requests, replies)

    def _by_changes(
        self, t_ns: int, since_ns: int, wall_ns: int, held: ConnectionObject, raw: bytes
    ) -> list[Record]:
        """Without counts: a client sends its next request only once the last one was answered."""
        asked = raw[16:1040] != self.raw[16:1040]
        told = raw[1040:] != self.raw[1040:]
        of_older = bool(waits(held.request, held.reply))
        was, before = self._answered, self.raw
        self.raw = raw
        if not asked:
            again = (
                [] if was is not ReplySeen.YES else self._ask_again(t_ns, since_ns, wall_ns, held)
            )
            return again + self._in_turn(t_ns, since_ns, _shown(held), 0, 1)
        records: list[Record] = []
        if was is ReplySeen.UNTOLD and not (told and of_older):
            records += self._infer_reply(t_ns, since_ns, wall_ns, before)
        elif was is ReplySeen.NO and not (told and _may_answer(before, raw)):
            records += self._gaps(t_ns, 0, 1)
        elif told and was is ReplySeen.YES and of_older:
            records += self._gaps(t_ns, 1, 0)
            self._answered = ReplySeen.NO
        records += self._in_turn(t_ns, since_ns, _shown(held), 1, int(told))
        if not told and not of_older:
            self._answered = ReplySeen.UNTOLD
        return records

    def _in_turn(
        self,
        t_ns: int,
        since_ns: int,
        shown: _Standing,
        requests: int,
        replies: int,
    ) -> list[Record]:
        """So many requests and replies crossed, the last of each as shown; others are gaps."""
        records: list[Record] = []
        while requests or replies:
            if replies and (self._answered is not ReplySeen.YES or not requests):
                replies -= 1
                if replies or shown.reply is None:
                    records += self._gaps(t_ns, 0, 1)
                else:
                    records.append(_chunk(t_ns, since_ns, self.conn, False, shown.reply))
                    self._tally.replies += 1
                self._answered = ReplySeen.YES
                continue
            requests -= 1
            if requests or shown.request is None:
                records += self._gaps(t_ns, 1, 0)
            else:
                records.append(_chunk(t_ns, since_ns, self.conn, True, shown.request))
                self._tally.requests += 1
                self._requests += 1
            self._answered = ReplySeen.NO
        return records

    def _gaps(self, t_ns: int, requests: int, replies: int) -> list[Record]:
        """Messages that crossed and were not seen."""
        records: list[Record] = []
        if requests:
            records.append(Gap(t_ns, self.conn, True, requests * MESSAGE_SIZE, MISSED))
        if replies:
            records.append(Gap(t_ns, self.conn, False, replies * MESSAGE_SIZE, MISSED))
            self._answered = ReplySeen.YES
        self._requests += requests
        self._tally.missed_requests += requests
        self._tally.missed_replies += replies
        return records

    def _infer_reply(self, t_ns: int, since_ns: int, wall_ns: int, before: bytes) -> list[Record]:
        self._answered = ReplySeen.YES
        self._tally.inferred += 1
        self._tally.replies += 1
        return [
            _chunk(t_ns, since_ns, self.conn, False, kept_of_reply(before[1040:])),
            Mark(wall_ns, self.conn, self._requests - 1, COMMENT, SAME_BYTES),
        ]

    def _ask_again(
        self, t_ns: int, since_ns: int, wall_ns: int, held: ConnectionObject
    ) -> list[Record]:
        records = self._in_turn(t_ns, since_ns, _shown(held), 1, 0)
        self._tally.inferred += 1
        return [*records, Mark(wall_ns, self.conn, self._requests - 1, COMMENT, ASKED_AGAIN)]


def _shown(held: ConnectionObject) -> _Standing:
    return _Standing(kept_of_request(held.request), kept_of_reply(held.reply))


def _may_answer(before: bytes, raw: bytes) -> bool:
    """Whether the reply that is there now can be the answer to the request that was there."""
    return waits(before[16:1040], raw[1040:]) is not True


def _chunk(t_ns: int, since_ns: int, conn: int, to_guest: bool, message: bytes) -> Chunk:
    """A message that was first seen at `t_ns`, and was not there at `since_ns`."""
    return Chunk(t_ns, conn, to_guest, message, t_ns - since_ns)
