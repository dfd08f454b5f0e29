"""A disk that does not answer for a while: what the replies wait, and whether the loss adds up."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk, Gap

from .peers import MESSAGE, connect, exchange
from .relays import start
from .rows import Row, Skip

HANGS_S = 25
BEFORE_S, AFTER_S = 3, 4
_LOST = re.compile(rb"(\d+) bytes of traffic were not recorded")


def run() -> Iterator[Row]:
    """Rows of the table; UPCALL_TRACE_HANG_S in the environment makes it shorter."""
    if shutil.which("strace") is None:
        raise Skip("strace is not installed; apt-get install strace")
    hangs_s = float(os.environ.get("UPCALL_TRACE_HANG_S", HANGS_S))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        server, proxy, path = directory / "vmm", directory / "record", directory / "c.upcap"
        start(stack, server, sys.executable, "-m", "benchmarks.peers", str(server))
        said = stack.enter_context((directory / "said").open("wb+"))
        recorder = start(
            stack, proxy, sys.executable, "-m", "upcall_trace", "record", "--listen", str(proxy),
            "--upstream", str(server), "-o", str(path), said=said,
        )  # fmt: skip
        with connect(proxy, 219) as stream:
            stream.sendall(b"d")
            stream.recv(1)
            before = _ask_for(stream, BEFORE_S)
            strace = _hang(_writer_of(recorder.pid), hangs_s)
            during = _ask_for(stream, hangs_s)
            strace.terminate()
            strace.wait()
            after = _ask_for(stream, AFTER_S)
        recorder.terminate()
        code = recorder.wait()
        recorded, gaps = _held(path)
        said.seek(0)
        told = _LOST.findall(said.read())
    for what, times, seconds in (
        ("before", before, BEFORE_S), (f"while it hangs for {hangs_s:g} s", during, hangs_s),
        ("after", after, AFTER_S),
    ):  # fmt: skip
        yield Row(f"asked {what}", len(times) / seconds, "requests/s")
        yield Row(f"reply {what}, p99", times[len(times) * 99 // 100] / 1e6, "ms")
        yield Row(f"reply {what}, worst", times[-1] / 1e6, "ms")
    crossed = sum(map(len, (before, during, after))) * 2 * len(MESSAGE)
    crossed += len(b"CONNECT 219\nOK 1\ndd")
    lost = int(told[-1]) if told else 0
    yield Row("crossed", crossed / 1e6, "MB")
    yield Row("told to be lost", lost / 1e6, "MB")
    yield Row("lost and in no gap of the capture", lost - gaps, "bytes")
    yield Row("neither recorded nor told", crossed - recorded - lost, "bytes")
    yield Row("exit code", code, "")


def _held(path: Path) -> tuple[int, int]:
    """Bytes of traffic, and bytes in gaps, of a capture."""
    recorded = gaps = 0
    with CaptureReader(path) as reader:
        for record in reader:
            if isinstance(record, Chunk):
                recorded += len(record.data)
            elif isinstance(record, Gap) and record.conn:
                gaps += record.size
    return recorded, gaps


def _ask_for(stream: socket.socket, seconds: float) -> list[int]:
    """Nanoseconds of each exchange, sorted."""
    until = time.perf_counter() + seconds
    times = []
    while time.perf_counter() < until:
        times.append(exchange(stream))
    return sorted(times)


def _writer_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])


def _hang(pid: int, seconds: float) -> subprocess.Popen[bytes]:
    """Let the next write of the process that writes take so long; the other is not touched."""
    inject = f"inject=pwrite64:delay_enter={int(seconds * 1e6)}:when=1"
    strace = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", "-p", str(pid), "-e", "trace=pwrite64", "-e", inject],
        stderr=subprocess.DEVNULL,
    )
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.001)
    return strace
