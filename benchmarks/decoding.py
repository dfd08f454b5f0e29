"""Decoding and pairing of messages, opening of a large capture, filtering by its columns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dissectors.constants import EEXIST, MessageType
from dissectors.hvsock import connect_line, ok_line
from dissectors.messages import Request, cpu_request, hello, mmio_request, pci_request
from upcall_trace.capture.records import Chunk, Header, Open, Record
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.trace.decoding import Session
from upcall_trace.trace.filters import parse
from upcall_trace.trace.opening import build_index, load

from .rows import Row

OPERATIONS = 100_000
MANY = 1_000_000
REPEATS = 5


def records(operations: int) -> Iterator[Record]:
    """A connection with `operations` operations of four kinds, one in four of them refused."""
    requests: list[Request] = [
        mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5),
        cpu_request(MessageType.ADD_CPU, [1, 2]),
        pci_request(MessageType.ADD_PCI, 0, 3),
        mmio_request(MessageType.DEL_MMIO, 0xE0006000, 0x2000, 5),
    ]
    pairs = [
        (request.encode(), request.reply(EEXIST if place == 0 else 0).encode())
        for place, request in enumerate(requests)
    ]
    yield from _connection(operations, lambda number: pairs[number % 4])


def successes(operations: int) -> Iterator[Record]:
    """The same, of devices that come and go; one request in a thousand is refused."""
    window = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
    requests: list[Request] = [
        window,
        pci_request(MessageType.ADD_PCI, 0, 3),
        mmio_request(MessageType.DEL_MMIO, 0xE0006000, 0x2000, 5),
        pci_request(MessageType.DEL_PCI, 0, 3),
    ]
    pairs = [(request.encode(), request.reply(0).encode()) for request in requests]
    refused = (window.encode(), window.reply(EEXIST).encode())
    yield from _connection(
        operations, lambda number: refused if number % 1000 == 0 else pairs[number % 4]
    )


def _connection(operations: int, pair: Callable[[int], tuple[bytes, bytes]]) -> Iterator[Record]:
    """One connection, and the bytes of each request and its reply."""
    yield Open(0, 1)
    yield Chunk(1, 1, True, connect_line().raw)
    yield Chunk(2, 1, False, ok_line(1).raw)
    yield Chunk(3, 1, True, b"d")
    yield Chunk(4, 1, False, hello().encode())
    for number in range(operations):
        request, reply = pair(number)
        yield Chunk(1000 * number + 10, 1, True, request)
        yield Chunk(1000 * number + 400, 1, False, reply)


def run() -> Iterator[Row]:
    """Rows of the table."""
    ready = list(records(OPERATIONS))

    def decode() -> None:
        session = Session(Header("bench"))
        feed = session.feed
        for record in ready:
            feed(record)

    yield Row("decode and pair records", 2 * OPERATIONS / _best(decode), "messages/s",
              size=OPERATIONS)  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "many.upcap"
        with CaptureWriter(path, Header("bench")) as writer:
            for record in records(MANY):
                writer.write(record)
        size = path.stat().st_size
        begun = time.perf_counter()
        load(path)
        decoded = time.perf_counter() - begun
        yield Row("opened without an index", 2 * MANY / decoded, "messages/s", size=MANY,
                  message_bytes=size / (2 * MANY))  # fmt: skip
        build_index(path)
        index = path.stat().st_size - size
        opened = _best(lambda: load(path)) * 1000
        yield Row("opened with its index", opened, "ms", size=MANY,
                  message_bytes=(size + index) / (2 * MANY))  # fmt: skip
        wanted = parse("op == add_mmio and ret < 0 and latency > 100ns")

        def open_and_filter() -> None:
            capture = load(path)
            if int(wanted.mask(capture.operations).sum()) != MANY // 4:
                raise ValueError("the filter is wrong")

        yield Row("opened and filtered", _best(open_and_filter) * 1000, "ms", size=MANY)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the median of a few runs."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]
