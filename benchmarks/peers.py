"""The two ends of a relay benchmark, each in its own process: `python -m benchmarks.peers PATH`.

The server answers CONNECT lines; port 219 echoes 1 KiB messages, every other port swallows bytes
and says how many there were once the client has shut down its side.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

MESSAGE = bytes.fromhex("00014d441800000005000000000000000000 00e0").ljust(1024, b"\0")
BLOCK = 1 << 18


def connect(path: Path, port: int) -> socket.socket:
    """A stream to `port` behind the multiplexer at `path`."""
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(str(path))
    stream.sendall(b"CONNECT %d\n" % port)
    if not stream.recv(64).startswith(b"OK "):
        raise ConnectionError(f"no OK from {path}")
    return stream


def ping_pong(path: Path, count: int) -> list[int]:
    """Nanoseconds of each of `count` exchanges of 1 KiB."""
    times = []
    with connect(path, 219) as stream:
        stream.sendall(b"d")
        stream.recv(1)
        for _ in range(count):
            times.append(exchange(stream))
    return times


def exchange(stream: socket.socket) -> int:
    """Nanoseconds of one exchange of 1 KiB."""
    begun = time.perf_counter_ns()
    stream.sendall(MESSAGE)
    missing = len(MESSAGE)
    while missing:
        missing -= len(stream.recv(missing))
    return time.perf_counter_ns() - begun


def bulk(path: Path, size: int) -> float:
    """Bytes a second, one way, for `size` bytes to another port."""
    block = os.urandom(BLOCK)
    with connect(path, 5000) as stream:
        begun = time.perf_counter()
        for _ in range(size // BLOCK):
            stream.sendall(block)
        stream.shutdown(socket.SHUT_WR)
        counted = int(stream.makefile("rb").read())
        elapsed = time.perf_counter() - begun
    if counted != size:
        raise ConnectionError(f"{counted} of {size} bytes arrived")
    return size / elapsed


def _serve(stream: socket.socket) -> None:
    with stream:
        line = b""
        while not line.endswith(b"\n"):
            line += stream.recv(1)
        stream.sendall(b"OK 1\n")
        if line == b"CONNECT 219\n":
            while received := stream.recv(4096):
                stream.sendall(received)
            return
        buffer = bytearray(BLOCK)
        size = 0
        while count := stream.recv_into(buffer):
            size += count
        stream.sendall(b"%d" % size)


def serve(path: Path) -> None:
    """Accept for ever."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=_serve, args=(stream,), daemon=True).start()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
