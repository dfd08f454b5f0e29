"""The finding pane: what was found at the cursor, why, what follows from it, what to do next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ...capture.records import COMMENT, Mark
from ...diagnose.finding import Finding
from ...logs.evidence import Evidence
from ...views.text import safe
from .line_view import LineView
from .styled import SEVERITY_LOOKS, SIGNS, Line, Styled

_LABEL: Final = 6
_TEXT_LIMIT: Final = 4000
_SENTENCES: Final = ("what", "why", "so", "next")


class _Told(NamedTuple):
    line: Line
    evidence: Evidence | None = None


class FindingPane(LineView):
    """Findings and remarks in full; a line of evidence leads to what it is about."""

    def __init__(self) -> None:
        super().__init__(id="finding")
        self.border_title = "3 finding"
        self._findings: Sequence[Finding] = ()
        self._remarks: Sequence[Mark] = ()
        self._nothing = ""
        self._told: list[_Told] = []

    def tell(self, findings: Sequence[Finding], remarks: Sequence[Mark], nothing: str) -> None:
        """Show these; `nothing` is what to say when there are none."""
        if (findings, remarks, nothing) == (self._findings, self._remarks, self._nothing):
            return
        self._findings, self._remarks, self._nothing = findings, remarks, nothing
        self.cursor = 0
        self.scroll_to(y=0, animate=False, force=True)
        self.changed()

    def changed(self) -> None:
        width = max(self.scrollable_content_region.width - 1, 10)
        told: list[_Told] = []
        for finding in self._findings:
            if told:
                told.append(_Told([Styled("")]))
            told += _of_finding(finding, width)
        for mark in self._remarks:
            name = "" if mark.name == COMMENT else f"{mark.name} "
            told += _wrapped("#", safe(f"{name}{mark.text}"[:_TEXT_LIMIT]), width, "remark")
        if not told:
            told += _wrapped("", self._nothing, width, "dim")
        self._told = told
        super().changed()

    @property
    def evidence(self) -> Evidence | None:
        """What the cursor's line of evidence is about."""
        return self._told[self.cursor].evidence if self.cursor < len(self._told) else None

    def count(self) -> int:
        return len(self._told)

    def line(self, number: int, width: int) -> Line:
        return self._told[number].line


def _of_finding(finding: Finding, width: int) -> Iterable[_Told]:
    possibly = ", possibly" if finding.inferred else ""
    look = SEVERITY_LOOKS[finding.severity]
    place = "" if finding.conn is None else f" at connection {finding.conn}"
    if finding.request is not None:
        place = f" at {finding.conn}.{finding.request}"
    head = f"{finding.severity.word}{possibly}: {finding.code} {finding.name}{place}"
    yield _Told(
        [Styled(" "), Styled(SIGNS[finding.severity], look), Styled(f" {safe(head)}", look)]
    )
    for label in _SENTENCES:
        yield from _wrapped(label, safe(getattr(finding, label)[:_TEXT_LIMIT]), width)
    for evidence in finding.evidence:
        for told in _wrapped("see", evidence_text(evidence), width, "link"):
            yield told._replace(evidence=evidence)


def evidence_text(evidence: Evidence) -> str:
    """What a finding rests on, and where that is."""
    where = evidence.source
    if evidence.request is not None:
        where = f"{evidence.conn}.{evidence.request}"
    elif evidence.conn is not None:
        where = f"connection {evidence.conn}"
    elif evidence.line is not None:
        where = f"{evidence.source} line {evidence.line}"
    return safe(f"{where}: {evidence.text}"[:_TEXT_LIMIT])


def _wrapped(label: str, text: str, width: int, kind: str = "") -> Iterable[_Told]:
    head = f"{label:<{_LABEL}}" if label else ""
    lines = textwrap.wrap(text, max(width - len(head), 8)) or [""]
    for number, line in enumerate(lines):
        begin = head if number == 0 else " " * len(head)
        yield _Told([Styled(" "), Styled(begin, "heading"), Styled(line, kind)])
