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
    for one, other in zip_longest(_by_connection(a), _by_connection(b), fillvalue=()):
        pairs = [
            Pair(x, y, _differences(x, y, allowed, whole_bytes) if x and y else ())
            for x, y in _paired(one, other, dropped)
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


def _differences(
    a: Asked, b: Asked, allowed: Matchers, whole_bytes: bool
) -> tuple[Difference, ...]:
    here, there = deadlines_missed(a.latency_ns), deadlines_missed(b.latency_ns)
    timed = a.latency_ns is not None and b.latency_ns is not None
    otherwise = timed and (here != there or allowed.about_latency)
    if a.reply_raw == b.reply_raw and not otherwise and (a.raw == b.raw or not whole_bytes):
        return ()  # nearly all of them
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


def _paired(
    a: Sequence[Asked], b: Sequence[Asked], dropped: Collection[str]
) -> Iterator[tuple[Asked | None, Asked | None]]:
    numbers: dict[Hashable, int] = {}
    by_bytes: dict[bytes, int] = {}

    def number(asked: Asked) -> int:
        known = by_bytes.get(asked.raw)
        if known is None:
            known = by_bytes[asked.raw] = number_of(asked)
        return known

    def number_of(asked: Asked) -> int:
        told = request_values(asked.message).items()
        kept = tuple((name, str(value)) for name, value in told if name not in dropped)
        return numbers.setdefault((asked.message.op, kept), len(numbers))

    i = j = 0
    ends = (len(a), len(b))
    for x, y in (*matches([number(r) for r in a], [number(r) for r in b]), ends):
        yield from ((left, None) for left in a[i:x])
        yield from ((None, right) for right in b[j:y])
        if (x, y) != ends:
            yield a[x], b[y]
        i, j = x + 1, y + 1
