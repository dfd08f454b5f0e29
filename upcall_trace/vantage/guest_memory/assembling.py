"""What was found in memory put together: which packets are of which connection object.

Pure. An object's packets are those with its socket's port; where no socket is at hand, those that
say the same as the object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dissectors.constants import MESSAGE_SIZE, UPCALL_PORT
from dissectors.messages import decode_reply
from dissectors.vsockmon import VirtioOp

from .conversations import Assembled, Exchange, Talk
from .following import (
    Followed,
    Read,
    follow,
    leads_to_socket,
    likely_shifts,
    shift_of,
    socket_of,
)
from .judging import CROWD, Judge
from .locating import CarvedPacket, ConnectionObject, Located


def assemble(
    found: Located,
    read: Read,
    ranges: Sequence[tuple[int, int]] = (),
    port: int = UPCALL_PORT,
    whole: bool = True,
) -> Assembled:
    """Put together what was located; `read` reads the same memory, and may give nothing.

    `ranges` (begin, end) are the whole of a guest's memory; empty where there is only a part of it.
    `whole` is false where they are only said to be that: of an image, which may be one of several.
    """
    talks = _talks(found.packets.values())
    objects = sorted(found.objects.values(), key=lambda held: held.address)
    sockets = list(found.sockets.values())
    followed = {
        held.address: led for held in objects if (led := follow(held, sockets, read)) is not None
    }
    nowhere: set[int] = set()
    known = shift_of(sockets, read)
    if len(objects) <= CROWD:
        for held in objects:
            if held.address not in followed and _leads_nowhere(
                held, ranges, known, read, port, followed
            ):
                nowhere.add(held.address)
    paired = _pair(objects, talks, followed)
    # Where one pointer led to its socket, the others' places are known, too.
    judge = Judge(objects, followed, paired, nowhere, whole or known is not None or bool(followed))
    conversations = [judge.sighting(held) for held in objects]
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


def _leads_nowhere(
    held: ConnectionObject,
    ranges: Sequence[tuple[int, int]],
    known: int | None,
    read: Read,
    port: int,
    followed: dict[int, Followed],
) -> bool:
    """Whether no socket is in any place of a whole memory where the object's pointer can lead.

    A socket that is found there is followed. In a part of a memory only a `known` shift counts.
    """
    shifts = list(likely_shifts(held, ranges))
    socket = socket_of(held, shifts, read, port)
    led = follow(held, [socket], read) if socket is not None else None
    if led is not None:
        followed[held.address] = led
        return False
    if shifts:
        return not any(leads_to_socket(held, shift, read) for shift in shifts)
    return known is not None and leads_to_socket(held, known, read) is False


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
        if held.address not in paired and len(objects) <= CROWD
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
