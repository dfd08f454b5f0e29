"""A connection to a simulated socket is the same for a machine and for a recording."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dissectors.constants import SERVICE_BYTE_LIMIT_NS
from dissectors.messages import hello
from upcall_trace.capture.records import Header
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.from_recording import Recorded, RecordedMachine
from upcall_trace.simulated.machine import Backend, Habits, Machine
from upcall_trace.simulated.multiplexer import Link, Step

NOW = 7_000
HELLO = hello().encode()


def of_a_machine() -> Link:
    return Machine(kata_pod()).link()


def of_vhost() -> Link:
    return Machine(kata_pod(), Habits(Backend.VHOST)).link()


def of_a_recording() -> Link:
    return RecordedMachine(Header("test"), [Recorded(1, greeting=HELLO)]).link()


each_end = pytest.mark.parametrize("begin", [of_a_machine, of_vhost, of_a_recording])


def feed(link: Link, sent: bytes, now_ns: int = NOW) -> list[Step]:
    """Everything that comes of a send that is read bit by bit."""
    steps: list[Step] = []
    while sent and (size := link.read_size):
        steps += link.receive(sent[:size], now_ns)
        sent = sent[size:]
    return steps


@each_end
def test_a_line_gets_ok_and_a_service_byte_the_greeting(begin: Callable[[], Link]) -> None:
    link = begin()
    (accepted,) = feed(link, b"CONNECT 219\n")
    assert accepted.sent is not None
    assert accepted.sent.startswith(b"OK ")
    assert link.deadline_ns == NOW + SERVICE_BYTE_LIMIT_NS
    assert feed(link, b"d") == [Step(NOW, HELLO)]
    assert link.deadline_ns is None
    assert link.read_size == 1024


@each_end
@pytest.mark.parametrize("line", [b"CONNECT 220\n", b"HELLO\n", b"CONNECT x\n"])
def test_another_line_closes(begin: Callable[[], Link], line: bytes) -> None:
    link = begin()
    assert feed(link, line) == [Step(NOW, None)]
    assert (link.read_size, link.silent) == (0, False)
    assert link.receive(b"d", NOW) == []


@each_end
def test_without_a_service_byte_it_closes_in_time(begin: Callable[[], Link]) -> None:
    link = begin()
    feed(link, b"CONNECT 219\n")
    assert link.expire(NOW + SERVICE_BYTE_LIMIT_NS) == [Step(NOW + SERVICE_BYTE_LIMIT_NS, None)]
    assert (link.deadline_ns, link.read_size) == (None, 0)


@each_end
@pytest.mark.parametrize("sent", [b"", b"CONN", b"CONNECT 219\n", b"CONNECT 219\nd"])
def test_the_clients_end_closes_once(begin: Callable[[], Link], sent: bytes) -> None:
    link = begin()
    feed(link, sent[:12])
    feed(link, sent[12:])
    assert link.receive(b"", NOW) == [Step(NOW, None)]
    assert link.receive(b"", NOW) == []
