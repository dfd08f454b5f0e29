"""Whose bytes they are: recordings read by hand, and the kernel model as the witness."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissectors.constants import ENODEV, MESSAGE_SIZE, Arch, MessageType
from dissectors.events import Lost, ReplyReceived, RequestReceived
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request
from dissectors.observer import Observer, Start
from tests.kernel import random_guests
from tests.support import each_recording, golden
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.world import PciDevice, World
from upcall_trace.sources import open_source
from upcall_trace.trace.provenance import Provenance, Run
from upcall_trace.views.frames import frames
from upcall_trace.views.text import provenance_lines

RET, LOAD = (16, 4), (20, 4)
Told = list[Run]


def of_golden(name: str, direction: str) -> dict[tuple[int, int], Told]:
    """(connection, request) -> the runs of its requests or replies."""
    with open_source(golden(name)) as source:
        return {
            (frame.conn, frame.request): list(frame.runs)
            for frame in frames(source, with_provenance=True)
            if frame.request is not None and frame.direction == direction
        }


def fresh(length: int, number: int) -> Run:
    return Run(0, length, "fresh", number)


def stale(field: tuple[int, int], number: int | None) -> Run:
    return Run(*field, "stale", number)


def unknown(field: tuple[int, int]) -> Run:
    return Run(*field, "unknown", None)


def padding(offset: int) -> Run:
    return Run(offset, MESSAGE_SIZE - offset, "padding", None)


def test_stale_results_by_hand() -> None:
    replies = of_golden("stale_results", "<")
    assert replies == {
        (1, 0): [fresh(16, 0), padding(16)],  # bad magic: the 0 in ret was never written
        (1, 1): [fresh(20, 1), padding(20)],
        (1, 2): [fresh(20, 2), padding(20)],
        (1, 3): [fresh(16, 3), stale(RET, 2), padding(20)],  # bad magic: ret is that of 1.2
        (1, 4): [fresh(24, 4), padding(24)],
        (1, 5): [fresh(24, 5), padding(24)],
        **{
            (1, n): [fresh(20, n), stale(LOAD, 5), padding(24)] for n in range(6, 12)
        },  # every failure shows the apic_index of 1.5
    }
    requests = of_golden("stale_results", ">")
    assert requests == {(1, n): [fresh(MESSAGE_SIZE, n)] for n in range(12)}


def test_aarch64_lifecycle_by_hand() -> None:
    replies = of_golden("aarch64_lifecycle", "<")
    # To refuse to remove all CPUs the guest writes a 0, where 4 was before.
    assert replies[1, 3] == [fresh(24, 3), padding(24)]
    assert replies[1, 7] == [fresh(20, 7), stale(LOAD, 6), padding(24)]
    assert replies[1, 9] == [fresh(16, 9), stale((16, 8), 8), padding(24)]
    for number in range(10, 24):
        assert replies[1, number] == [fresh(20, number), stale(LOAD, 8), padding(24)]
    # PCI after an ENODEV: whether it is this one's or the last one's, the wire does not say.
    for number in (24, 25):
        assert replies[1, number] == [
            fresh(16, number), unknown(RET), stale(LOAD, 8), padding(24)
        ]  # fmt: skip
    # PCI success writes no ret, and nobody else had on this connection.
    assert replies[2, 0] == [fresh(16, 0), padding(16)]
    assert (2, 1) not in replies


def test_framing_by_hand() -> None:
    requests = of_golden("framing", ">")
    assert requests == {
        (1, 0): [fresh(MESSAGE_SIZE, 0)],
        (1, 1): [fresh(MESSAGE_SIZE, 1)],
        (1, 2): [fresh(16, 2), stale((16, 1008), 1)],  # a header alone
        (2, 0): [fresh(500, 0), padding(500)],
        (2, 1): [fresh(524, 1), padding(524)],
        (3, 0): [fresh(20, 0), padding(20)],
        (3, 1): [fresh(1004, 1), padding(1004)],
        (4, 0): [fresh(MESSAGE_SIZE, 0)],
        (4, 1): [fresh(476, 1), stale((476, 548), 0)],  # what 1500 bytes left over
    }
    replies = of_golden("framing", "<")
    assert replies[2, 1] == [fresh(16, 1), stale(RET, 0), padding(20)]
    assert replies[4, 1] == [fresh(16, 1), stale(RET, 0), padding(20)]


@each_recording
def test_of_every_recorded_message_every_byte_is_told(golden: Path) -> None:
    with open_source(golden) as source:
        shown = list(frames(source, with_provenance=True))
    assert any(frame.runs for frame in shown)
    for frame in shown:
        if frame.request is None:
            assert frame.runs == ()
        else:
            check_whole(frame.runs)


def check_whole(runs: Sequence[Run]) -> None:
    """Runs follow each other without a gap, to the end, and neighbours differ."""
    at = 0
    for run in runs:
        assert run.offset == at
        assert run.length > 0
        at += run.length
    assert at == MESSAGE_SIZE
    assert all(one[2:] != other[2:] for one, other in pairwise(runs))


class Wire:
    """A connection with an observer and its provenance, without a guest."""

    def __init__(self, start: Start = Start.SERVICE, arch: Arch | None = None) -> None:
        self.observer = Observer(start, arch or Arch.X86_64)
        self.provenance = Provenance(start is not Start.MIDDLE, arch)
        if start is Start.SERVICE:
            self.observer.to_guest(b"d")
            self.observer.from_guest(bytes.fromhex("00014d44").ljust(MESSAGE_SIZE, b"\0"))

    def ask(self, sent: bytes) -> list[list[Run]]:
        events = self.observer.to_guest(sent)
        return [self.provenance.request(e) for e in events if isinstance(e, RequestReceived)]

    def answer(self, raw: bytes) -> list[Run]:
        (event,) = self.observer.from_guest(raw)
        assert isinstance(event, ReplyReceived)
        runs = self.provenance.reply(event)
        check_whole(runs)
        return runs


def written(connection: ServiceThread, piece: bytes) -> tuple[bytes | None, list[bool]]:
    """The guest's reply, and of each byte whether the guest wrote it for this request.

    A copy of the guest works on the same request with every byte of its reply buffer turned
    round; what comes out alike was written.
    """
    turned = copy.deepcopy(connection)
    turned._reply = bytearray(byte ^ 0xFF for byte in turned._reply)
    there, here = turned.receive(piece).reply, connection.receive(piece).reply
    if here is None or there is None:
        assert here is there
        return None, []
    return here, [one == other for one, other in zip(here, there, strict=True)]


@settings(max_examples=60)
@given(rng=st.randoms(use_true_random=False), steps=st.integers(1, 40))
def test_what_is_told_is_what_the_guest_did(rng: Random, steps: int) -> None:
    """Fresh bytes were written, stale ones are the named reply's, padding is zero."""
    world = random_guests.world(rng)
    connection = Guest(world).connect()
    wire = Wire(arch=world.arch)
    buffer, senders = bytes(MESSAGE_SIZE), [-1] * MESSAGE_SIZE
    replies: list[bytes] = []
    for _ in range(steps):
        sent = random_guests.send(rng)
        pieces = [sent[at : at + MESSAGE_SIZE] for at in range(0, len(sent), MESSAGE_SIZE)]
        for piece, runs in zip(pieces, wire.ask(sent), strict=True):
            number = len(replies)
            buffer = piece + buffer[len(piece) :]
            senders[: len(piece)] = [number] * len(piece)
            check_request(runs, number, buffer, senders)
            reply, by_guest = written(connection, piece)
            if reply is None:
                return
            check_reply(wire.answer(reply), number, reply, by_guest, replies)
            replies.append(reply)


