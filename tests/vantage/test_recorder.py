"""The recorder: what is remembered reaches the file, and what cannot is counted."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.hvsock import connect_line, ok_line
from dissectors.messages import hello, mmio_request
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk, Gap, Header, Open
from upcall_trace.errors import WrongUsage
from upcall_trace.trace.opening import load
from upcall_trace.vantage.recorder import Recorder
from upcall_trace.vantage.store import OnStoreError

ADD = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
HEADER = Header(source="proxy")


def recorder(path: Path, policy: OnStoreError = OnStoreError.STOP) -> Recorder:
    return Recorder(path, HEADER, policy, threading.Event())


def until(happened: Callable[[], bool]) -> None:
    """Wait for the recorder's thread; the test's own limit of time ends it."""
    while not happened():
        time.sleep(0.005)


def shook_hands(path: Path) -> bool:
    """Whether all of the first connection's handshake is in the file."""
    return any(connection.hello for connection in load(path).connections)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond `size` fail from now on, as on a full disk: with EFBIG instead of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = compiles
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def shake_hands(to: Recorder, conn: int = 1) -> None:
    to.record(Open(to.now(), conn))
    to.chunk(conn, True, connect_line().raw)
    to.chunk(conn, False, ok_line(1).raw)
    to.chunk(conn, True, b"d")
    to.chunk(conn, False, hello().encode())


def exchange(to: Recorder, conn: int = 1) -> None:
    to.chunk(conn, True, ADD.encode())
    to.chunk(conn, False, ADD.reply().encode())


def test_what_is_remembered_is_in_the_file_a_moment_later_without_a_close(tmp_path: Path) -> None:
    ours = recorder(tmp_path / "c")
    shake_hands(ours)
    exchange(ours)
    until(lambda: len(load(tmp_path / "c").operations) == 1)
    until(lambda: load(tmp_path / "c").operations.operation(0).ret == 0)
    with CaptureReader(tmp_path / "c") as reader:
        assert reader.live
        assert len([r for r in reader if isinstance(r, Chunk)]) == 6
        assert not reader.complete
        assert reader.damage == []
    ours.close()
    assert load(tmp_path / "c").complete


