"""What each connection object is, in the light of all that was found. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Final

from .conversations import ObjectState, Sighting, Talk, waits
from .following import Counts, Followed
from .locating import ConnectionObject

CROWD: Final = 32
"""More connections than this a guest does not have: then none is believed for its looks."""
_REUSED: Final = 8
"""So many objects may have had one socket, one after the other, and still be there."""
_DIRECT_MAPPING: Final = 1 << 40
"""Bytes of memory that a guest may have: what it allocated has addresses within them."""


class Judge:
    """Says of each object what it is, in the light of all of them."""

    def __init__(
        self,
        objects: list[ConnectionObject],
        followed: dict[int, Followed],
        paired: dict[int, tuple[Talk, bool]],
        nowhere: set[int],
        whole: bool = True,
    ) -> None:
        """`nowhere` are objects whose socket is not there; `whole` says that it would be."""
        self._whole = whole
        self._followed, self._paired, self._nowhere = followed, paired, nowhere
        self._sharing = Counter(held.socket for held in objects)
        self._backed = {
            held.socket
            for held in objects
            if not held.scribbled and (held.address in followed or held.address in paired)
        }
        # A thread frees its object when its connection ends, and not while it works on a request.
        self._waiting = Counter(
            held.socket
            for held in objects
            if not held.scribbled and waits(held.request, held.reply)
        )
        unbacked = [held for held in objects if not self._is_backed(held)]
        self._crowded = len(unbacked) > CROWD

    def _is_backed(self, held: ConnectionObject) -> bool:
        return held.address in self._followed or held.address in self._paired

    def _is_in_place(self, held: ConnectionObject) -> bool:
        """Whether its pointers are in the direct mapping that others' and each other are in."""
        near = [held.task] if held.task is not None else []
        near += list(self._backed)[:1]
        return all(abs(held.socket - other) < _DIRECT_MAPPING for other in near)

    def sighting(self, held: ConnectionObject) -> Sighting:
        led = self._followed.get(held.address)
        talk, sure_of_talk = self._paired.get(held.address, (None, False))
        counts = led.counts if led and not held.scribbled else None
        why = [_looks(held)]
        number = _last_number(held, talk, counts)
        unanswered = self._unanswered(held, talk, counts, number, why)
        state = self._state(held, led, talk, unanswered, why)
        certain = state not in (ObjectState.POSSIBLE, ObjectState.FREED) and bool(
            led or (talk and sure_of_talk)
        )
        return Sighting(held, state, unanswered, certain, why, talk, counts, number)

    def _unanswered(
        self,
        held: ConnectionObject,
        talk: Talk | None,
        counts: Counts | None,
        number: int | None,
        why: list[str],
    ) -> bool | None:
        if counts is not None:
            why.append(
                f"its socket counted {counts.requests} requests and {counts.replies} replies"
            )
            return counts.requests > counts.replies
        told = waits(held.request, held.reply)
        if told:
            why.append("its reply is of another request: that one was never answered")
        if told is None and talk is not None and number is not None:
            last = talk.exchanges.get(number)
            if last is not None and last.reply == held.reply:
                why.append("the packet with its reply is there, too")
                return False
            if _is_first_of_its_type(held.request, talk, number):
                why.append("no request before it had its type, which its reply has")
                return False
        if told is None:
            why.append(
                "its reply may be of an earlier request of the same type: that cannot be told"
            )
        return told

    def _state(
        self,
        held: ConnectionObject,
        led: Followed | None,
        talk: Talk | None,
        unanswered: bool | None,
        why: list[str],
    ) -> ObjectState:
        backed = self._is_backed(held)
        if held.scribbled:
            why.append("an allocator wrote into its end: it was freed")
            return ObjectState.FREED
        sharing = self._sharing[held.socket]
        if not backed and sharing > 1 and not (unanswered and self._waiting[held.socket] == 1):
            why.append("another object has the same socket")
            taken = held.socket in self._backed or self._waiting[held.socket] == 1
            return ObjectState.FREED if taken and sharing <= _REUSED else ObjectState.POSSIBLE
        if not backed and self._crowded:
            why.append("there are more such objects than a guest has connections")
            return ObjectState.POSSIBLE
        if held.address in self._nowhere:
            why.append("no socket is where it points")
            if not self._whole:
                why.append("or this is not the whole memory, or not as the guest had it")
                return ObjectState.POSSIBLE
            return ObjectState.FREED if talk is not None else ObjectState.POSSIBLE
        if not backed and not self._is_in_place(held):
            why.append("its pointers are not of one part of the kernel's memory")
            return ObjectState.POSSIBLE
        if led is not None:
            why.append(f"its socket is there: port {led.peer_port} of the host's side")
        elif talk is not None:
            why.append(f"packets of the host's port {talk.peer_port} say the same")
        else:
            why.append("nothing else in this memory speaks for it or against it")
        if led is not None and led.thread is False and unanswered is not False:
            why.append("its thread is gone, and its socket was never closed: the thread died")
            return ObjectState.DEAD
        if talk is not None and talk.ended and led is None:
            why.append("a packet that ends this connection is there")
            return ObjectState.FREED
        return ObjectState.WAITING if unanswered else ObjectState.ANSWERED


def _is_first_of_its_type(request: bytes, talk: Talk, number: int) -> bool:
    """Whether every request before is known, and none had the type of this one."""
    before = [talk.exchanges.get(k) for k in range(number)]
    return all(
        each is not None and each.request is not None and each.request[8:12] != request[8:12]
        for each in before
    )


def _looks(held: ConnectionObject) -> str:
    pointers = "a pointer to a socket" if held.task is None else "pointers to a task and a socket"
    return f"{pointers} before two buffers of 1024 bytes, the second one a reply"


def _last_number(held: ConnectionObject, talk: Talk | None, counts: Counts | None) -> int | None:
    """Which request of its connection the last one is."""
    if counts is not None and counts.requests:
        return counts.requests - 1
    if talk is None:
        return None
    placed = talk.in_order()
    for each in reversed(placed):
        if each.request == held.request:
            return each.number
    for each in reversed(placed):
        if each.reply is not None and each.number is not None:
            if each.reply != held.reply:
                return None
            return each.number + 1 if waits(held.request, held.reply) else each.number
    return None
