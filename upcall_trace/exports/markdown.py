"""A capture as Markdown for an issue: findings, and the messages around them as a diagram.

The diagram is a Mermaid sequence diagram, which GitHub and GitLab draw. docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from ..codes import Severity
from ..diagnose.report_formats import as_markdown
from ..diagnose.whole_capture import WholeCapture
from ..trace.operations import Operation
from ..views.text import duration, fields_text, result_text, safe
from . import Loss

_MOST_SHOWN: Final = 40
"""Operations in the diagram: more of them, and nobody reads it."""
_BEFORE: Final = 3
"""Operations that are shown before one that failed."""


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write the findings and a diagram of the operations around the failures."""
    operations = capture.operations
    failed = {
        (finding.conn, finding.request)
        for finding in capture.findings
        if finding.severity >= Severity.ERROR and finding.request is not None
    }
    shown = _around(operations, failed)
    lines = [*as_markdown([capture.diagnosed]), "", *diagram(shown)]
    left_out = len(operations) - len(shown)
    if left_out:
        lines += ["", f"{left_out} of {len(operations)} operations are not in the diagram."]
    out.write("".join(f"{line}\n" for line in lines).encode("utf-8"))
    return []


def _around(
    operations: Iterable[Operation], failed: set[tuple[int | None, int]]
) -> list[Operation]:
    """Those that failed and a few before each; the first ones where none failed."""
    kept: list[Operation] = []
    recent: list[Operation] = []
    for operation in operations:
        if (operation.conn, operation.request) in failed:
            kept += [*recent, operation]
            recent.clear()
        else:
            recent = [*recent, operation][-_BEFORE:] if failed else [*recent, operation]
        if len(kept) >= _MOST_SHOWN or (not failed and len(recent) >= _MOST_SHOWN):
            break
    return (kept if failed else recent)[:_MOST_SHOWN]


def diagram(operations: Iterable[Operation]) -> Iterator[str]:
    """The lines of a Mermaid sequence diagram, fence included."""
    yield "```mermaid"
    yield "sequenceDiagram"
    yield "    participant V as VMM"
    yield "    participant G as guest"
    for operation in operations:
        key = f"{operation.conn}.{operation.request}"
        asked = f"{safe(operation.op)} {fields_text(operation.fields)}".rstrip()
        yield f"    V->>G: {key} {_plain(asked)}"
        if operation.latency_ns is None:
            yield "    Note over G: no answer"
            continue
        arrow = "--x" if (operation.ret or 0) < 0 else "-->>"
        answer = f"{result_text(operation)} after {duration(operation.latency_ns)}"
        yield f"    G{arrow}V: {_plain(answer)}"
    yield "```"


def _plain(text: str) -> str:
    """Text that Mermaid takes for nothing else: no entity, line end or comment begins in it."""
    kept = "".join(c if c.isalnum() or c in " .,_+-=()/'[]" else " " for c in safe(text))
    return kept.replace("--", "- ")[:120]
