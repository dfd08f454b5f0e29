"""The rules: what each listens to and when it speaks, its code, its words, and its page.

A rule is a function from what was seen to the four sentences of a finding. `@rule` makes it one:

- `code` is its row in the table of codes, or for a plugin a `Code` of its own;
- `when` says what it listens to, a `Cue`, and when it speaks: a function of what was seen that
  says True for certain, POSSIBLY, or False;
- its docstring is its page of the documentation: what it says, why it matters, how it looks on the
  wire, an example from a real recording, known limits, and what to do.

A rule without `when` is told under its code by others: by the kernel model, by a log, or by the
function of its family that chooses between alternatives. Such a function is marked `@explains`.

Every module of this package is looked through, so a new rule is one function in one file. Those of
other packages come by the entry point group `upcall_trace.rules`, each naming one such function.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Final, TypeVar

from dissectors.constants import MessageType
from dissectors.slots import positional

from ... import plugins
from ...codes import Code, Severity
from ..finding import Cause, Finding, Told


class Cue(Enum):
    """What a rule can listen to. A rule gets a `Situation` or a `ConnectionSituation`."""

    __hash__ = object.__hash__  # members are what they are, and asking them by name takes longer

    REQUEST = auto()
    """A request was sent: `Situation`."""
    PIECE = auto()
    """A request that was sent is a piece of another, or did not wait for one: `Situation`."""
    WHOLE = auto()
    """What followed a request is known, so how it reached the guest: `Situation`."""
    REPLY = auto()
    """A request was answered: `Situation`."""
    REFUSAL = auto()
    """The same, when the answer is not 0: `Situation`."""
    SILENCE = auto()
    """A request was not answered, and now never will be: `Situation`."""
    HANDSHAKE = auto()
    """A connection came a step further on its way to its first request: `ConnectionSituation`."""
    CLOSED = auto()
    """A connection is over, not merely the recording: `ConnectionSituation`."""
    REFUSED = auto()
    """A row of refused connections is over: `ConnectionSituation` of the last of them."""
    LOG = auto()
    """A line of a log, as the modules of logs read it."""
    END = auto()
    """The recording is over: `Situation` of each device that it added and did not remove,
    `ConnectionSituation` of each connection whose end nothing took back."""


class Likelihood(Enum):
    """What `when` may say besides True and False."""

    POSSIBLY = auto()
    """One of several explanations, or not seen directly."""


POSSIBLY: Final = Likelihood.POSSIBLY
Condition = Callable[[Any], bool | Likelihood]
Explainer = Callable[[Any], list[Cause] | None]
_KNOWN_TYPES: Final = frozenset(MessageType)
_finding: Final = positional(Finding)
ANY_TYPE: Final[frozenset[int]] = frozenset()
"""For what is asked of every message first, before its family."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One code. `tell` takes what its family looks at, and gives the four sentences."""

    code: Code
    page: str
    tell: Callable[..., Told]
    when: Mapping[Cue, Condition] = field(default_factory=dict)
    plugin: plugins.Plugin | None = None

    def __hash__(self) -> int:
        return hash(self.code)

    def __call__(self, *seen: Any) -> Told:
        return self.tell(*seen)

    @property
    def function(self) -> Callable[..., object]:
        """What it was made of."""
        return self.tell

    @property
    def name(self) -> str:
        return self.code.name

    @property
    def severity(self) -> Severity:
        return self.code.severity

    def __reduce__(self) -> tuple[Any, ...]:
        return _rule, (str(self.code),)  # it is a function, which is found again by its code

    @property
    def listens(self) -> str:
        """What it listens to, in words."""
        return ", ".join(cue.name.lower() for cue in self.when)

    def finding(
        self,
        told: Told,
        conn: int | None,
        request: int | None,
        inferred: bool,
        time_ns: int | None = None,
        group: int | None = None,
    ) -> Finding:
        """What was told under this code, at its place."""
        found: Finding = _finding(
            self.code, self.name, self.severity, conn, request, inferred,
            told.what, told.why, told.so, told.next, told.evidence,
            told.side or self.code.side, time_ns, group, None,
        )  # fmt: skip
        return found


