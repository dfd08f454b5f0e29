"""The diagnosis behind the screen: the findings of `diagnose`, and those first."""

from __future__ import annotations

from pathlib import Path

import pytest

from dissectors.constants import EEXIST
from tests.support import DISK, GOLDEN, answer, ask, connect, write_capture
from upcall_trace.capture.records import Header
from upcall_trace.diagnose.engine import sort_key
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.log_inputs import read_logs
from upcall_trace.diagnose.run import diagnose
from upcall_trace.diagnose.told_by_logs import Logs
from upcall_trace.trace.opening import load
from upcall_trace.tui.data.walk import Walk, WalkProgress

from .support import CAPTURES


def walked(path: Path, logs: Logs | None = None) -> tuple[Walk, list[WalkProgress]]:
    told: list[WalkProgress] = []
    walk = Walk(path, None, told.append)
    walk.run(logs or Logs(), lambda: False)
    return walk, told


def findings(told: list[WalkProgress]) -> list[Finding]:
    return sorted((finding for each in told for finding in each.findings), key=sort_key)


RECORDINGS = [*sorted(CAPTURES.glob("*.upcap")), *sorted(GOLDEN.glob("*.pcap"))]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_the_findings_are_those_of_diagnose(path: Path) -> None:
    walk, told = walked(path)
    assert findings(told) == diagnose(path).findings
    operations = load(path).operations
    assert (told[-1].ended, told[-1].over) == (True, True)
    assert told[-1].passed == told[-1].followed == len(operations)
    for row in {0, len(operations) // 2, len(operations) - 1}:
        moment = walk.moment(operations, row, lambda: False)
        assert moment is not None
        assert moment.row == row


@pytest.mark.parametrize("name", ["guest_oops", "framing", "pci_memory"])
def test_with_a_console_they_are_those_of_both(name: str) -> None:
    logs = read_logs(GOLDEN / f"{name}.console.log", None)
    path = CAPTURES / f"{name}.upcap"
    _, told = walked(path, logs)
    assert findings(told) == diagnose(path, logs=logs).findings


def test_all_findings_of_a_recording_come_before_the_guest_is_followed(tmp_path: Path) -> None:
    asked = [
        record
        for at in range(1000, 3_000_000, 1000)
        for record in (ask(DISK, at), answer(DISK, at + 500, ret=EEXIST))
    ]
    path = write_capture(
        tmp_path / "long.upcap", [*connect(), *asked], Header("test", arch="x86_64")
    )
    _, told = walked(path)
    first = next(each for each in told if each.ended)
    assert (first.passed, first.followed, first.over) == (len(load(path).operations), 0, False)
    assert not any(each.findings for each in told[told.index(first) + 1 :])
    assert told[-1].followed == first.passed


def test_a_walk_that_is_cancelled_tells_no_end() -> None:
    told: list[WalkProgress] = []
    Walk(CAPTURES / "framing.upcap", None, told.append).run(Logs(), lambda: True)
    assert not any(each.ended for each in told)
