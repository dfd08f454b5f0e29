"""Findings in the formats of the tools that read them: JSON, Markdown, JUnit, GitHub Actions."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final
from xml.etree import ElementTree

from ..codes import Severity
from ..views.text import safe
from .finding import Finding
from .headline import by_guest, clock, failures, fault, headline, rfc3339, short
from .report import place, seen_at, summary
from .run import Diagnosed
from .told_by_logs import LogInput

VERSION: Final = 2


def finding_object(
    finding: Finding, capture: str | None = None, version: int = VERSION
) -> dict[str, Any]:
    """One finding as JSON values; `capture` where there are several."""
    named = {} if capture is None else {"capture": capture}
    new: dict[str, Any] = {
        "side": finding.side.value,
        "sandbox": finding.sandbox,
        "time": None if finding.time_ns is None else rfc3339(finding.time_ns),
        "group": finding.group,
    }
    return {
        **named,
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.word,
        "conn": finding.conn,
        "request": finding.request,
        "inferred": finding.inferred,
        **({} if version == 1 else new),
        "what": finding.what,
        "why": finding.why,
        "so": finding.so,
        "next": finding.next,
        "evidence": [
            {
                "source": evidence.source,
                "conn": evidence.conn,
                "request": evidence.request,
                **({} if version == 1 else {"file": evidence.file}),
                "line": evidence.line,
                "text": evidence.text,
            }
            for evidence in finding.evidence
        ],
    }


def input_object(told: LogInput) -> dict[str, Any]:
    """What was read of one log."""
    return {
        "file": told.file,
        "kind": told.kind,
        "lines": told.lines,
        "understood": told.understood,
        "unknown": told.unknown,
        "mentioned": told.mentioned,
        "lost": told.lost,
        "sandboxes": list(told.sandboxes),
        "vmms": told.vmms,
        "from": None if told.from_ns is None else rfc3339(told.from_ns),
        "to": None if told.to_ns is None else rfc3339(told.to_ns),
    }


def _capture_object(each: Diagnosed) -> dict[str, Any]:
    return {
        "file": each.name,
        "kind": "capture",
        "lines": None,
        "understood": each.operations,
        "unknown": 0,
        "mentioned": 0,
        "lost": 0,
        "sandboxes": [],
        "vmms": [],
        "from": None if each.from_ns is None else rfc3339(each.from_ns),
        "to": None if each.to_ns is None else rfc3339(each.to_ns),
    }


def json_object(
    diagnosed: Sequence[Diagnosed], inputs: Sequence[LogInput] = (), version: int = VERSION
) -> dict[str, Any]:
    """`{"v":2,"headline":…,"inputs":[…],"findings":…}`; there can be very many findings, so they
    are an iterator of JSON values."""
    several = len(diagnosed) > 1
    objects = (
        finding_object(finding, each.name if several and each.path else None, version)
        for each in diagnosed
        for finding in each.findings
    )
    if version == 1:
        return {"v": 1, "findings": objects}
    read = [_capture_object(each) for each in diagnosed if each.path is not None]
    return {
        "v": VERSION,
        "headline": headline([finding for each in diagnosed for finding in each.findings]),
        "inputs": [*read, *map(input_object, inputs)],
        "findings": objects,
    }


def as_json(
    diagnosed: Sequence[Diagnosed], inputs: Sequence[LogInput] = (), version: int = VERSION
) -> str:
    """The same on one line, in ASCII."""
    told = json_object(diagnosed, inputs, version)
    return json.dumps(told | {"findings": list(told["findings"])})


def as_markdown(diagnosed: Sequence[Diagnosed]) -> Iterator[str]:
    """For an issue tracker: a headline, a table, then each failure in full with its evidence."""
    for each in diagnosed:
        yield f"## Findings in {_md(each.short_name)}"
        yield ""
        if (head := headline(each.findings)) is not None:
            yield f"**{_md(head)}**"
            yield ""
        yield _md(summary(each))
        yield ""
        for sandbox, findings in by_guest(each.findings):
            if sandbox is not None:
                yield f"### Guest {_md(sandbox)}"
                yield ""
            yield from _markdown_guest(findings)


def _markdown_guest(findings: Sequence[Finding]) -> Iterator[str]:
    yield "| where | severity | code | side | time | what |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for finding in findings:
        when = "" if finding.time_ns is None else clock(finding.time_ns)
        yield (
            f"| {place(finding)} | {finding.severity.word} | {_named(finding)} | "
            f"{finding.side.value} | {when} | {_md(finding.what)} |"
        )
    yield ""
    for finding in findings:
        if finding.severity < Severity.WARNING:
            continue
        yield f"#### {place(finding)}: {_named(finding)}"
        yield ""
        if finding.time_ns is not None:
            yield f"- **when**: {clock(finding.time_ns)}"
        yield f"- **who**: {finding.side.value}: {fault(finding.side)}"
        for label in ("what", "why", "so", "next"):
            yield f"- **{label}**: {_md(getattr(finding, label))}"
        for evidence in finding.evidence:
            yield f"- **see**: {_md(f'{seen_at(evidence)}: {evidence.text}')}"
        yield ""


def _named(finding: Finding) -> str:
    """A finding's code with its name, and whether it is only possible."""
    return f"{'possibly ' if finding.inferred else ''}{finding.code} {finding.name}"


