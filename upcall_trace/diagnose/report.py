"""Findings as text for people: a headline, the first failure in full, the others in a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from ..codes import Severity
from ..logs.evidence import Evidence
from ..views.text import WIDTH, safe
from .finding import Finding
from .headline import by_guest, clock, failures, fault, first_failure, headline, short
from .run import Diagnosed

_SCREEN: Final = 24
"""Lines of text about one capture, unless all is asked for."""
_LEFT: Final = 5
"""Lines that its first failure leaves for others; what is cut are lines of evidence."""
_HEAD: Final = 3
"""Lines of the headline at most."""


def as_text(diagnosed: Sequence[Diagnosed], everything: bool = False) -> Iterator[str]:
    """For people: the first failure in full, the others in a line each, then a summary."""
    for each in diagnosed:
        if len(diagnosed) > 1:
            yield f"{safe(each.name)}:"
        yield from _one_text(each, everything)


def _one_text(each: Diagnosed, everything: bool) -> Iterator[str]:
    head = headline(each.findings)
    told = [] if head is None else _headline_lines(head)
    yield from told
    guests = by_guest(each.findings)
    first = first_failure(guests[0][1]) if guests else None
    shown = 0
    if everything:
        for sandbox, findings in guests:
            if len(guests) > 1 or sandbox is not None:
                yield section(sandbox, findings)
            for finding in findings:
                yield from in_full(finding)
        shown = len(each.findings)
    elif first is not None:
        body = [*in_full(first[0], first[1:])]
        most = _SCREEN - len(told) - _LEFT
        if len(body) > most:
            body[most - 2 :] = [f"{'…':>16}", ""]
        yield from body
        shown = len(first)
        lines = [*_others(guests, first)]
        room = max(_SCREEN - len(told) - len(body) - 2, 2)
        left_out = 0
        if len(lines) > room:
            left_out = sum(count for count, _ in lines[room - 1 :])
            lines[room - 1 :] = []
        for count, line in lines:
            shown += count
            yield line
        if left_out:
            shown += left_out
            yield f"… and {left_out} more"
    yield summary(each)
    if not everything and len(each.findings) > (1 if shown else 0):
        yield "--all tells every finding in full, --explain CODE what a code means."


def _headline_lines(head: str) -> list[str]:
    import textwrap

    lines = textwrap.wrap(safe(head), WIDTH, break_on_hyphens=False)
    if len(lines) > _HEAD:
        lines[_HEAD - 1 :] = [f"{lines[_HEAD - 1][: WIDTH - 1]}…"]
    return [*lines, ""]


def _others(
    guests: Sequence[tuple[str | None, Sequence[Finding]]], first: Sequence[Finding]
) -> Iterator[tuple[int, str]]:
    """(findings, line) of each failure but the first, under the name of its guest."""
    for sandbox, findings in guests:
        left = [same for same in failures(findings) if same[0] not in first]
        if sandbox is not None and len(guests) > 1 and (left or findings[0] in first):
            yield 0, section(sandbox, findings)
        for same in left:
            yield len(same), finding_line(same[0], same[1:])


def section(sandbox: str | None, findings: Sequence[Finding]) -> str:
    """The line that stands over a guest's findings."""
    name = "lines that do not say whose they are" if sandbox is None else f"guest {safe(sandbox)}"
    return f"{name}: {_counts(findings)}"


def finding_line(finding: Finding, alternatives: Sequence[Finding] = ()) -> str:
    """One line: where, how bad, the code, and what happened."""
    possibly = " possibly" if finding.inferred else ""
    codes = " or ".join([f"{finding.code} {finding.name}", *(f.code for f in alternatives)])
    head = f"{place(finding):>7} {finding.severity.word:<7}{possibly} {codes}"
    line = safe(f"{head}: {finding.what}")
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def in_full(finding: Finding, alternatives: Sequence[Finding] = ()) -> Iterator[str]:
    """The place and code, whose fault and when, the four sentences, and the evidence."""
    return (line for line, _ in lines_in_full(finding, alternatives))


def lines_in_full(
    finding: Finding, alternatives: Sequence[Finding] = ()
) -> Iterator[tuple[str, Evidence | None]]:
    """The lines of `in_full`, each with the piece of evidence that it tells."""
    possibly = "possibly " if finding.inferred else ""
    codes = " or ".join(f"{f.code} {f.name}" for f in (finding, *alternatives))
    yield safe(f"{place(finding):>7} {finding.severity.word}: {possibly}{codes}"), None
    when = "" if finding.time_ns is None else f", at {clock(finding.time_ns)}"
    whose = "" if finding.sandbox is None else f", guest {short(finding.sandbox)}"
    sentences = {"who": f"{finding.side.value}: {fault(finding.side)}{whose}{when}"}
    sentences |= {label: getattr(finding, label) for label in ("what", "why", "so", "next")}
    for label, sentence in sentences.items():
        yield from ((line, None) for line in _wrapped(label, sentence))
    for evidence in finding.evidence:
        told = f"{seen_at(evidence)}: {evidence.text}"
        yield from ((line, evidence) for line in _wrapped("see", told))
    yield "", None


def seen_at(evidence: Evidence) -> str:
    """Where a piece of evidence is: a line of a file, or a request."""
    if evidence.line is None:
        return f"{evidence.source} {evidence.conn}.{evidence.request}"
    if evidence.file is None:
        return f"{evidence.source} line {evidence.line}"
    return f"{evidence.file}:{evidence.line}"


def _wrapped(label: str, text: str) -> Iterator[str]:
    import textwrap

    lines = textwrap.wrap(safe(text), WIDTH - 15, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        yield f"        {label if number == 0 else '':<5}  {line}"


def place(finding: Finding) -> str:
    """`1.2` for a request, `conn 1` for a connection, `-` for the capture or a log."""
    if finding.conn is None:
        return "-"
    return (
        f"conn {finding.conn}" if finding.request is None else f"{finding.conn}.{finding.request}"
    )


def _counts(findings: Sequence[Finding]) -> str:
    """How many failures of each severity; alternatives of one count once."""
    counted: dict[object, Finding] = {}
    for finding in findings:
        alone = finding.group is None
        counted.setdefault(id(finding) if alone else (finding.sandbox, finding.group), finding)
    counts = Counter(finding.severity for finding in counted.values())
    named = [f"{counts[s]} {s.word}" for s in sorted(Severity, reverse=True) if counts[s]]
    return ", ".join(named) or "nothing found"


def summary(each: Diagnosed) -> str:
    """What was gone through, and how many findings of each severity there are."""
    where = f" on {each.connections} connections" if each.connections else ""
    if each.path is None and not each.operations:
        counts = _counts(each.findings)
        if each.unknown:
            counts += " in those that are understood" if not each.findings else ""
            counts += f"; what {each.unknown} more mean cannot be told"
        if each.lost:
            counts += f"; what stood at the {each.lost} places without lines cannot be told"
        return f"{each.lines} lines about upcall: {counts}."
    return f"{each.operations} operations{where}: {_counts(each.findings)}."
