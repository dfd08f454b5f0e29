"""Dragonball's own client in failures: what its traffic alone tells, and what must not be said.

The scenes are recordings of the real client crate in front of a real guest, `tests/scenes/`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.recordings import worlds
from tests.support import records_of, run
from upcall_trace.codes import Severity
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.run import diagnose

SCENES = Path(__file__).parents[1] / "scenes"
STUCK_OR_DEAD = {"UP206", "UP207", "UP309", "UP603"}

blind_or_not = pytest.mark.parametrize("known", [False, True], ids=["blind", "world"])


@cache
def findings(name: str, known: bool) -> tuple[Finding, ...]:
    path = SCENES / f"{name}.jsonl"
    header, _ = records_of(path)
    return tuple(diagnose(path, worlds()[header.notes["machine"]] if known else None).findings)


def by_place(name: str, known: bool) -> dict[str, dict[str, Finding]]:
    """Findings by `conn.request`, or by `conn`, and by code."""
    found: dict[str, dict[str, Finding]] = defaultdict(dict)
    for each in findings(name, known):
        place = f"{each.conn}" if each.request is None else f"{each.conn}.{each.request}"
        found[place][each.code] = each
    return found


def words(name: str, known: bool) -> str:
    return " ".join(f"{f.what} {f.why} {f.so} {f.next}" for f in findings(name, known))


@blind_or_not
def test_guest_killed(known: bool) -> None:
    found = by_place("guest_killed", known)
    assert "counts as success" in found["1.0"]["UP605"].so
    assert "UP702" not in found["1.0"]
    assert "The VM is gone" in found["502"]["UP802"].what
    assert "501 connections in a row" in found["502"]["UP102"].what
    assert "for the rest of the VM's life" in found["502"]["UP102"].so
    for wrong in ("booting", "no upcall", "without limit", "sets no time limit"):
        assert wrong not in words("guest_killed", known)
    assert not STUCK_OR_DEAD & {f.code for f in findings("guest_killed", known)}


@blind_or_not
def test_client_killed_then_reconnects(known: bool) -> None:
    found = by_place("client_killed_then_reconnects", known)
    assert "The client closed the connection" in found["1.3"]["UP602"].why
    assert found["1.3"]["UP602"].side == "client"
    assert "UP201" in found["1.3"]
    assert "Request 1.3 held the guest's hotplug lock" in found["2.1"]["UP601"].why
    assert "UP201" in found["2.2"]
    codes = {f.code for f in findings("client_killed_then_reconnects", known)}
    assert "UP603" not in codes
    assert not {"UP501", "UP502", "UP503"} & set(found["2.0"])


@blind_or_not
def test_guest_reboots(known: bool) -> None:
    """That it rebooted stands on the console alone; the traffic must not tell another story."""
    found = by_place("guest_reboots", known)
    assert "UP602" in found["1.2"]
    assert not STUCK_OR_DEAD & {f.code for f in findings("guest_reboots", known)}


@blind_or_not
def test_wrong_interrupt_hangs(known: bool) -> None:
    found = by_place("wrong_interrupt_hangs", known)
    assert "UP310" in found["1.1"]
    assert "Request 1.1 took the guest's hotplug lock" in found["2.1"]["UP603"].why
    codes = {f.code for f in findings("wrong_interrupt_hangs", known)}
    assert not {"UP206", "UP207", "UP309"} & codes
    assert "unknown" not in words("wrong_interrupt_hangs", known)


@blind_or_not
def test_idle_close(known: bool) -> None:
    found = by_place("idle_close", known)
    lost = found["1"]["UP606"]
    assert lost.severity >= Severity.ERROR
    assert "while nothing was asked" in lost.what
    assert "does not reconnect" in lost.so


# With the guest's console.


def with_console(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The same from `diagnose --json` with the scene's console."""
    console = SCENES / f"{name}.console.log"
    ended = run("diagnose", "--json", SCENES / f"{name}.jsonl", "--console", console)
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for each in json.loads(ended.out)["findings"]:
        conn, request = each["conn"], each["request"]
        place = f"{conn}" if request is None else f"{conn}.{request}"
        found[place][each["code"]] = each
    return found


def test_the_console_shows_the_device_whose_driver_hangs() -> None:
    found = with_console("wrong_interrupt_hangs")
    hangs = found["1.1"]["UP310"]
    assert "Registering device virtio-mmio.3" in hangs["why"]
    assert "no oops" in hangs["why"]
    assert "Request 1.1 took" in found["2.1"]["UP603"]["why"]
    assert not {"UP206", "UP207", "UP309"} & {code for place in found.values() for code in place}


def test_the_console_shows_the_boot() -> None:
    found = with_console("guest_reboots")
    booted = found["1.2"]["UP608"]
    assert not booted["inferred"]
    assert any("Linux version" in each["text"] for each in booted["evidence"])
    assert not STUCK_OR_DEAD & {code for place in found.values() for code in place}


def test_the_console_keeps_what_the_traffic_tells() -> None:
    found = with_console("client_killed_then_reconnects")
    assert "UP201" in found["1.3"]
    assert not found["2.2"]["UP201"]["inferred"]
    assert "UP603" not in {code for place in found.values() for code in place}
    killed = with_console("guest_killed")
    assert "UP605" in killed["1.0"]
    assert "UP802" in killed["502"]


def test_each_scene_has_its_test() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in SCENES.glob("*.jsonl")} <= tests