def _md(text: str) -> str:
    escaped = html.escape(safe(text), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*_[]#~" else c for c in escaped)


def as_junit(diagnosed: Sequence[Diagnosed]) -> str:
    """For CI: a suite a capture, a failed case for each error, a passed one without any."""
    suites = ElementTree.Element("testsuites")
    for each in diagnosed:
        failed = failures(each.findings)
        suite = ElementTree.SubElement(
            suites, "testsuite", name=safe(each.short_name),
            tests=str(max(1, len(failed))), failures=str(len(failed)),
        )  # fmt: skip
        if (head := headline(each.findings)) is not None:
            properties = ElementTree.SubElement(suite, "properties")
            ElementTree.SubElement(properties, "property", name="headline", value=safe(head))
        for same in failed:
            finding = same[0]
            names = " or ".join(f"{f.code} {f.name}" for f in same)
            possibly = "possibly " if finding.inferred else ""
            whose = f" of guest {safe(finding.sandbox)}" if finding.sandbox else ""
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{possibly}{names}",
                name=f"{place(finding)}{whose} {safe(finding.what)}",
            )  # fmt: skip
            failure = ElementTree.SubElement(
                case, "failure", type=finding.code, message=f"{possibly}{safe(finding.what)}"
            )
            failure.text = safe(_told(finding))
        if not failed:
            name = f"{each.operations} operations without an error"
            ElementTree.SubElement(suite, "testcase", classname="upcall-trace", name=name)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)


def _told(finding: Finding) -> str:
    """Why, so and next, whose fault, when, and the evidence, in one text."""
    when = "" if finding.time_ns is None else f" At {clock(finding.time_ns)}."
    seen = "".join(f" See {seen_at(e)}: {e.text}." for e in finding.evidence)
    side = f"Side: {finding.side.value}."
    return f"{finding.why} {finding.so} {finding.next} {side}{when}{seen}"


_LEVELS: Final = {
    Severity.NOTE: "notice",
    Severity.WARNING: "warning",
    Severity.ERROR: "error",
    Severity.FATAL: "error",
}


def as_github(diagnosed: Sequence[Diagnosed]) -> Iterator[str]:
    """Workflow commands of GitHub Actions, one a line; the headline comes first."""
    for each in diagnosed:
        if (head := headline(each.findings)) is not None:
            yield f"::notice title=upcall-trace::{_command(head, '')}"
        for finding in each.findings:
            at = next((e for e in finding.evidence if e.file is not None), None)
            line = f",line={at.line}" if at is not None and each.path is None else ""
            named = at.file if at is not None and each.path is None else each.name
            whose = f" of {short(finding.sandbox)}" if finding.sandbox else ""
            title = _command(f"{_named(finding)} at {place(finding)}{whose}", ":,")
            file = _command(str(named), ":,")
            text = _command(f"{finding.what} {_told(finding)}", "")
            yield f"::{_LEVELS[finding.severity]} file={file}{line},title={title}::{text}"


def _command(text: str, special: str) -> str:
    escaped = safe(text).replace("%", "%25")
    return "".join(f"%{ord(c):02X}" if c in special else c for c in escaped)
