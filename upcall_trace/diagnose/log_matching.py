"""Finding a recording's operations in a console: by content and order first, by time last.

Both are lists of what one guest did, in its order, so they are laid side by side as a whole: what
cannot be one operation is never paired, and where several could be, the clocks decide. A clock that
slipped moves no line away from its only partner. A console that contradicts the recording is of
another guest, and is no evidence of anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dissectors.constants import EBUSY, MAGIC_VERSION, MessageType

from .. import codes
from ..logs.console_operations import ConsoleOperation
from ..trace.operations import Operation
from ..views.text import duration, seconds
from .situation import Situation

_CPU: Final = (MessageType.ADD_CPU, MessageType.DEL_CPU)
_PCI: Final = (MessageType.ADD_PCI, MessageType.DEL_PCI)
_CELLS: Final = 400_000
"""Pairs that are looked at together; longer lists are laid side by side piece by piece."""
_PIECE: Final = 600
_BUCKET_NS: Final = 250_000_000
_NEAR_NS: Final = 2_000_000_000
_CANDIDATES: Final = 16
_SLIP_NS: Final = 1_000_000_000
_BELIEVED: Final = 0.7
"""The part of what both should have that fits, from which on a console is this guest's."""


class TracedRequest(NamedTuple):
    """A recorded request that leaves lines on the console; `t_ns` counts as its records do."""

    conn: int
    request: int
    key: tuple[object, ...]
    ids: tuple[int, ...]
    ret: int | None
    t_ns: int
    latency_ns: int


class Slip(NamedTuple):
    """Between two requests the guest's clock ran less than the host's."""

    before: TracedRequest
    after: TracedRequest
    host_ns: int
    guest_ns: int


