"""The smallest part of a recording in which one operation still fails in the same way.

Delta debugging: larger and smaller parts are left out and the rest is tried, until nothing more can
be left out. Who tries it, the model of the kernel or a guest, is a function. No IO.
docs/diff-edit-minimise.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

from ..kernel.world import World
from ..simulated.rehearsal import Rehearsal
from ..trace.script import Act, Asked, Key, Script

Answers = Mapping[Key, bytes | None]
"""What requests were answered, None for silence; those after the failing one are not in it."""
Try = Callable[[Script], Answers | None]
"""Plays a part of the recording; None when it must not be played."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Part:
    """What is left of a recording: its operations, and the acts of the VMM's side by their place.

    `answers` is what they were answered when they were tried last.
    """

    keys: frozenset[Key]
    acts: frozenset[int]
    answers: Answers

    def __len__(self) -> int:
        return len(self.keys)


class Minimiser:
    """Makes a recording smaller around its operation `key`.

    `best` is the smallest part so far in which the guest answered it as recorded, None before
    there is one; `report` hears of each. Whatever a try raises passes through, so a caller can
    stop at any time and still has the best part.
    """

    def __init__(
        self,
        script: Script,
        key: Key,
        report: Callable[[Part], None] = lambda _: None,
    ) -> None:
        self._script = script
        self._key = key
        self._needs = needed(script)
        self._report = report
        self._ret = _ret(script.asked[key].reply_raw or None)
        self.best: Part | None = None
        self.tries = 0
        self.refused = 0
        """Parts that must not be played, and so were taken to be useless."""
        last = script.asked[key].place
        self._keys = [k for k, asked in script.asked.items() if asked.place <= last]
        self._acts = range(len(script.actions))

    @property
    def whole(self) -> Script:
        """Everything up to the operation."""
        return part_of(self._script, frozenset(self._keys), frozenset(self._acts))

    def run(self, guest: Try, model: Try | None = None) -> Part | None:
        """The smallest part, or None when the operation does not fail so on this guest at all.

        With a `model` that agrees with the guest, most is left out by asking the model.
        """
        start = self._attempt(guest, self._keys, self._acts)
        if start is None:
            return None
        self._accept(start)
        if model is not None and self._attempt(model, start.keys, start.acts):
            proposed = self._smaller(model, start, lambda _: None)
            confirmed = self._attempt(guest, proposed.keys, proposed.acts)
            if confirmed is not None:
                start = confirmed
                self._accept(start)
        return self._smaller(guest, start, self._accept)

    def _accept(self, part: Part) -> None:
        self.best = part
        self._report(part)

    def _smaller(self, try_: Try, best: Part, accept: Callable[[Part], None]) -> Part:
        """Without operations first, then without acts."""

        def still(keys: Iterable[Key], acts: Iterable[int]) -> bool:
            nonlocal best
            part = self._attempt(try_, keys, acts)
            if part is None:
                return False
            if (part.keys, part.acts) != (best.keys, best.acts):
                best = part
                accept(part)
            return True

        others = [key for key in self._keys if key in best.keys and key != self._key]
        shrink(others, lambda left: still([*left, self._key], best.acts))
        shrink(sorted(best.acts), lambda left: still(best.keys, left))
        return best

    def _attempt(self, try_: Try, keys: Iterable[Key], acts: Iterable[int]) -> Part | None:
        wanted = frozenset(keys).union(*(self._needs.get(key, ()) for key in keys))
        chosen = frozenset(acts)
        self.tries += 1
        answers = try_(part_of(self._script, wanted, chosen))
        if answers is None:
            self.refused += 1
            return None
        if self._key not in answers or _ret(answers[self._key]) != self._ret:
            return None
        return Part(wanted, chosen, dict(answers))


def shrink(parts: Sequence[_T], still: Callable[[Sequence[_T]], bool]) -> list[_T]:
    """The fewest of `parts`, in their order, with which `still` holds, as far as leaving out
    ever smaller stretches finds them; not one more can then be left out alone."""
    left = list(parts)
    if left and still([]):
        return []
    size = max(1, len(left) // 2)
    while left:
        found = False
        begin = 0
        while begin < len(left):
            rest = left[:begin] + left[begin + size :]
            if len(rest) < len(left) and rest and still(rest):
                left, found = rest, True
            else:
                begin += size
        if size == 1 and not found:
            break
        size = size if found and size == 1 else max(1, size // 2)
    return left


def part_of(script: Script, keys: Set[Key], acts: Set[int]) -> Script:
    """The script with these operations and these of the VMM's acts."""
    number = count()
    steps = [step for step in script.steps if not isinstance(step, Act) or next(number) in acts]
    return replace(script, steps=steps).only(keys)


def needed(script: Script) -> dict[Key, list[Key]]:
    """For requests that came short, those over whose bytes the guest executed them."""
    found: dict[Key, list[Key]] = {}
    before: dict[int, list[Key]] = {}
    for key, asked in script.asked.items():
        earlier = before.setdefault(asked.conn, [])
        if asked.size < len(asked.raw):
            found[key] = list(earlier)
        else:
            earlier.clear()
        earlier.append(key)
    return found


def on_model(world: World, key: Key) -> Try:
    """A try by the model of the kernel in a guest's `world`."""

    def try_(script: Script) -> Answers:
        rehearsal = Rehearsal(world, script)
        answers: dict[Key, bytes | None] = {}
        for step in script.steps:
            for rehearsed in rehearsal.take(step):
                answers[rehearsed.asked.key] = rehearsed.raw or None
                if rehearsed.asked.key == key:
                    return answers
        return answers

    return try_


def first_failed(script: Script) -> Asked | None:
    """The first operation that the recording shows to have failed or to have had no answer."""
    return next((asked for asked in script.asked.values() if failed(asked)), None)


def failed(asked: Asked) -> bool:
    """Whether it has an errno, or silence that lasted."""
    if asked.reply is None:
        return not asked.cut_off
    return asked.reply.ret < 0


def _ret(raw: bytes | None) -> int | None:
    return None if not raw else int.from_bytes(raw[16:20], "little", signed=True)
