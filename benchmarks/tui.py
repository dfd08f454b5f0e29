"""The terminal browser on a large capture and on one that grows, through a real terminal.

The program runs on a pseudo-terminal. A key's time is from its writing to the first bytes of the
screen that answers it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from upcall_trace.capture.records import Header
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.trace.opening import build_index
from upcall_trace.vantage.recorder import Recorder, live_header
from upcall_trace.vantage.store import OnStoreError

from .made_up import records
from .rows import Row

SIZE = (40, 120)
MANY = 1_000_000
ROUNDS = 9
RATE = 5000
FOLLOWED_S = 10.0
_SILENCE_S = 0.15
_PATIENCE_S = 180.0
_DOWN, _UP = b"\x1b[6~", b"\x1b[5~"
_KEYS = (("G", b"g", b"G"), ("g", b"G", b"g"), ("page down", b"", _DOWN), ("page up", b"", _UP),
         ("]", b"", b"]"))  # fmt: skip
"""Name, what is typed before each time, what is timed."""
_CURSOR = "▌".encode()
_COUNT = re.compile(rb"(\d+) operations")


class Terminal:
    """The browser on a pseudo-terminal, as a context manager."""

    def __init__(self, *arguments: str | Path, home: Path) -> None:
        self.begun = time.perf_counter()
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        homes = {"XDG_STATE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upcall_trace", "tui", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **homes},
            start_new_session=True,
        )
        os.close(theirs)
        self._ours = ours
        self.seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        os.close(self._ours)

    def type(self, keys: bytes) -> float:
        """Type something; seconds until the cursor is drawn anew."""
        self.settle()
        self.send(keys)
        return self.until(_CURSOR)

    def send(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._ours, keys)

    def until(self, text: bytes) -> float:
        """Seconds from now until the screen has shown `text`."""
        begun = time.perf_counter()
        while text not in self.seen:
            if not self.read(_PATIENCE_S):
                raise TimeoutError(f"{text!r} never came")
        self.seen = b""
        return time.perf_counter() - begun

    def settle(self) -> None:
        """Wait until nothing changes any more, or at most a second."""
        until = time.perf_counter() + 2 * _SILENCE_S
        while time.perf_counter() < until and self.read(_SILENCE_S):
            pass
        self.seen = b""

    def read_for(self, seconds: float) -> Iterator[tuple[float, bytes]]:
        """(when, what) the screen shows for some time."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            self.seen = b""
            if self.read(left):
                yield time.perf_counter(), self.seen

    def memory(self) -> float:
        """The most memory that the program has had, in megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0

    def read(self, seconds: float) -> bool:
        """Take what comes within some seconds; False for nothing."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        self.seen = (self.seen + os.read(self._ours, 1 << 16))[-1 << 17 :]
        return True


def run() -> Iterator[Row]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "many.upcap"
        with CaptureWriter(path, Header("bench")) as writer:
            for record in records(MANY):
                writer.write(record)
        build_index(path)
        yield from _browse(path, directory)
        yield from _follow(directory)


def _browse(path: Path, home: Path) -> Iterator[Row]:
    with Terminal(path, home=home) as terminal:
        began = terminal.until(b"\x1b[?1049h")
        first = terminal.until(b"add_cpu")
        yield Row("the screen is taken", began, "s", size=MANY)
        yield Row("the screen is filled", began + first, "s", size=MANY)
        for name, before, keys in _KEYS:
            yield from _key(f"{name}, while it is diagnosed", terminal, before, keys)
        _filter(terminal, b"op == add_mmio and ret < 0")
        terminal.send(b"\r")
        filtered = terminal.until(b"match op ==")
        yield Row("filter by operation and result", filtered, "s", size=MANY)
        _filter(terminal, b"")
        terminal.send(b"\r")
        diagnosed = _wait_for_diagnosis(terminal)
        yield Row("diagnosed after", diagnosed, "s", size=MANY)
        for name, before, keys in _KEYS:
            yield from _key(name, terminal, before, keys)
        yield Row("memory at most", terminal.memory(), "MiB", size=MANY)


def _filter(terminal: Terminal, expression: bytes) -> None:
    """Open the filter's line, empty it and type an expression."""
    terminal.send(b"/")
    terminal.until(b"filter:")
    terminal.send(b"\x15")
    terminal.settle()
    if expression:
        terminal.send(expression)
        terminal.until(b" match")


def _wait_for_diagnosis(terminal: Terminal) -> float:
    """The progress at the top goes away; seconds since the program began."""
    terminal.seen = b""
    quiet = 0
    while quiet < 3:
        quiet = 0 if terminal.read(1.0) else quiet + 1
    return time.perf_counter() - terminal.begun


def _key(name: str, terminal: Terminal, before: bytes, keys: bytes) -> Iterator[Row]:
    times = []
    for _ in range(ROUNDS):
        if before:
            terminal.send(before)
        times.append(terminal.type(keys) * 1000)
    yield Row(f"key {name}, p50", statistics.median(times), "ms", size=MANY)
    yield Row(f"key {name}, at most", max(times), "ms", size=MANY)


def _follow(home: Path) -> Iterator[Row]:
    """A recording of `RATE` operations a second, and how far behind the screen is."""
    path = home / "growing.upcap"
    written: list[tuple[float, int]] = []
    recorder = Recorder(path, live_header("bench", None, 219, {}), OnStoreError.STOP,
                        threading.Event())  # fmt: skip
    stop = threading.Event()

    def write() -> None:
        begun, count = time.perf_counter(), 0
        for record in records(10**9):
            recorder.record(record)
            if getattr(record, "to_guest", True):
                continue
            count += 1
            if count % 50 == 0:
                written.append((time.perf_counter(), count))
                ahead = begun + count / RATE - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)
                if stop.is_set():
                    return

    writer = threading.Thread(target=write)
    writer.start()
    lags: list[float] = []
    try:
        with Terminal(path, home=home) as terminal:
            terminal.until(b"add_cpu")
            for now, seen in terminal.read_for(FOLLOWED_S):
                for found in _COUNT.findall(seen)[-1:]:
                    behind = next((at for at, count in written if count > int(found)), now)
                    lags.append(max(now - behind, 0.0))
            memory = terminal.memory()
    finally:
        stop.set()
        writer.join()
        recorder.close()
    lags = lags[5:]
    what = f"following {RATE:,} operations a second"
    yield Row(f"{what}: behind, p50", statistics.median(lags), "s")
    yield Row(f"{what}: behind, at most", max(lags), "s")
    yield Row(f"{what}: memory at most", memory, "MiB")
