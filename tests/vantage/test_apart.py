"""The recorder whose store is a process of its own, where that process dies at a bad moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.guests import wait_until
from tests.support import records_of
from upcall_trace.capture.records import Chunk, Open
from upcall_trace.vantage.apart import ApartRecorder
from upcall_trace.vantage.capture_file import Item
from upcall_trace.vantage.recorder import live_header
from upcall_trace.vantage.store import CaptureStore, OnStoreError


def test_what_is_handed_over_while_the_other_process_dies_is_written_by_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after it got the bytes into its pipe, and before they are noted as sent."""
    path = tmp_path / "c.upcap"
    recorder = ApartRecorder(path, live_header("test", None), OnStoreError.PASS, threading.Event())
    recorder.record(Open(recorder.now(), 1))
    recorder.flush()
    here, looked = threading.get_ident(), threading.Event()
    real_write, real_look = os.write, recorder._not_taken

    def look() -> bytes:
        waiting = real_look()
        looked.set()
        return waiting

    def write(descriptor: int, data: bytes) -> int:
        if descriptor != recorder._pipe or threading.get_ident() != here:
            return real_write(descriptor, data)
        os.kill(recorder._pid, signal.SIGSTOP)  # it takes no more
        written = real_write(descriptor, data)
        os.kill(recorder._pid, signal.SIGKILL)
        looked.wait(0.5)  # as long as it might take who goes on alone to look too early
        return written

    monkeypatch.setattr(recorder, "_not_taken", look)
    monkeypatch.setattr(os, "write", write)
    request = mmio_request(MessageType.ADD_MMIO, 0x1000, 0x1000, 5)
    recorder.chunk(1, True, request.encode())
    recorder.flush()
    monkeypatch.setattr(os, "write", real_write)
    assert looked.wait(20)
    recorder.close()
    _, records = records_of(tmp_path / "c.1.upcap")
    assert [record.data for record in records if isinstance(record, Chunk)] == [request.encode()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask for priority")
def test_a_process_that_is_late_is_let_run_before_others(tmp_path: Path) -> None:
    """It yields to everybody else; whoever moves bytes notices when it comes to nothing so."""
    recorder = ApartRecorder(
        tmp_path / "c.upcap", live_header("test", None), OnStoreError.PASS, threading.Event()
    )
    wait_until(lambda: os.sched_getscheduler(recorder._pid) == os.SCHED_IDLE)
    os.kill(recorder._pid, signal.SIGSTOP)  # as if everybody else wanted the processors
    recorder.record(Open(recorder.now(), 1))
    assert recorder.flush()
    wait_until(lambda: recorder.flush() and os.sched_getscheduler(recorder._pid) == os.SCHED_OTHER)
    os.kill(recorder._pid, signal.SIGCONT)
    wait_until(lambda: not recorder.flush())
    recorder.close()


def test_why_the_other_process_failed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    here, put = os.getpid(), CaptureStore.put

    def fails_there(store: CaptureStore, items: Iterable[Item]) -> None:
        if os.getpid() != here:
            raise ValueError("a fault of ours")
        put(store, items)

    monkeypatch.setattr(CaptureStore, "put", fails_there)
    recorder = ApartRecorder(
        tmp_path / "c.upcap", live_header("test", None), OnStoreError.PASS, threading.Event(),
        tell=told.append,
    )  # fmt: skip
    wait_until(lambda: "the process that writes failed: ValueError: a fault of ours" in told)
    recorder.close()


def test_nothing_waits_for_a_process_that_died(tmp_path: Path) -> None:
    recorder = ApartRecorder(
        tmp_path / "c.upcap", live_header("test", None), OnStoreError.PASS, threading.Event()
    )
    os.kill(recorder._pid, signal.SIGKILL)
    recorder.record(Open(recorder.now(), 1))
    wait_until(lambda: not recorder.flush())
    recorder.close()
