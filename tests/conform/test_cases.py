"""Cases put to the model: whole sequences, orders, dangers, and what a recording asked."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request
from tests.kernel.recordings import worlds
from tests.support import TRANSCRIPTS, golden
from upcall_trace.conform.cases import (
    BOOT_DEVICES,
    Ask,
    Modelled,
    Tell,
    is_allowed,
    recorded_case,
    rehearse,
)
from upcall_trace.errors import NothingRun
from upcall_trace.kernel.world import kata_pod
from upcall_trace.replay.run import read_recording

POD = kata_pod(cpus=2)
ADD = cpu_request(MessageType.ADD_CPU, [2])
UNKNOWN = cpu_request(MessageType.DEL_CPU, [9])


def ask(request: Request, conn: int = 1) -> Ask:
    return Ask(conn, request.encode())


def test_a_write_with_two_requests_has_two_replies() -> None:
    (told,) = rehearse(POD, [Ask(1, ADD.encode() * 2)])
    assert told is not None
    assert len(told.replies) == 2048
    assert [request.op for request in told.requests] == ["add_cpu", "add_cpu"]
    assert told.causes == ("UP202", "UP503")
    assert (told.silent, told.dangers) == (False, ())


def test_a_thread_that_died_is_silent_and_dangerous() -> None:
    told = rehearse(POD, [ask(UNKNOWN), ask(ADD), ask(ADD, 2)])
    assert [each.silent for each in told if each] == [True, True, False]
    assert told[0] is not None
    assert told[0].dangers == ("UP206",)
    assert not is_allowed(told, ())
    assert is_allowed(told, ("UP206",))


def test_orders_are_followed_and_have_no_answer() -> None:
    world = worlds()["pc"]
    one = cpu_request(MessageType.ADD_CPU, [1])
    without, _, with_it = rehearse(world, [ask(one), Tell({"start_vcpu": 1}), ask(one)])
    assert without is not None
    assert with_it is not None
    assert (without.dangers, without.delay_ns) == (("UP201",), 10_000_000_000)
    assert (with_it.dangers, with_it.causes) == ((), ())
    for order in ({"plug_pci": {"bus": 0, "slot": 9}}, {"unplug_pci": {"bus": 0, "slot": 9}},
                  {"offline_cpu": 1}, {"online_cpu": 9}, {"resize_memory": 7}):  # fmt: skip
        assert rehearse(world, [Tell(order)]) == [None]


def test_what_booted_and_what_was_added_are_told_apart() -> None:
    boot = mmio_request(MessageType.DEL_MMIO, 0xE0000000, 0x2000, 5)
    ours = (
        mmio_request(t, 0xE0008000, 0x2000, 5) for t in (MessageType.ADD_MMIO, MessageType.DEL_MMIO)
    )
    told = rehearse(POD, [*map(ask, ours), ask(boot)])
    assert [each.dangers for each in told if each] == [(), (), (BOOT_DEVICES,)]


def test_a_copy_goes_its_own_way() -> None:
    one = Modelled(POD)
    one.ask(ask(ADD))
    other = one.copy()
    assert other.guest.world is one.guest.world
    other.ask(ask(UNKNOWN))
    assert (one.is_silent(1), other.is_silent(1), one.is_silent(7)) == (False, True, False)
    assert copy.deepcopy(other).is_silent(1)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_a_recording_asked_is_a_case_that_the_model_answers_as_recorded(path: Path) -> None:
    recording = read_recording(path)
    if path.stem.startswith("handshake"):
        assert len(recorded_case(recording.script)) == 4
        return
    steps = recorded_case(recording.script)
    told = rehearse(worlds()[recording.capture.header.notes["machine"]], steps)
    answered = b"".join(each.replies for each in told if each)
    recorded = b"".join(asked.reply_raw or b"" for asked in recording.script.asked.values())
    assert answered == recorded


def test_a_recording_without_requests_is_none() -> None:
    script = read_recording(golden("handshake")).script
    script.greetings.clear()
    with pytest.raises(NothingRun):
        recorded_case(script)
    assert bare_request(MessageType.ADD_MEM).op == "add_mem"
