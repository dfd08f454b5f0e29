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

MESSAGES = 10_000_000
_STEPS = 4


def run() -> Iterator[str]:
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
            told = ", ".join(f"{memory:,} KiB" for memory in recorder.resident())
            yield f"after {(step + 1) * messages // _STEPS:,} messages: {told}"
        rate = messages / (time.perf_counter() - begun)
        begun = time.perf_counter()
        recorder.close()
        took = time.perf_counter() - begun
        size = path.stat().st_size
        yield f"{rate:,.0f} messages a second, {size / messages:.1f} bytes each, index included"
        yield f"its end took {took * 1000:.0f} ms; lost {recorder.account.lost} bytes"
        begun = time.perf_counter()
        capture = load(path)
        took = time.perf_counter() - begun
        yield f"opened in {took:.1f} s: {len(capture.operations):,} operations"
