"""The gate of `lab up --auto`, in front of a simulated guest: what it does, and what it leaves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from dissectors.constants import MESSAGE_SIZE, MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    decode_reply,
    mmio_request,
    pci_request,
)
from tests.guests import HELLO, ask, connected, dial, receive, receive_line, wait_until
from tests.vmm import descriptors_as_before
from upcall_trace.control.orders import BadOrder
from upcall_trace.errors import Unreachable
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import PciDevice, World
from upcall_trace.lab.gate import Gate, needs
from upcall_trace.simulated.machine import Habits
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.serving import StreamServer

ECHO: Final = 7
MACHINE: Final = World(nr_cpu_ids=4, pci=(PciDevice(0, 0), PciDevice(0, 4)))
"""One CPU runs and three more have room; two PCI slots answer."""
ADD_1: Final = cpu_request(MessageType.ADD_CPU, [1])
SLOT_20: Final = pci_request(MessageType.ADD_PCI, 0, 20)
Follow = Callable[[dict[str, Any]], object]


@pytest.fixture
def guest() -> Iterator[SimulatedGuest]:
    with SimulatedGuest(MACHINE, Habits(echo=frozenset({ECHO}))) as guest:
        yield guest


@contextmanager
def gate_to(upstream: Path, follow: Follow, said: list[str] | None = None) -> Iterator[Path]:
    """A gate that listens beside `upstream`."""
    gate = Gate(upstream, follow, (said if said is not None else []).append)
    with StreamServer(upstream.with_name("gate"), gate.serve):
        yield upstream.with_name("gate")


@pytest.fixture
def gated(guest: SimulatedGuest) -> Iterator[Path]:
    """Where requests to the guest pass the gate."""
    with gate_to(guest.path, guest.control) as path:
        yield path


def ignore(_: dict[str, Any]) -> None:
    """A VMM that does nothing by itself."""


# What a request needs.


def test_a_vcpu_that_the_vmm_does_not_run_comes_up_through_the_gate_only(
    guest: SimulatedGuest, gated: Path
) -> None:
    with connected(guest.path) as stream:
        assert ask(stream, cpu_request(MessageType.ADD_CPU, [2])).ret == -5
    with connected(gated) as stream:
        assert ask(stream, cpu_request(MessageType.ADD_CPU, [1, 3])).ret == 0
    assert guest.state()["vcpus_running"] == [0, 1, 3]


def test_a_device_that_the_vmm_has_not_made_is_found_through_the_gate_only(
    guest: SimulatedGuest, gated: Path
) -> None:
    with connected(guest.path) as stream:
        assert ask(stream, SLOT_20).ret == -19
    with connected(gated) as stream:
        assert ask(stream, SLOT_20).ret == 0
        assert ask(stream, pci_request(MessageType.ADD_PCI, 0, 21, 1)).ret == -19


def test_the_orders_come_before_the_request(guest: SimulatedGuest) -> None:
    seen: list[list[int]] = []

    def follow(order: dict[str, Any]) -> None:
        seen.append(guest.state()["cpus_online"])
        guest.control(order)

    with gate_to(guest.path, follow) as gated, connected(gated) as stream:
        assert ask(stream, cpu_request(MessageType.ADD_CPU, [1, 2])).ret == 0
    assert seen == [[0], [0]]


def test_a_short_request_is_read_as_the_guest_reads_it(guest: SimulatedGuest, gated: Path) -> None:
    with connected(gated) as stream:
        assert ask(stream, cpu_request(MessageType.DEL_CPU, [3])).ret == -22
        stream.sendall(ADD_1.encode()[:12])  # the ids are still those of the request before
        assert decode_reply(receive(stream, MESSAGE_SIZE)).ret == 0
    assert guest.state()["vcpus_running"] == [0, 3]


@pytest.mark.parametrize("failure", [BadOrder("there is no such vCPU"), Unreachable("QEMU died")])
def test_what_cannot_be_done_is_said_and_the_request_passes_all_the_same(
    guest: SimulatedGuest, failure: Exception
) -> None:
    said: list[str] = []

    def follow(_: dict[str, Any]) -> None:
        raise failure

    with gate_to(guest.path, follow, said) as gated, connected(gated) as stream:
        assert ask(stream, ADD_1).ret == -5
        assert ask(stream, bare_request(MessageType.ADD_MEM)).ret == -1
    assert said == [f"cannot do {{'start_vcpu': 1}} for a request: {failure}"]


def wrong_magic(request: Request) -> bytes:
    return b"\xff" + request.encode()[1:]


@pytest.mark.parametrize(
    ("request_", "orders"),
    [
        (ADD_1, [{"start_vcpu": 1}]),
        (cpu_request(MessageType.ADD_CPU, [3, 2]), [{"start_vcpu": 3}, {"start_vcpu": 2}]),
        (cpu_request(MessageType.ADD_CPU, []), []),
        (cpu_request(MessageType.ADD_CPU, [200] * 255), [{"start_vcpu": 200}] * 255),
        # An aarch64 guest counts its CPUs; which ones they are is not told.
        (cpu_request(MessageType.ADD_CPU, 2), []),
        (cpu_request(MessageType.DEL_CPU, [1]), []),
        (SLOT_20, [{"plug_pci": {"bus": 0, "slot": 20}}]),
        (pci_request(MessageType.ADD_PCI, 0, 31), [{"plug_pci": {"bus": 0, "slot": 31}}]),
        (pci_request(MessageType.ADD_PCI, 1, 20), []),
        (pci_request(MessageType.ADD_PCI, 0, 20, 1), []),
        (pci_request(MessageType.DEL_PCI, 0, 20), []),
        (mmio_request(MessageType.ADD_MMIO, 0xFEB00400, 0x200, 7), []),
        (bare_request(MessageType.ADD_MEM), []),
        (bare_request(MessageType.CONNECT), []),
        (bare_request(77), []),
    ],
    ids=lambda value: value.op if isinstance(value, Request) else "",
)
def test_what_a_request_needs(request_: Request, orders: list[dict[str, Any]]) -> None:
    assert needs(request_.encode()) == orders
    # The guest does nothing for a request with a wrong magic, so the VMM need not either.
    assert needs(wrong_magic(request_)) == []


# What it leaves alone.


def pieces() -> list[bytes]:
    """Requests cut and run together as clients do that know no better, with their replies due."""
    add, remove = ADD_1.encode(), cpu_request(MessageType.DEL_CPU, [1]).encode()
    scan = pci_request(MessageType.ADD_PCI, 0, 4).encode()
    return [scan[:17], scan[17:], add + remove, remove[:5], wrong_magic(ADD_1), scan + add[:100]]


def replies(path: Path) -> list[bytes]:
    came = []
    with connected(path) as stream:
        for piece in pieces():
            stream.sendall(piece)
            came.append(receive(stream, -(-len(piece) // MESSAGE_SIZE) * MESSAGE_SIZE))
    return came


def test_replies_to_requests_in_pieces_are_the_same_with_and_without_the_gate() -> None:
    worlds = [World(nr_cpu_ids=4, pci=MACHINE.pci, vcpus_running=(0, 1))] * 2
    with SimulatedGuest(worlds[0]) as one, SimulatedGuest(worlds[1]) as other:
        with gate_to(other.path, ignore) as gated:
            through = replies(gated)
        assert through == replies(one.path)
        assert one.state() == other.state()
    assert {len(reply) for reply in through} == {MESSAGE_SIZE, 2 * MESSAGE_SIZE}


def test_other_ports_pass_both_ways_and_end_when_the_client_has_said_all(gated: Path) -> None:
    # An order would be followed if this were taken for a request.
    sent = ADD_1.encode() * 300
    with dial(gated, b"CONNECT %d\n" % ECHO) as stream:
        assert receive_line(stream).startswith(b"OK ")
        sender = threading.Thread(target=stream.sendall, args=(sent,))
        sender.start()
        assert receive(stream, len(sent)) == sent
        sender.join()
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""


def test_only_the_upcall_port_makes_the_vmm_do_things(guest: SimulatedGuest, gated: Path) -> None:
    for sent in (ADD_1.encode(), b"d" + ADD_1.encode()):
        with dial(gated, b"CONNECT %d\n" % ECHO) as stream:
            assert receive_line(stream).startswith(b"OK ")
            stream.sendall(sent)
            assert receive(stream, len(sent)) == sent
    assert guest.state()["vcpus_running"] == [0]


def test_a_client_that_has_said_all_gets_its_last_reply(gated: Path) -> None:
    with connected(gated) as stream:
        stream.sendall(ADD_1.encode())
        stream.shutdown(socket.SHUT_WR)
        assert decode_reply(receive(stream, MESSAGE_SIZE)).ret == 0
        assert stream.recv(1) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"CONNECT 9999\n",
        b"CONNECT\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 200,
        b"CONNECT 21",
        b"",
    ],
)
def test_what_the_guest_closes_is_closed_and_not_answered(gated: Path, sent: bytes) -> None:
    with dial(gated, sent) as stream:
        if not sent.endswith(b"\n"):
            stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""


def test_a_service_that_the_guest_does_not_know_is_closed(
    guest: SimulatedGuest, gated: Path
) -> None:
    with dial(gated, b"CONNECT 219\n") as stream:
        assert receive_line(stream).startswith(b"OK ")
        stream.sendall(b"x")
        assert stream.recv(1) == b""
    assert guest.state()["vcpus_running"] == [0]


def test_a_client_may_send_its_first_line_byte_by_byte(gated: Path) -> None:
    with dial(gated) as stream:
        for byte in b"CONNECT 219\n":
            stream.sendall(bytes([byte]))
        assert receive_line(stream).startswith(b"OK ")
        stream.sendall(b"d")
        assert receive(stream, MESSAGE_SIZE) == HELLO
        assert ask(stream, ADD_1).ret == 0


def test_a_client_may_send_everything_at_once(gated: Path) -> None:
    with dial(gated, b"CONNECT 219\r\nd" + ADD_1.encode()) as stream:
        assert receive_line(stream).startswith(b"OK ")
        assert receive(stream, MESSAGE_SIZE) == HELLO
        assert decode_reply(receive(stream, MESSAGE_SIZE)).ret == 0


def test_a_reset_of_the_guest_ends_connections_and_the_next_one_finds_the_new_guest(
    guest: SimulatedGuest, gated: Path
) -> None:
    with connected(gated) as stream:
        assert ask(stream, ADD_1).ret == 0
        guest.reset()
        assert stream.recv(1) == b""
    with connected(gated) as stream:
        assert ask(stream, cpu_request(MessageType.DEL_CPU, [1])).ret == -22
        assert ask(stream, ADD_1).ret == 0


def test_without_a_guest_behind_it_a_client_sees_the_end(tmp_path: Path) -> None:
    with gate_to(tmp_path / "nobody", ignore) as gated, dial(gated) as stream:
        assert stream.recv(1) == b""


def test_clients_do_not_wait_for_each_other(gated: Path) -> None:
    with connected(gated) as idle, connected(gated) as busy:
        assert ask(busy, ADD_1).ret == 0
        assert ask(idle, SLOT_20).ret == 0


def test_connections_leave_nothing_behind(gated: Path) -> None:
    connected(gated).close()
    threads = threading.active_count()
    with descriptors_as_before():
        for _ in range(10):
            with connected(gated) as stream:
                stream.sendall(ADD_1.encode())
            dial(gated, b"CONNECT 219\n").close()
            dial(gated).close()
    wait_until(lambda: threading.active_count() <= threads)


def test_an_unfinished_first_line_reaches_what_is_behind(tmp_path: Path) -> None:
    came: list[bytes] = []

    def listen(stream: socket.socket) -> None:
        came.append(stream.recv(64, socket.MSG_WAITALL))

    with (
        StreamServer(tmp_path / "behind", listen),
        gate_to(tmp_path / "behind", ignore) as path,
        dial(path, b"CONNECT 21") as client,
    ):
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert came == [b"CONNECT 21"]


def test_a_client_that_is_gone_is_not_waited_for() -> None:
    late = [parse_fault("add_mem:delay=60s")]
    with SimulatedGuest(MACHINE, faults=late) as guest, gate_to(guest.path, ignore) as path:
        before = threading.active_count()
        for _ in range(5):
            with connected(path) as client:
                client.sendall(bare_request(MessageType.ADD_MEM).encode())
        wait_until(lambda: threading.active_count() <= before + 5)  # the guest's own
