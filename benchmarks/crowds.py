"""Crowds: a thousand idle, a thousand asking at once, thousands leaving at once, many in turn."""

from __future__ import annotations

import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from .peers import MESSAGE, connect, ping_pong
from .relays import start
from .rows import Row

ASKING = 1_000
LEAVING = 8_000
IN_TURN = 50_000
ROUNDS = 5
EXCHANGES = 2_000


def run() -> Iterator[Row]:
    """Rows of the table."""
    _raise_limit()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        server = directory / "vmm"
        start(stack, server, sys.executable, "-m", "benchmarks.crowds", str(server))
        proxy = directory / "record"
        recorder = start(
            stack, proxy, sys.executable, "-m", "upcall_trace", "record", "--listen", str(proxy),
            "--upstream", str(server), "-o", str(directory / "bench.upcap"),
        )  # fmt: skip
        paths = {"direct": server, "record": proxy}
        yield from _idle(proxy)
        yield from _asking(paths)
        yield from _leaving(paths)
        yield from _in_turn(proxy, recorder)


def _idle(path: Path) -> Iterator[Row]:
    """Ping-pong alone, and beside a thousand that say nothing, in turns."""
    alone, beside = [], []
    for _ in range(ROUNDS):
        alone.append(_p50(ping_pong(path, EXCHANGES)))
        crowd = [connect(path, 219) for _ in range(ASKING)]
        beside.append(_p50(ping_pong(path, EXCHANGES)))
        for stream in crowd:
            stream.close()
    paired = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    yield Row("1 KiB ping-pong, alone, p50", statistics.median(alone), "us")
    yield Row(f"1 KiB ping-pong, beside {ASKING:,} idle connections, p50",
              statistics.median(beside), "us", paired, "alone")  # fmt: skip


def _asking(paths: dict[str, Path]) -> Iterator[Row]:
    took: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, path in paths.items():
            took[name].append(_ask_at_once(path))
    median = {name: statistics.median(times) for name, times in took.items()}
    paired = statistics.median(
        one / other for one, other in zip(took["record"], took["direct"], strict=True)
    )
    what = f"{ASKING:,} connections asking at once"
    yield Row(f"{what}, direct", median["direct"] * 1000, "ms")
    yield Row(f"{what}, record", median["record"] * 1000, "ms", paired, "direct")


def _ask_at_once(path: Path) -> float:
    """Seconds until all of them have their answer."""
    crowd = []
    for _ in range(ASKING):
        stream = connect(path, 219)
        stream.sendall(b"d")
        stream.recv(1)
        crowd.append(stream)
    poll = select.epoll()
    missing = {}
    for stream in crowd:
        poll.register(stream, select.EPOLLIN)
        missing[stream.fileno()] = (stream, len(MESSAGE))
    begun = time.perf_counter()
    for stream in crowd:
        stream.sendall(MESSAGE)
    while missing:
        for descriptor, _ in poll.poll(10):
            stream, size = missing[descriptor]
            size -= len(stream.recv(size))
            if size:
                missing[descriptor] = (stream, size)
            else:
                poll.unregister(descriptor)
                del missing[descriptor]
    took = time.perf_counter() - begun
    poll.close()
    for stream in crowd:
        stream.close()
    return took


def _leaving(paths: dict[str, Path]) -> Iterator[Row]:
    for name, path in paths.items():
        served = []
        for _ in range(3):
            crowd = [connect(path, 219) for _ in range(LEAVING)]
            for stream in crowd:
                stream.close()
            begun = time.perf_counter()
            with connect(path, 219) as fresh:
                fresh.sendall(b"d")
                fresh.recv(1)
            served.append((time.perf_counter() - begun) * 1000)
        yield Row(f"a fresh client after {LEAVING:,} left at once, {name}", _median(served), "ms")


def _in_turn(path: Path, recorder: subprocess.Popen[bytes]) -> Iterator[Row]:
    process = Path(f"/proc/{recorder.pid}")
    for times in ("once", "twice"):
        for _ in range(IN_TURN):
            connect(path, 219).close()
        time.sleep(0.5)
        resident = int((process / "statm").read_text().split()[1]) * 4
        what = f"after {IN_TURN:,} connections in turn, {times}"
        yield Row(f"{what}: open files", len(list((process / "fd").iterdir())), "descriptors")
        yield Row(f"{what}: memory", resident / 1024, "MiB")


def _p50(times: list[int]) -> float:
    return sorted(times)[len(times) // 2] / 1000


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, 65_536), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(hard, limit)))
        except (OSError, ValueError):
            continue
        return


def serve(path: Path, hello: bytes = b"d") -> None:
    """A VMM without threads: it answers lines and the service byte, and echoes everything else."""
    _raise_limit()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(4096)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    streams: dict[int, socket.socket] = {}
    greeted: set[int] = set()
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                stream, _ = listener.accept()
                streams[stream.fileno()] = stream
                poll.register(stream, select.EPOLLIN)
                continue
            stream = streams[descriptor]
            try:
                received = stream.recv(4096)
                if received and descriptor not in greeted:
                    greeted.add(descriptor)
                    received = b"OK 1\n" + received.partition(b"\n")[2]
                elif received == b"d":
                    received = hello
                if received:
                    stream.sendall(received)
                    continue
            except OSError:
                pass
            poll.unregister(descriptor)
            greeted.discard(descriptor)
            del streams[descriptor]
            stream.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
    os._exit(0)