def check_request(runs: list[Run], number: int, buffer: bytes, senders: list[int]) -> None:
    check_whole(runs)
    for run in runs:
        owners = set(senders[run.offset : run.offset + run.length])
        match run.kind:
            case "fresh":
                assert owners == {number} == {run.request}
            case "stale":
                assert owners == {run.request}
                assert run.request != number
            case "padding":
                assert owners == {-1}
                assert not any(buffer[run.offset : run.offset + run.length])
            case _:
                raise AssertionError(run)


def check_reply(
    runs: list[Run], number: int, reply: bytes, by_guest: list[bool], replies: list[bytes]
) -> None:
    for run in runs:
        stretch = slice(run.offset, run.offset + run.length)
        match run.kind:
            case "fresh":
                assert all(by_guest[stretch])
                assert run.request == number
            case "stale":
                assert not any(by_guest[stretch])
                if run.request is not None:
                    assert reply[stretch] == replies[run.request][stretch]
                assert any(earlier[stretch] == reply[stretch] for earlier in replies)
            case "padding":
                assert not any(by_guest[stretch])
                assert not any(reply[stretch])
                assert not any(any(earlier[stretch]) for earlier in replies)
            case "unknown":
                assert run.offset in (16, 20)
                assert run.length in (4, 8)


WORLD = World(
    nr_cpu_ids=4, cpus_online=(0, 1, 2, 3), vcpus_running=(0, 1, 2, 3), pci=(PciDevice(0, 4),)
)
ADD_PCI = pci_request(MessageType.ADD_PCI, 0, 4)
GOOD = mmio_request(MessageType.ADD_MMIO, 0xD0000000, 0x1000, 5)


