"""What was found at each operation of a capture, for filters and for the JSON of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..trace.judgement import Judged, code_number
from ..trace.operations import Operations
from .finding import Finding


def judging(path: Path) -> Callable[[Operations], Judged]:
    """What diagnoses the capture when its operations are asked for what was found at them."""

    def judge(operations: Operations) -> Judged:
        from .run import diagnose

        return judged(operations, diagnose(path).findings)

    return judge


def judged(operations: Operations, findings: Sequence[Finding]) -> Judged:
    """The findings of a capture by the rows of its operations."""
    conns, requests = operations.column("conn").tolist(), operations.column("request").tolist()
    places = {place: row for row, place in enumerate(zip(conns, requests, strict=True))}
    worst = np.zeros(len(operations), np.uint8)
    rows: list[int] = []
    codes: list[int] = []
    for finding in findings:
        row = places.get((finding.conn, finding.request))
        if row is not None:
            rows.append(row)
            codes.append(code_number(finding.code))
            worst[row] = max(worst[row], finding.severity)
    return Judged(np.array(rows, np.int64), np.array(codes, np.int64), worst)


def codes_by_place(findings: Sequence[Finding]) -> dict[tuple[int | None, int | None], list[str]]:
    """The codes at each (connection, request), each once, in the order of the findings."""
    codes: dict[tuple[int | None, int | None], list[str]] = {}
    for finding in findings:
        told = codes.setdefault((finding.conn, finding.request), [])
        if finding.code not in told:
            told.append(str(finding.code))
    return codes
