"""The simulated guest in memory: its clock stands still until it is told to go."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    decode_reply,
    hello,
    mmio_request,
    pci_request,
)
from tests.kernel.recordings import worlds
from tests.support import TRANSCRIPTS, records_of
from upcall_trace.capture.records import Chunk, Close, GaveUp, Open, Vmm
from upcall_trace.control.orders import BadOrder
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.vmm_actions import order_of
from upcall_trace.kernel.world import World, kata_pod
from upcall_trace.simulated.in_process import MemoryGuest, MemoryStream
from upcall_trace.simulated.machine import Backend, Habits, Pace

SECOND = 1_000_000_000
POD = replace(kata_pod(cpus=2), vcpus_running=(0, 1))
REAL = Habits(pace=Pace.REAL)
ADD_MEM = bare_request(MessageType.ADD_MEM)
ADD_2 = cpu_request(MessageType.ADD_CPU, [2])
DEL_1 = cpu_request(MessageType.DEL_CPU, [1])
DEL_9 = cpu_request(MessageType.DEL_CPU, [9])
PLUG = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
SCAN = pci_request(MessageType.ADD_PCI, 0, 1)


def connected(guest: MemoryGuest) -> MemoryStream:
    stream = guest.connect()
    stream.send(b"CONNECT 219\n")
    assert stream.receive().startswith(b"OK ")
    stream.send(b"d")
    assert stream.receive() == hello().encode()
    return stream


def ask(stream: MemoryStream, request: Request) -> int | None:
    """`ret`, or None when no reply came at once."""
    stream.send(request.encode())
    return reply(stream)


def reply(stream: MemoryStream) -> int | None:
    received = stream.receive()
    return decode_reply(received).ret if received else None


def test_without_waiting_everything_comes_at_once() -> None:
    guest = MemoryGuest(POD)
    stream = connected(guest)
    assert [ask(stream, r) for r in (PLUG, PLUG, ADD_2, ADD_MEM, DEL_1)] == [0, -17, -5, -1, 0]
    assert guest.now_ns == 0
    assert stream.receive() == b""


def test_the_default_is_a_kata_pod() -> None:
    state = MemoryGuest().state()
    assert [window["role"] for window in state["mmio"]] == ["blk", "fs", "vsock"]


def test_ten_seconds_without_a_service_byte_close() -> None:
    guest = MemoryGuest(POD)
    idle, quick = guest.connect(), guest.connect()
    guest.advance(3 * SECOND)
    idle.send(b"CONNECT 219\n")
    quick.send(b"CONNECT 219\n")
    guest.advance(10 * SECOND - 1)
    assert not idle.closed
    quick.send(b"d")
    guest.advance(1)
    assert idle.closed
    assert not quick.closed
    assert guest.now_ns == 13 * SECOND
    with pytest.raises(BrokenPipeError):
        idle.send(b"d")
    guest.advance(100 * SECOND)
    assert quick.receive().endswith(hello().encode())
    assert ask(quick, ADD_MEM) == -1


def test_a_line_may_take_its_time() -> None:
    guest = MemoryGuest(POD)
    stream = guest.connect()
    guest.advance(100 * SECOND)
    stream.send(b"CONNECT 219\n")
    assert stream.receive()


def test_a_vcpu_that_does_not_start_takes_ten_seconds_and_the_lock() -> None:
    guest = MemoryGuest(POD, REAL)
    slow, waits, free = (connected(guest) for _ in range(3))
    assert ask(slow, ADD_2) is None
    guest.advance(SECOND)
    assert ask(waits, DEL_1) is None
    assert [ask(free, r) for r in (ADD_MEM, SCAN)] == [-1, -1]  # the latter's is left over
    guest.advance(9 * SECOND - 1)
    assert (reply(slow), reply(waits)) == (None, None)
    guest.advance(1)
    assert (reply(slow), reply(waits)) == (-5, 0)
    assert ask(waits, PLUG) == 0


def test_each_reply_comes_at_its_own_moment_in_one_long_wait() -> None:
    guest = MemoryGuest(POD, REAL)
    one, other = connected(guest), connected(guest)
    one.send(ADD_2.encode() + PLUG.encode())
    other.send(ADD_2.encode())
    assert one.due_ns() == 10 * SECOND
    guest.advance(100 * SECOND)
    assert [decode_reply(raw).ret for raw in cut(one.receive())] == [-5, 0]
    assert reply(other) == -5
    assert guest.now_ns == 100 * SECOND


def test_what_follows_begins_at_that_moment_and_not_when_the_wait_ends() -> None:
    guest = MemoryGuest(POD, REAL)
    stream = connected(guest)
    stream.send(ADD_2.encode() * 2)
    guest.advance(15 * SECOND)
    assert len(cut(stream.receive())) == 1
    guest.advance(5 * SECOND - 1)
    assert stream.receive() == b""
    guest.advance(1)
    assert reply(stream) == -5


def cut(received: bytes) -> list[bytes]:
    return [received[begin : begin + 1024] for begin in range(0, len(received), 1024)]


def test_sends_that_wait_for_a_busy_thread_become_one_stream() -> None:
    """The halves of a request are two requests to an idle thread, and one to a busy one."""
    guest = MemoryGuest(POD, REAL)
    stream = connected(guest)
    raw = PLUG.encode()
    stream.send(ADD_2.encode())
    stream.send(raw[:500])
    stream.send(raw[500:])
    guest.advance(10 * SECOND)
    replies = [decode_reply(one) for one in cut(stream.receive())]
    assert [(one.msg_type, one.ret) for one in replies] == [(1, -5), (5, 0)]
    stream.send(raw[:500])
    stream.send(raw[500:])
    replies = [decode_reply(one) for one in cut(stream.receive())]
    assert [(one.msg_type, one.ret) for one in replies] == [(5, -17), (0, -17)]


def test_two_requests_in_one_write_and_an_over_long_one() -> None:
    stream = connected(MemoryGuest(POD))
    stream.send(ADD_MEM.encode() + SCAN.encode())
    assert [decode_reply(one).msg_type for one in cut(stream.receive())] == [3, 7]
    stream.send(ADD_MEM.encode() + bytes(476))
    assert [decode_reply(one).msg_type for one in cut(stream.receive())] == [3, 0]


def test_a_dead_thread_reads_nothing_and_closes_nothing() -> None:
    guest = MemoryGuest(POD)
    stream, other = connected(guest), connected(guest)
    assert not stream.silent
    assert ask(stream, DEL_9) is None
    assert stream.silent
    assert ask(stream, ADD_MEM) is None
    guest.advance(1000 * SECOND)
    assert not stream.closed
    assert stream.due_ns() is None
    assert ask(other, ADD_MEM) == -1
    stream.close()
    assert stream.closed


def test_a_refused_port_is_closed() -> None:
    stream = MemoryGuest(POD).connect()
    stream.send(b"CONNECT 9999\n")
    assert stream.closed
    assert stream.receive() == b""


@pytest.mark.parametrize(
    ("backend", "early"), [(Backend.DRAGONBALL, hello().encode()), (Backend.VHOST, b"")]
)
def test_bytes_before_ok(backend: Backend, early: bytes) -> None:
    stream = MemoryGuest(POD, Habits(backend)).connect()
    stream.send(b"CONNECT 219\nd")
    _, _, after = stream.receive().partition(b"\n")
    assert after == early


def test_what_was_sent_before_a_close_is_still_there() -> None:
    guest = MemoryGuest(POD, faults=[parse_fault("add_mem:close:when=2")])
    stream = connected(guest)
    stream.send(ADD_MEM.encode() * 3)
    assert stream.closed
    assert reply(stream) == -1
    assert guest.strikes == ["fault add_mem:close:when=2 strikes connection 1, request 1"]


def test_a_delayed_and_a_split_reply() -> None:
    faults = [parse_fault("add_mem:delay=300ms"), parse_fault("add_pci:split=500")]
    guest = MemoryGuest(POD, faults=faults)
    stream = connected(guest)
    assert ask(stream, ADD_MEM) is None
    guest.advance(299_999_999)
    assert stream.receive() == b""
    guest.advance(1)
    assert reply(stream) == -1
    stream.send(SCAN.encode())
    assert len(stream.receive()) == 500
    guest.advance(SECOND)
    assert len(stream.receive()) == 524


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> bytes:
        faults = [parse_fault("any:drop:chance=0.3"), parse_fault("any:garbage:chance=0.3")]
        stream = connected(MemoryGuest(POD, faults=faults, seed=seed))
        stream.send(ADD_MEM.encode() * 20)
        return stream.receive()

    assert run(3) == run(3) != run(4)


def test_orders_of_the_vmm() -> None:
    guest = MemoryGuest(POD)
    stream = connected(guest)
    assert ask(stream, ADD_2) == -5
    assert guest.control({"start_vcpu": 2}) == {"ok": True}
    assert ask(stream, ADD_2) == 0
    assert guest.state()["cpus_online"] == [0, 1, 2]
    with pytest.raises(BadOrder):
        guest.control({"start": 2})


def test_a_reset_ends_every_connection() -> None:
    guest = MemoryGuest(World(), REAL)
    slow, idle = connected(guest), guest.connect()
    assert ask(slow, cpu_request(MessageType.ADD_CPU, [])) == 0
    assert ask(slow, PLUG) == 0
    guest.control({"reset": True})
    assert slow.closed
    assert idle.closed
    assert guest.state()["mmio"] == []
    assert ask(connected(guest), PLUG) == 0


def test_a_client_that_closes_gets_nothing_more() -> None:
    guest = MemoryGuest(POD, REAL)
    stream = connected(guest)
    stream.send(ADD_2.encode())
    stream.close()
    guest.advance(20 * SECOND)
    assert stream.receive() == b""


# Recordings, by the client's clock.


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_recording_is_answered_byte_for_byte_in_its_own_time(path: Path) -> None:
    """Everything is sent when it was sent, and what comes by the end is what had come.

    A real guest takes its time; ours may not answer where the real one was silent for good, nor be
    silent where it was not.
    """
    header, records = records_of(path)
    guest = MemoryGuest(worlds()[header.notes["machine"]], Habits(Backend.VHOST))
    streams: dict[int, MemoryStream] = {}
    recorded: dict[int, bytes] = defaultdict(bytes)
    arrived: dict[int, bytes] = defaultdict(bytes)
    ended: set[int] = set()
    closed: set[int] = set()
    for record in records:
        if not isinstance(record, Open | Chunk | Close | GaveUp | Vmm):
            continue
        guest.advance(max(0, record.t_ns - guest.now_ns))
        match record:
            case Open(conn=conn):
                streams[conn] = guest.connect()
            case Chunk(conn=conn, to_guest=True):
                streams[conn].send(record.data)
            case Chunk(conn=conn):
                recorded[conn] += record.data
            case Close(conn=conn, by_guest=True):
                ended.add(conn)
            case Close(conn=conn):
                stream = streams.pop(conn)
                arrived[conn] = stream.receive()
                closed |= {conn} if stream.closed else set()
            case Vmm() if order := order_of(record.action):
                with suppress(BadOrder):  # such as to grow memory, which is no part of it
                    guest.control(order)
    for conn, stream in streams.items():
        arrived[conn] = stream.receive()
    assert arrived == {conn: recorded[conn] for conn in arrived}
    assert closed | {conn for conn, stream in streams.items() if stream.closed} == ended
