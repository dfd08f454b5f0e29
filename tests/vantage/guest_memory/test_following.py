"""Along an object's pointers: its socket, how much crossed, whether its thread is still there."""

from __future__ import annotations

import pytest

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, hello, pci_request
from tests.vantage.guest_memory.cutouts import found_in, held, packet
from tests.vantage.guest_memory.whole_guest import (
    BASE,
    COUNTS,
    OBJECT,
    SOCK,
    SOCKET,
    TASK,
    WholeGuest,
)
from upcall_trace.vantage.guest_memory.conversations import ObjectState, Sighting
from upcall_trace.vantage.guest_memory.following import (
    follow,
    likely_shifts,
    read_counts,
    socket_of,
)
from upcall_trace.vantage.guest_memory.locating import object_at

ADD = pci_request(MessageType.ADD_PCI, 0, 4)
DEL_77 = cpu_request(MessageType.DEL_CPU, [77])


def only(raw: bytes) -> Sighting:
    (found,) = found_in(raw).conversations
    return found


@pytest.mark.parametrize("layout", [0, 1])
def test_the_sockets_counts_decide_whether_a_request_waits(layout: int) -> None:
    """A second request of one type over the reply to the first: the object alone cannot tell."""
    for requests, replies, state in ((2, 1, ObjectState.WAITING), (2, 2, ObjectState.ANSWERED)):
        guest = WholeGuest(ADD.encode(), ADD.reply(-19).encode(), requests, replies, layout)
        found = only(bytes(guest.raw))
        assert (found.state, found.certain, found.number) == (state, True, 1)
        assert found.unanswered is (state is ObjectState.WAITING)
        assert f"its socket counted {requests} requests and {replies} replies" in found.why


def test_a_thread_that_is_gone_with_its_socket_open_died() -> None:
    asked, told = DEL_77.encode(), ADD.reply(-19).encode()
    alive = only(bytes(WholeGuest(asked, told, 2, 1).raw))
    dead = only(bytes(WholeGuest(asked, told, 2, 1, thread=False).raw))
    assert (alive.state, dead.state) == (ObjectState.WAITING, ObjectState.DEAD)
    assert dead.certain
    assert "its thread is gone, and its socket was never closed: the thread died" in dead.why


@pytest.mark.parametrize("place", [0x10, 0x18])
def test_a_thread_that_ended_is_gone_though_its_name_is_still_there(place: int) -> None:
    guest = WholeGuest(DEL_77.encode(), ADD.reply(-19).encode(), 2, 1)
    guest.raw[TASK + place] = 0x80
    assert only(bytes(guest.raw)).state is ObjectState.DEAD


def test_a_thread_that_is_gone_after_its_last_answer_did_not_die_on_a_request() -> None:
    guest = WholeGuest(ADD.encode(), ADD.reply(-19).encode(), 2, 2, thread=False)
    assert only(bytes(guest.raw)).state is ObjectState.ANSWERED


def test_an_object_that_points_at_no_socket_is_possible_at_most() -> None:
    guest = WholeGuest(ADD.encode(), ADD.reply(-19).encode(), 1, 1)
    fake = held(DEL_77.encode(), hello().encode(), BASE + 0xC000, BASE + 0xD000)
    guest.raw[0x2000 : 0x2000 + len(fake)] = fake
    states = {each.held.address: each.state for each in found_in(bytes(guest.raw)).conversations}
    assert states == {0x2000: ObjectState.POSSIBLE, OBJECT: ObjectState.ANSWERED}


def test_an_object_without_a_socket_whose_packets_are_there_was_freed() -> None:
    guest = WholeGuest(ADD.encode(), ADD.reply(-19).encode(), 1, 1)
    old = held(DEL_77.encode(), DEL_77.reply(-22).encode(), BASE + 0xC000, BASE + 0xD000)
    guest.raw[0x2000 : 0x2000 + len(old)] = old
    said = packet(DEL_77.encode(), 1024, peer_port=7)
    guest.raw[0xE000 : 0xE000 + len(said)] = said
    states = {each.held.address: each.state for each in found_in(bytes(guest.raw)).conversations}
    assert states[0x2000] is ObjectState.FREED


def test_packets_belong_to_the_object_whose_socket_has_their_port() -> None:
    guest = WholeGuest(ADD.encode(), ADD.reply(-19).encode(), 3, 3, peer_port=99)
    for place, port in ((0xC000, 98), (0xD000, 99)):
        said = packet(ADD.encode(), 3 * 1024, peer_port=port)
        guest.raw[place : place + len(said)] = said
    found = only(bytes(guest.raw))
    assert found.talk is not None
    assert found.talk.peer_port == 99


def test_pages_that_were_taken_out_of_their_memory_are_not_followed() -> None:
    """Offsets mean nothing there: a page that is elsewhere must not make a thread look dead."""
    raw = bytes(WholeGuest(DEL_77.encode(), ADD.reply().encode(), 2, 1, thread=False).raw)
    kept = (0x3000, 0x7000, 0x5000, 0x9000, 0xA000)
    found = only(b"".join(raw[at : at + 4096] for at in kept))
    assert found.state is ObjectState.WAITING
    assert found.counts is None


def test_an_objects_socket_is_found_from_the_object_alone() -> None:
    guest = WholeGuest(ADD.encode(), ADD.reply().encode(), 5, 5)
    begin = 0x7F12_3456_7000

    def read(address: int, size: int) -> bytes:
        at = address - begin
        return bytes(guest.raw[at : at + size]) if 0 <= at < len(guest.raw) else b""

    held_there = object_at(bytes(guest.raw[OBJECT : OBJECT + 2064]), begin + OBJECT)
    assert held_there is not None
    shifts = likely_shifts(held_there, [(begin, begin + len(guest.raw))])
    socket = socket_of(held_there, shifts, read, 219)
    assert socket is not None
    assert (socket.address, socket.peer_port) == (begin + SOCK + 0x2C0, 1024)
    led = follow(held_there, [socket], read)
    assert led is not None
    assert led.counts is not None
    assert (led.counts.requests, led.counts.replies) == (5, 5)
    # Another socket's counts in the same place are not taken for these.
    guest.raw[COUNTS : COUNTS + 8] = (BASE + SOCKET).to_bytes(8, "little")
    assert read_counts(led.counts, read) is None
