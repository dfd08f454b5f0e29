"""Two recordings side by side: the same requests beside each other, whatever the time.

The k-th connection with requests of one is held against the k-th of the other. On each, requests
that are alike are paired in their order, as many as possible; which reply came is compared after
that. No IO. docs/diff-edit-minimise.md.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Final

from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.slots import positional

from ..errors import WrongUsage
from ..trace.script import Asked, Script
from .longest import matches
from .matchers import EVERY, FIELDS, Matchers, MatchRule
from .replies import Difference, Got, deadlines_missed, differences, request_values

_REQUEST_FIELDS: Final = DEVICE_MANAGER_TABLE.request_fields


@dataclass(frozen=True, slots=True)
class Pair:
    """A request of both, or of one alone; `differences` has those of the replies."""

    a: Asked | None
    b: Asked | None
    differences: tuple[Difference, ...] = ()

    @property
    def kind(self) -> str:
        """`same`, `changed`, `only_a` or `only_b`."""
        if self.a is None:
            return "only_b"
        if self.b is None:
            return "only_a"
        return "changed" if self.differences else "same"


_pair = positional(Pair)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A connection of each, None where the other recording has no more."""

    a: int | None
    b: int | None
    pairs: list[Pair] = field(repr=False)


def align(
    a: Script,
    b: Script,
    ignored: Collection[str] = (),
    whole_bytes: bool = False,
    matchers: Matchers | None = None,
) -> Iterator[Conversation]:
    """Every connection with requests of both recordings, in their order.

    `ignored` are fields of requests or replies that do not count. With `whole_bytes` all 1024
    bytes do, of requests too. `matchers` are rules for what B may have in the place of A's.
    Raises WrongUsage for a field that there is not.
    """
    unknown = [name for name in ignored if name not in _REQUEST_FIELDS and name not in FIELDS]
    if unknown:
        known = ", ".join(dict.fromkeys((*_REQUEST_FIELDS, *FIELDS)))
        raise WrongUsage(f"{unknown[0]!r} is no field; there are {known}")
    allowed = Matchers()
    allowed.update(matchers or Matchers())
    allowed.add(EVERY, [MatchRule(name, "any") for name in ignored if name in FIELDS])
    dropped = set(ignored).union(*map(_bound_to, ignored))
    compare = _Comparing(allowed, whole_bytes)
    for one, other in zip_longest(_by_connection(a), _by_connection(b), fillvalue=()):
        pairs = [
            _pair(x, y, compare(x, y) if x and y else ())
            for x, y in _paired(one, other, _Numbers(dropped))
        ]
        yield Conversation(one[0].conn if one else None, other[0].conn if other else None, pairs)


def _bound_to(name: str) -> Iterator[str]:
    """Fields that this one is a part of, or its own parts: neither can be compared without it."""
    for row in _REQUEST_FIELDS.get(name, ()):
        yield from (part.name for part in row.bits) if row.name == name else (row.name,)


def _by_connection(script: Script) -> list[Sequence[Asked]]:
    found: dict[int, list[Asked]] = {}
    for asked in script.asked.values():
        found.setdefault(asked.conn, []).append(asked)
    return [found[conn] for conn in sorted(found)]


class _Comparing:
    """What differs between two answers; the same two answers are compared once, for all who got
    them."""

    def __init__(self, allowed: Matchers, whole_bytes: bool) -> None:
        self._allowed = allowed
        self._whole_bytes = whole_bytes
        self._known: dict[tuple[object, ...], tuple[Difference, ...]] = {}
        # Of one operation alone, or of times: then every pair is another case.
        self._alone = allowed.about_latency or allowed.about_single or whole_bytes

    def __call__(self, a: Asked, b: Asked) -> tuple[Difference, ...]:
        timed = a.latency_ns is not None and b.latency_ns is not None
        here, there = 0, 0
        if timed:
            here, there = deadlines_missed(a.latency_ns), deadlines_missed(b.latency_ns)
        if here != there or self._alone:
            return self._looked_at(a, b, here, there, timed)
        if a.reply_raw == b.reply_raw:
            return ()  # nearly all of them
        # A script has one object for all replies of the same bytes and meaning.
        about = (a.message.op, id(a.reply), id(b.reply))
        found = self._known.get(about)
        if found is None:
            found = self._known[about] = self._looked_at(a, b, here, there, timed)
        return found

    def _looked_at(
        self, a: Asked, b: Asked, here: int, there: int, timed: bool
    ) -> tuple[Difference, ...]:
        allowed, whole_bytes = self._allowed, self._whole_bytes
        otherwise = timed and (here != there or allowed.about_latency)
        if a.reply_raw == b.reply_raw and not otherwise and (a.raw == b.raw or not whole_bytes):
            return ()
        came = Got(b.reply, b.reply_raw, b.latency_ns)
        whole = replace(a, cut_off=False)
        found = differences(whole, came, allowed, whole_bytes, deadlines=True)
        if timed and here > there and "latency" not in allowed.of(a):
            # What was too late is in time now: no failure of a replay, but a difference.
            found += (Difference("latency", a.latency_ns, b.latency_ns),)
        if whole_bytes and a.raw != b.raw and not found:
            at = next(n for n, (x, y) in enumerate(zip(a.raw, b.raw, strict=True)) if x != y)
            one, other = (f"{raw[at : at + 8].hex(' ')} at {at:#06x}" for raw in (a.raw, b.raw))
            found = (Difference("request", one, other),)
        return found


class _Numbers:
    """A number for each request, equal for those that are the same but for what was dropped."""

    def __init__(self, dropped: Collection[str]) -> None:
        self._dropped = dropped
        self._by_values: dict[Hashable, int] = {}
        self._by_bytes: dict[tuple[str, bytes], int] = {}

    def of(self, asked: Asked) -> int:
        """The number of a request."""
        about = (asked.message.op, asked.raw)
        known = self._by_bytes.get(about)
        if known is None:
            told = request_values(asked.message).items()
            kept = tuple((name, str(value)) for name, value in told if name not in self._dropped)
            known = self._by_values.setdefault((asked.message.op, kept), len(self._by_values))
            self._by_bytes[about] = known
        return known


def _paired(
    a: Sequence[Asked], b: Sequence[Asked], number: _Numbers
) -> Iterator[tuple[Asked | None, Asked | None]]:
    i = j = 0
    ends = (len(a), len(b))
    for x, y in (*matches(list(map(number.of, a)), list(map(number.of, b))), ends):
        yield from ((left, None) for left in a[i:x])
        yield from ((None, right) for right in b[j:y])
        if (x, y) != ends:
            yield a[x], b[y]
        i, j = x + 1, y + 1
