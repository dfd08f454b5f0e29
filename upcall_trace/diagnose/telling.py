"""Asks the rules that listen to a cue, and makes findings of what they tell."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final

from .. import codes, plugins
from ..capture.records import Header
from ..codes import Code
from .finding import Finding, Told
from .lock import RESTS_ON_IT
from .log_decisions import SEEN_IN_CONSOLE
from .rules.registry import POSSIBLY, Cue, Likelihood, Rule, listening_to, rules
from .situation import ConnectionSituation, Situation

_OF_DRAGONBALL: Final = frozenset(
    {
        codes.REPLY_IN_PIECES,
        codes.IDLE_CHANNEL_LOST,
        codes.DEVICE_SILENTLY_LOST,
        codes.RESIZE_WEDGED,
    }
)
"""What only Dragonball makes of it: not told of another client."""
_REFUTABLE: Final = RESTS_ON_IT | {codes.CHANNEL_REMOVED}
"""What one later answer can show to be wrong: told when the recording is over."""
_SENTENCES: Final = 1024
_BESIDE: Final = frozenset({codes.PARTIAL_CPU_ADD})
"""What stands beside an explanation, and is none itself."""


class Telling:
    """Findings of one recording; `dragonball` says that Dragonball is the client."""

    def __init__(self, header: Header, dragonball: bool) -> None:
        self._wall_ns = header.wall_ns
        self._rules = rules()
        told = {
            number: rule
            for number, rule in self._rules.items()
            if dragonball or rule.code not in _OF_DRAGONBALL
        }
        self._listening = {cue: listening_to(cue, told) for cue in Cue}
        self._groups = 0
        self._sentences: dict[str, str] = {}
        self._kept_back: list[tuple[Situation, Finding]] = []
        """What a later answer can refute."""

    def listening(self, cue: Cue) -> list[Code]:
        """The codes whose rules listen to a cue."""
        return [rule.code for rule in self._listening[cue]]

    def of_causes(self, at: Situation) -> list[Finding]:
        """The explanations of a reply or a silence; what may be refuted is kept back."""
        found: list[Finding] = []
        if not at.causes:
            return found
        either = sum(cause.inferred and cause.code not in _BESIDE for cause in at.causes)
        self._groups += either > 1
        group = self._groups if either > 1 else None
        for code, inferred in at.causes:
            shared = group if inferred and code not in _BESIDE else None
            told = self._told(self._rules[code], at, inferred, group=shared)
            if at.reply is None and code in _REFUTABLE:
                self._kept_back += [(at, finding) for finding in told]
            else:
                found += told
        return found

    def of_request(self, cue: Cue, at: Situation) -> list[Finding]:
        """What the rules that listen to this cue say of a request."""
        found: list[Finding] = []
        said: bool | Likelihood
        for rule in self._listening[cue]:
            said = rule.when[cue](at) if rule.plugin is None else self._plugin_says(rule, cue, at)
            if said:
                found += self._told(rule, at, said is POSSIBLY)
        return found

    def of_connection(self, cue: Cue, at: ConnectionSituation, now_ns: int) -> Iterator[Finding]:
        """What they say of a connection: each code once."""
        said: bool | Likelihood
        for rule in self._listening[cue]:
            if rule.code in at.told:
                continue
            said = rule.when[cue](at) if rule.plugin is None else self._plugin_says(rule, cue, at)
            if said:
                at.told.add(rule.code)
                yield from self._told(rule, at, said is POSSIBLY, now_ns)

    def under(
        self, code: Code, at: Situation, inferred: bool, group: int | None = None
    ) -> list[Finding]:
        """What the rule of a code tells, whatever it listens to."""
        return self._told(self._rules[code], at, inferred, group=group)

    @property
    def keeps_back(self) -> bool:
        """Whether there is anything to refute."""
        return bool(self._kept_back)

    def refute(self, refuted: AbstractSet[Code], asked_ns: int) -> None:
        """What was asked then came through: these codes are not true of anything before it."""
        self._kept_back = [
            (at, finding)
            for at, finding in self._kept_back
            if finding.code not in refuted or at.sent_ns >= asked_ns
        ]

    def last(self) -> list[Finding]:
        """What was kept back and never refuted."""
        kept, self._kept_back = self._kept_back, []
        return [finding for _, finding in kept]

    def _plugin_says(self, rule: Rule, cue: Cue, at: object) -> bool | Likelihood:
        assert rule.plugin is not None  # the caller has asked
        try:
            with rule.plugin.in_use():
                return rule.when[cue](at)
        except plugins.BrokenPlugin as trouble:
            self._give_up_on(rule, trouble)
        return False

    def _told(
        self,
        rule: Rule,
        at: Situation | ConnectionSituation,
        inferred: bool,
        now_ns: int = 0,
        group: int | None = None,
    ) -> list[Finding]:
        """The finding, or none if the rule is a plugin's that cannot tell it."""
        told = rule.tell(at) if rule.plugin is None else self._plugin_tells(rule, at)
        if told is None:
            return []
        if isinstance(at, ConnectionSituation):
            conn, request, seen_ns = at.connection.number, None, now_ns
        else:
            (conn, request), seen_ns = at.ref, at.sent_ns
            if at.console is not None and rule.code in SEEN_IN_CONSOLE:
                told = replace(told, evidence=(*told.evidence, *at.console.evidence))
        time_ns = None if self._wall_ns is None else self._wall_ns + seen_ns
        told.what, told.why = self._once(told.what), self._once(told.why)
        told.so, told.next = self._once(told.so), self._once(told.next)
        return [rule.finding(told, conn, request, inferred, time_ns, group)]

    def _once(self, sentence: str) -> str:
        """The same sentence as one object: what fails over and over is told of in few."""
        if len(self._sentences) >= _SENTENCES:
            self._sentences.clear()
        return self._sentences.setdefault(sentence, sentence)

    def _plugin_tells(self, rule: Rule, at: object) -> Told | None:
        assert rule.plugin is not None  # the caller has asked
        try:
            with rule.plugin.in_use():
                told = rule.tell(at)
                if not isinstance(told, Told):
                    raise TypeError(f"it told {type(told).__name__}, not Told")
        except plugins.BrokenPlugin as trouble:
            self._give_up_on(rule, trouble)
            return None
        return told

    def _give_up_on(self, rule: Rule, trouble: plugins.BrokenPlugin) -> None:
        """A plugin raised: its rule is not asked again, and the user is told once."""
        plugins.note(trouble)
        self._listening = {
            cue: [each for each in listening if each is not rule]
            for cue, listening in self._listening.items()
        }
