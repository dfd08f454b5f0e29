"""A whole run: case after case, what differs shrunk, and where to go on. docs/conform.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import Interrupted, PeerDied, UnreadableInput, WrongUsage
from ..kernel.world import World, world_table
from .asking import Asker
from .cases import Ask, Step, is_allowed, rehearse
from .generating import CASE_SIZE, generate
from .shrinking import Shrunk, shortest

ENOUGH: Final = 5
"""Cases that differ; more would hardly say more."""
_LIMIT: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Wish:
    """What to ask: `count` requests of a seed, or the steps of a recording."""

    world: World
    seed: int = 0
    count: int = 2000
    allowed: frozenset[str] = frozenset()
    recorded: tuple[Step, ...] = ()
    source: str = ""
    """The recording's name."""

    def case(self, number: int, left: int, resets: bool) -> list[Step]:
        """The steps of a case; without resets there is only one."""
        if self.recorded:
            return list(self.recorded)
        size = min(CASE_SIZE, left) if resets else left
        return generate(self.world, self.seed, number, size, self.allowed, orders=resets)

    def identity(self) -> str:
        """Equal for runs of which one may go on with the other."""
        told = [world_table(self.world), self.seed, self.count, sorted(self.allowed), self.source]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Conformity:
    """What became of a run. `asked` counts requests of finished cases, and of those that differ."""

    cases: int = 0
    asked: int = 0
    differing: dict[int, Shrunk] = field(default_factory=dict)
    """By the case's number."""
    interrupted: bool = False
    ended: str = ""
    """Why it ended before its time, if the guest was lost."""

    @property
    def agrees(self) -> bool:
        """Nothing differed, in as much as was asked."""
        return not self.differing and not self.ended


def run(
    wish: Wish,
    asker: Asker,
    kept: Path | None = None,
    report: Callable[[Conformity, int | None], None] = lambda *_: None,
) -> Conformity:
    """Ask until `count` requests were asked, or enough cases differ.

    With `kept` the place is kept in that file, and a run that was broken off goes on there.
    `report` hears of every case, and with a number how many steps of a difference are left.
    Raises Unreachable when nobody is there at the beginning, UnreadableInput and WrongUsage for a
    file that is no place of this run.
    """
    ran, number = Conformity(), 0
    if kept is not None and kept.exists():
        number, ran.asked = _resumed(kept, wish)
        ran.cases = number
    while _goes_on(wish, ran, number, asker.can_reset):
        steps = wish.case(number, wish.count - ran.asked, asker.can_reset)
        count = sum(len(step.pieces) for step in steps if isinstance(step, Ask))
        if not count:
            break
        try:
            differs = asker.play(steps)
            if differs is not None:
                found = shortest(
                    asker, wish.world, differs, wish.allowed | {*_dangers(wish, steps)},
                    lambda left: report(ran, left),
                )  # fmt: skip
                ran.differing[number] = found
                ran.interrupted = found.ended
        except Interrupted:
            ran.interrupted = True
            break
        except PeerDied as error:
            ran.ended = str(error)
            break
        ran.asked += count
        ran.cases += 1
        number += 1
        if kept is not None and not ran.differing:
            _keep(kept, wish, number, ran.asked)
        report(ran, None)
        if ran.interrupted:
            break
    return ran


def _goes_on(wish: Wish, ran: Conformity, number: int, resets: bool) -> bool:
    if len(ran.differing) >= ENOUGH:
        return False
    if wish.recorded or not resets:
        return number == 0
    return ran.asked < wish.count


def _dangers(wish: Wish, steps: Sequence[Step]) -> frozenset[str]:
    """Of a recording everything is allowed that it shows: it was asked for by name."""
    if not wish.recorded:
        return frozenset()
    told = rehearse(wish.world, steps)
    return frozenset(code for each in told if each is not None for code in each.dangers)


def refused(wish: Wish) -> list[str]:
    """The dangers of a recording that nobody has allowed."""
    told = rehearse(wish.world, wish.recorded)
    if is_allowed(told, wish.allowed):
        return []
    codes = dict.fromkeys(code for each in told if each is not None for code in each.dangers)
    return [code for code in codes if code not in wish.allowed]


def _keep(path: Path, wish: Wish, number: int, asked: int) -> None:
    place: dict[str, Any] = {"v": 1, "run": wish.identity(), "case": number, "asked": asked}
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_text(json.dumps(place) + "\n", "ascii")
        beside.replace(path)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror}") from None


def _resumed(path: Path, wish: Wish) -> tuple[int, int]:
    """The next case and how many requests were asked before it."""
    try:
        with path.open("rb") as file:
            place = json.loads(file.read(_LIMIT))
        if place["v"] != 1:
            raise ValueError
        told, number, asked = str(place["run"]), int(place["case"]), int(place["asked"])
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise UnreadableInput(f"{path} does not keep the place of a run") from None
    if told != wish.identity() or number < 0 or asked < 0:
        raise WrongUsage(f"{path} is of another run: other --seed, --count, --allow or world")
    return number, asked
