"""Guests of one log are told apart, whatever the order of their lines; and what is said without."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.diagnose.dresses import no_keys
from tests.support import GOLDEN, run
from upcall_trace.codes import Severity
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.log_inputs import read_logs

CONSOLES = sorted(path.name.removesuffix(".console.log") for path in GOLDEN.glob("*.console.log"))
NAMES = ("a" * 64, "b" * 64)
Told = list[tuple[str, bool]]


def entries(name: str, sandbox: str) -> list[dict[str, str]]:
    """A recorded console as the journal has it."""
    lines = (GOLDEN / f"{name}.console.log").read_text("utf-8", "backslashreplace").splitlines()
    return [
        {"__REALTIME_TIMESTAMP": "1788256800000000", "_HOSTNAME": "node-a", "_PID": sandbox[0] * 4,
         "SYSLOG_IDENTIFIER": "kata", "SUBSYSTEM": "dmesg", "SOURCE": sandbox, "MESSAGE": line}
        for line in lines
    ]  # fmt: skip


def told(raw: bytes) -> list[Finding]:
    with TemporaryDirectory() as folder:
        (Path(folder) / "log").write_bytes(raw)
        return read_logs(found=[Path(folder) / "log"]).findings()


def of(findings: list[Finding], sandbox: str) -> Told:
    return [(str(f.code), f.inferred) for f in findings if f.sandbox == sandbox]


def mixed(one: list[dict[str, str]], other: list[dict[str, str]], takes: list[bool]) -> bytes:
    """Both in their order, one line or the other next, as `takes` says."""
    left, right = list(one), list(other)
    out = []
    for first in takes:
        queue = left if (first and left) or not right else right
        if queue:
            out.append(queue.pop(0))
    return "".join(json.dumps(each) + "\n" for each in [*out, *left, *right]).encode()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CONSOLES), st.sampled_from(CONSOLES), st.lists(st.booleans(), max_size=400))
def test_any_mixture_of_two_guests_has_the_findings_of_both(
    first: str, second: str, takes: list[bool]
) -> None:
    one, other = entries(first, NAMES[0]), entries(second, NAMES[1])
    both = told(mixed(one, other, takes))
    for name, alone in zip(NAMES, (one, other), strict=True):
        assert of(both, name) == of(told(mixed(alone, [], [])), name)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CONSOLES), st.sampled_from(CONSOLES), st.lists(st.booleans(), max_size=400))
def test_without_keys_nothing_of_a_mixture_is_certain(
    first: str, second: str, takes: list[bool]
) -> None:
    raw = mixed(entries(first, NAMES[0]), entries(second, NAMES[1]), takes)
    plain = no_keys(json.loads(line) for line in raw.splitlines())
    assert not [f for f in told(plain) if not f.inferred]


@pytest.mark.parametrize("name", CONSOLES)
def test_a_recorded_console_alone_raises_no_false_alarm(name: str) -> None:
    """Every failure that it tells has a code of the recording's labels among its explanations."""
    labels = json.loads((GOLDEN / f"{name}.findings.json").read_text())
    known = {
        code
        for label in labels
        for any_of in label["codes"] + label.get("with_console", [])
        for code in any_of
    }
    failures: dict[object, set[str]] = {}
    for number, finding in enumerate(read_logs(GOLDEN / f"{name}.console.log").findings()):
        if finding.severity > Severity.NOTE:
            group = number if finding.group is None else ("group", finding.group)
            failures.setdefault(group, set()).add(str(finding.code))
    assert all(explained & known for explained in failures.values()), failures


def _kin(name: str) -> str:
    return name.removesuffix("_5_10").removesuffix("_6_12")


@pytest.mark.parametrize("name", [name for name in CONSOLES if (GOLDEN / f"{name}.jsonl").exists()])
def test_a_console_of_another_guest_makes_no_cause_certain_that_is_none(name: str) -> None:
    """What a capture tells with a foreign console, it tells alone, or as possible."""
    capture = GOLDEN / f"{name}.jsonl"
    alone = _places(capture)
    for other in CONSOLES:
        if _kin(other) == _kin(name):
            continue
        joined = _places(capture, "--console", GOLDEN / f"{other}.console.log")
        own = {place for place in joined if place[0] is not None}
        assert {p for p in own if not p[3]} <= alone | _true(name), other


def _true(name: str) -> set[tuple[object, ...]]:
    """What the labels say is certain, however it was found."""
    labels = json.loads((GOLDEN / f"{name}.findings.json").read_text())
    return {
        (label["conn"], label["request"], code, False)
        for label in labels
        for any_of in label["codes"] + label.get("with_console", [])
        for code in any_of
    }


def _places(*arguments: str | Path) -> set[tuple[object, ...]]:
    findings = json.loads(run("diagnose", "--json", *arguments).out)["findings"]
    return {(f["conn"], f["request"], f["code"], f["inferred"]) for f in findings}
