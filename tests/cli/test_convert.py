"""`import` and `export`: what comes out is what went in, and what could not is told."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.support import (
    GOLDEN,
    PCAPS,
    Outcome,
    completed,
    connect,
    each_recording,
    each_transcript,
    golden,
    records_of,
    run,
    small_capture,
    transcript_text,
    write_capture,
)
from upcall_trace.capture.records import (
    LEFT_OUT,
    Chunk,
    Close,
    End,
    Gap,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.errors import ExitCode
from upcall_trace.exports import FORMATS
from upcall_trace.trace.opening import load
from upcall_trace.views.json_objects import operation_object

HEAD = '{"kind": "header", "format": "upcall-transcript", "version": 1}\n'


@each_recording
def test_an_imported_recording_says_what_it_said(golden: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.upcap"
    before = load(golden)
    count = f"{len(before.connections)} connections, {len(before.operations)} operations"
    assert run("import", golden, "-o", output) == Outcome(0, "", f"{output}: {count}\n")
    after = load(output)
    assert after.complete
    assert after.complete
    assert [operation_object(op) for op in after.operations] == [
        operation_object(op) for op in before.operations
    ]
    assert records_of(output) == (before.header, [*records_of(golden)[1], End(last_ns(golden))])


def last_ns(path: Path) -> int:
    return max(getattr(record, "t_ns", 0) for record in records_of(path)[1])


@each_transcript
def test_a_transcript_comes_back_byte_for_byte(golden: Path, tmp_path: Path) -> None:
    capture, output = tmp_path / "x.upcap", tmp_path / "x.jsonl"
    assert run("import", golden, "-o", capture).code == 0
    assert run("export", capture, "--format", "transcript", "-o", output) == Outcome(0, "", "")
    assert output.read_text() == transcript_text(golden)


@pytest.mark.parametrize("path", PCAPS, ids=lambda path: path.stem)
def test_a_packet_capture_becomes_a_transcript_and_a_capture_again(
    path: Path, tmp_path: Path
) -> None:
    first, text, second = tmp_path / "1.upcap", tmp_path / "x.jsonl", tmp_path / "2.upcap"
    assert run("import", path, "-o", first).code == 0
    assert run("export", first, "--format", "transcript", "-o", text) == Outcome(0, "", "")
    assert run("import", text, "-o", second).code == 0
    assert records_of(second)[1] == records_of(first)[1]
    assert list(load(second).operations) == list(load(first).operations)


def test_what_the_importer_is_told_goes_into_the_header(tmp_path: Path) -> None:
    output = tmp_path / "x.upcap"
    options = ("--arch", "aarch64", "--note", "a=1", "--note", "b=x=y", "--note", "empty=")
    assert run("import", GOLDEN / "guest_oops.vsockmon.pcap", *options, "-o", output).code == 0
    (info,) = run("info", "--json", output).objects
    assert info["arch"] == "aarch64"
    assert info["notes"] == {"a": "1", "b": "x=y", "empty": ""}


def test_another_upcall_port(tmp_path: Path) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "x.upcap"
    capture = write_capture(tmp_path / "y.upcap", [*connect(port=300), *small_capture()[5:7]])
    assert run("export", capture, "--format", "transcript", "-o", path).code == 0
    assert run("import", path, "-o", output).code == 0
    assert len(load(output).operations) == 0
    assert run("import", path, "--port", "300", "-o", output, "--overwrite").code == 0
    assert [op.op for op in load(output).operations] == ["add_mmio"]


@pytest.mark.parametrize("note", ["novalue", "=text", ""])
def test_a_note_that_is_none(tmp_path: Path, note: str) -> None:
    ended = run("import", golden("framing"), "--note", note, "-o", tmp_path / "x.upcap")
    assert ended.code == ExitCode.USAGE
    assert ended.err == f"upcall-trace: a note is KEY=TEXT, not {note!r}\n"
    assert list(tmp_path.iterdir()) == []


def test_very_many_notes_leave_a_capture_that_can_be_read(tmp_path: Path) -> None:
    output = tmp_path / "x.upcap"
    notes = [argument for n in range(400) for argument in ("--note", f"n{n}=x")]
    assert run("import", golden("framing"), *notes, "-o", output).code == 0
    (info,) = run("info", "--json", output).objects
    assert len(info["notes"]) == 256


def test_a_note_that_is_no_text_of_any_encoding(tmp_path: Path) -> None:
    """An argument that is not UTF-8 arrives with lone surrogates."""
    output = tmp_path / "x.upcap"
    assert run("import", golden("framing"), "--note", "a=\udcff", "-o", output).code == 0
    assert run("info", "--json", output).objects[0]["notes"]["a"] == "\udcff"
    assert "note         a: \\udcff" in run("info", output).out


def test_a_capture_is_not_imported(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "x.upcap", small_capture())
    ended = run("import", capture, "-o", tmp_path / "y.upcap")
    assert ended.code == ExitCode.USAGE
    assert ended.err == (
        f"upcall-trace: {capture} is a capture already; use filter or merge to copy it\n"
    )
    assert not (tmp_path / "y.upcap").exists()


def test_a_torn_transcript_is_imported_with_a_loss(tmp_path: Path) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "x.upcap"
    whole = golden("cpu_lifecycle").read_bytes()
    path.write_bytes(whole[:-30])
    ended = run("import", path, "-o", output)
    size = len(whole[:-30]) - whole[:-30].rindex(b"\n") - 1
    assert ended.code == ExitCode.LOST
    assert ended.err.splitlines() == [
        f"{path}: the end is torn at offset {len(whole) - 30 - size}: {size} bytes cannot be read",
        f"{output}: 1 connections, 11 operations",
    ]
    assert len(load(output).operations) == 11


def test_a_damaged_line_is_told_with_its_place(tmp_path: Path) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "x.upcap"
    path.write_text(HEAD + "what\n" + '{"kind": "open", "t_ns": 5, "conn": 1}\n')
    ended = run("import", path, "-o", output)
    assert ended.code == ExitCode.LOST
    assert f"{path}: damaged at offset {len(HEAD)}: 5 bytes cannot be read" in ended.err


def test_very_many_damaged_lines_are_told_in_few(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(HEAD + "what\n" * 1000)
    ended = run("import", path, "-o", tmp_path / "x.upcap")
    assert ended.code == ExitCode.LOST
    assert ended.err.splitlines()[10] == f"{path}: damaged in 990 more places"
    assert len(ended.err.splitlines()) == 12


def test_a_torn_packet_capture_is_imported_with_a_loss(tmp_path: Path) -> None:
    path, output = tmp_path / "x.pcap", tmp_path / "x.upcap"
    whole = (GOLDEN / "cpu_lifecycle.vsockmon.pcap").read_bytes()
    path.write_bytes(whole[:-10])
    ended = run("import", path, "-o", output)
    assert ended.code == ExitCode.LOST
    assert f"{path}: the end is torn at offset" in ended.err


def test_another_link_type_is_not_a_packet_capture_of_vsock(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(header + struct.pack("<4I", 0, 0, 20, 20) + bytes(20))
    ended = run("import", path, "-o", tmp_path / "x.upcap")
    assert ended.code == ExitCode.UNREADABLE
    assert ended.err == (
        f"upcall-trace: {path} has link type 1, not VSOCK (271): "
        "capture on a vsockmon interface inside the guest\n"
    )


@pytest.mark.parametrize(
    ("line", "fine"),
    [
        ({"kind": "open", "t_ns": 0, "conn": 1, "accepted": 1 << 70}, False),
        ({"kind": "vmm", "t_ns": 0, "conn": 0, "action": "\ud800"}, True),
        ({"kind": "vmm", "t_ns": 0, "conn": 0, "action": "x" * 1_000_000}, True),
        ({"kind": "gave_up", "t_ns": 0, "conn": 1, "after_s": 1e308}, False),
        ({"kind": "bytes", "t_ns": 0, "conn": 1, "dir": ">", "hex": "", "zeros": 1 << 60}, False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_hostile_line_is_kept_or_told(
    tmp_path: Path, line: dict[str, object], fine: bool
) -> None:
    path, output = tmp_path / "x.jsonl", tmp_path / "x.upcap"
    path.write_text(HEAD + json.dumps(line) + "\n")
    ended = run("import", path, "-o", output)
    assert ended.code == (ExitCode.EXPECTED if fine else ExitCode.LOST)
    assert run("show", "--frames", output).code == ended.code
    assert run("info", output).code == ended.code  # the capture does not forget the loss


GAPS = [Gap(1, 1, True, 1024, LEFT_OUT), Gap(2, 1, False, 1024, "the disk was full")]
OTHERS: list[Record] = [Mark(1, None, None, "x"), Close(9, 1, by_guest=False, how=How.HALF)]


def test_what_an_export_loses_is_told(tmp_path: Path) -> None:
    path, output = tmp_path / "x.upcap", tmp_path / "x.jsonl"
    write_capture(path, [*connect(), *OTHERS])
    assert run("export", path, "--format", "transcript", "-o", output) == Outcome(
        0, "", f"{output}: 2 marks and half-closes have no place in a transcript\n"
    )
    write_capture(path, [*connect(), *GAPS])
    ended = run("export", path, "--format", "transcript", "-o", output, "--overwrite")
    assert ended.code == ExitCode.LOST
    assert ended.err.splitlines() == [
        f"{output}: 2 gaps have no place in a transcript; requests are numbered anew",
        f"{path}: 1024 bytes of traffic were not recorded",
    ]
    assert len(output.read_text().splitlines()) == 6


def test_an_export_of_a_torn_capture_has_what_is_whole(tmp_path: Path) -> None:
    path, output = tmp_path / "x.upcap", tmp_path / "x.jsonl"
    write_capture(path, small_capture())
    path.write_bytes(path.read_bytes()[:-40])
    ended = run("export", path, "--format", "transcript", "-o", output)
    assert ended.code == ExitCode.LOST
    assert "the end is torn" in ended.err
    assert records_of(output)[1] == [r for r in records_of(path)[1] if not isinstance(r, End)]


def test_an_export_is_ascii(tmp_path: Path) -> None:
    path, output = tmp_path / "x.upcap", tmp_path / "x.jsonl"
    garbage = [Chunk(1, 1, way, bytes(range(256))) for way in (True, False)]
    write_capture(path, [Open(0, 1), *garbage, Vmm(2, "vCPU \u2603 \x1b")])
    assert run("export", path, "--format", "transcript", "-o", output).code == 0
    assert output.read_bytes().isascii()


@pytest.mark.parametrize(
    ("arguments", "name", "said"),
    [
        (("--format", "transcipt"), "x", "no format is called 'transcipt'; did you mean 'transc"),
        (("--format", "rar"), "x", "no format is called 'rar'; there are transcript"),
        ((), "x.rar", "no format has the suffix of x.rar; give --format with one of transcript"),
        ((), "-", "give --format with one of transcript"),
    ],
)
def test_an_unknown_format_is_wrong_usage(
    tmp_path: Path, arguments: tuple[str, ...], name: str, said: str
) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    output = name if name == "-" else tmp_path / name
    ended = run("export", path, *arguments, "-o", output)
    assert ended.code == ExitCode.USAGE
    assert ended.err.startswith(f"upcall-trace: {said}")
    assert list(tmp_path.iterdir()) == [path]


def test_the_suffix_tells_the_format_and_a_dash_is_standard_output(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    output = tmp_path / "x.jsonl"
    assert run("export", path, "-o", output) == Outcome(0, "", "")
    printed = run("export", path, "--format", "transcript", "-o", "-")
    assert printed == Outcome(0, output.read_text(), "")


def test_the_formats_are_listed_and_completed() -> None:
    listed = run("export", "--list")
    assert listed.code == 0
    assert listed.out.splitlines()[0].split()[:3] == ["transcript", ".jsonl", "JSON"]
    for known in FORMATS:
        assert known.loses in listed.out
    assert "transcript" in completed("upcall-trace export --format TRAN")
    assert completed("upcall-trace export --format x") == []


def test_an_existing_output_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "x.upcap"
    output.write_text("precious")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(HEAD.replace("1}", "7}"))
    assert run("import", broken, "-o", output, "--overwrite").code == ExitCode.UNREADABLE
    assert output.read_text() == "precious"
    refused = run("import", golden("framing"), "-o", output)
    assert refused.code == ExitCode.USAGE
    assert refused.err == f"upcall-trace: {output} exists; give another name, or --overwrite\n"
    assert output.read_text() == "precious"
    assert run("import", golden("framing"), "-o", output, "--overwrite").code == 0
    assert len(load(output).operations) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "x.upcap"]
