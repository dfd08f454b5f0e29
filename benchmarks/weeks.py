"""Weeks made short: connections, rotations, restarts and sandboxes by the thousand, and a follower.

One recorder writes a ring while a follower shows it and its VMM starts again now and then. Another
takes the place of sockets that come and go. What is left behind is counted, and whether all that
was asked can be read.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from dissectors.messages import hello
from upcall_trace.trace.opening import load

from .crowds import serve
from .peers import connect, exchange
from .relays import start
from .rows import Row

CONNECTIONS = 100_000
EXCHANGES = (2, 3)
"""Of one connection, and of the next: five messages each."""
CHUNKS = 4 + sum(EXCHANGES)
ROTATIONS = 200
RESTARTS = 3
SANDBOXES = 300
AT_ONCE = 10
CLIENTS = 2
HELLO = hello().encode()


def run() -> Iterator[Row]:
    """Rows of the table; UPCALL_TRACE_CONNECTIONS=1000000 in the environment is the full size."""
    connections = int(os.environ.get("UPCALL_TRACE_CONNECTIONS", CONNECTIONS))
    with tempfile.TemporaryDirectory() as name:
        yield from _ring(Path(name), connections)
    with tempfile.TemporaryDirectory() as name:
        yield from _sandboxes(Path(name))


def _ring(directory: Path, connections: int) -> Iterator[Row]:
    server, proxy, ring = directory / "vmm", directory / "record", directory / "ring"
    chunks = connections * CHUNKS // ROTATIONS
    with ExitStack() as stack:
        vmm = _Vmm(server)
        stack.callback(vmm.stop)
        recorder = start(
            stack, proxy, sys.executable, "-m", "upcall_trace", "record", "--listen", str(proxy),
            "--upstream", str(server), "-o", str(ring), "--rotate-count", str(chunks),
        )  # fmt: skip
        shown = stack.enter_context((directory / "shown").open("wb"))
        follower = subprocess.Popen(
            [sys.executable, "-m", "upcall_trace", "show", "--follow", "--json", str(ring)],
            stdout=shown,
        )
        stack.callback(follower.kill)
        cut_off = 0
        for part in range(RESTARTS + 1):
            _converse_all(proxy, connections // (RESTARTS + 1))
            done = connections * (part + 1) // (RESTARTS + 1)
            yield from _left(f"after {done:,} connections", recorder.pid)
            if part < RESTARTS:
                with connect(proxy, 219) as waiting:
                    vmm.stop()
                    cut_off += waiting.recv(1) == b""
                    vmm = _Vmm(server)
        begun = time.perf_counter()
        recorder.terminate()
        code = recorder.wait()
        ended = time.perf_counter() - begun
        followed = follower.wait()
    files = sorted(ring.iterdir())
    size = sum(path.stat().st_size for path in files)
    yield Row("its end", ended * 1000, "ms")
    yield Row("its exit code, and the follower's", code + followed, "")
    yield Row("files of the ring", len(files), "files", message_bytes=size / connections / CHUNKS)
    capture = load(ring)
    asked = connections // 2 * sum(EXCHANGES)
    yield Row("asked, and not in the ring", asked - len(capture.operations), "operations",
              size=asked)  # fmt: skip
    yield Row("lost", capture.lost_bytes, "bytes")
    yield Row("the ring reads as one complete capture", capture.complete is True, "")
    with (directory / "shown").open("rb") as lines:
        yield Row("asked, and not shown by the follower", asked - sum(1 for _ in lines),
                  "operations", size=asked)  # fmt: skip
    yield Row("restarts of the VMM that cut a client off", cut_off, f"of {RESTARTS}")


def _sandboxes(directory: Path) -> Iterator[Row]:
    captures = directory / "captures"
    recorder = subprocess.Popen(
        [sys.executable, "-m", "upcall_trace", "record", "--in-place", "--watch",
         f"{directory}/*/vmm", "-o", str(captures)],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for begin in range(0, SANDBOXES, AT_ONCE):
        there = [directory / f"{number:032x}" for number in range(begin + 1, begin + AT_ONCE + 1)]
        for sandbox in there:
            sandbox.mkdir()
        vmms = [_Vmm(sandbox / "vmm") for sandbox in there]
        for sandbox in there:
            _wait_for((sandbox / "vmm.vmm").exists)
            _converse(sandbox / "vmm", 2)
        for sandbox, vmm in zip(there, vmms, strict=True):
            vmm.stop()
            shutil.rmtree(sandbox)
        if begin in (0, SANDBOXES - AT_ONCE):
            yield from _left(f"after {begin + AT_ONCE} sandboxes", recorder.pid)
    recorder.send_signal(signal.SIGTERM)
    code = recorder.wait()
    found = [load(path) for path in captures.iterdir()]
    whole = sum(
        len(each.operations) == sum(EXCHANGES) and each.complete is True and not each.gaps
        for each in found
    )
    yield Row("sandboxes with a whole capture", whole, f"of {SANDBOXES}")
    yield Row("exit code", code, "")


class _Vmm:
    """A VMM in a process of its own, listening."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._process = multiprocessing.get_context("fork").Process(
            target=serve, args=(path, HELLO), daemon=True
        )
        self._process.start()
        _wait_for(lambda: path.exists() and _is_listening(path))

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as stream:
        return stream.connect_ex(str(path)) == 0


def _wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError("the recorder or a VMM did not come so far in 30 s")
        time.sleep(0.005)


def _converse_all(path: Path, connections: int) -> None:
    context = multiprocessing.get_context("fork")
    share = connections // CLIENTS
    clients = [context.Process(target=_converse, args=(path, share)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
        if client.exitcode != 0:
            raise ConnectionError("a client was not answered")


def _converse(path: Path, connections: int) -> None:
    for number in range(connections):
        with connect(path, 219) as stream:
            stream.sendall(b"d")
            missing = len(HELLO)
            while missing:
                missing -= len(stream.recv(missing))
            for _ in range(EXCHANGES[number % 2]):
                exchange(stream)


def _left(when: str, pid: int) -> Iterator[Row]:
    """Descriptors and memory of the recorder and of the processes that it has."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    descriptors = pages = 0
    for each in (str(pid), *children):
        process = Path(f"/proc/{each}")
        descriptors += len(list((process / "fd").iterdir()))
        pages += int((process / "statm").read_text().split()[1])
    yield Row(f"open {when}", descriptors, "descriptors")
    yield Row(f"resident {when}", pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), "MiB")
