"""A recording that gets long: memory while it grows, and how soon it ends."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dissectors.constants import MessageType
from dissectors.hvsock import connect_line, ok_line
from dissectors.messages import hello, mmio_request
from upcall_trace.capture.records import Open
from upcall_trace.trace.opening import load
from upcall_trace.vantage.apart import ApartRecorder
from upcall_trace.vantage.recorder import live_header
from upcall_trace.vantage.store import OnStoreError

from .rows import Row

MESSAGES = 10_000_000
_STEPS = 4


def run() -> Iterator[Row]:
    """Rows of the table; UPCALL_TRACE_MESSAGES in the environment makes it shorter."""
    messages = int(os.environ.get("UPCALL_TRACE_MESSAGES", MESSAGES))
    request = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
    asked, answered = request.encode(), request.reply().encode()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "long.upcap"
        recorder = ApartRecorder(
            path, live_header("bench", "x86_64"), OnStoreError.PASS, threading.Event()
        )
        recorder.record(Open(recorder.now(), 1))
        for to_guest, raw in (
            (True, connect_line().raw), (False, ok_line(1).raw), (True, b"d"),
            (False, hello().encode()),
        ):  # fmt: skip
            recorder.chunk(1, to_guest, raw)
        begun = time.perf_counter()
        for step in range(_STEPS):
            for _ in range(messages // _STEPS // 2):
                recorder.chunk(1, True, asked)
                recorder.chunk(1, False, answered)
                recorder.settle()
                while recorder.is_behind:  # no faster than it can be written
                    time.sleep(0.002)
            done = (step + 1) * messages // _STEPS
            resident = sum(recorder.resident()) / 1024
            yield Row(f"memory after {done:,} messages", resident, "MiB", size=done // 2)
        rate = messages / (time.perf_counter() - begun)
        begun = time.perf_counter()
        recorder.close()
        took = time.perf_counter() - begun
        size = path.stat().st_size
        operations = messages // 2
        yield Row("recorded, index included", rate, "messages/s", size=operations,
                  message_bytes=size / messages)  # fmt: skip
        yield Row("its end", took * 1000, "ms", size=operations)
        yield Row("lost", recorder.account.lost, "bytes", size=operations)
        begun = time.perf_counter()
        capture = load(path)
        took = time.perf_counter() - begun
        yield Row("opened", took, "s", size=len(capture.operations))
