"""The shortest case in which a guest still differs from the model. docs/conform.md."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ..errors import Interrupted
from ..kernel.world import World
from ..transform.minimising import shrink
from .asking import Asker, Differs
from .cases import Ask, Step, is_allowed, rehearse


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The shortest case that was found; `again` says whether the difference came back at all.

    `tries` counts how often the guest was booted for it. `ended` is true when it was interrupted,
    so that a shorter one may exist.
    """

    differs: Differs
    again: bool
    tries: int
    ended: bool = False


def in_whole_requests(world: World, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The same requests as the guest saw them in its buffer, each in a write of its own.

    Then none rests any more on the bytes of the one before it.
    """
    plain: list[Step] = []
    for step, expected in zip(steps, rehearse(world, steps), strict=True):
        if isinstance(step, Ask) and expected is not None:
            plain += [Ask(step.conn, request.encode()) for request in expected.requests]
        else:
            plain.append(step)
    return tuple(plain)


def shortest(
    asker: Asker,
    world: World,
    found: Differs,
    allowed: Collection[str],
    report: Callable[[int], None] = lambda _: None,
) -> Shrunk:
    """Leave out steps for as long as the last one, or an earlier one, is answered otherwise.

    `report` hears how many steps are left. Parts that would be dangerous are not tried. Raises
    what asking raises, but for an interruption.
    """
    if not asker.can_reset:
        return Shrunk(found, again=False, tries=0)
    best = found
    tries = 0

    def play(steps: Sequence[Step]) -> Differs | None:
        nonlocal tries
        if not is_allowed(rehearse(world, steps), allowed):
            return None
        tries += 1
        return asker.play(steps)

    def still(steps: Sequence[Step]) -> bool:
        nonlocal best
        now = play(steps)
        if now is not None and len(now.steps) < len(best.steps):
            best = now
            report(len(best.steps))
        return now is not None

    try:
        again = play(found.steps)
        if again is None:
            return Shrunk(found, again=False, tries=tries)
        best = play(in_whole_requests(world, again.steps)) or again
        last = best.step
        shrink(best.steps[:-1], lambda left: still([*left, last]))
    except Interrupted:
        return Shrunk(best, again=True, tries=tries, ended=True)
    return Shrunk(best, again=True, tries=tries)
