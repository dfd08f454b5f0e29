"""What was found in memory put together: which packets are of which connection, what waits.

Pure. The order of packets is that of `fwd_cnt`, the sender's count of bytes taken so far: request k
carries 1024 * (k + 1), where the multiplexer counts what it passed on, and reply k carries
1 + 1024 * (k + 1). docs/guest-memory.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from dissectors.constants import CPU_TYPES, MESSAGE_SIZE
from dissectors.messages import Reply, decode_reply, decode_request
from dissectors.vsockmon import VirtioOp

from .following import Counts, Followed, Read, follow, leads_to_socket, shift_of
from .locating import CarvedMessage, CarvedPacket, ConnectionObject, Located

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


def assemble(found: Located, read: Read) -> Assembled:
    """Put together what was located; `read` reads the same memory, and may give nothing."""
    talks = _talks(found.packets.values())
    objects = sorted(found.objects.values(), key=lambda held: held.address)
    sockets = list(found.sockets.values())
    followed = {
        held.address: led for held in objects if (led := follow(held, sockets, read)) is not None
    }
    paired = _pair(objects, talks, followed)
    shift = shift_of(sockets, read)
    judged = _Judge(objects, followed, paired, shift, read)
    conversations = [judged.conversation(held) for held in objects]
    taken = {id(each.talk) for each in conversations}
    strangers = [talk for talk in talks.values() if talk.packets and id(talk) not in taken]
    return Assembled(
        conversations,
        strangers,
        sorted(found.messages.values(), key=lambda message: message.address),
        sum(bool(packet.payload) for packet in found.packets.values()),
        len(found.immediates),
        found.looked_at,
        found.overflowed,
    )


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


def _talks(packets: Iterable[CarvedPacket]) -> dict[tuple[int, int], Talk]:
    talks: dict[tuple[int, int], Talk] = {}
    for packet in sorted(packets, key=lambda each: each.address):
        key = (packet.guest_cid, packet.peer_port)
        talk = talks.setdefault(key, Talk(*key))
        if packet.op in (VirtioOp.RST, VirtioOp.SHUTDOWN):
            talk.ended = True
        if not packet.payload or _is_greeting(packet):
            continue
        if len(packet.payload) == MESSAGE_SIZE:
            number = _number(packet)
            if number is not None and _place(talk, number, packet):
                continue
        talk.loose.append(packet)
    return talks


def _is_greeting(packet: CarvedPacket) -> bool:
    """The service byte, or the CONNECT message, which is the guest's first."""
    if len(packet.payload) == 1:
        return True
    if packet.to_guest or len(packet.payload) != MESSAGE_SIZE or packet.fwd_cnt > 1:
        return False
    return decode_reply(packet.payload).is_hello


def _number(packet: CarvedPacket) -> int | None:
    """Which request or reply of its connection a packet is, by its sender's count."""
    taken = packet.fwd_cnt if packet.to_guest else packet.fwd_cnt - 1
    number, rest = divmod(taken, MESSAGE_SIZE)
    return number - 1 if number and not rest else None


def _place(talk: Talk, number: int, packet: CarvedPacket) -> bool:
    """Give a packet its place; False when another one has it with other bytes."""
    each = talk.exchanges.setdefault(number, Exchange(number))
    there = each.request if packet.to_guest else each.reply
    if there is not None:
        if there != packet.payload:
            talk.conflicting = True
            return False
        return True
    if packet.to_guest:
        each.request, each.request_at = packet.payload, packet.address
    else:
        each.reply, each.reply_at = packet.payload, packet.address
    return True


def _pair(
    objects: list[ConnectionObject],
    talks: dict[tuple[int, int], Talk],
    followed: dict[int, Followed],
) -> dict[int, tuple[Talk, bool]]:
    """The packets of each object: by its socket's ports, else by what both say; if certain."""
    paired: dict[int, tuple[Talk, bool]] = {}
    taken: set[tuple[int, int]] = set()
    by_socket: Counter[tuple[int, int]] = Counter(
        (led.guest_cid, led.peer_port) for led in followed.values()
    )
    for address, led in followed.items():
        key = (led.guest_cid, led.peer_port)
        if key in talks and by_socket[key] == 1 and not _is_older(objects, address):
            paired[address] = (talks[key], True)
            taken.add(key)
    scores = {
        (held.address, key): score
        for held in objects
        if held.address not in paired and len(objects) <= _CROWD
        for key, talk in talks.items()
        if key not in taken and (score := _score(held, talk))
    }
    for best in (3, 2, 1):
        here = [pair for pair, score in scores.items() if score == best]
        by_object = Counter(address for address, _ in here)
        by_key = Counter(key for _, key in here)
        for address, key in here:
            if by_object[address] == by_key[key] == 1 and address not in paired:
                paired[address] = (talks[key], False)
                taken.add(key)
        scores = {
            pair: score
            for pair, score in scores.items()
            if pair[0] not in paired and pair[1] not in taken and score < best
        }
    return paired


def _is_older(objects: list[ConnectionObject], address: int) -> bool:
    """Whether an object shows that it was freed, so that its socket is another's by now."""
    return any(held.address == address and held.scribbled for held in objects)


def _score(held: ConnectionObject, talk: Talk) -> int:
    """How well an object and packets agree: the last request, the last reply, both."""
    return 2 * (talk.last(reply=False) == held.request) + (talk.last(reply=True) == held.reply)


class _Judge:
    """Says of each object what it is, in the light of all of them."""

    def __init__(
        self,
        objects: list[ConnectionObject],
        followed: dict[int, Followed],
        paired: dict[int, tuple[Talk, bool]],
        shift: int | None,
        read: Read,
    ) -> None:
        self._followed, self._paired = followed, paired
        self._shift, self._read = shift, read
        self._sharing = Counter(held.socket for held in objects)
        self._backed = {
            held.socket
            for held in objects
            if not held.scribbled and (held.address in followed or held.address in paired)
        }
        unbacked = [held for held in objects if not self._is_backed(held)]
        self._crowded = len(unbacked) > _CROWD

    def _is_backed(self, held: ConnectionObject) -> bool:
        return held.address in self._followed or held.address in self._paired

    def conversation(self, held: ConnectionObject) -> Sighting:
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
        if not backed and self._sharing[held.socket] > 1:
            why.append("another object has the same socket")
            freed = held.socket in self._backed and self._sharing[held.socket] <= _REUSED
            return ObjectState.FREED if freed else ObjectState.POSSIBLE
        if not backed and self._crowded:
            why.append("there are more such objects than a guest has connections")
            return ObjectState.POSSIBLE
        if led is None and self._shift is not None:
            leads = leads_to_socket(held, self._shift, self._read)
            if leads is False:
                why.append("no socket is where it points")
                return ObjectState.FREED if talk is not None else ObjectState.POSSIBLE
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
