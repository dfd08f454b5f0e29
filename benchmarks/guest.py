"""Requests a second of the simulated guest against a plain echo loop, each in its own process."""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from dissectors.constants import MESSAGE_SIZE, MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request

from .peers import connect
from .relays import start
from .rows import Row

ROUNDS = 25
EXCHANGES = 1_000
REQUESTS: dict[str, list[Request]] = {
    "no handler": [bare_request(MessageType.ADD_MEM)],
    "CPU": [cpu_request(MessageType.ADD_CPU, [1]), cpu_request(MessageType.DEL_CPU, [1])],
    "MMIO": [
        mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5),
        mmio_request(MessageType.DEL_MMIO, 0xE0006000, 0x2000, 5),
    ],
    "PCI": [pci_request(MessageType.ADD_PCI, 0, 4)],
}


def run() -> Iterator[Row]:
    """Rows of the table; the two take turns, so that the machine's mood meets both."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        echo, guest = directory / "echo", directory / "guest"
        start(stack, echo, sys.executable, "-m", "benchmarks.peers", str(echo))
        start(stack, guest, sys.executable, "-m", "upcall_trace", "guest", "--listen", str(guest))
        streams = {
            "echo": stack.enter_context(_service(echo, 1)),
            "guest": stack.enter_context(_service(guest, MESSAGE_SIZE)),
        }
        for kind, requests in REQUESTS.items():
            pieces = [request.encode() for request in requests]
            rounds = [[_rate(stream, pieces) for stream in streams.values()] for _ in range(ROUNDS)]
            echoed, answered = (statistics.median(rates) for rates in zip(*rounds, strict=True))
            ratio = statistics.median(ours / theirs for theirs, ours in rounds)
            yield Row(f"{kind}, an echo loop", echoed, "requests/s")
            yield Row(
                f"{kind}, the simulated guest", answered, "requests/s", ratio, "the echo loop"
            )


def _service(path: Path, greeting: int) -> socket.socket:
    """A stream to port 219 that has got the `greeting` bytes which answer its service byte."""
    stream = connect(path, 219)
    stream.sendall(b"d")
    _receive(stream, greeting)
    return stream


def _rate(stream: socket.socket, requests: list[bytes]) -> float:
    """Exchanges a second."""
    begun = time.perf_counter()
    for number in range(EXCHANGES):
        stream.sendall(requests[number % len(requests)])
        _receive(stream, MESSAGE_SIZE)
    return EXCHANGES / (time.perf_counter() - begun)


def _receive(stream: socket.socket, missing: int) -> None:
    while missing:
        missing -= len(stream.recv(missing))
