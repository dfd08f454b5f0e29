"""Which findings are wanted: by code, by time, and by what was known before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..codes import table
from ..errors import UnreadableInput, WrongUsage
from .finding import Finding
from .run import Diagnosed

if TYPE_CHECKING:
    from .told_by_logs import Span


BASELINE_LIMIT: Final = 16 << 20
"""Bytes of a baseline, some ten thousand findings: JSON may need 25 times its size in memory."""


@dataclass(frozen=True, slots=True)
class FindingChoice:
    """What a user wants to be told. Patterns are codes, with `*` for the rest of one."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    known: frozenset[tuple[Any, ...]] = frozenset()

    @classmethod
    def of(
        cls, select: Sequence[str], ignore: Sequence[str], baseline: Path | None
    ) -> FindingChoice:
        """From the words of a command line; raises WrongUsage and UnreadableInput."""
        return cls(_patterns(select), _patterns(ignore), _known(baseline))

    def __contains__(self, finding: object) -> bool:
        if not isinstance(finding, Finding):
            return False
        if self.select and not _any(finding.code, self.select):
            return False
        if _any(finding.code, self.ignore):
            return False
        return identity(finding) not in self.known


def identity(finding: Finding) -> tuple[Any, ...]:
    """What makes two findings of two runs the same: not the sentences, which may be worded anew."""
    return finding.code, finding.conn, finding.request, finding.sandbox


def choose(each: Diagnosed, choice: FindingChoice, span: Span) -> Diagnosed:
    """What is wanted of one capture's findings, or of logs'."""
    kept = [f for f in each.findings if f in choice and f.time_ns in span]
    return replace(each, findings=kept)


def _any(code: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(code, pattern) for pattern in patterns)


def _patterns(words: Sequence[str]) -> tuple[str, ...]:
    """Several may stand in one word, with commas; raises WrongUsage for what fits no code."""
    patterns = [part.strip().upper() for word in words for part in word.split(",") if part.strip()]
    known = [str(code) for code in table()]
    for pattern in patterns:
        if pattern.startswith("UP") and not any(fnmatchcase(code, pattern) for code in known):
            raise WrongUsage(f"{pattern!r} fits no code; upcall-trace docs codes has them")
    return tuple(patterns)


def _known(path: Path | None) -> frozenset[tuple[Any, ...]]:
    if path is None:
        return frozenset()
    try:
        with path.open("rb") as file:
            raw = file.read(BASELINE_LIMIT + 1)
        if len(raw) > BASELINE_LIMIT:
            raise UnreadableInput(
                f"{path} is longer than {BASELINE_LIMIT:,} bytes: make the baseline with --select "
                "or --ignore, so that it has fewer findings"
            )
        told = json.loads(raw)
        findings = told["findings"]
        return frozenset((f["code"], f["conn"], f["request"], f.get("sandbox")) for f in findings)
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnreadableInput(f"{path} is no output of `diagnose --json`") from None
