"""Findings as SARIF 2.1.0 and as GitLab's Code Quality: for tools that collect results.

A finding is at the file that it was found in, and where a line of a log decided it, at that line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from .. import __version__
from ..codes import Severity
from ..views.text import safe
from .finding import Finding
from .report import place
from .run import Diagnosed

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS: Final = {
    Severity.NOTE: "note",
    Severity.WARNING: "warning",
    Severity.ERROR: "error",
    Severity.FATAL: "error",
}
_GITLAB: Final = {
    Severity.NOTE: "info",
    Severity.WARNING: "minor",
    Severity.ERROR: "major",
    Severity.FATAL: "blocker",
}


class _Seen(NamedTuple):
    """Where a finding is shown: a file, and a line of it from 1."""

    file: str
    line: int


def _seen(each: Diagnosed, finding: Finding) -> _Seen:
    """The last line of its evidence; line 1 stands for a capture, which has no lines."""
    for evidence in reversed(finding.evidence):
        if evidence.file is not None and evidence.line:
            return _Seen(safe(str(evidence.file)), evidence.line)
    return _Seen(safe(str(each.name)), 1)


def _all(diagnosed: Sequence[Diagnosed]) -> Iterator[tuple[_Seen, Finding]]:
    for each in diagnosed:
        for finding in each.findings:
            yield _seen(each, finding), finding


def _text(finding: Finding) -> str:
    possibly = "possibly " if finding.inferred else ""
    where = "" if finding.conn is None else f" ({place(finding)})"
    told = f"{possibly}{finding.what}{where} {finding.why} {finding.so} {finding.next}"
    return safe(told)


def _fingerprint(seen: _Seen, finding: Finding) -> str:
    """The same for the same finding of another run of the same input."""
    key = (finding.code, finding.sandbox, finding.conn, finding.request, seen.file, seen.line)
    return hashlib.sha256(repr(tuple(map(str, key))).encode()).hexdigest()


def as_sarif(diagnosed: Sequence[Diagnosed]) -> str:
    """One run with a rule for each code that was found, and a result for each finding."""
    found = list(_all(diagnosed))
    used = {str(finding.code): finding.code for _, finding in found}
    rules = [
        {
            "id": number,
            "name": code.name,
            "shortDescription": {"text": code.name.replace("-", " ")},
            "defaultConfiguration": {"level": _LEVELS[code.severity]},
        }
        for number, code in sorted(used.items())
    ]
    numbers = {rule["id"]: number for number, rule in enumerate(rules)}
    results: list[dict[str, Any]] = [
        {
            "ruleId": str(finding.code),
            "ruleIndex": numbers[str(finding.code)],
            "level": _LEVELS[finding.severity],
            "message": {"text": _text(finding)},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": _uri(seen.file)},
                        "region": {"startLine": seen.line},
                    }
                }
            ],
            "partialFingerprints": {"upcallTrace/v1": _fingerprint(seen, finding)},
            "properties": {
                "side": finding.side.value,
                "inferred": finding.inferred,
                "conn": finding.conn,
                "request": finding.request,
                "sandbox": finding.sandbox,
            },
        }
        for seen, finding in found
    ]
    driver = {"name": "upcall-trace", "version": __version__, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]})


def _uri(file: str) -> str:
    """A path as a reference; what is not allowed in one is escaped."""
    return quote(file, safe="/._-~")


def as_gitlab(diagnosed: Sequence[Diagnosed]) -> str:
    """The array of a Code Quality report."""
    found = [
        {
            "description": _text(finding),
            "check_name": f"{finding.code} {finding.name}",
            "fingerprint": _fingerprint(seen, finding),
            "severity": _GITLAB[finding.severity],
            "location": {"path": seen.file, "lines": {"begin": seen.line}},
        }
        for seen, finding in _all(diagnosed)
    ]
    return json.dumps(found)
