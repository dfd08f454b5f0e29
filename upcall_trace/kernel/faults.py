"""Faults that a simulated guest commits on demand: `add_cpu:ret=-16:when=2+`. Seeded, repeatable.

A rule is an operation (or `any`), then parts divided by colons: one action, and when it strikes.
docs/guest.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Final

from dissectors.constants import MESSAGE_SIZE, MessageType, op_name

from ..durations import nanoseconds
from ..errors import WrongUsage

ACTIONS: Final = {
    "ret": "the guest answers this number and does not execute the request",
    "delay": "the reply comes this much later, such as 300ms",
    "drop": "the request is executed and its reply never sent",
    "split": "the reply is sent in two pieces, the first of this many bytes",
    "close": "the connection is closed instead of a reply",
    "garbage": "random bytes are sent instead of the reply",
}
CONDITIONS: Final = {
    "when": "on these occasions: 2, 2+ or 2-4, counted from 1 over all connections",
    "chance": "with this probability on each occasion, from 0 to 1",
}
_OPS: Final = {t.name.lower() for t in MessageType} | {"any"}
_DELAY: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(us|ms|s)")
_WHEN: Final = re.compile(r"([0-9]{1,9})(\+|-([0-9]{1,9}))?")
_DELAY_LIMIT_NS: Final = 86_400_000_000_000
"""A day; much longer ones are more than a thread can wait for."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule. `value` is the action's number: an errno, nanoseconds, or bytes."""

    text: str
    op: str
    action: str
    value: int
    first: int
    last: int | None
    chance: float


def parse_fault(text: str) -> Fault:
    """Parse one SPEC; raises WrongUsage, which names the part that is wrong."""
    op, *parts = text.split(":")
    if op not in _OPS and not _is_nameless(op):
        raise _wrong(text, op, f"is no operation; known are {', '.join(sorted(_OPS))}")
    action: str | None = None
    told: set[str] = set()
    value, first, last, chance = 0, 1, None, 1.0
    for part in parts:
        name, sign, argument = part.partition("=")
        if name in told:
            raise _wrong(text, part, f"is a second {name}")
        told.add(name)
        if name == "when":
            first, last = _occasions(text, part, argument)
        elif name == "chance":
            chance = _chance(text, part, argument)
        elif name not in ACTIONS:
            known = ", ".join([*ACTIONS, *CONDITIONS])
            raise _wrong(text, part, f"is not known; known are {known}")
        elif action is not None:
            raise _wrong(text, part, f"is a second action besides {action}")
        else:
            action = name
            value = _value(text, part, name, argument if sign else None)
    if action is None:
        raise _wrong(text, text, f"has no action; there are {', '.join(ACTIONS)}")
    return Fault(text, op, action, value, first, last, chance)


def _is_nameless(op: str) -> bool:
    """True for `type_77`, false for the number of an operation that has a name."""
    found = re.fullmatch(r"type_([0-9]{1,10})", op)
    return found is not None and int(found[1]) < 1 << 32 and op_name(int(found[1])) == op


def _value(text: str, part: str, name: str, argument: str | None) -> int:
    if name in ("drop", "close", "garbage"):
        if argument is not None:
            raise _wrong(text, part, f"takes no value: write {name}")
        return 0
    if name == "delay":
        found = _DELAY.fullmatch(argument or "")
        if not found:
            raise _wrong(text, part, "needs a time with its unit, such as delay=300ms")
        delay_ns = nanoseconds(found[1], found[2])
        if delay_ns > _DELAY_LIMIT_NS:
            raise _wrong(text, part, "is more than a day")
        return delay_ns
    low, high = (-(1 << 31), (1 << 31) - 1) if name == "ret" else (1, MESSAGE_SIZE - 1)
    if not re.fullmatch(r"-?[0-9]{1,10}", argument or "") or not low <= int(argument or 0) <= high:
        raise _wrong(text, part, f"needs a number from {low} to {high}")
    return int(argument or 0)


def _occasions(text: str, part: str, argument: str) -> tuple[int, int | None]:
    found = _WHEN.fullmatch(argument)
    if not found or int(found[1]) < 1:
        raise _wrong(text, part, "needs an occasion counted from 1: when=2, when=2+ or when=2-4")
    first = int(found[1])
    if found[2] == "+":
        return first, None
    last = int(found[3]) if found[3] else first
    if last < first:
        raise _wrong(text, part, "ends before it begins")
    return first, last


def _chance(text: str, part: str, argument: str) -> float:
    try:
        chance = float(argument)
    except ValueError:
        chance = -1.0
    if not 0 <= chance <= 1:
        raise _wrong(text, part, "needs a number from 0 to 1")
    return chance


def _wrong(text: str, part: str, why: str) -> WrongUsage:
    return WrongUsage(f"fault {text!r}: {part!r} {why}")


class Faults:
    """Rules with their counts; the first that strikes decides. The same seed, the same strikes."""

    def __init__(self, rules: list[Fault], seed: int = 0) -> None:
        self.rules = rules
        self._counts = [0] * len(rules)
        self._random = Random(seed)  # noqa: S311  # repeatable on purpose, not for secrets

    def strike(self, msg_type: int) -> Fault | None:
        """The rule that strikes a request of this type now, if any; counts the occasion."""
        op = op_name(msg_type)
        struck: Fault | None = None
        for place, rule in enumerate(self.rules):
            if rule.op not in (op, "any"):
                continue
            self._counts[place] += 1
            within = rule.first <= self._counts[place] <= (rule.last or self._counts[place])
            lucky = rule.chance >= 1 or self._random.random() < rule.chance
            if struck is None and within and lucky:
                struck = rule
        return struck

    def garbage(self, size: int) -> bytes:
        """Random bytes."""
        return self._random.randbytes(size)
