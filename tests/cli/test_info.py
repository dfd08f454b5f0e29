"""`info`: counts, times, latencies and completeness, as text and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    ADD_MEM,
    DISK,
    Outcome,
    answer,
    ask,
    connect,
    each_recording,
    golden,
    run,
    small_capture,
    write_capture,
)
from upcall_trace.capture.index import append_mark
from upcall_trace.capture.records import (
    LEFT_OUT,
    Chunk,
    Close,
    Gap,
    Header,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import build_index, load

HEADER = Header(
    "proxy", "upcall-trace 1.0", "host1", "x86_64", 1_790_000_000_123_456_789, 1, 219, {"pod": "p1"}
)
INFO: dict[str, Any] = {
    "v": 1,
    "connections": 2,
    "requests": 3,
    "replies": 2,
    "bytes": 2 * (1 + 1024) + 3 * 1024 + 2 * 1024,
    "started": "2026-09-21T14:13:20.123457Z",
    "duration_ns": 8400,
    "complete": True,
    "lost_bytes": 0,
    "recording": False,
    "source": "proxy",
    "tool": "upcall-trace 1.0",
    "host": "host1",
    "arch": "x86_64",
    "resolution_ns": 1,
    "notes": {"pod": "p1"},
    "errors": 1,
    "unanswered": 1,
    "latency_ns": {"min": 2000, "p50": 2000, "p90": 3000, "p99": 3000, "max": 3000},
    "operations": {
        "add_mem": {"count": 1, "errors": 0, "unanswered": 1},
        "add_mmio": {"count": 2, "errors": 1, "unanswered": 0},
    },
    "anomalies": {},
    "marks": 2,
    "vmm": 1,
    "damage": [],
}


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    beside: list[Record] = [Vmm(2000, "x"), Mark(1, None, None, "a"), Mark(2, 1, 0, "b")]
    return write_capture(tmp_path / "x.upcap", [*small_capture(), *beside], HEADER)


def test_json_is_one_object_with_these_keys_in_this_order(capture: Path) -> None:
    assert run("info", "--json", capture) == Outcome(0, json.dumps(INFO) + "\n", "")
    assert build_index(capture)
    assert run("info", "--json", capture) == Outcome(0, json.dumps(INFO) + "\n", "")


def test_text_says_the_same(capture: Path) -> None:
    ended = run("info", capture)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "file         complete, 0 bytes lost",
        "recorded     from proxy on host1, x86_64, clock steps of 1ns",
        "started      2026-09-21T14:13:20.123457Z, lasted 8.4us",
        "traffic      2 connections, 3 requests, 2 replies, 7170 bytes",
        "note         pod: p1",
        "latency      min 2us, p50 2us, p90 3us, p99 3us, max 3us",
        "results      1 answered with an error, 1 not at all",
        "add_mem           1 sent, 0 errors, 1 unanswered",
        "add_mmio          2 sent, 1 errors, 0 unanswered",
        "beside       1 VMM records, 2 marks",
    ]


@each_recording
def test_the_counts_of_a_recording_are_those_of_its_operations(golden: Path) -> None:
    (info,) = run("info", "--json", golden).objects
    found = list(load(golden).operations)
    answered = [op.latency_ns for op in found if op.latency_ns is not None]
    assert info["requests"] == len(found)
    assert info["replies"] == len(answered)
    assert info["unanswered"] == len(found) - len(answered)
    assert info["errors"] == sum(op.ret is not None and op.ret < 0 for op in found)
    assert info["latency_ns"]["min"] == min(answered)
    assert info["latency_ns"]["max"] == max(answered)
    assert info["latency_ns"]["p50"] in answered
    assert info["operations"] == {
        name: {
            "count": sum(op.op == name for op in found),
            "errors": sum(op.op == name and op.ret is not None and op.ret < 0 for op in found),
            "unanswered": sum(op.op == name and op.ret is None for op in found),
        }
        for name in {op.op for op in found}
    }
    assert info["anomalies"] == {
        name: sum(name in op.anomalies for op in found)
        for name in {name for op in found for name in op.anomalies}
    }


def test_what_two_recordings_say_by_hand() -> None:
    (info,) = run("info", "--json", golden("cpu_lifecycle")).objects
    assert (info["connections"], info["requests"], info["replies"]) == (1, 11, 11)
    assert info["bytes"] == 1 + 1024 + 11 * 2048
    assert (info["errors"], info["vmm"], info["arch"]) == (4, 3, "x86_64")
    assert info["started"] is None
    assert info["duration_ns"] == 10_661_913_158
    (info,) = run("info", "--json", golden("handshake")).objects
    assert (info["connections"], info["requests"], info["replies"]) == (10, 4, 4)
    assert info["bytes"] == 1 + 4 * (1 + 1024 + 2048)


def test_an_empty_capture(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [])
    (info,) = run("info", "--json", path).objects
    assert info == {
        **INFO,
        **dict.fromkeys(
            ("connections", "requests", "replies", "bytes", "duration_ns", "errors", "unanswered",
             "marks", "vmm", "resolution_ns"),
            0,
        ),
        "started": None, "source": "test", "tool": "", "host": "", "arch": None, "notes": {},
        "latency_ns": None, "operations": {},
    }  # fmt: skip
    assert "started      unknown, lasted 0ns" in run("info", path).out


@pytest.mark.parametrize(
    ("wall_ns", "started"),
    [
        (0, "1970-01-01T00:00:01Z"),
        (1_790_000_000_000_000_000, "2026-09-21T14:13:21Z"),
        (1_790_000_000_500_000_999, "2026-09-21T14:13:21.500000Z"),
        (-(10**18), "1938-04-24T22:13:21Z"),
        ((1 << 63) - 1, "2262-04-11T23:47:17.854775Z"),
        (None, None),
    ],
)
def test_when_it_started_counts_from_the_first_record(
    tmp_path: Path, wall_ns: int | None, started: str | None
) -> None:
    header = Header("test", wall_ns=wall_ns)
    path = write_capture(tmp_path / "x.upcap", [Open(1_000_000_000, 1)], header)
    assert run("info", "--json", path).objects[0]["started"] == started


def test_a_torn_end_is_told_and_counted(capture: Path) -> None:
    whole = capture.read_bytes()
    capture.write_bytes(whole[:-20])
    ended = run("info", "--json", capture)
    (info,) = ended.objects
    (damage,) = info["damage"]
    assert ended.code == ExitCode.LOST
    assert info["complete"] is False
    assert damage["at_end"] is True
    assert damage["offset"] + damage["size"] == len(whole) - 20
    assert info["lost_bytes"] == damage["size"]
    assert ended.err == (
        f"{capture}: the end is torn at offset {damage['offset']}: "
        f"{damage['size']} bytes cannot be read\n"
    )
    assert run("info", capture).out.startswith(f"file         torn, {damage['size']} bytes lost\n")


def test_damage_inside_is_told_and_counted(capture: Path) -> None:
    raw = bytearray(capture.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    capture.write_bytes(raw)
    ended = run("info", "--json", capture)
    (info,) = ended.objects
    (damage,) = info["damage"]
    assert (ended.code, info["complete"], damage["at_end"]) == (ExitCode.LOST, False, False)
    assert info["lost_bytes"] == damage["size"]
    assert ended.err.splitlines() == [
        f"{capture}: damaged at offset {damage['offset']}: {damage['size']} bytes cannot be read",
        f"{capture}: {damage['size']} bytes of traffic were not recorded",
    ]


def test_very_much_damage_is_told_in_few_words(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [Open(n, n) for n in range(200)])
    raw = bytearray(path.read_bytes())
    for place in range(100, 1900, 40):
        raw[place] ^= 0xFF
    path.write_bytes(raw)
    ended = run("info", path)
    assert ended.code == ExitCode.LOST
    assert len(ended.err.splitlines()) == 12
    assert "more places" in ended.err.splitlines()[10]


def test_a_recording_that_was_killed_between_two_records(capture: Path) -> None:
    end = len(capture.read_bytes()) - len(b"12345678\x92\x08\xcd\x24\xb8")
    capture.write_bytes(capture.read_bytes()[:end])
    ended = run("info", "--json", capture)
    assert (ended.code, ended.objects[0]["complete"]) == (ExitCode.LOST, False)
    assert ended.objects[0]["lost_bytes"] == 0
    assert ended.err == (
        f"{capture}: the recording was not closed cleanly; its last moments may be missing\n"
    )


@pytest.mark.parametrize(("reason", "lost"), [("the disk was full", 7), (LEFT_OUT, 0)])
def test_gaps_are_lost_unless_they_were_made_on_purpose(
    tmp_path: Path, reason: str, lost: int
) -> None:
    path = write_capture(tmp_path / "x.upcap", [*connect(), Gap(1, 1, True, 7, reason)])
    ended = run("info", "--json", path)
    assert ended.objects[0]["lost_bytes"] == lost
    assert ended.code == (ExitCode.LOST if lost else ExitCode.EXPECTED)
    assert ended.err == (f"{path}: 7 bytes of traffic were not recorded\n" if lost else "")


def test_payload_in_both_directions_is_counted_as_it_came(tmp_path: Path) -> None:
    recorded = [
        *connect(), ask(DISK.encode()[:100], 1), Chunk(2, 1, False, b"x" * 10), Close(3, 1, True),
        *connect(2, port=80), ask(b"not upcall", 4, 2),
    ]  # fmt: skip
    path = write_capture(tmp_path / "x.upcap", recorded)
    # Bytes of a reply that never became whole are not a message, and other ports never count.
    assert run("info", "--json", path).objects[0]["bytes"] == 1 + 1024 + 100


def test_marks_that_were_added_later_are_counted(capture: Path) -> None:
    assert build_index(capture)
    append_mark(capture, Mark(5, 1, 1, "later"))
    assert run("info", "--json", capture).objects[0]["marks"] == INFO["marks"] + 1


def test_other_services_are_counted_apart(tmp_path: Path, nasty_service: Path) -> None:
    eight = b"12345678"
    refused = b"\xea\xff\xff\xff5678"
    recorded = [
        *connect()[:3], ask(b"n", 1), ask(eight, 2), Chunk(3, 1, False, refused), ask(eight, 4),
        *connect(2), ask(ADD_MEM, 5, 2), answer(ADD_MEM, 6, 2, ret=-1),
    ]  # fmt: skip
    path = write_capture(tmp_path / "x.upcap", recorded)
    (info,) = run("info", "--json", path).objects
    assert list(info["operations"].items()) == [
        ("add_mem", {"count": 1, "errors": 1, "unanswered": 0}),
        ("other services", {"count": 2, "errors": 1, "unanswered": 1}),
    ]


def test_very_many_types_of_messages_cost_linear_time(tmp_path: Path) -> None:
    """Every request may be of a type of its own."""
    requests = [
        b"".join(
            ADD_MEM.encode()[:8] + (1000 + 64 * chunk + n).to_bytes(4, "little") + bytes(1012)
            for n in range(64)
        )
        for chunk in range(500)
    ]
    recorded = [*connect(), *(ask(raw, n) for n, raw in enumerate(requests))]
    path = write_capture(tmp_path / "x.upcap", recorded)
    (info,) = run("info", "--json", path).objects
    assert len(info["operations"]) == 32_000