@dataclass(frozen=True, slots=True)
class Explains:
    """A family's choice between alternatives: which codes explain an answer or a silence.

    It says None when that is not for it to say.
    """

    cue: Cue
    types: frozenset[int]
    explain: Explainer

    def __call__(self, seen: Any) -> list[Cause] | None:
        return self.explain(seen)

    @property
    def function(self) -> Callable[..., object]:
        """What it was made of."""
        return self.explain


_Entry = TypeVar("_Entry", Rule, Explains)


def rule(
    code: Code, when: Mapping[Cue, Condition] | None = None
) -> Callable[[Callable[..., Told]], Rule]:
    """Make a function the rule of a code."""

    def made(tell: Callable[..., Told]) -> Rule:
        return Rule(code, inspect.getdoc(tell) or "", tell, when or {})

    return made


def explains(cue: Cue, types: frozenset[int]) -> Callable[[Explainer], Explains]:
    """Mark the function that explains answers, or silences, of these message types."""

    def made(explain: Explainer) -> Explains:
        return Explains(cue, types, explain)

    return made


def _modules() -> Iterator[ModuleType]:
    package = import_module(__package__ or "")
    for found in pkgutil.iter_modules(package.__path__):
        if f"{__package__}.{found.name}" != __name__:
            yield import_module(f".{found.name}", __package__)


def _entered(wanted: type[_Entry]) -> Iterator[_Entry]:
    """What the modules of this package define of a kind; imported names are not theirs."""
    for module in _modules():
        for value in vars(module).values():
            if isinstance(value, wanted) and value.function.__module__ == module.__name__:
                yield value


@cache
def _built_in() -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for each in _entered(Rule):
        if each.code in found:
            raise ValueError(f"two rules for {each.code}")
        found[each.code] = each
    return dict(sorted(found.items()))


def rules() -> dict[str, Rule]:
    """Every rule by its code: ours in the order of the codes, then those of plugins."""
    return _built_in() | _of_plugins()


def _rule(code: str) -> Rule:
    return rules()[code]


def plugged_rule(plugin: plugins.Plugin) -> Rule:
    """The rule that a plugin adds; raises BrokenPlugin."""
    loaded = plugin.load(Rule)
    if loaded.code in _built_in():
        raise plugin.broken(f"has a code that is built in, {loaded.code}")
    return Rule(loaded.code, loaded.page, loaded.tell, loaded.when, plugin)


def _of_plugins() -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for plugin in plugins.installed("rules"):
        try:
            added = plugged_rule(plugin)
            if added.code in found:
                raise plugin.broken(f"has the code of another one, {added.code}")
        except plugins.BrokenPlugin as trouble:
            plugins.note(trouble)
        else:
            found[added.code] = added
    return found


def listening_to(cue: Cue, table: Mapping[str, Rule]) -> list[Rule]:
    """The rules that listen to a cue, in their order."""
    return [each for each in table.values() if cue in each.when]


@cache
def _explainers(cue: Cue, msg_type: int) -> Sequence[Explains]:
    """Who is asked about a message type, in order: first what is asked of every type."""
    asked = [
        each
        for each in _all_explainers()
        if each.cue is cue and (not each.types or msg_type in each.types)
    ]
    return sorted(asked, key=lambda each: bool(each.types))


@cache
def _all_explainers() -> Sequence[Explains]:
    return list(_entered(Explains))


def explain(cue: Cue, msg_type: int, seen: Any) -> list[Cause] | None:
    """What the families say of it; None when none says anything."""
    known = msg_type if msg_type in _KNOWN_TYPES else -1
    for each in _explainers(cue, known):
        causes = each.explain(seen)
        if causes is not None:
            return causes
    return None
