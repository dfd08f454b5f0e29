"""What was found at each operation of a capture, for filters and for the JSON of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..trace.judgement import Judged, code_number
from ..trace.operations import Operations
from .finding import Finding


def judging(path: Path) -> Callable[[Operations], Judged]:
    """What diagnoses the capture, once, when operations of it are asked for what was found at
    them: all of them, or a piece."""
    findings: list[Finding] | None = None

    def judge(operations: Operations) -> Judged:
        nonlocal findings
        if findings is None:
            from .run import diagnose

            findings = diagnose(path).findings
        return judged(operations, findings)

    return judge


def judged(operations: Operations, findings: Sequence[Finding]) -> Judged:
    """The findings of a capture by the rows of its operations."""
    at = [(each.conn, each.request, code_number(each.code), each.severity)
          for each in findings if each.conn is not None and each.request is not None]  # fmt: skip
    conns, requests, codes, severities = np.array(at, np.int64).reshape(-1, 4).T
    wanted = _places(conns, requests)
    order = np.argsort(wanted, kind="stable")
    wanted = wanted[order]
    here = _places(operations.column("conn"), operations.column("request"))
    begins, ends = (np.searchsorted(wanted, here, side) for side in ("left", "right"))
    counts = ends - begins
    rows = np.repeat(np.arange(len(here)), counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = order[np.repeat(begins, counts) + number]
    worst = np.zeros(len(here), np.uint8)
    np.maximum.at(worst, rows, severities[found].astype(np.uint8))
    return Judged(rows, codes[found], worst)


def _places(conns: NDArray[Any], requests: NDArray[Any]) -> NDArray[np.uint64]:
    """A connection and a request of it as one number."""
    places: NDArray[np.uint64] = conns.astype(np.uint64) << np.uint64(32) | requests.astype(
        np.uint64
    )
    return places


def codes_by_place(findings: Sequence[Finding]) -> dict[tuple[int | None, int | None], list[str]]:
    """The codes at each (connection, request), each once, in the order of the findings."""
    codes: dict[tuple[int | None, int | None], list[str]] = {}
    for finding in findings:
        told = codes.setdefault((finding.conn, finding.request), [])
        if finding.code not in told:
            told.append(str(finding.code))
    return codes
