"""A directory of captures reads as one: parts of a recording, several of them, and as it grows."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import pytest

from dissectors.hvsock import connect_line, ok_line
from dissectors.messages import hello
from tests.support import DISK, Outcome, run
from upcall_trace.capture.reader import CaptureReader, NotACapture
from upcall_trace.capture.records import Chunk, Gap, Header, Open
from upcall_trace.capture.ring import RingReader
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load
from upcall_trace.vantage.recorder import Recorder
from upcall_trace.vantage.store import CaptureStore, OnStoreError, Rotation

HEADER = Header("proxy", wall_ns=1_790_000_000_000_000_000)


class Ring:
    """A store that rotates after so many messages, with a clock of its own."""

    def __init__(self, directory: Path, count: int, keep: int | None = None) -> None:
        self.now_ns = 0
        rule = Rotation(count=count, keep=keep)
        self.store = CaptureStore(
            directory, HEADER, OnStoreError.PASS, lambda: self.now_ns, print, rotation=rule
        )

    def put(self, *records: Open | Chunk) -> None:
        for record in records:
            self.now_ns += 1000
            self.store.put([dataclasses.replace(record, t_ns=self.now_ns)])

    def exchange(self, conn: int) -> None:
        request, reply = DISK.encode(), DISK.reply().encode()
        self.put(Chunk(0, conn, True, request), Chunk(0, conn, False, reply))

    def converse(self, conn: int, requests: int) -> None:
        self.put(Open(0, conn), Chunk(0, conn, True, connect_line().raw),
                 Chunk(0, conn, False, ok_line(1).raw), Chunk(0, conn, True, b"d"),
                 Chunk(0, conn, False, hello().encode()))  # fmt: skip
        for _ in range(requests):
            self.put(
                Chunk(0, conn, True, DISK.encode()), Chunk(0, conn, False, DISK.reply().encode())
            )


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    """Two connections with ten requests each, in parts of seven messages."""
    recorded = Ring(tmp_path / "ring", 7)
    recorded.converse(1, 10)
    recorded.converse(2, 10)
    recorded.store.close()
    return tmp_path / "ring"


def parts(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def shown(path: Path) -> list[tuple[int, int, int | None, tuple[str, ...]]]:
    return [(op.conn, op.request, op.ret, op.anomalies) for op in load(path).operations]


EXPECTED = [(conn, request, 0, ()) for conn in (1, 2) for request in range(10)]


def test_every_operation_is_there_once_with_its_number(ring: Path) -> None:
    assert len(parts(ring)) == 7
    assert shown(ring) == EXPECTED
    capture = load(ring)
    assert (capture.complete, capture.damage, capture.lost_bytes) == (True, [], 0)
    assert len(capture.connections) == 2


def test_each_part_is_a_capture_of_its_own(ring: Path) -> None:
    for number, part in enumerate(parts(ring), start=1):
        with CaptureReader(part) as reader:
            assert reader.header.part == number
            assert list(reader)
            assert reader.complete
        assert load(part).complete


def test_every_command_reads_it(ring: Path, tmp_path: Path) -> None:
    assert run("info", "--json", ring).objects[0]["requests"] == 20
    assert run("info", "--verify", ring).code == ExitCode.EXPECTED
    assert len(run("show", "--json", ring).objects) == 20
    assert len(run("show", "--frames", ring).out.splitlines()) == 50
    assert run("diagnose", ring).code == ExitCode.EXPECTED
    assert run("state", ring, "--at", "1.5").code == ExitCode.EXPECTED
    assert run("diff", ring, ring).code == ExitCode.EXPECTED
    one = tmp_path / "one.upcap"
    assert run("recover", ring, "-o", one).code == ExitCode.EXPECTED
    assert shown(one) == EXPECTED
    assert run("merge", ring, "-o", tmp_path / "two.upcap").code == ExitCode.EXPECTED
    assert shown(tmp_path / "two.upcap") == EXPECTED


def test_only_the_last_files_are_kept(tmp_path: Path) -> None:
    recorded = Ring(tmp_path / "ring", 7, keep=3)
    recorded.converse(1, 40)
    recorded.store.close()
    assert len(parts(tmp_path / "ring")) == 3
    capture = load(tmp_path / "ring")
    assert capture.complete
    assert 7 <= len(capture.operations) <= 21
    assert all(op.ret == 0 for op in capture.operations)


def test_a_part_that_is_missing_in_the_middle_is_told(ring: Path) -> None:
    parts(ring)[3].unlink()
    with RingReader(ring) as reader:
        gaps = [record for record in reader if isinstance(record, Gap)]
    assert [gap.reason for gap in gaps] == ["1 parts of the recording are not there"]
    assert len(load(ring).operations) < 20


def test_a_torn_part_in_the_middle_is_damage(ring: Path) -> None:
    torn = parts(ring)[3]
    torn.write_bytes(torn.read_bytes()[:-40])
    capture = load(ring)
    assert capture.complete is False
    assert capture.damage
    outcome = run("info", ring)
    assert outcome.code == ExitCode.LOST
    assert "offset" in outcome.err


def test_a_later_recording_in_the_same_directory_comes_behind(ring: Path, tmp_path: Path) -> None:
    header = dataclasses.replace(HEADER, wall_ns=(HEADER.wall_ns or 0) + 60 * 10**9)
    recorder = Recorder(
        ring, header, OnStoreError.PASS, threading.Event(), rotation=Rotation(keep=50)
    )
    recorder.record(Open(recorder.now(), 1))
    for to_guest, raw in (
        (True, connect_line().raw), (False, ok_line(1).raw), (True, b"d"),
        (False, hello().encode()),
        (True, DISK.encode()), (False, DISK.reply().encode()),
    ):  # fmt: skip
        recorder.chunk(1, to_guest, raw)
    recorder.close()
    assert shown(ring) == [*EXPECTED, (3, 0, 0, ())]
    assert load(ring).complete


def test_a_follower_sees_parts_as_they_come(tmp_path: Path) -> None:
    recorded = Ring(tmp_path / "ring", 7)
    recorded.converse(1, 2)
    with RingReader(tmp_path / "ring") as reader:
        assert reader.live
        seen = [record for _, record in reader.grow()]
        for _ in range(8):
            recorded.put(
                Chunk(0, 1, True, DISK.encode()), Chunk(0, 1, False, DISK.reply().encode())
            )
            seen += [record for _, record in reader.grow()]
        recorded.store.close()
        while reader.live:
            seen += [record for _, record in reader.grow()]
        assert reader.complete
    assert len([r for r in seen if isinstance(r, Chunk) and len(r.data) == 1024]) == 1 + 2 * 10
    assert not [r for r in seen if isinstance(r, Gap)]


def test_what_is_no_ring(tmp_path: Path, ring: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotACapture, match="a directory without captures"):
        RingReader(tmp_path / "empty")
    assert run("show", tmp_path / "empty") == Outcome(
        ExitCode.UNREADABLE, "", f"upcall-trace: {tmp_path}/empty cannot be read as a capture: "
        "it is a directory without captures\n",
    )  # fmt: skip
    shutil.copy(__file__, ring / "z.upcap")
    assert "z.upcap in it" in run("show", ring).err