def ask_all(*requests: Request, world: World = WORLD) -> list[Told]:
    """The runs of the replies of a guest to these requests, one after the other."""
    wire = Wire(arch=world.arch)
    connection = Guest(world).connect()
    told = []
    for request in requests:
        wire.ask(request.encode())
        reply = connection.receive(request.encode()).reply
        assert reply is not None
        told.append(wire.answer(reply))
    return told


def remove(*ids: int) -> Request:
    return cpu_request(MessageType.DEL_CPU, list(ids))


def test_a_refusal_to_remove_all_writes_a_zero_and_one_of_the_boot_cpu_does_not() -> None:
    told = ask_all(remove(3), remove(0), remove(1, 2, 4), remove(0, 1, 2), remove(0))
    assert told[1] == [fresh(20, 1), stale(LOAD, 0), padding(24)]
    assert told[2] == [fresh(24, 2), padding(24)]
    # With a 0 there already and the boot CPU in the list it may be either.
    for number in (3, 4):
        assert told[number] == [fresh(20, number), unknown(LOAD), padding(24)]


def test_an_errno_that_pci_does_not_have_is_stale_and_success_repairs() -> None:
    told = ask_all(bare_request(MessageType.ADD_MEM), ADD_PCI, GOOD, ADD_PCI)
    assert told[1] == [fresh(16, 1), stale(RET, 0), padding(20)]
    assert told[2] == [fresh(20, 2), padding(20)]
    assert told[3] == [fresh(16, 3), stale(RET, 2), padding(20)]


def test_what_is_not_known_whose_it_is_stays_so_until_it_is_written() -> None:
    nobody = pci_request(MessageType.ADD_PCI, 0, 9)
    told = ask_all(nobody, nobody, ADD_PCI, bare_request(9), ADD_PCI)
    assert told[0] == [fresh(20, 0), padding(20)]
    for number in (1, 2):
        assert told[number] == [fresh(16, number), unknown(RET), padding(20)]
    assert told[4] == [fresh(16, 4), stale(RET, 3), padding(20)]


def test_an_arm_guest_that_fails_may_have_written_its_count() -> None:
    world = World(arch=Arch.AARCH64, nr_cpu_ids=4, cpus_online=(0, 1), vcpus_running=(0, 1, 2))
    add = cpu_request(MessageType.ADD_CPU, 1)
    told = ask_all(add, add, cpu_request(MessageType.DEL_CPU, 4), world=world)
    assert told[1] == [fresh(20, 1), unknown(LOAD), padding(24)]
    assert told[2] == [fresh(24, 2), padding(24)]


