"""The headline over a capture's findings while they come, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

from ...codes import Severity
from ...diagnose.engine import sort_key
from ...diagnose.finding import Finding
from ...diagnose.headline import headline

_Key = tuple[str | None, str]
"""Whose it is, and its code."""


class FirstFailure:
    """Keeps of each code what is first, by place and by time: the headline names nothing else."""

    def __init__(self) -> None:
        self._by_place: dict[_Key, list[Finding]] = {}
        self._by_time: dict[_Key, list[Finding]] = {}

    def take(self, findings: Iterable[Finding]) -> None:
        """More was found."""
        for finding in findings:
            if finding.severity >= Severity.WARNING:
                key = finding.sandbox, str(finding.code)
                _keep(self._by_place.setdefault(key, []), finding, sort_key)
                _keep(self._by_time.setdefault(key, []), finding, _when)

    @property
    def headline(self) -> str:
        """As `diagnose` has it over the same findings; empty where nothing failed."""
        found = chain(*self._by_place.values(), *self._by_time.values())
        kept = {id(each): each for each in found}
        return headline(sorted(kept.values(), key=sort_key)) or ""


def _when(finding: Finding) -> int:
    return finding.time_ns or 0


def _keep(kept: list[Finding], finding: Finding, rank: Callable[[Finding], Any]) -> None:
    """Keep the first, and the first that is no alternative of it: that one followed."""
    ranked = sorted([*kept, finding], key=rank)
    first = ranked[0]
    others = (each for each in ranked[1:] if each.group is None or each.group != first.group)
    kept[:] = [first, *islice(others, 1)]
