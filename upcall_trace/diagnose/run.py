"""Diagnosing: a capture, logs, or both, and out come findings in their order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..capture.reader import CaptureReader, Damage
from ..errors import WrongUsage
from ..kernel.noted_world import lacking_world
from ..kernel.world import World
from ..sources import open_source
from ..trace.opening import Progress
from ..trace.streams import in_bulk, is_progress
from .engine import Diagnosis, sort_key
from .finding import Finding
from .successes import feed

if TYPE_CHECKING:
    from .log_joining import Joining
    from .told_by_logs import Logs


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """One capture's findings; `complete` is false when the capture is torn or has gaps."""

    path: Path | None
    """None for what logs tell without a capture."""
    findings: list[Finding]
    operations: int
    connections: int
    complete: bool
    damage: tuple[Damage, ...] = ()
    matched: str = ""
    """How well a console fitted, where one was given."""
    lacks: str = ""
    """Why nobody knows what the guest looked like, where the capture names its machine."""
    lines: int = 0
    """Lines about upcall, of logs alone."""
    unknown: int = 0
    """Of logs alone, lines about upcall in words that are not known."""
    lost: int = 0
    """Of logs alone, places at which lines are missing."""
    from_ns: int | None = None
    to_ns: int | None = None
    """When the recording began and ended, in nanoseconds since 1970, where that is known."""
    file: str = ""
    """The logs' names, where there is no capture."""

    @property
    def name(self) -> str:
        """What was diagnosed, as people know it."""
        return str(self.path) if self.path is not None else self.file

    @property
    def short_name(self) -> str:
        """The same without folders."""
        return self.path.name if self.path is not None else self.file


def diagnose(
    path: Path,
    world: World | None = None,
    dragonball: bool = True,
    logs: Logs | None = None,
    progress: Progress | None = None,
) -> Diagnosed:
    """Every finding about a capture, or any file that can be imported; raises UnreadableInput."""
    joining = joined(path, logs) if logs else None
    return diagnose_joined(path, joining, world, dragonball, progress)


def diagnose_joined(
    path: Path,
    joining: Joining | None,
    world: World | None = None,
    dragonball: bool = True,
    progress: Progress | None = None,
) -> Diagnosed:
    """The same with logs that were joined with it before."""
    findings: list[Finding] = []
    with open_source(path) as source:
        matcher = joining.matcher if joining is not None else None
        diagnosis = Diagnosis(source.header, world, dragonball, matcher)
        for count, (offset, item) in enumerate(in_bulk(source)):
            findings += feed(diagnosis, item, offset)
            if progress is not None and is_progress(count, item):
                progress(offset)
        findings += diagnosis.finish()
        lacks = "" if world else lacking_world(source.header.notes) or ""
        session = diagnosis.session
        whole = source.complete and not source.damage and not session.lost
        operations = sum(connection.requests for connection in session.connections.values())
    findings.sort(key=sort_key)
    if joining is not None:
        findings = sorted(joining.completed(findings), key=sort_key)
    matched = "; ".join(joining.sentences) if joining is not None else ""
    damage = tuple(source.damage)
    return Diagnosed(
        path, findings, operations, len(session.connections), whole, damage, matched, lacks
    )


def joined(path: Path, logs: Logs) -> Joining:
    """Logs joined with a capture."""
    from .log_joining import Joining  # who gives no log waits for nothing that reads logs

    return Joining(path, logs)


def follow(
    path: Path, world: World | None, dragonball: bool, logs: Logs, poll_s: float = 0.05
) -> Iterator[Finding]:
    """Findings of a capture that grows, as they are found, until its recording ends.

    The last ones come at the end: what is then unanswered, and what the VMM's log adds. Raises
    UnreadableInput, and WrongUsage for a file that cannot grow.
    """
    with open_source(path) as source:
        if not isinstance(source, CaptureReader):
            raise WrongUsage(f"{path} is not a capture: only captures grow")
        console = next(iter(logs.consoles), None)
        matcher = None
        if console is not None:
            from .log_matching import ConsoleMatcher

            matcher = ConsoleMatcher(console.console.operations)
        diagnosis = Diagnosis(source.header, world, dragonball, matcher)
        found: list[Finding] = []
        while True:
            live = source.live
            for offset, record in source.grow():
                for finding in diagnosis.feed(record, offset):
                    found.append(finding)
                    yield finding
            if not live and not source.live:
                break
            time.sleep(poll_s)
        last = sorted(diagnosis.finish(), key=sort_key)
        yield from last
        told = {finding.code for finding in [*found, *last]}
        yield from (f for f in logs.vmm_findings() if f.code not in told)


def diagnose_logs(logs: Logs) -> Diagnosed:
    """Every finding that logs give without a capture."""
    operations = sum(len(guest.console.operations) for guest in logs.guests)
    lines = sum(told.understood for told in logs.inputs)
    names = ", ".join(Path(told.file).name for told in logs.inputs)
    return Diagnosed(
        None, logs.findings(), operations, 0, not logs.torn, lines=lines, unknown=logs.unknown,
        lost=logs.lost, file=names,
    )  # fmt: skip