def test_a_clock_that_is_set_moves_no_time_of_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a year ahead and back again; what the file says of its beginning stays true, too."""
    wall_ns = [1_700_000_000 * 10**9]
    monkeypatch.setattr("time.time_ns", lambda: wall_ns[0])
    header = Header(source="proxy", wall_ns=0)
    ours = Recorder(tmp_path / "c", header, OnStoreError.STOP, threading.Event())
    shake_hands(ours)
    for jump_s in (31_536_000, -63_072_000, 0):
        wall_ns[0] += jump_s * 10**9
        exchange(ours)
    ours.close()
    capture = load(tmp_path / "c")
    assert capture.header.wall_ns == 1_700_000_000 * 10**9
    times = [operation.t_ns for operation in capture.operations]
    assert len(times) == 3
    assert sorted(times) == times
    assert 0 <= times[0] <= times[-1] < 3600 * 10**9
    assert all((operation.latency_ns or 0) >= 0 for operation in capture.operations)


def test_many_threads_lose_nothing_and_keep_their_order(tmp_path: Path) -> None:
    ours = recorder(tmp_path / "c")

    def work(conn: int) -> None:
        shake_hands(ours, conn)
        for _ in range(200):
            exchange(ours, conn)
            ours.settle()

    threads = [threading.Thread(target=work, args=(conn,)) for conn in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours.close()
    capture = load(tmp_path / "c")
    assert len(capture.operations) == 8 * 200
    assert not any(operation.failed or operation.anomalies for operation in capture.operations)


def test_a_full_disk_ends_the_recording(tmp_path: Path) -> None:
    stop = threading.Event()
    ours = Recorder(tmp_path / "c", HEADER, OnStoreError.STOP, stop)
    shake_hands(ours)
    until(lambda: shook_hands(tmp_path / "c"))
    with file_size_limit((tmp_path / "c").stat().st_size + 30):
        exchange(ours)
        assert stop.wait(60)
    ours.close()
    assert ours.failure
    assert ours.unwritten == 2048
    capture = load(tmp_path / "c")
    assert capture.damage == []
    assert not capture.complete
    assert capture.connections[0].hello


def test_the_records_that_fitted_before_the_disk_was_full_are_kept(tmp_path: Path) -> None:
    stop = threading.Event()
    ours = Recorder(tmp_path / "c", HEADER, OnStoreError.STOP, stop)
    with file_size_limit(1000):
        shake_hands(ours)
        for _ in range(100):
            exchange(ours)
        assert stop.wait(60)
        ours.close()
    capture = load(tmp_path / "c")
    assert capture.damage == []
    payload = capture.connections[0].payload
    assert payload + ours.unwritten == 100 * 2048 + 1 + 1024
    assert (tmp_path / "c").stat().st_size > 900


def test_a_full_disk_lets_traffic_pass_and_marks_the_gap(tmp_path: Path) -> None:
    ours = recorder(tmp_path / "c", OnStoreError.PASS)
    handshake = len(connect_line().raw + ok_line(1).raw + b"d") + 1024
    shake_hands(ours)
    exchange(ours)
    until(lambda: [op.ret for op in load(tmp_path / "c").operations] == [0])
    with file_size_limit((tmp_path / "c").stat().st_size + 30):
        for number in range(5):
            exchange(ours)
            lost = 2048 * (number + 1)
            until(lambda lost=lost: ours.account.lost == lost)  # type: ignore[misc]
        shake_hands(ours, conn=2)
        until(lambda: ours.account.lost == 5 * 2048 + handshake)
    exchange(ours)
    exchange(ours, conn=2)
    ours.close()
    capture = load(tmp_path / "c")
    assert capture.complete
    assert capture.damage == []
    assert capture.lost_bytes == 5 * 2048 + handshake
    # Requests keep their numbers across the gap, and replies their requests.
    told = [(op.conn, op.request, op.ret) for op in capture.operations]
    assert told == [(1, 0, 0), (1, 6, 0), (2, 0, 0)]
    with CaptureReader(tmp_path / "c") as reader:
        gaps = [record for record in reader if isinstance(record, Gap)]
    assert {(gap.conn, gap.to_guest) for gap in gaps} == {(c, d) for c in (1, 2) for d in (0, 1)}
    assert all("File too large" in gap.reason for gap in gaps)


def test_a_disk_that_stays_full_leaves_a_readable_capture(tmp_path: Path) -> None:
    ours = recorder(tmp_path / "c", OnStoreError.PASS)
    shake_hands(ours)
    until(lambda: shook_hands(tmp_path / "c"))
    with file_size_limit((tmp_path / "c").stat().st_size + 7):
        exchange(ours)
        ours.close()
    assert ours.unwritten == 2048
    capture = load(tmp_path / "c")
    assert not capture.complete
    assert capture.damage == []


def test_a_disk_that_is_too_slow_costs_records_not_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upcall_trace.vantage.recorder.BACKLOG_LIMIT", 4096)
    monkeypatch.setattr("upcall_trace.vantage.recorder.STOP_S", 60.0)
    writing = threading.Event()
    real_write = os.pwrite

    def slow_write(descriptor: int, data: bytes, offset: int) -> int:
        writing.wait()
        return real_write(descriptor, data, offset)

    monkeypatch.setattr("upcall_trace.vantage.capture_file.os.pwrite", slow_write)
    writing.set()
    ours = recorder(tmp_path / "c", OnStoreError.PASS)
    writing.clear()
    shake_hands(ours)
    for _ in range(500):
        exchange(ours)
        ours.settle()
    writing.set()
    ours.close()
    capture = load(tmp_path / "c")
    assert capture.complete
    assert ours.unwritten == 0
    assert capture.lost_bytes > 0
    assert capture.connections[0].payload + capture.lost_bytes == 500 * 2048 + 1 + 1024
    assert not any(operation.anomalies for operation in capture.operations)


def test_an_existing_capture_is_not_replaced_unless_told(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"precious")
    with pytest.raises(WrongUsage, match="--overwrite"):
        recorder(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"precious"
    Recorder(tmp_path / "c", HEADER, OnStoreError.STOP, threading.Event(), overwrite=True).close()
    assert load(tmp_path / "c").complete


def test_two_recorders_never_share_a_file(tmp_path: Path) -> None:
    ours = recorder(tmp_path / "c")
    with pytest.raises(WrongUsage, match="another process"):
        Recorder(tmp_path / "c", HEADER, OnStoreError.STOP, threading.Event(), overwrite=True)
    ours.close()


def test_a_capture_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    recorder(tmp_path / "c").close()
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="cannot be written"):
        recorder(tmp_path / "none" / "c")
