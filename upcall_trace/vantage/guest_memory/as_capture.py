"""What was found in memory as the records of a capture: what is in order, and gaps for the rest.

Pure. Memory has no times: the order is all that a capture made of it has, and its header says so.
Every operation whose place or pairing was inferred carries a comment that says it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dissectors.constants import MESSAGE_SIZE, UPCALL_PORT
from dissectors.services import DEVICE_MANAGER

from ...capture.records import COMMENT, THREAD_DIED, Begins, Chunk, Gap, Mark, Open, Record
from .conversations import Assembled, Exchange, ObjectState, Sighting, Talk

SOURCE: Final = "guest-memory"
NOT_THERE: Final = "not in the guest's memory any more"
_LARGEST_GAP: Final = 1 << 25
"""Bytes of one gap at most: the requests in it are counted one by one when it is read."""


def as_records(assembled: Assembled, wall_ns: int, port: int = UPCALL_PORT) -> Iterator[Record]:
    """Every connection whose messages could be put in order, objects first."""
    for conn, conversation in enumerate(assembled.conversations, 1):
        yield from _conversation(conn, conversation, wall_ns, port)
    for conn, talk in enumerate(assembled.strangers, len(assembled.conversations) + 1):
        yield from _stranger(conn, talk, wall_ns, port)


def _conversation(conn: int, told: Sighting, wall_ns: int, port: int) -> Iterator[Record]:
    held, number = told.held, told.number
    about = f"{held.address:#x}, {told.state}: {'; '.join(told.why)}"
    if number is None and told.asked:
        yield Open(0, conn, Begins.MIDDLE, port, True)
        yield Mark(wall_ns, conn, None, COMMENT, f"{about}; what was before is not known")
        request = 0
        if told.unanswered:
            yield Gap(0, conn, True, MESSAGE_SIZE, NOT_THERE)
            yield Chunk(0, conn, False, held.reply)
            request = 1
    else:
        yield from _begin(conn, port, hello=held.reply if not told.asked else None)
        yield Mark(wall_ns, conn, None, COMMENT, about)
        if number is None:
            return
        before = told.talk.exchanges if told.talk else {}
        exchanges = [before.get(k, Exchange(k)) for k in range(number)]
        if told.unanswered and exchanges and exchanges[-1].reply is None:
            last = exchanges[-1]
            exchanges[-1] = Exchange(last.number, last.request, held.reply, last.request_at)
        yield from _exchanges(conn, exchanges, number, wall_ns)
        request = number
    yield Chunk(0, conn, True, held.request)
    if told.state is ObjectState.DEAD:
        yield Mark(wall_ns, conn, request, THREAD_DIED, "the guest's thread is gone")
    if told.unanswered is None:
        text = "answered or not cannot be told: its reply may be of an earlier request of its type"
        yield Mark(wall_ns, conn, request, COMMENT, text)
    if not told.unanswered:
        yield Chunk(0, conn, False, held.reply)


def _stranger(conn: int, talk: Talk, wall_ns: int, port: int) -> Iterator[Record]:
    placed = talk.in_order()
    if not placed:
        return
    yield from _begin(conn, port, hello=None)
    about = f"known by its packets alone, with port {talk.peer_port} on the host's side"
    if talk.conflicting:
        about += "; the port was used more than once, so that packets may be mixed up"
    yield Mark(wall_ns, conn, None, COMMENT, about)
    last = placed[-1].number or 0
    every = [talk.exchanges.get(k, Exchange(k)) for k in range(last + 1)]
    yield from _exchanges(conn, every, last + 1, wall_ns)


def _begin(conn: int, port: int, hello: bytes | None) -> Iterator[Record]:
    """That the service was asked for, and was ready, is certain: else there would be no object."""
    yield Open(0, conn, Begins.SERVICE, port, True)
    yield Chunk(0, conn, True, bytes([DEVICE_MANAGER.byte]))
    if hello is not None:
        yield Chunk(0, conn, False, hello)
    else:
        yield Gap(0, conn, False, MESSAGE_SIZE, NOT_THERE)


def _exchanges(conn: int, exchanges: list[Exchange], count: int, wall_ns: int) -> Iterator[Record]:
    """Requests and replies in order; what is missing becomes gaps, whole runs of it one each."""
    missing = 0
    for each in exchanges[:count]:
        if each.request is None and each.reply is None:
            missing += 1
            continue
        yield from _run_of_gaps(conn, missing)
        missing = 0
        if each.request is not None:
            yield Chunk(0, conn, True, each.request)
        else:
            yield Gap(0, conn, True, MESSAGE_SIZE, NOT_THERE)
        if each.reply is not None:
            yield Chunk(0, conn, False, each.reply)
        else:
            yield Gap(0, conn, False, MESSAGE_SIZE, NOT_THERE)
            if each.request is not None:
                yield Mark(wall_ns, conn, each.number, COMMENT, f"its reply is {NOT_THERE}")
    yield from _run_of_gaps(conn, missing)


def _run_of_gaps(conn: int, missing: int) -> Iterator[Record]:
    size = missing * MESSAGE_SIZE
    while size:
        part = min(size, _LARGEST_GAP)
        yield Gap(0, conn, True, part, NOT_THERE)
        yield Gap(0, conn, False, part, NOT_THERE)
        size -= part
