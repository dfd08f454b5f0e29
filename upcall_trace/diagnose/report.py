"""Findings as text for people and in the formats of the tools that read them."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final
from xml.etree import ElementTree

from ..codes import Severity
from ..views.text import WIDTH, safe
from .finding import Finding
from .run import Diagnosed

VERSION: Final = 1
_SCREEN: Final = 24
"""Lines of text about one capture, unless all is asked for."""
_FIRST: Final = 18
"""And of its first failure; what is cut are lines of evidence."""


def finding_object(finding: Finding, capture: str | None = None) -> dict[str, Any]:
    """One finding as JSON values; `capture` where there are several."""
    named = {} if capture is None else {"capture": capture}
    return {
        **named,
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.word,
        "conn": finding.conn,
        "request": finding.request,
        "inferred": finding.inferred,
        "what": finding.what,
        "why": finding.why,
        "so": finding.so,
        "next": finding.next,
        "evidence": [
            {
                "source": evidence.source,
                "conn": evidence.conn,
                "request": evidence.request,
                "line": evidence.line,
                "text": evidence.text,
            }
            for evidence in finding.evidence
        ],
    }


def as_json(diagnosed: Sequence[Diagnosed]) -> str:
    """`{"v":1,"findings":[…]}` on one line, in ASCII."""
    several = len(diagnosed) > 1
    findings = [
        finding_object(finding, str(each.path) if several else None)
        for each in diagnosed
        for finding in each.findings
    ]
    return json.dumps({"v": VERSION, "findings": findings})


def as_text(diagnosed: Sequence[Diagnosed], everything: bool = False) -> Iterator[str]:
    """For people: the first failure in full, the others in a line each, then a summary."""
    for each in diagnosed:
        if len(diagnosed) > 1:
            yield f"{safe(str(each.path))}:"
        yield from _one_text(each, everything)


def _one_text(each: Diagnosed, everything: bool) -> Iterator[str]:
    failures = [f for f in each.findings if f.severity >= Severity.ERROR]
    shown = each.findings if everything else failures
    first = next(iter(failures), None)
    if everything:
        for finding in shown:
            yield from in_full(finding)
    elif first is not None:
        told = [*in_full(first)]
        if len(told) > _FIRST:
            told[_FIRST - 2 :] = [f"{'…':>16}", ""]
        yield from told
        others = [finding for finding in shown if finding is not first]
        room = _SCREEN - len(told) - 2
        if len(others) > room:
            others[room - 1 :] = []
        for finding in others:
            yield headline(finding)
        if len(others) < len(shown) - 1:
            yield f"… and {len(shown) - 1 - len(others)} more"
    yield _summary(each)
    hidden = len(each.findings) - len(shown)
    if not everything and (hidden or len(failures) > 1):
        yield "--all tells every finding in full, --explain CODE what a code means."


def headline(finding: Finding) -> str:
    """One line: where, how bad, the code, and what happened."""
    possibly = " possibly" if finding.inferred else ""
    head = f"{place(finding):>7} {finding.severity.word:<7}{possibly} {finding.code} {finding.name}"
    line = safe(f"{head}: {finding.what}")
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def in_full(finding: Finding) -> Iterator[str]:
    """The headline's place and code, the four sentences, and the evidence."""
    possibly = "possibly " if finding.inferred else ""
    where = place(finding)
    yield f"{where:>7} {finding.severity.word}: {possibly}{finding.code} {finding.name}"
    for label in ("what", "why", "so", "next"):
        yield from _wrapped(label, getattr(finding, label))
    for evidence in finding.evidence:
        at = f"line {evidence.line}" if evidence.line else f"{evidence.conn}.{evidence.request}"
        yield from _wrapped("see", f"{evidence.source} {at}: {evidence.text}")
    yield ""


def _wrapped(label: str, text: str) -> Iterator[str]:
    import textwrap

    lines = textwrap.wrap(safe(text), WIDTH - 15) or [""]
    for number, line in enumerate(lines):
        yield f"        {label if number == 0 else '':<5}  {line}"


def place(finding: Finding) -> str:
    """`1.2` for a request, `conn 1` for a connection, `-` for the capture."""
    if finding.conn is None:
        return "-"
    return (
        f"conn {finding.conn}" if finding.request is None else f"{finding.conn}.{finding.request}"
    )


def _summary(each: Diagnosed) -> str:
    counts = Counter(finding.severity for finding in each.findings)
    named = [f"{counts[s]} {s.word}" for s in sorted(Severity, reverse=True) if counts[s]]
    found = ", ".join(named) or "nothing found"
    where = f" on {each.connections} connections" if each.connections else ""
    return f"{each.operations} operations{where}: {found}."


def as_markdown(diagnosed: Sequence[Diagnosed]) -> Iterator[str]:
    """For an issue tracker: a table, then each error in full."""
    for each in diagnosed:
        yield f"## Findings in {_md(each.path.name)}"
        yield ""
        yield _md(_summary(each))
        yield ""
        if not each.findings:
            continue
        yield "| where | severity | code | what |"
        yield "| --- | --- | --- | --- |"
        for finding in each.findings:
            possibly = "possibly " if finding.inferred else ""
            code = f"{possibly}{finding.code} {finding.name}"
            yield f"| {place(finding)} | {finding.severity.word} | {code} | {_md(finding.what)} |"
        yield ""
        for finding in each.findings:
            if finding.severity < Severity.ERROR:
                continue
            yield f"### {place(finding)}: {finding.code} {finding.name}"
            yield ""
            for label in ("what", "why", "so", "next"):
                yield f"- **{label}**: {_md(getattr(finding, label))}"
            yield ""


def _md(text: str) -> str:
    escaped = html.escape(safe(text), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*_[]#~" else c for c in escaped)


def as_junit(diagnosed: Sequence[Diagnosed]) -> str:
    """For CI: a suite a capture, a failed case for each error, a passed one without any."""
    suites = ElementTree.Element("testsuites")
    for each in diagnosed:
        failures = [f for f in each.findings if f.severity >= Severity.ERROR]
        suite = ElementTree.SubElement(
            suites, "testsuite", name=safe(each.path.name),
            tests=str(max(1, len(failures))), failures=str(len(failures)),
        )  # fmt: skip
        for finding in failures:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{finding.code} {finding.name}",
                name=f"{place(finding)} {safe(finding.what)}",
            )  # fmt: skip
            failure = ElementTree.SubElement(
                case, "failure", type=finding.code, message=safe(finding.what)
            )
            failure.text = safe(f"{finding.why} {finding.so} {finding.next}")
        if not failures:
            name = f"{each.operations} operations without an error"
            ElementTree.SubElement(suite, "testcase", classname="upcall-trace", name=name)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)


_LEVELS: Final = {
    Severity.NOTE: "notice",
    Severity.WARNING: "warning",
    Severity.ERROR: "error",
    Severity.FATAL: "error",
}


def as_github(diagnosed: Sequence[Diagnosed]) -> Iterator[str]:
    """Workflow commands of GitHub Actions, one a line."""
    for each in diagnosed:
        for finding in each.findings:
            title = _command(f"{finding.code} {finding.name} at {place(finding)}", ":,")
            file = _command(str(each.path), ":,")
            text = _command(f"{finding.what} {finding.why} {finding.so} {finding.next}", "")
            yield f"::{_LEVELS[finding.severity]} file={file},title={title}::{text}"


def _command(text: str, special: str) -> str:
    escaped = safe(text).replace("%", "%25")
    return "".join(f"%{ord(c):02X}" if c in special else c for c in escaped)
