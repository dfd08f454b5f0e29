"""What was found in memory put together: which packets are of which connection, what waits.

Pure. The order of packets is that of `fwd_cnt`, the sender's count of bytes taken so far: request k
carries 1024 * (k + 1), where the multiplexer counts what it passed on, and reply k carries
1 + 1024 * (k + 1). docs/guest-memory.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from dissectors.constants import CPU_TYPES
from dissectors.messages import Reply, decode_reply, decode_request

from .following import Counts
from .locating import CarvedMessage, CarvedPacket, ConnectionObject

_CROWD: Final = 32
"""More connections than this a guest does not have: then none is believed for its looks."""
_REUSED: Final = 8
"""So many objects may have had one socket, one after the other, and still be there."""


class ObjectState(StrEnum):
    """What is known of a connection object."""

    WAITING = "waiting"
    ANSWERED = "answered"
    FREED = "freed"
    DEAD = "dead"
    POSSIBLE = "possible"


@dataclass(slots=True)
class Exchange:
    """A request and its reply, of which either may be gone. `number` is None without an order."""

    number: int | None
    request: bytes | None = field(default=None, repr=False)
    reply: bytes | None = field(default=None, repr=False)
    request_at: int | None = None
    reply_at: int | None = None


@dataclass(slots=True)
class Talk:
    """The packets of one pair of ports. `loose` are those whose place is not known."""

    guest_cid: int
    peer_port: int
    exchanges: dict[int, Exchange] = field(default_factory=dict)
    loose: list[CarvedPacket] = field(default_factory=list)
    ended: bool = False
    conflicting: bool = False
    """Two different packets claim one place: the ports were used again."""

    @property
    def packets(self) -> int:
        """Packets with a payload."""
        placed = self.exchanges.values()
        there = sum((each.request is not None) + (each.reply is not None) for each in placed)
        return there + len(self.loose)

    def in_order(self) -> list[Exchange]:
        return [self.exchanges[number] for number in sorted(self.exchanges)]

    def last(self, reply: bool) -> bytes | None:
        """The latest request or reply whose bytes are still there."""
        for each in reversed(self.in_order()):
            raw = each.reply if reply else each.request
            if raw is not None:
                return raw
        return None


@dataclass(slots=True)
class Sighting:
    """A connection object with what belongs to it.

    `unanswered` says whether its last request waits for an answer, None when that cannot be told.
    `certain` is false where looks alone speak for it; `why` gives the reasons, in sentences.
    `number` is the last request's place, None when it is not known how many there were.
    """

    held: ConnectionObject
    state: ObjectState
    unanswered: bool | None
    certain: bool
    why: list[str]
    talk: Talk | None
    counts: Counts | None
    number: int | None

    @property
    def asked(self) -> bool:
        """Whether there was any request at all."""
        return any(self.held.request)


@dataclass(slots=True)
class Assembled:
    """Everything that was found: by object, by ports without an object, and what stands alone."""

    conversations: list[Sighting]
    strangers: list[Talk]
    messages: list[CarvedMessage]
    packets: int
    immediates: int
    looked_at: int
    overflowed: bool

    @property
    def empty(self) -> bool:
        return not (self.conversations or self.strangers or self.messages)


def waits(request: bytes, reply: bytes) -> bool | None:
    """Whether a request stands over the reply to an earlier one; None when either may be.

    The guest echoes the type of what it answers, and the count of a CPU request that worked.
    """
    if not any(request):
        return False
    asked, told = decode_request(request), decode_reply(reply)
    if asked.msg_type != told.msg_type or told.is_hello:
        return True
    if asked.msg_type in CPU_TYPES and told.msg_size and _other_count(asked.encode(), told):
        return True
    return None


def _other_count(request: bytes, told: Reply) -> bool:
    """On x86 a CPU request that worked is answered with its own count."""
    index = told.fields().get("apic_index")
    is_x86 = int.from_bytes(request[4:8], "little") == 258
    return is_x86 and told.ret == 0 and index is not None and index != request[16]
