"""The requests of one connection that wait for a reply, oldest first.

Most entries are one request. A gap can stand for very many, so those that it took are counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .services import ServiceRequest

KEPT_OPEN = 64
"""Open requests whose messages are kept for decoding their replies; a peer has one or two. Of so
many requests that a gap took, it is told that their replies went, too."""

OpenRequests = deque[tuple[int, ServiceRequest | int | None]]
"""(number, message). With a number for a message, so many requests from that number on were lost;
None for a message that is not kept."""


def due_numbers(waiting: OpenRequests) -> Iterator[int]:
    """The numbers of all of them."""
    for number, message in waiting:
        if type(message) is int:
            yield from range(number, number + message)
        else:
            yield number


def take_due(waiting: OpenRequests, count: int) -> list[int]:
    """The oldest `count` are over and taken out: their numbers, of lost ones the first few."""
    taken: list[int] = []
    while count > 0 and waiting:
        number, message = waiting.popleft()
        if type(message) is not int:
            taken.append(number)
            count -= 1
            continue
        over = min(message, count)
        taken += range(number, number + min(over, KEPT_OPEN))
        count -= over
        if over < message:
            waiting.appendleft((number + over, message - over))
    return taken


def take_oldest(waiting: OpenRequests) -> tuple[int | None, ServiceRequest | None]:
    """The oldest one's number and message, which is taken out; None for what is not there."""
    if not waiting:
        return None, None
    number, message = waiting.popleft()
    if not isinstance(message, int):
        return number, message
    if message > 1:
        waiting.appendleft((number + 1, message - 1))
    return number, None
