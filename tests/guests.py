"""Simulated guests to test with: as a process, and plain streams to any of them."""

from __future__ import annotations

import resource
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dissectors.constants import MESSAGE_SIZE
from dissectors.messages import Reply, Request, decode_reply, hello
from tests.support import command

HELLO = hello().encode()


class GuestProcess:
    """`upcall-trace guest` in its own process, listening at `path`."""

    def __init__(self, path: Path, *options: str | Path) -> None:
        self.path = path
        arguments = command("guest", "--listen", path, *options)
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if line.startswith("listening on "):
                return
        raise AssertionError(f"it ended with {self.process.wait(10)}: {self.said}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after this signal; what it said is in `said`."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=20)
        self.said += said.splitlines()
        return self.process.returncode

    def kill(self) -> None:
        """End it the hard way, if it still runs."""
        with self.process:
            self.process.kill()

    @property
    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def resident_kib(self) -> int:
        return self._status("VmRSS")

    def limit_descriptors(self, count: int) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (count, count))

    def _status(self, key: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        (line,) = (line for line in text.splitlines() if line.startswith(f"{key}:"))
        return int(line.split()[1])


@contextmanager
def guest_process(directory: Path, *options: str | Path) -> Iterator[GuestProcess]:
    """A guest that listens at `directory / "guest"`."""
    guest = GuestProcess(directory / "guest", *options)
    try:
        yield guest
    finally:
        guest.kill()


def dial(path: Path, line: bytes = b"") -> socket.socket:
    """A stream with a time limit, to the socket at `path`, that has sent `line`."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(15)
    stream.connect(str(path))
    if line:
        stream.sendall(line)
    return stream


def connected(path: Path) -> socket.socket:
    """A stream with the CONNECT message behind it."""
    stream = dial(path, b"CONNECT 219\n")
    assert receive_line(stream).startswith(b"OK ")
    stream.sendall(b"d")
    assert receive(stream, MESSAGE_SIZE) == HELLO
    return stream


def receive_line(stream: socket.socket) -> bytes:
    """Up to the newline, or to the end."""
    line = b""
    while not line.endswith(b"\n") and (received := stream.recv(1)):
        line += received
    return line


def receive(stream: socket.socket, size: int) -> bytes:
    """`size` bytes, fewer when the guest closed first."""
    received = b""
    while len(received) < size and (piece := stream.recv(size - len(received))):
        received += piece
    return received


def ask(stream: socket.socket, request: Request) -> Reply:
    """A request and its reply."""
    stream.sendall(request.encode())
    return decode_reply(receive(stream, MESSAGE_SIZE))


def says_nothing(stream: socket.socket, seconds: float = 0.1) -> bool:
    """True when neither bytes nor an end came in this time."""
    return not select.select([stream], [], [], seconds)[0]


def wait_until(true: object, seconds: float = 60) -> None:
    """Until the function `true` says so; fails when it does not in time."""
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
