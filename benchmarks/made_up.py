"""Recordings that nobody made: as many operations as wanted, on one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dissectors.constants import EEXIST, MessageType
from dissectors.hvsock import connect_line, ok_line
from dissectors.messages import Request, cpu_request, hello, mmio_request, pci_request
from upcall_trace.capture.records import Chunk, Open, Record


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
