"""Diagnosing a whole capture: records in, findings out in their order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..formats import open_source
from ..kernel.world import World
from ..opening import Progress
from .engine import Diagnosis, sort_key
from .finding import Finding

_PROGRESS_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """One capture's findings; `complete` is false when the capture is torn or has gaps."""

    path: Path
    findings: list[Finding]
    operations: int
    connections: int
    complete: bool


def diagnose(
    path: Path,
    world: World | None = None,
    dragonball: bool = True,
    progress: Progress | None = None,
) -> Diagnosed:
    """Every finding about a capture, or any file that can be imported; raises UnreadableInput."""
    findings: list[Finding] = []
    with open_source(path) as source:
        diagnosis = Diagnosis(source.header, world, dragonball)
        for count, (offset, record) in enumerate(source.records()):
            findings += diagnosis.feed(record, offset)
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(offset)
        findings += diagnosis.finish()
        session = diagnosis.session
        whole = source.complete and not source.damage and not session.lost
        operations = sum(connection.requests for connection in session.connections.values())
    findings.sort(key=sort_key)
    return Diagnosed(path, findings, operations, len(session.connections), whole)