@dataclass(slots=True)
class Fit:
    """How a console fits a recording; pairs are in the recording's order."""

    pairs: list[tuple[TracedRequest, ConsoleOperation]] = field(default_factory=list)
    missing: int = 0
    """Recorded requests between matched ones that the console does not have."""
    extra: int = 0
    """Operations of the console between matched ones that the recording does not have."""
    outside: int = 0
    """Where both go on, before the first pair or after the last, and do not agree."""
    asked: int = 0
    said: int = 0

    @property
    def share(self) -> float:
        """The part that fits of what should."""
        should = len(self.pairs) + self.missing + self.extra + self.outside
        return len(self.pairs) / should if should else 0.0

    @property
    def refused(self) -> bool:
        """Whether the console contradicts the recording: both have something, and it differs."""
        return bool(self.asked and self.said) and self.share < _BELIEVED

    @property
    def offset_ns(self) -> int | None:
        """What to add to the guest's clock to get the recording's; None until three agree."""
        offsets = sorted(_offset(a, o) for a, o in self.pairs if o.lines[0].guest_ns is not None)
        return offsets[len(offsets) // 2] if len(offsets) >= 3 else None

    @property
    def account(self) -> str:
        """How many operations were found, and how sure the clocks' offset is."""
        found = f"{len(self.pairs)} operations of the recording found in the console"
        offset = self.offset_ns
        if offset is None:
            return f"{found}; too few to compare the clocks"
        slips = self.slips()
        offsets = [_offset(a, o) for a, o in self.pairs if o.lines[0].guest_ns is not None]
        spread = max(abs(each - offset) for each in offsets)
        slipped = f"; it stood still {len(slips)} times" if slips else ""
        return (
            f"{found}; the guest's clock differs by {seconds(-offset)} s, "
            f"within {duration(spread)} ({len(offsets)} matches){slipped}"
        )

    def slips(self) -> list[Slip]:
        """Where the guest's clock stood still and never caught up; two later pairs agree on it."""
        timed = [
            (a, o) for a, o in self.pairs
            if o.lines[0].guest_ns is not None and o.msg_type in (*_CPU, *_PCI)
        ]  # fmt: skip
        found: list[Slip] = []
        for at in range(1, len(timed) - 1):
            (a, o), (b, p) = timed[at - 1], timed[at]
            if o.boot != p.boot:
                continue
            before = max(_offset(*pair) for pair in timed[:at] if pair[1].boot == o.boot)
            after = min(_offset(*pair) for pair in timed[at:] if pair[1].boot == o.boot)
            if after - before >= _SLIP_NS and not (found and found[-1].after is a):
                host = b.t_ns - a.t_ns
                guest = (p.lines[0].guest_ns or 0) - (o.lines[0].guest_ns or 0)
                found.append(Slip(a, b, host, guest))
        return found[:16]


class ConsoleMatcher:
    """Tells what a console says of a recorded operation.

    With the recording's `operations` known, all is laid side by side before; without, as while a
    recording grows, each operation takes the next line that it can be, by the clocks once they are
    clear.
    """

    def __init__(
        self,
        said: Sequence[ConsoleOperation],
        operations: Sequence[Operation] | None = None,
        first_ns: int = 0,
    ) -> None:
        asked = [] if operations is None else asked_of(operations, first_ns)
        wanted = {each.key for each in asked}
        # A device that was asked for is none of the boot, however early its line stands.
        self._said = [
            each
            for each in said
            if each.msg_type is not None and (not each.at_boot or each.key in wanted)
        ]
        self.fit = Fit()
        self._known: dict[tuple[int, int], ConsoleOperation] | None = None
        self._next = 0
        if operations is not None:
            self.fit = lay_side_by_side(asked, self._said)
            self._known = {(a.conn, a.request): o for a, o in self.fit.pairs}

    def find(self, at: Situation) -> ConsoleOperation | None:
        """The console's account of an operation, None when there is none to be found."""
        if self._known is not None:
            return self._known.get((at.ref.conn, at.ref.request))
        asked = _asked(at)
        if asked is None:
            return None
        offset = self.fit.offset_ns
        for number in range(self._next, min(self._next + _PIECE, len(self._said))):
            said = self._said[number]
            guest_ns = said.lines[0].guest_ns
            if said.key != asked.key or not _can_be(asked, said):
                continue
            if guest_ns is not None and offset is not None:
                apart = guest_ns + offset - asked.t_ns
                if apart < -_NEAR_NS:
                    continue
                if apart > _NEAR_NS + asked.latency_ns:
                    return None
            self._next = number + 1
            self.fit.pairs.append((asked, said))
            return said
        return None

    @property
    def matched(self) -> list[ConsoleOperation]:
        """The console's operations that were found in the recording."""
        return [said for _, said in self.fit.pairs]

    @property
    def account(self) -> str:
        """How many operations were found, and how sure the clocks' offset is."""
        return self.fit.account

    @property
    def offset_ns(self) -> int | None:
        """What to add to the guest's clock to get the recording's."""
        return self.fit.offset_ns


def asked_of(operations: Sequence[Operation], first_ns: int = 0) -> list[TracedRequest]:
    """The recorded requests that must leave lines on the guest's console."""
    found = []
    for operation in operations:
        if operation.msg_type is None or "bad-magic" in operation.anomalies:
            continue
        fields, latency = operation.fields, operation.latency_ns or 0
        key = _key(operation.msg_type, fields, operation.ret)
        if key is not None:
            ids = tuple(fields.get("apic_ids", ()))
            t_ns = operation.t_ns + first_ns
            found.append(
                TracedRequest(
                    operation.conn, operation.request, key, ids, operation.ret, t_ns, latency
                )
            )
    return found


def _key(msg_type: int, fields: Any, ret: int | None) -> tuple[object, ...] | None:
    if msg_type in _CPU and "count" in fields:
        return (MessageType(msg_type), fields["count"])
    if msg_type in _PCI and "busno" in fields:
        return (MessageType(msg_type), fields["busno"], fields["devfn"])
    if msg_type == MessageType.ADD_MMIO and "mmio_base" in fields and ret in (0, EBUSY, None):
        return ("mmio", fields["mmio_base"])
    return None


def _asked(at: Situation) -> TracedRequest | None:
    if at.request.magic_version != MAGIC_VERSION:
        return None
    key = _key(at.request.msg_type, at.request.fields(), at.ret)
    if key is None:
        return None
    conn, request = at.ref
    return TracedRequest(
        conn, request, key, tuple(at.apic_ids), at.ret, at.sent_ns, at.latency_ns or 0
    )


def _can_be(asked: TracedRequest, said: ConsoleOperation) -> bool:
    """Whether a console's operation, whose key is the same, can be this request."""
    ids = [each for each in said.ids if each >= 0]
    if ids and asked.ids and said.msg_type == MessageType.ADD_CPU:
        known = said.code == codes.CPU_ALREADY_KNOWN
        if not (set(ids) <= set(asked.ids) if known else tuple(ids) == asked.ids[: len(ids)]):
            return False
    if said.ret is None:
        return not said.oops or asked.ret is None
    if asked.ret is None:
        return True  # whoever asked may have gone before the answer
    if said.msg_type in _PCI:
        return said.ret == 0 or said.ret == asked.ret
    return said.ret == asked.ret


def _offset(asked: TracedRequest, said: ConsoleOperation) -> int:
    return asked.t_ns - (said.lines[0].guest_ns or 0)


def lay_side_by_side(asked: Sequence[TracedRequest], said: Sequence[ConsoleOperation]) -> Fit:
    """The longest account in which both agree."""
    fit = Fit(asked=len(asked), said=len(said))
    offset = _likely_offset(asked, said)
    taken = 0
    pairs: list[tuple[int, int]] = []
    piece = len(asked) if len(asked) * len(said) <= _CELLS else _PIECE
    for begin in range(0, len(asked), piece or 1):
        end = min(begin + piece, len(asked))
        last = len(said) if piece == len(asked) else min(taken + 2 * piece, len(said))
        for a, o in _longest(asked[begin:end], said[taken:last], offset):
            pairs.append((begin + a, taken + o))
        taken = pairs[-1][1] + 1 if pairs else taken
    pairs = _with_only_partners(asked, said, pairs)
    if offset is None:
        pairs = [pair for pair in pairs if _is_only(asked[pair[0]], said)]
    fit.pairs = [(asked[a], said[o]) for a, o in pairs]
    _count_contradictions(fit, asked, len(said), pairs)
    return fit


def _is_only(asked: TracedRequest, said: Sequence[ConsoleOperation]) -> bool:
    """Without the clocks an operation that several lines fit is found in none of them."""
    return sum(each.key == asked.key and _can_be(asked, each) for each in said) == 1


def _count_contradictions(
    fit: Fit, asked: Sequence[TracedRequest], said: int, pairs: Sequence[tuple[int, int]]
) -> None:
    """What both should have and one has not.

    A recording or a console may begin later or end earlier than the other. Both cannot.
    """
    answered = [a for a, one in enumerate(asked) if one.ret is not None]
    if not pairs:
        fit.outside = min(len(answered), said)
        return
    have = {a for a, _ in pairs}
    ours = sorted(o for _, o in pairs)
    first, last = min(have), max(have)
    fit.missing = sum(first < a < last and a not in have for a in answered)
    fit.extra = ours[-1] - ours[0] + 1 - len(ours)
    before, after = sum(a < first for a in answered), sum(a > last for a in answered)
    fit.outside = min(before, ours[0]) + min(after, said - 1 - ours[-1])


def _likely_offset(asked: Sequence[TracedRequest], said: Sequence[ConsoleOperation]) -> int | None:
    """What most pairs that could be one operation say of the clocks; None where none do."""
    by_key: dict[object, list[ConsoleOperation]] = defaultdict(list)
    for each in said:
        if len(by_key[each.key]) < _CANDIDATES and each.lines[0].guest_ns is not None:
            by_key[each.key].append(each)
    votes: Counter[int] = Counter()
    for a in asked[:4096]:
        for each in by_key.get(a.key, ()):
            if _can_be(a, each):
                votes[_offset(a, each) // _BUCKET_NS] += 1
    if not votes:
        return None
    (bucket, count), *_ = votes.most_common(1)
    return bucket * _BUCKET_NS + _BUCKET_NS // 2 if count >= 3 else None


def _longest(
    asked: Sequence[TracedRequest], said: Sequence[ConsoleOperation], offset: int | None
) -> list[tuple[int, int]]:
    """Pairs in the order of both that are most, and nearest in time where several are possible."""
    rows, columns = len(asked), len(said)
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for a in range(rows - 1, -1, -1):
        here, below, one = best[a], best[a + 1], asked[a]
        for o in range(columns - 1, -1, -1):
            skipped = max(below[o], here[o + 1])
            each = said[o]
            if each.key == one.key and _can_be(one, each):
                skipped = max(skipped, below[o + 1] + _worth(one, each, offset))
            here[o] = skipped
    pairs: list[tuple[int, int]] = []
    a = o = 0
    while a < rows and o < columns and best[a][o] > 0:
        one, each = asked[a], said[o]
        pair = each.key == one.key and _can_be(one, each)
        if pair and best[a][o] == best[a + 1][o + 1] + _worth(one, each, offset):
            pairs.append((a, o))
            a, o = a + 1, o + 1
        elif best[a][o] == best[a + 1][o]:
            a += 1
        else:
            o += 1
    return pairs


def _worth(asked: TracedRequest, said: ConsoleOperation, offset: int | None) -> float:
    """One for the pair, and up to a half for how near the clocks are."""
    if offset is None or said.lines[0].guest_ns is None:
        return 1.0
    apart = abs(_offset(asked, said) - offset)
    return 1.5 - 0.5 * min(apart, _NEAR_NS) / _NEAR_NS


def _with_only_partners(
    asked: Sequence[TracedRequest], said: Sequence[ConsoleOperation], pairs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """And what has one partner only, though connections at one time changed the order."""
    have_a, have_o = {a for a, _ in pairs}, {o for _, o in pairs}
    free: dict[object, list[int]] = defaultdict(list)
    for o, each in enumerate(said):
        if o not in have_o:
            free[each.key].append(o)
    for a, one in enumerate(asked):
        if a in have_a or one.key not in free:
            continue
        possible = [o for o in free[one.key] if _can_be(one, said[o])]
        if len(possible) == 1:
            pairs.append((a, possible[0]))
            free[one.key].remove(possible[0])
    return sorted(pairs)
