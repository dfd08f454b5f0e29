"""Real guests' memory: every object, every packet, in order, and nothing else."""

from __future__ import annotations

import pytest

from dissectors.messages import decode_request
from tests.vantage.guest_memory.cutouts import KERNELS, conversation, found_in, image
from upcall_trace.vantage.guest_memory.conversations import Assembled, ObjectState, Talk

each_kernel = pytest.mark.parametrize("kernel", KERNELS)

COUNTED = {  # objects, packets, messages that stand alone
    "lab": (2, 18, 0),
    "kata_5_10": (2, 0, 1),
    "kata_6_1": (2, 1, 0),
    "kata_6_12": (3, 20, 0),
}
SHIFTS = (0, 1, 5, 4096 + 2)
"""An image need not begin where the guest's memory does."""


def seen(kernel: str, shift: int = 0) -> Assembled:
    return found_in(bytes(shift) + image(kernel).read_bytes())


def talks(assembled: Assembled) -> list[Talk]:
    of_objects = [each.talk for each in assembled.conversations if each.talk is not None]
    return of_objects + assembled.strangers


@each_kernel
@pytest.mark.parametrize("shift", SHIFTS)
def test_every_object_and_packet_is_found_and_no_decoy(kernel: str, shift: int) -> None:
    assembled = seen(kernel, shift)
    counted = (len(assembled.conversations), assembled.packets, len(assembled.messages))
    assert counted == COUNTED[kernel]
    assert assembled.immediates >= 8  # kernel code has it as an immediate, and is told apart


@each_kernel
def test_what_the_objects_hold_is_the_last_that_crossed(kernel: str) -> None:
    told = {each.held.request[:48]: each for each in seen(kernel).conversations}
    for conn in (2, 3):
        last = conversation(kernel, conn)[-1]
        object_of_it = told[last.request]
        assert object_of_it.unanswered is not (last.reply is not None)
        if last.reply is not None:
            assert object_of_it.held.reply[:32] == last.reply


@each_kernel
def test_the_request_that_killed_the_thread_is_named(kernel: str) -> None:
    waiting = [each for each in seen(kernel).conversations if each.unanswered]
    died = conversation(kernel, 3)[-1].reply is None
    assert [each.state for each in waiting] == [ObjectState.WAITING] * died
    for each in waiting:
        request = decode_request(each.held.request)
        assert (request.op, request.fields()["apic_ids"]) == ("del_cpu", [77])


@each_kernel
def test_packets_stand_in_the_order_in_which_they_crossed(kernel: str) -> None:
    # vhost-device-vsock numbers its ports from 0: the first connection is port 0.
    placed = 0
    for talk in talks(seen(kernel)):
        crossed = conversation(kernel, talk.peer_port + 1)
        assert not talk.loose
        for each in talk.in_order():
            assert each.number is not None
            truth = crossed[each.number]
            if each.request is not None:
                placed += 1
                assert each.request[:48] == truth.request
            if each.reply is not None:
                placed += 1
                assert truth.reply is not None
                assert each.reply[:24] == truth.reply[:24]
    assert placed == COUNTED[kernel][1]


def test_a_closed_connection_is_told_from_those_that_are_open() -> None:
    states = {each.held.address: each.state for each in seen("kata_6_12").conversations}
    assert states == {
        0x0: ObjectState.FREED,
        0x11000: ObjectState.ANSWERED,
        0x12000: ObjectState.ANSWERED,
    }


def test_a_socket_in_memory_gives_an_object_its_port() -> None:
    """The 6.1 cut-out happens to have the socket of one connection."""
    (waiting,) = [each for each in seen("kata_6_1").conversations if each.unanswered]
    assert waiting.certain
    assert waiting.number == 2
    assert "its socket is there: port 2 of the host's side" in waiting.why


def test_a_message_that_stands_alone_is_told_as_one() -> None:
    (message,) = seen("kata_5_10").messages
    assert message.raw[:24] == (conversation("kata_5_10", 3)[1].reply or b"")[:24]
