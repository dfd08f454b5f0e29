"""Diagnosing: a capture, logs, or both, and out come findings in their order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..capture.reader import CaptureReader, Damage
from ..errors import WrongUsage
from ..kernel.noted_world import lacking_world
from ..kernel.world import World
from ..logs.guest_console import ConsoleOperation, read_console
from ..logs.vmm import VmmLine, read_vmm_log
from ..sources import open_source
from ..trace.opening import Progress
from .engine import Diagnosis, sort_key
from .finding import Finding
from .log_matching import ConsoleMatcher
from .log_story import of_console, of_vmm_log

_PROGRESS_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Logs:
    """What was read of a guest's console and a VMM's log; empty where there is none."""

    console: tuple[ConsoleOperation, ...] = ()
    vmm: tuple[VmmLine, ...] = ()


def read_logs(console: Path | None, vmm_log: Path | None) -> Logs:
    """Read the logs that there are; raises UnreadableInput."""
    return Logs(
        tuple(read_console(console)) if console else (),
        tuple(read_vmm_log(vmm_log)) if vmm_log else (),
    )


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """One capture's findings; `complete` is false when the capture is torn or has gaps."""

    path: Path
    findings: list[Finding]
    operations: int
    connections: int
    complete: bool
    damage: tuple[Damage, ...] = ()
    matched: str = ""
    """How well a console fitted, where one was given."""
    lacks: str = ""
    """Why nobody knows what the guest looked like, where the capture names its machine."""


def diagnose(
    path: Path,
    world: World | None = None,
    dragonball: bool = True,
    logs: Logs | None = None,
    progress: Progress | None = None,
) -> Diagnosed:
    """Every finding about a capture, or any file that can be imported; raises UnreadableInput."""
    findings: list[Finding] = []
    logs = logs or Logs()
    matcher = ConsoleMatcher(logs.console) if logs.console else None
    with open_source(path) as source:
        diagnosis = Diagnosis(source.header, world, dragonball, matcher)
        for count, (offset, record) in enumerate(source.records()):
            findings += diagnosis.feed(record, offset)
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(offset)
        findings += diagnosis.finish()
        lacks = "" if world else lacking_world(source.header.notes) or ""
        session = diagnosis.session
        whole = source.complete and not source.damage and not session.lost
        operations = sum(connection.requests for connection in session.connections.values())
    findings.sort(key=sort_key)
    findings += of_vmm_log(logs.vmm, findings)
    matched = matcher.account if matcher else ""
    damage = tuple(source.damage)
    return Diagnosed(
        path, findings, operations, len(session.connections), whole, damage, matched, lacks
    )


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
        matcher = ConsoleMatcher(logs.console) if logs.console else None
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
        yield from of_vmm_log(logs.vmm, found + last)


def diagnose_logs(name: Path, logs: Logs) -> Diagnosed:
    """Every finding that logs give without a capture; all from a console are inferred."""
    findings = list(of_console(logs.console))
    findings += of_vmm_log(logs.vmm, findings)
    return Diagnosed(name, findings, len(logs.console), 0, complete=True)
