"""The rules: each one's code, its words, and its page.

A rule is a function from what was seen to the four sentences of a finding. Its docstring is its
page of the documentation: what it says, why it matters, how it looks on the wire, an example from a
real recording, known limits, and what to do. Codes are never used again for something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final, TypeVar

from ...codes import Code, Severity
from ..finding import Finding, Told

_MODULES: Final = (
    "handshake", "cpus", "mmio", "pci", "stale", "framing", "types", "timing", "consequences",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """One code. `tell` takes what its family looks at, and gives the four sentences."""

    code: Code
    page: str
    tell: Callable[..., Told]

    @property
    def name(self) -> str:
        return self.code.name

    @property
    def severity(self) -> Severity:
        return self.code.severity

    def finding(self, told: Told, conn: int | None, request: int | None, inferred: bool) -> Finding:
        """What was told under this code, at its place."""
        return Finding(
            self.code, self.name, self.severity, conn, request, inferred,
            told.what, told.why, told.so, told.next, told.evidence,
        )  # fmt: skip


_RULES: dict[Code, Rule] = {}
_Tell = TypeVar("_Tell", bound=Callable[..., Told])


def rule(code: Code) -> Callable[[_Tell], _Tell]:
    """Enter a function into the table under its code."""

    def enter(tell: _Tell) -> _Tell:
        if code in _RULES:
            raise ValueError(f"two rules for {code}")
        _RULES[code] = Rule(code, inspect.getdoc(tell) or "", tell)
        return tell

    return enter


def rules() -> dict[str, Rule]:
    """Every rule by its code, in the order of the codes."""
    for module in _MODULES:
        import_module(f".{module}", __package__)
    return dict(sorted(_RULES.items()))
