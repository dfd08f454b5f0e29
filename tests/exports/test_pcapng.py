"""Captures as pcapng: everything comes back, and other programs read it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng import FileScanner, blocks  # type: ignore[import-untyped]  # ships no annotations

from tests.support import (
    decode,
    each_recording,
    each_transcript,
    operations,
    records_of,
    run,
    write_capture,
)
from upcall_trace.capture.records import (
    Begins,
    Chunk,
    Close,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.exports.pcapng import write_packets


@each_transcript
def test_a_transcript_comes_back_byte_for_byte(golden: Path, tmp_path: Path) -> None:
    first, packets, second, again = (
        tmp_path / name for name in ("a.upcap", "b.pcapng", "c.upcap", "d.jsonl")
    )
    assert run("import", golden, "-o", first).code == 0
    direct = run("export", first, "--format", "transcript", "-o", "-").out
    assert run("export", first, "-o", packets).code == 0
    assert run("import", packets, "-o", second).code == 0
    assert run("export", second, "-o", again).code == 0
    assert again.read_text("ascii") == direct


@each_recording
def test_every_record_and_the_header_come_back(golden: Path, tmp_path: Path) -> None:
    header, recorded = records_of(golden)
    written = tmp_path / "x.pcapng"
    with written.open("wb") as file:
        write_packets(header, recorded, file, {})
    assert records_of(written) == (header, recorded)


TIMES = st.integers(min_value=-(10**12), max_value=10**15)
CONNS = st.integers(min_value=1, max_value=3)
RECORDS = st.lists(
    st.one_of(
        st.builds(Open, TIMES, CONNS),
        st.builds(Open, TIMES, CONNS, st.just(Begins.SERVICE), st.just(219), st.booleans()),
        st.builds(Chunk, TIMES, CONNS, st.booleans(), st.binary(min_size=1, max_size=40)),
        st.builds(Chunk, TIMES, CONNS, st.just(True), st.just(b"CONNECT 219\n")),
        st.builds(Chunk, TIMES, CONNS, st.just(False), st.just(b"OK 1073741824\n")),
        st.builds(Close, TIMES, CONNS, st.booleans(), st.sampled_from(How)),
        st.builds(GaveUp, TIMES, CONNS, st.integers(0, 10**10)),
        st.builds(Vmm, TIMES, st.text(max_size=20), CONNS),
        st.builds(Gap, TIMES, CONNS, st.booleans(), st.integers(1, 5000), st.text(max_size=9)),
        st.builds(Mark, st.just(0), CONNS, st.none(), st.text(min_size=1, max_size=9)),
    ),
    max_size=30,
)


@given(RECORDS, st.one_of(st.none(), st.integers(2 * 10**12, 10**18)))
def test_whatever_a_capture_holds_comes_back_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[object], wall_ns: int | None
) -> None:
    """Reading what was written gives every record again, unchanged and in order."""
    path = tmp_path_factory.getbasetemp() / "property.pcapng"
    header = Header("test", wall_ns=wall_ns)
    with path.open("wb") as file:
        write_packets(header, recorded, file, {})  # type: ignore[arg-type]
    assert records_of(path) == (header, recorded)


def test_what_is_longer_than_a_comment_comes_back_too(tmp_path: Path) -> None:
    """Comments have at most 65,535 bytes."""
    lines = bytes(range(1, 10)) * 7000
    recorded: list[Record] = [
        Open(0, 1),
        *(Chunk(n, 1, n % 2 == 0, lines) for n in range(1, 4)),
        Chunk(5, 7, True, lines),
        Mark(6, 1, 0, "comment", "é" * 40_000),
        Vmm(7, "w" * 49_150, 1),
    ]
    header = Header("test", host="h" * 70_000, notes={str(n): "n" * 4000 for n in range(60)})
    path = write_capture(tmp_path / "x.upcap", recorded, header)
    written = tmp_path / "x.pcapng"
    assert run("export", path, "-o", written).code == 0
    assert records_of(written)[1] == recorded
    assert records_of(written)[0] == records_of(path)[0]


def test_findings_and_marks_are_comments_on_packets(tmp_path: Path) -> None:
    written = tmp_path / "x.pcapng"
    assert run("export", "captures/mmio_lifecycle.upcap", "-o", written).code == 0
    with written.open("rb") as file:
        comments = [
            text
            for block in FileScanner(file)
            if isinstance(block, blocks.EnhancedPacket)
            for text in block.options.get_all("opt_comment")
        ]
    assert any(text.startswith("UP304 mmio-bad-irq (error): ") for text in comments)
    assert any(text.startswith("possibly UP301 ") for text in comments)


def test_an_escape_in_a_mark_stays_an_escape(tmp_path: Path) -> None:
    path = write_capture(
        tmp_path / "x.upcap", [Open(0, 1), Mark(0, 1, None, "a", "\x1b]0;owned\a")]
    )
    written = tmp_path / "x.pcapng"
    assert run("export", path, "-o", written).code == 0
    assert b"\x1b" not in written.read_bytes()


def packets_of(path: Path) -> list[tuple[int, int]]:
    """(nanoseconds, bytes) of each packet, as python-pcapng reads them."""
    with path.open("rb") as file:
        return [
            (block.timestamp_high << 32 | block.timestamp_low, block.packet_len)
            for block in FileScanner(file)
            if isinstance(block, blocks.EnhancedPacket)
        ]


@pytest.mark.skipif(not shutil.which("capinfos"), reason="there is no capinfos here")
@each_recording
def test_capinfos_and_python_pcapng_agree(golden: Path, tmp_path: Path) -> None:
    """On the link type, and to the nanosecond on every figure."""
    written = tmp_path / "x.pcapng"
    with written.open("wb") as file:
        header, recorded = records_of(golden)
        write_packets(header, recorded, file, {})
    packets = packets_of(written)
    titles, values = (
        line.split("\t")
        for line in subprocess.run(
            ["capinfos", "-T", "-M", "-t", "-E", "-c", "-d", "-u", "-a", "-e", "-S", written],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.splitlines()
    )  # fmt: skip
    told = dict(zip(titles, values, strict=True))
    times = [at_ns for at_ns, _ in packets]
    assert "pcapng" in told["File type"]
    assert told["File encapsulation"] == "vsock"
    assert int(told["Number of packets"]) == len(packets)
    assert int(told["Data size (bytes)"]) == sum(size for _, size in packets)
    for title, at_ns in (("Start time", min(times)), ("End time", max(times))):
        seconds, _, fraction = told[title].partition(".")
        assert int(seconds) * 10**9 + int(fraction.ljust(9, "0")) == at_ns


@each_recording
def test_nanoseconds_survive(golden: Path, tmp_path: Path) -> None:
    """The times of requests and replies are those of packets, in a file that counts nanoseconds."""
    written = tmp_path / "x.pcapng"
    header, recorded = records_of(golden)
    with written.open("wb") as file:
        write_packets(header, recorded, file, {})
    with written.open("rb") as file:
        resolutions = [
            block.timestamp_resolution
            for block in FileScanner(file)
            if isinstance(block, blocks.InterfaceDescription)
        ]
    assert resolutions == [1e-9]
    session = decode(recorded, header)
    times = {at_ns for at_ns, _ in packets_of(written)}
    begins = (header.wall_ns or 0) + (session.first_ns or 0)
    found = operations(session)
    assert found
    for operation in found:
        assert begins + operation.t_ns in times
        if operation.latency_ns is not None:
            assert begins + operation.t_ns + operation.latency_ns in times
