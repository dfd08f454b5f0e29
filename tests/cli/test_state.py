"""`state` and the provenance in `show`, as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, pci_request
from tests.support import GOLDEN, ask, connect, golden, run, write_capture
from upcall_trace.capture.records import Begins, Chunk, Gap, Open, Record
from upcall_trace.errors import ExitCode

WORLDS = ("--world", GOLDEN / "worlds.toml", "--machine")
ENTRY = {"kind", "fields", "there", "since", "why"}


def rows(text: str) -> list[list[str]]:
    """The words of each line that stands under a heading."""
    return [line.split() for line in text.splitlines() if line.startswith("  ")]


def test_the_end_of_a_recording_as_text() -> None:
    shown = run("state", golden("guest_oops"), *WORLDS, "microvm")
    assert (shown.code, shown.err) == (ExitCode.EXPECTED, "")
    assert shown.out.splitlines() == [
        "at the end, after 4 operations",
        "The kernel model predicts the recording, and what it has is known.",
        "",
        "known",
        "  cpu         0-2                            there   since boot",
        "  cpu         3                              there   since 2.1",
        "  mmio        0xfeb00000+0x200 irq=5         there   since boot",
        "  mmio        0xfeb00200+0x200 irq=6         there   since boot",
        "  lock        hotplug                        free    since boot",
        f"  conn        1{'dead':>34}    since 1.1 (its thread in the guest died)",
    ]


def test_before_an_operation_without_a_world() -> None:
    shown = run("state", golden("guest_oops"), "--at", "2.0")
    assert shown.out.splitlines() == [
        "before 2.0 add_mem (5.086834 s, operation 2 of 4)",
        "No world was given: what the guest had before the recording is not known.",
        "",
        "known",
        "  cpu         3                              absent  since 1.0",
        "",
        "inferred",
        "  cpu         9                              open    since 1.1 (no answer to it)",
        "  lock        hotplug                        unknown since 1.1 (no answer to it)",
        "  conn        1                              dead    since 1.1 (no answer to it)",
        "",
        "without an answer at this moment",
        "  1.1        del_cpu apic_ids=9, never answered",
    ]


def test_devices_to_look_at_are_told_at_the_end_only() -> None:
    shown = run("state", golden("pci_memory"))
    told = [row[0] for row in rows(shown.out) if row[0].startswith("UP")]
    assert told == ["UP704", "UP701", "UP701"]
    other = run("state", golden("pci_memory"), "--vmm", "other")
    assert [row[0] for row in rows(other.out) if row[0].startswith("UP")] == ["UP704"]
    assert "UP7" not in run("state", golden("pci_memory"), "--at", "10").out


@pytest.mark.parametrize("at", ["25", "1.25"])
def test_a_number_and_a_key_mean_the_same(at: str) -> None:
    shown = run("state", golden("aarch64_lifecycle"), "--at", at, "--json")
    (told,) = shown.objects
    shown_there = run("show", golden("aarch64_lifecycle"), "--json").objects[25]
    keys = ("conn", "request", "t_ns", "op")
    assert told["at"] == {"operation": 25, **{key: shown_there[key] for key in keys}}
    assert (told["v"], told["operations"], told["devices"]) == (1, 32, None)


def test_json_has_one_shape() -> None:
    plain = run("state", golden("pci_memory"), "--json").objects[0]
    with_world = run("state", golden("pci_memory"), "--json", *WORLDS, "pc").objects[0]
    middle = run("state", golden("guest_oops"), "--json", "--at", "2").objects[0]
    assert set(plain) == set(with_world) == set(middle)
    assert (plain["model"], with_world["model"]) == (None, "in step")
    assert with_world["inferred"] == []
    assert {"kind": "pci", "fields": {"busno": 0, "devfn": 64, "slot": 8, "function": 0,
            "role": ""}, "there": True, "since": {"conn": 1, "request": 3},
            "why": None} in plain["known"]  # fmt: skip
    for told in (plain, with_world, middle):
        for entry in told["known"] + told["inferred"]:
            assert set(entry) == ENTRY
        assert all(entry["why"] is None for entry in told["known"])
        assert all(entry["why"] for entry in told["inferred"])
    assert middle["waiting"] == [
        {"conn": 1, "request": 1, "text": "del_cpu apic_ids=9", "answered": False}
    ]
    assert middle["dead"] == [
        {"conn": 1, "request": 1, "fate": "silent", "why": "no answer to it"}
    ]  # fmt: skip
    assert [(d["code"], d["conn"], d["request"], d["inferred"]) for d in plain["devices"]] == [
        ("UP704", 1, 3, False), ("UP701", 1, 5, True), ("UP701", 1, 9, True)
    ]  # fmt: skip


def test_a_packet_capture_has_states_too() -> None:
    shown = run("state", GOLDEN / "real_client_simple.vsockmon.pcap", *WORLDS, "microvm")
    assert shown.code == ExitCode.EXPECTED
    assert "The kernel model predicts" in shown.out


def test_a_world_that_does_not_fit_is_said_to() -> None:
    shown = run("state", golden("cpu_lifecycle"), *WORLDS, "microvm")
    assert re.search(r"does not predict the recording: .* since 1\.0\.$", shown.out, re.MULTILINE)
    assert "(by the world alone)" in shown.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--at", "12"), "there is no operation 12: the capture has 12 operations, 0 to 11"),
        (("--at", "1.12"), "there is no operation 1.12"),
        (("--at", "9.0"), "there is no operation 9.0"),
        (("--at", "-1"), "neither a number nor CONN.REQUEST"),
        (("--at", "1."), "neither a number nor CONN.REQUEST"),
        (("--at", "\x1b"), "neither a number nor CONN.REQUEST"),
        (("--at", "9" * 40), "neither a number nor CONN.REQUEST"),
        (("--machine", "pc"), "--machine needs a file"),
        (("--world", GOLDEN / "worlds.toml", "--machine", "x"), "no machine 'x' in the file"),
    ],
)
def test_what_is_not_there_is_wrong_usage(options: tuple[str, ...], words: str) -> None:
    shown = run("state", golden("stale_results"), *options)
    assert (shown.code, shown.out) == (ExitCode.USAGE, "")
    assert words in shown.err
    assert "\x1b" not in shown.err


def test_a_key_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    once: list[Record] = [*connect(), ask(cpu_request(MessageType.ADD_CPU, [1]), 1000)]
    path = write_capture(tmp_path / "c.upcap", [*once, *once])
    shown = run("state", path, "--at", "1.0")
    assert shown.code == ExitCode.USAGE
    assert "2 times; choose one by its number: 0, 1" in shown.err
    assert run("state", path, "--at", "1").out.startswith("before 1.0 ")


def test_a_torn_capture_has_a_state_and_says_that_it_is_torn(tmp_path: Path) -> None:
    whole = run("import", golden("mmio_lifecycle"), "-o", tmp_path / "whole.upcap")
    assert whole.code == ExitCode.EXPECTED
    torn = tmp_path / "torn.upcap"
    torn.write_bytes((tmp_path / "whole.upcap").read_bytes()[:1500])
    shown = run("state", torn, "--json")
    assert shown.code == ExitCode.LOST
    assert shown.objects[0]["operations"] < 20
    assert "torn" in shown.err


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no capture\n")
    for path in (tmp_path / "text", tmp_path / "gone", tmp_path):
        shown = run("state", path)
        assert (shown.code, shown.out) == (ExitCode.UNREADABLE, "")
    assert run("state", golden("framing"), "--world", tmp_path / "gone").code == 5


def test_an_empty_capture_has_an_empty_state(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "c.upcap", [])
    assert run("state", path).out.startswith("at the end, after 0 operations\n")
    assert run("state", path, "--at", "0").code == ExitCode.USAGE


def test_another_services_names_stay_on_their_line(nasty_service: Path, tmp_path: Path) -> None:
    records: list[Record] = [
        Open(0, 1, Begins.SERVICE, 219, True),
        Chunk(0, 1, True, b"n"),
        Chunk(1, 1, True, b"12345678"),
    ]
    path = write_capture(tmp_path / "c.upcap", records)
    shown = run("state", path, "--at", "0")
    assert shown.code == ExitCode.EXPECTED
    assert "\x1b" not in shown.out
    assert len(shown.out.splitlines()[0]) < 200
    assert "1.0 nasty mmio_base=" in shown.out.splitlines()[0]


# Where bytes come from.


def test_hex_says_below_each_dump_whose_bytes_they_are() -> None:
    shown = run("show", golden("stale_results"), "--hex", "--filter", "request == 3")
    assert [line for line in shown.out.splitlines() if ".." in line[:10]] == [
        "  0000..000f  fresh",
        "  0010..0013  stale, of reply 1.2",
        "  0014..03ff  padding, never written",
    ]
    assert ".." not in run("show", golden("stale_results"), "--frames").out.replace("...", "")


def test_json_has_the_provenance_only_with_hex() -> None:
    plain = run("show", golden("framing"), "--frames", "--json").objects
    hexed = run("show", golden("framing"), "--frames", "--hex", "--json").objects
    assert len(plain) == len(hexed)
    for one, other in zip(plain, hexed, strict=True):
        assert {**one, "provenance": other["provenance"]} == other
        assert (other["provenance"] is None) is (other["request"] is None)
    (header_alone,) = (f for f in hexed if "(16 bytes" in f["text"])
    assert header_alone["provenance"] == [
        {"offset": 0, "length": 16, "kind": "fresh", "request": 2},
        {"offset": 16, "length": 1008, "kind": "stale", "request": 1},
    ]


def test_after_a_gap_of_no_connection_no_buffer_is_known(tmp_path: Path) -> None:
    add = pci_request(MessageType.ADD_PCI, 0, 4)
    records: list[Record] = [
        *connect(), ask(add, 1000), Chunk(1100, 1, False, add.reply(0).encode()),
        Gap(1500, 0, False, 0, "dropped"), ask(add.encode()[:16], 2000),
        Chunk(2500, 1, False, add.reply(-19).encode()),
    ]  # fmt: skip
    path = write_capture(tmp_path / "c.upcap", records)
    frames = run("show", path, "--hex", "--json").objects
    request, reply = (frame["provenance"] for frame in frames if frame["request"] == 1)
    assert [(r["offset"], r["kind"]) for r in request] == [(0, "fresh"), (16, "unknown")]
    assert [(r["offset"], r["kind"]) for r in reply] == [
        (0, "fresh"), (16, "unknown"), (24, "padding")
    ]  # fmt: skip


def test_a_connection_from_the_middle_has_buffers_that_are_not_known(tmp_path: Path) -> None:
    add = pci_request(MessageType.ADD_PCI, 0, 4)
    chunks: list[Record] = [ask(add, 1000), Chunk(1100, 1, False, add.reply(0).encode())]
    for number, begin in enumerate(([Open(0, 1, Begins.MIDDLE)], [])):
        path = write_capture(tmp_path / f"{number}.upcap", [*begin, *chunks])
        assert "  0010..03ff  not known" in run("show", path, "--hex").out.splitlines()


def test_a_gap_and_a_new_connection_of_the_same_number_are_minded(tmp_path: Path) -> None:
    add = pci_request(MessageType.ADD_PCI, 0, 4)
    records: list[Record] = [
        *connect(), ask(add, 1000), Gap(1500, 0, False, 0, "dropped"), ask(add, 2000),
        Chunk(2500, 1, False, add.reply(-19).encode()), *connect(), ask(add, 3000),
        Chunk(3500, 1, False, add.reply(0).encode()),
    ]  # fmt: skip
    path = write_capture(tmp_path / "c.upcap", records)
    frames = run("show", path, "--hex", "--json").objects
    runs = [json.dumps(f["provenance"]) for f in frames if f["dir"] == "<" and f["provenance"]]
    assert '"kind": "unknown"' in runs[0]
    assert '"kind": "padding"' in runs[1]
    assert '"kind": "unknown"' not in runs[1]