def test_a_connection_seen_from_the_middle() -> None:
    wire = Wire(Start.MIDDLE)
    (runs,) = wire.ask(GOOD.encode()[:500])
    assert runs == [(0, 500, "fresh", 0), (500, 524, "unknown", None)]
    left_over = bytearray(GOOD.reply(-17).encode())
    left_over[20] = 3
    left_over[1000] = 7
    assert wire.answer(bytes(left_over)) == [
        (0, 20, "fresh", 0), (20, 4, "stale", None), (24, 976, "unknown", None),
        (1000, 1, "stale", None), (1001, 23, "unknown", None),
    ]  # fmt: skip
    wire.ask(ADD_PCI.encode())
    left_over[8] = MessageType.ADD_PCI
    assert wire.answer(bytes(left_over))[1] == (16, 4, "stale", 0)


def test_a_first_pci_errno_after_a_gap_is_not_known() -> None:
    wire = Wire()
    wire.ask(GOOD.encode())
    (lost,) = wire.observer.lost(False, MESSAGE_SIZE)
    assert isinstance(lost, Lost)
    wire.provenance.lost(lost)
    wire.ask(ADD_PCI.encode())
    assert wire.answer(ADD_PCI.reply(ENODEV).encode())[1] == (16, 8, "unknown", None)


def test_after_lost_requests_the_buffer_is_not_known_but_what_is_sent_is() -> None:
    wire = Wire()
    wire.ask(GOOD.encode())
    (lost,) = wire.observer.lost(True, 100)
    assert isinstance(lost, Lost)
    wire.provenance.lost(lost)
    (runs,) = wire.ask(GOOD.encode()[:16])
    assert runs == [(0, 16, "fresh", 2), (16, 1008, "unknown", None)]


def test_a_reply_to_nothing_and_one_of_another_type_are_not_explained() -> None:
    wire = Wire()
    assert [run.kind for run in wire.answer(GOOD.reply(0).encode())] == ["unknown", "padding"]
    wire.ask(GOOD.encode())
    assert wire.answer(ADD_PCI.reply(0).encode()) == [
        (0, 16, "fresh", 0), (16, 8, "unknown", None), (24, 1000, "padding", None)
    ]  # fmt: skip


def test_bytes_that_no_kernel_writes_are_fresh_when_they_change() -> None:
    wire = Wire()
    wire.ask(GOOD.encode())
    raw = bytearray(GOOD.reply(0).encode())
    raw[100] = raw[1023] = 1
    assert wire.answer(bytes(raw)) == [
        (0, 20, "fresh", 0), (20, 80, "padding", None), (100, 1, "fresh", 0),
        (101, 922, "padding", None), (1023, 1, "fresh", 0),
    ]  # fmt: skip


def test_the_legend_is_only_for_what_is_not_all_fresh() -> None:
    assert list(provenance_lines([Run(0, 1024, "fresh", 3)], 1, ">")) == []
    runs = [
        Run(0, 16, "fresh", 3), Run(16, 4, "stale", 0), Run(20, 4, "stale", None),
        Run(24, 8, "unknown", None), Run(32, 992, "padding", None),
    ]  # fmt: skip
    assert list(provenance_lines(runs, 1, "<")) == [
        "  0000..000f  fresh",
        "  0010..0013  stale, of reply 1.0",
        "  0014..0017  stale, of an earlier one",
        "  0018..001f  not known",
        "  0020..03ff  padding, never written",
    ]
    assert list(provenance_lines(runs[1:2], 1, ">")) == ["  0010..0013  stale, of request 1.0"]


@pytest.mark.parametrize("with_provenance", [False, True])
def test_frames_come_with_runs_only_when_asked(with_provenance: bool) -> None:
    with open_source(golden("framing")) as source:
        assert any(f.runs for f in frames(source, with_provenance)) is with_provenance
