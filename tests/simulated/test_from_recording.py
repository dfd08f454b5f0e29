"""A guest that answers from a recording, as a transcript: `>` goes in, `<` comes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.messages import Request, cpu_request
from tests.replay.modelled import ADD_MEM, TWO_CPUS, Asking, T, disk, overlapping, recorded
from tests.support import HELLO, answer, ask, connect, each_transcript, records_of
from upcall_trace.capture.records import Begins, Chunk, Close, Header, Open, Record
from upcall_trace.simulated.from_recording import (
    RecordedMachine,
    recorded_connections,
)
from upcall_trace.simulated.machine import Pace
from upcall_trace.simulated.multiplexer import Link
from upcall_trace.trace.script import Send
from upcall_trace.trace.scripting import read_script

HEADER = Header("test")
KILL = cpu_request(T.DEL_CPU, [9])


class Talk:
    """A client of one recorded machine, over connections that it numbers itself."""

    def __init__(
        self, records: Iterable[Record], matching: bool = False, pace: Pace = Pace.NONE
    ) -> None:
        self.faults: list[str] = []
        connections = recorded_connections(HEADER, records)
        self.machine = RecordedMachine(HEADER, connections, matching, pace, self.faults.append)
        self._links: dict[int, Link] = {}
        self.last_due_ns = 0

    def send(self, sent: bytes | Request, conn: int = 1) -> bytes | None:
        """What comes back, up to a close, which is None when nothing else came."""
        sent = sent.encode() if isinstance(sent, Request) else sent
        if conn not in self._links:
            self._links[conn] = self.machine.link()
        link = self._links[conn]
        said = b""
        while sent and link.read_size:
            piece, sent = sent[: link.read_size], sent[link.read_size :]
            for step in link.receive(piece, 0):
                self.last_due_ns = step.at_ns
                if step.sent is None:
                    return said or None
                said += step.sent
        return said

    def greet(self, conn: int = 1) -> None:
        assert (self.send(b"CONNECT 219\n", conn) or b"").startswith(b"OK ")
        assert self.send(b"d", conn) == HELLO


def test_the_recorded_bytes_come_out() -> None:
    talk = Talk(recorded([disk(0), overlapping(0)]))
    assert talk.send(b"CONNECT 219\n") == b"OK 1024\n"
    assert talk.send(b"d") == HELLO
    assert talk.send(disk(0)) == disk(0).reply().encode()
    assert talk.send(overlapping(0)) == overlapping(0).reply(-17).encode()
    assert (talk.faults, list(talk.machine.unused())) == ([], [])


def test_padding_does_not_count() -> None:
    talk = Talk(recorded([disk(0)]))
    talk.greet()
    padded = replace(disk(0), padding=b"\x55" * len(disk(0).padding))
    assert talk.send(padded) == disk(0).reply().encode()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (disk(1), "recorded 1.0 add_mmio 0xd0000000+0x2000 irq=5; got add_mmio 0xd0010000"),
        (ADD_MEM, "recorded 1.0 add_mmio 0xd0000000+0x2000 irq=5; got add_mem"),
        (replace(disk(0), magic_version=0), "recorded 1.0 add_mmio"),
        (replace(disk(0), msg_size=23), "recorded 1.0 add_mmio"),
    ],
)
def test_another_request_than_the_recorded_one_ends_the_connection(
    sent: Request, told: str
) -> None:
    talk = Talk(recorded([disk(0), ADD_MEM]))
    talk.greet()
    assert talk.send(sent) is None
    (fault,) = talk.faults
    assert fault.startswith("connection 1, request 0: ")
    assert told in fault
    assert len(list(talk.machine.unused())) == 2


def test_more_than_was_recorded_ends_it_too() -> None:
    talk = Talk(recorded([disk(0)])[:-1])
    talk.greet()
    talk.send(disk(0))
    assert talk.send(disk(0)) is None
    assert talk.faults == [
        "connection 1, request 1: recorded no more requests; got add_mmio 0xd0000000+0x2000 irq=5"
    ]
    assert talk.send(b"CONNECT 219\n", 2) is None
    assert talk.faults[1] == "connection 2: the recording has no more"


def test_the_kth_connection_is_the_recordings_kth() -> None:
    talk = Talk(recorded([(1, disk(0)), (7, ADD_MEM), (1, overlapping(0))]))
    talk.greet(1)
    talk.greet(2)
    assert talk.send(ADD_MEM, 2) == ADD_MEM.reply(-1).encode()
    assert talk.send(disk(0), 1) == disk(0).reply().encode()
    assert list(talk.machine.unused()) == ["never asked: 1.1 add_mmio 0xd0001000+0x2000 irq=5"]


def test_refused_connections_are_refused_again() -> None:
    refused: list[Record] = [
        Open(0, 1),
        Chunk(0, 1, True, b"CONNECT 219\n"),
        Close(1, 1, by_guest=True),
    ]
    talk = Talk([*refused, *connect(2, 5), ask(ADD_MEM, 6, 2), answer(ADD_MEM, 7, 2, ret=-1)])
    assert talk.send(b"CONNECT 219\n", 1) is None
    talk.greet(2)
    assert talk.send(ADD_MEM, 2)


@pytest.mark.parametrize("line", [b"CONNECT 1024\n", b"HELLO\n", b"x" * 40])
def test_other_ports_and_lines_are_closed_and_are_nobodys_fault(line: bytes) -> None:
    talk = Talk(recorded([disk(0)]))
    assert talk.send(line, 1) is None
    talk.greet(2)
    assert talk.faults == []


def test_another_service_byte_is_told() -> None:
    talk = Talk(recorded([disk(0)]))
    talk.send(b"CONNECT 219\n")
    assert talk.send(b"x") is None
    assert talk.faults == ["connection 1: recorded service byte 0x64, got 0x78"]


def test_no_service_byte_in_time_closes() -> None:
    machine = Talk(recorded([disk(0)])).machine
    link = machine.link()
    for byte in b"CONNECT 219\n":
        link.receive(bytes([byte]), 5)
    assert link.deadline_ns == 10_000_000_005
    assert [step.sent for step in link.expire(10_000_000_005)] == [None]


def test_silence_is_silence_and_an_end_is_an_end() -> None:
    asking: list[Asking] = [ADD_MEM, KILL]
    talk = Talk(recorded(asking, TWO_CPUS))
    talk.greet()
    talk.send(ADD_MEM)
    assert talk.send(KILL) == b""
    records = [r for r in recorded([ADD_MEM]) if not isinstance(r, Close)]
    talk = Talk([*records, Close(99_000_000, 1, by_guest=True)])
    talk.greet()
    assert talk.send(ADD_MEM) == ADD_MEM.reply(-1).encode()
    assert talk.send(ADD_MEM) == b""  # nobody reads it any more


def test_requests_in_pieces_are_received_as_the_guest_received_them() -> None:
    first, rest = disk(1).encode()[:500], disk(1).encode()[500:]
    talk = Talk(recorded([disk(0), first, rest]))
    talk.greet()
    talk.send(disk(0))
    assert talk.send(first) == disk(1).reply().encode()
    assert (talk.send(rest) or b"")[8:12] == bytes(4)  # a rest is a request of no known type
    assert list(talk.machine.unused()) == []


def test_two_requests_in_one_write_are_two() -> None:
    talk = Talk(recorded([disk(0), ADD_MEM]))
    talk.greet()
    both = talk.send(disk(0).encode() + ADD_MEM.encode())
    assert both == disk(0).reply().encode() + ADD_MEM.reply(-1).encode()


def test_the_recorded_latency_is_kept_when_it_is_wanted() -> None:
    for pace, due in ((Pace.NONE, 0), (Pace.REAL, 100_000)):
        talk = Talk(recorded([disk(0)]), pace=pace)
        talk.greet()
        talk.send(disk(0))
        assert talk.last_due_ns == due


def test_by_matching_the_order_is_the_clients() -> None:
    asking: list[Asking] = [(1, disk(0)), (2, disk(0)), (2, ADD_MEM)]
    talk = Talk(recorded(asking), matching=True)
    for conn in (1, 2, 3):
        talk.greet(conn)
    assert talk.send(ADD_MEM, 3) == ADD_MEM.reply(-1).encode()
    assert talk.send(disk(0), 2) == disk(0).reply().encode()  # the first one that is left
    assert list(talk.machine.unused()) == ["never asked: 2.0 add_mmio 0xd0000000+0x2000 irq=5"]
    assert talk.send(disk(0), 1) == disk(0).reply(-17).encode()
    assert talk.send(disk(0), 1) is None
    (fault,) = talk.faults
    assert fault == (
        "connection 1, request 1: recorded no such request, or not once more; "
        "got add_mmio 0xd0000000+0x2000 irq=5"
    )


@pytest.mark.parametrize("begins", [Begins.SERVICE, Begins.MIDDLE])
def test_what_was_recorded_without_its_lines_gets_ordinary_ones(begins: Begins) -> None:
    start: list[Record] = [Open(0, 1, begins, 219, True)]
    if begins is Begins.SERVICE:
        start += [Chunk(0, 1, True, b"d"), Chunk(0, 1, False, HELLO)]
    talk = Talk([*start, ask(ADD_MEM, 5), answer(ADD_MEM, 6, ret=-1)])
    talk.greet()
    assert talk.send(ADD_MEM) == ADD_MEM.reply(-1).encode()


@each_transcript
def test_every_recording_answers_its_own_requests(golden: Path) -> None:
    header, records = records_of(golden)
    talk = Talk(records)
    script = read_script(header, records)
    for step in script.steps:
        if isinstance(step, Send) and step.what != "other":
            talk.send(step.data, step.conn)
    assert (talk.faults, list(talk.machine.unused())) == ([], [])
    assert talk.machine.asked == len(script.asked)
