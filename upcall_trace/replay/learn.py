"""What varies between two replays on a good guest, as rules that allow it."""

from __future__ import annotations

from collections.abc import Callable

from ..compare.matchers import Matchers, MatchRule
from ..compare.replies import Values, values
from ..errors import PeerDied
from ..trace.script import Key
from .happening import Answered
from .run import Replay

_NEVER_LEARNT = frozenset({"answer"})


def learn(replay: Replay, stopped: Callable[[], bool]) -> tuple[Matchers, list[Key]]:
    """Play two rounds: rules for fields that came out different, and what always differs.

    Both rounds must get the same answers from an equal guest; what both answer alike and the
    recording does not is no variation, and neither is an answer that does not come each time:
    these are the second value. Raises PeerDied when a round did not go to its end.
    """
    first, second = (_round(replay, stopped) for _ in range(2))
    learnt = Matchers()
    always: list[Key] = []
    for key, asked in replay.script.asked.items():
        one, other = first.get(key), second.get(key)
        if one is None or other is None:
            always.append(key)
            continue
        recorded = values(asked.reply)
        rules: list[MatchRule] = []
        for name in {**one, **other}:
            if one.get(name) == other.get(name):
                continue
            numbers = {side.get(name) for side in (recorded, one, other)}
            whole = [number for number in numbers if isinstance(number, int)]
            some = MatchRule(name, "one of", tuple(sorted(whole)))
            rules.append(some if len(whole) == len(numbers) else MatchRule(name, "any"))
        if rules and not _NEVER_LEARNT & {rule.field for rule in rules}:
            learnt.add(f"{key[0]}.{key[1]}", rules)
        elif rules or (one != recorded and not asked.cut_off):
            always.append(key)
    return learnt, always


def _round(replay: Replay, stopped: Callable[[], bool]) -> dict[Key, Values]:
    answers = {
        happening.asked.key: values(happening.got.reply)
        for happening in replay.play(stopped=stopped)
        if isinstance(happening, Answered)
    }
    verdict = replay.verdict
    if not verdict.interrupted and (verdict.ended or verdict.parted):
        why = verdict.ended or f"connection {verdict.parted[0].conn} {verdict.parted[0].got}"
        raise PeerDied(f"nothing can be learnt from a guest that goes another way: {why}")
    return answers
