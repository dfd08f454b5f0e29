"""Proves of a regular expression that it takes linear time on any text.

What repeats has a bound, so that a match ends within a bounded number of characters from where it
begins; and the ways in which it may be tried from one place have a bound, too. Only at the very end
may something repeat without bound, when nothing that could fail comes after it.
"""

from __future__ import annotations

import re
from re import _parser  # the standard library's own
from typing import Any, Final

WAYS: Final = 200_000
"""Steps that one place may cost at most."""
_LONG: Final = 100_000


def steps(pattern: re.Pattern[Any]) -> int:
    """The most steps that trying the pattern at one place takes; raises ValueError for no bound."""
    return _sequence(_parser.parse(pattern.pattern, pattern.flags), last=True)


def _sequence(items: Any, last: bool) -> int:
    """Steps of one after the other: each repeat may be tried again for each way before it."""
    cost, ways = 1, 1
    items = list(items)
    for number, (kind, detail) in enumerate(items):
        one, more = _item(str(kind), detail, last and number == len(items) - 1)
        cost += ways * one
        ways *= more
    return cost


def _item(kind: str, detail: Any, last: bool) -> tuple[int, int]:
    """(steps, ways in which it can match)."""
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, inside = detail
        inner = _sequence(inside, False)
        if high >= _LONG:
            if last and low <= 1 and inner <= 3:
                return 1, 1  # it takes what there is, and the match is over
            raise ValueError("a repeat without a bound")
        return high * inner, max(high - low + 1, 1) * max(inner - 1, 1) ** (inner > 3)
    if kind == "BRANCH":
        costs = [_sequence(branch, False) for branch in detail[1]]
        return sum(costs), 1
    if kind == "SUBPATTERN":
        return _sequence(detail[3], last), 1
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _sequence(detail[1], False), 1
    return 1, 1
