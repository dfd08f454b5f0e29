"""The simulated guest on real sockets, against recordings and under load."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import MESSAGE_SIZE, MessageType
from dissectors.messages import bare_request, cpu_request, mmio_request, pci_request
from tests.guests import (
    HELLO,
    ask,
    connected,
    dial,
    guest_process,
    receive,
    receive_line,
    says_nothing,
    wait_until,
)
from tests.kernel.recordings import replay, worlds
from tests.support import TRANSCRIPTS, records_of
from tests.vmm import descriptors_as_before
from upcall_trace.capture.records import Chunk, Close, GaveUp, Open, Record, Vmm
from upcall_trace.control.orders import BadOrder
from upcall_trace.errors import WrongUsage
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.vmm_actions import order_of
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.machine import Backend, Habits, Pace
from upcall_trace.simulated.on_socket import SimulatedGuest

ADD_MEM = bare_request(MessageType.ADD_MEM)
PLUG = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
DEL_9 = cpu_request(MessageType.DEL_CPU, [9])
"""Kills its thread, in a guest with two CPUs."""
POD = kata_pod(cpus=2)
DEL_VSOCK = mmio_request(MessageType.DEL_MMIO, 0xE0004000, 0x2000, 5)


# Recordings.


class Player:
    """Sends what a transcript says was sent, each piece when the one before has its replies.

    A guest that has not yet read a piece would take two of them for one.
    """

    def __init__(self, guest: SimulatedGuest, records: list[Record]) -> None:
        self.recorded: dict[int, bytes] = defaultdict(bytes)
        """What the real guest sent on each connection, the multiplexer's line included."""
        for record in records:
            if isinstance(record, Chunk) and not record.to_guest:
                self.recorded[record.conn] += record.data
        self.arrived: dict[int, bytes] = defaultdict(bytes)
        self._guest = guest
        self._streams: dict[int, socket.socket] = {}
        self._lines: set[int] = set()

    def play(self, record: Record) -> None:
        if isinstance(record, Vmm) and (order := order_of(record.action)):
            with suppress(BadOrder):  # such as to grow memory, which is no part of it
                self._guest.control(order)
        match record:
            case Open(conn=conn):
                self._streams[conn] = dial(self._guest.path)
            case Chunk(conn=conn, to_guest=True):
                self._streams[conn].sendall(record.data)
                self.arrived[conn] += self._answer(conn, len(record.data))
            case Close(conn=conn, by_guest=True):
                assert self._streams[conn].recv(1) == b""
            case GaveUp(conn=conn):
                assert says_nothing(self._streams[conn])
            case Close(conn=conn):
                assert says_nothing(self._streams[conn], 0) or self._streams[conn].recv(1) == b""
                self._streams[conn].close()

    def close(self) -> None:
        """Leave, as the client of the recording did without a word."""
        for stream in self._streams.values():
            stream.close()

    def _answer(self, conn: int, sent: int) -> bytes:
        """What a send is answered with, where the real guest answered it."""
        _, newline, messages = self.recorded[conn].partition(b"\n")
        if conn not in self._lines:
            self._lines.add(conn)
            return receive_line(self._streams[conn]) if newline else b""
        got = len(self.arrived[conn].partition(b"\n")[2])
        due = min(got + -(-sent // MESSAGE_SIZE) * MESSAGE_SIZE, len(messages))
        return receive(self._streams[conn], due - got)


SLOW = [path for path in TRANSCRIPTS if path.stem.startswith("handshake")]
REPLAYS = [(path, Backend.VHOST) for path in TRANSCRIPTS] + [
    (path, Backend.DRAGONBALL) for path in TRANSCRIPTS if path not in SLOW
]


@pytest.mark.parametrize(
    ("transcript", "backend"),
    [
        pytest.param(
            path,
            backend,
            id=f"{path.stem}-{backend}",
            marks=[pytest.mark.torture] if path in SLOW else [],
        )
        for path, backend in REPLAYS
    ],
)
def test_a_recording_is_answered_byte_for_byte(transcript: Path, backend: Backend) -> None:
    """The recordings were made behind vhost-device-vsock; another backend only numbers its OK.

    In those called handshake a guest waits ten seconds for its service byte; tests/replay plays
    it too.
    """
    header, records = records_of(transcript)
    world = worlds()[header.notes["machine"]]
    with SimulatedGuest(world, Habits(backend)) as guest:
        player = Player(guest, records)
        begun = time.monotonic()
        for record in records:
            player.play(record)
        player.close()
        assert player.recorded
        for conn, recorded in player.recorded.items():
            ok, _, messages = player.arrived[conn].partition(b"\n")
            assert messages == recorded.partition(b"\n")[2], f"connection {conn}"
            if recorded and backend is Backend.VHOST:
                assert ok == b"OK 219"
            elif recorded:
                assert int(ok.removeprefix(b"OK ")) >= 1 << 30
        if transcript in SLOW:
            assert 10 <= time.monotonic() - begun < 15
        assert guest.state() == replay(transcript).guest.state()


# Ports, lines and backends.


@pytest.mark.parametrize(
    ("backend", "ok", "early"),
    [(Backend.DRAGONBALL, b"OK 1073741824\n", HELLO), (Backend.VHOST, b"OK 219\n", b"")],
)
def test_the_backends_differ_in_their_ok_and_in_bytes_that_come_before_it(
    backend: Backend, ok: bytes, early: bytes
) -> None:
    guest = SimulatedGuest(habits=Habits(backend))
    with guest, dial(guest.path, b"CONNECT 219\nd") as stream:
        assert receive_line(stream) == ok
        if early:
            assert receive(stream, MESSAGE_SIZE) == early
        else:
            assert says_nothing(stream)
            stream.sendall(b"d")
            assert receive(stream, MESSAGE_SIZE) == HELLO


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("line", [b"CONNECT 9999\n", b"HELLO\n", b"CONNECT abc\n", b"x" * 32])
def test_another_port_or_line_is_closed_without_a_word(backend: Backend, line: bytes) -> None:
    with SimulatedGuest(habits=Habits(backend)) as guest, dial(guest.path, line) as stream:
        assert stream.recv(1) == b""


def test_echo_ports() -> None:
    habits = Habits(echo=frozenset({1024}))
    payload = bytes(range(256)) * 4096
    with SimulatedGuest(habits=habits) as guest, dial(guest.path, b"CONNECT 1024\n") as stream:
        assert receive_line(stream) == b"OK 1073741824\n"
        threading.Thread(target=stream.sendall, args=(payload,)).start()
        assert receive(stream, len(payload)) == payload


# Requests.


def test_connections_at_once_share_the_guest_and_none_of_its_buffers() -> None:
    """Eight clients plug and unplug windows of their own; the lock keeps the table whole."""
    with SimulatedGuest() as guest:
        before = guest.state()
        rets: list[list[int]] = []

        def work(number: int) -> None:
            base = 0xF0000000 + number * 0x1000
            with connected(guest.path) as stream:
                rets.append(
                    [
                        ask(stream, mmio_request(kind, base, 0x1000, 5)).ret
                        for _ in range(50)
                        for kind in (MessageType.ADD_MMIO, MessageType.DEL_MMIO)
                    ]
                )

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rets == [[0] * 100] * 8
        assert guest.state() == before


def test_a_dead_thread_leaves_its_connection_open_and_others_alone() -> None:
    with (
        SimulatedGuest(POD) as guest,
        connected(guest.path) as dead,
        connected(guest.path) as other,
    ):
        dead.sendall(DEL_9.encode())
        assert says_nothing(dead)
        dead.sendall(ADD_MEM.encode() * 100)
        assert says_nothing(dead)
        assert ask(other, ADD_MEM).ret == -1


def test_when_the_channels_device_is_gone_nobody_is_answered_until_a_reset() -> None:
    with SimulatedGuest() as guest, connected(guest.path) as one, connected(guest.path) as other:
        one.sendall(DEL_VSOCK.encode())
        assert says_nothing(one)
        other.sendall(ADD_MEM.encode())
        assert says_nothing(other)
        with dial(guest.path, b"CONNECT 219\n") as late:
            assert late.recv(1) == b""
        guest.reset()
        connected(guest.path).close()


def test_pace_real_and_delays_take_real_time() -> None:
    faults = [parse_fault("add_mem:delay=500ms"), parse_fault("add_mmio:split=100")]
    guest = SimulatedGuest(habits=Habits(pace=Pace.REAL), faults=faults)
    with guest, connected(guest.path) as stream, connected(guest.path) as other:
        begun = time.monotonic()
        stream.sendall(ADD_MEM.encode())
        assert ask(other, bare_request(77)).ret == -1
        assert says_nothing(stream, 0)
        assert len(receive(stream, MESSAGE_SIZE)) == MESSAGE_SIZE
        assert 0.5 <= time.monotonic() - begun < 5
        stream.sendall(PLUG.encode())
        assert len(stream.recv(MESSAGE_SIZE)) == 100
        assert len(receive(stream, MESSAGE_SIZE - 100)) == MESSAGE_SIZE - 100


def test_with_pace_real_a_vcpu_that_does_not_start_holds_up_others() -> None:
    """The ten seconds themselves are tested without a real clock."""
    guest = SimulatedGuest(replace(kata_pod(), vcpus_running=(0,)), Habits(pace=Pace.REAL))
    with guest, connected(guest.path) as slow, connected(guest.path) as other:
        slow.sendall(cpu_request(MessageType.ADD_CPU, [1]).encode())
        assert says_nothing(slow, 0.2)
        other.sendall(PLUG.encode())
        assert says_nothing(other, 0.2)
        with connected(guest.path) as free:
            assert ask(free, ADD_MEM).ret == -1


def test_faults_on_the_socket_and_their_messages() -> None:
    told: list[str] = []
    faults = [parse_fault(text) for text in ("any:drop:when=1", "any:garbage:when=2", "any:close")]
    with SimulatedGuest(faults=faults, talk=told.append) as guest, connected(guest.path) as stream:
        stream.sendall(ADD_MEM.encode())
        assert says_nothing(stream)
        stream.sendall(ADD_MEM.encode())
        assert receive(stream, MESSAGE_SIZE)[:4] != HELLO[:4]
        stream.sendall(ADD_MEM.encode())
        assert stream.recv(1) == b""
    assert told == [
        "fault any:drop:when=1 strikes connection 1, request 0",
        "fault any:garbage:when=2 strikes connection 1, request 1",
        "fault any:close strikes connection 1, request 2",
    ]


def test_a_client_that_closes_while_its_reply_is_due_harms_nobody() -> None:
    faults = [parse_fault("add_mem:delay=50ms")]
    with SimulatedGuest(faults=faults) as guest:
        with connected(guest.path) as stream:
            stream.sendall(ADD_MEM.encode())
        time.sleep(0.1)
        with connected(guest.path) as stream:
            assert ask(stream, PLUG).ret == 0


# The control socket.


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[tuple[SimulatedGuest, socket.socket]]:
    """A guest and a stream to its control socket."""
    world = replace(kata_pod(), vcpus_running=(0,))
    control = tmp_path / "control"
    with SimulatedGuest(world, control=control) as guest, dial(control) as stream:
        yield guest, stream


def order(stream: socket.socket, line: str | bytes) -> dict[str, object]:
    stream.sendall((line.encode() if isinstance(line, str) else line) + b"\n")
    answer = json.loads(receive_line(stream))
    assert isinstance(answer, dict)
    return answer


def test_orders_of_the_vmm(controlled: tuple[SimulatedGuest, socket.socket]) -> None:
    guest, control = controlled
    add_1 = cpu_request(MessageType.ADD_CPU, [1])
    scan_0 = pci_request(MessageType.ADD_PCI, 0, 0)
    with connected(guest.path) as stream:
        assert ask(stream, add_1).ret == -5
        assert order(control, '{"start_vcpu":1}') == {"ok": True}
        assert ask(stream, add_1).ret == 0
        assert order(control, '{"plug_pci": {"bus": 0, "slot": 20}}') == {"ok": True}
        assert order(control, '{"unplug_pci": {"bus": 0, "slot": 0}}') == {"ok": True}
        assert ask(stream, scan_0).ret == 0  # it is still in the kernel's list
        assert ask(stream, pci_request(MessageType.DEL_PCI, 0, 0)).ret == 0
        assert ask(stream, scan_0).ret == -19
        assert ask(stream, bare_request(77)).ret == -1
        assert ask(stream, PLUG).ret == 0
        assert ask(stream, pci_request(MessageType.ADD_PCI, 0, 20)).ret == 0
    answer = order(control, '{"state":true}')
    assert answer == {"ok": True, "state": guest.state()}
    assert guest.state()["cpus_online"] == [0, 1]


def test_a_reset_ends_connections_and_not_the_control_socket(
    controlled: tuple[SimulatedGuest, socket.socket],
) -> None:
    guest, control = controlled
    booted = guest.state()
    second = dial(Path(control.getpeername()))
    fresh = dial(guest.path, b"CONNECT 219\n")
    assert receive_line(fresh).startswith(b"OK ")
    with second, fresh, connected(guest.path) as stream:
        assert ask(stream, PLUG).ret == 0
        assert guest.state() != booted
        assert order(control, '{"reset":true}') == {"ok": True}
        assert stream.recv(1) == b""
        assert fresh.recv(1) == b""
        assert order(second, '{"state":true}') == {"ok": True, "state": booted}
    with connected(guest.path) as stream:
        assert ask(stream, PLUG).ret == 0
        guest.reset()
        assert stream.recv(1) == b""
        assert guest.control({"reset": True}) == {"ok": True}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "not a line of JSON"),
        ("reset", "not a line of JSON"),
        ("{", "not a line of JSON"),
        (b"\xff\xfe\x00", "not a line of JSON"),
        ("[" * 900, "not a line of JSON"),
        ('{"start_vcpu":' + "9" * 900 + "}", "start_vcpu needs a vCPU from 0 to 255"),
        ("[]", "an order is an object with one key"),
        ("3", "an order is an object with one key"),
        ('{"stop": true}', "'stop' is no order"),
        ('{"reset": 1}', "reset needs true, not 1"),
        ('{"plug_pci": {"bus": 0}}', "[plug_pci] has no 'slot'"),
    ],
)
def test_a_line_that_is_no_order_is_answered_and_the_next_one_heard(
    controlled: tuple[SimulatedGuest, socket.socket], line: str | bytes, why: str
) -> None:
    _, control = controlled
    answer = order(control, line)
    assert answer["ok"] is False
    assert str(answer["error"]).startswith(why)
    assert order(control, '{"start_vcpu":1}') == {"ok": True}


@pytest.mark.parametrize("line", [b"[" * 60_000, b'{"a":' * 12_000, b"x" * 1024])
def test_a_line_without_an_end_is_answered_once_and_the_rest_not_read(
    controlled: tuple[SimulatedGuest, socket.socket], line: bytes
) -> None:
    _, control = controlled
    path = Path(control.getpeername())
    try:
        control.sendall(line)
    except BrokenPipeError:
        pass  # it has been closed before all was sent
    assert json.loads(receive_line(control)) == {"ok": False, "error": "an order is a short line"}
    try:
        assert control.recv(1) == b""
    except ConnectionResetError:
        pass  # what it did not read makes the end a reset
    with dial(path) as another:
        assert order(another, '{"start_vcpu":1}') == {"ok": True}


def test_an_order_may_end_with_the_stream(
    controlled: tuple[SimulatedGuest, socket.socket],
) -> None:
    guest, control = controlled
    control.sendall(b'{"start_vcpu":7}')
    control.shutdown(socket.SHUT_WR)
    assert json.loads(receive_line(control)) == {"ok": True}
    assert 7 in guest.state()["vcpus_running"]


def test_an_order_in_python_that_cannot_be_followed() -> None:
    with SimulatedGuest() as guest, pytest.raises(BadOrder):
        guest.control({"stop": True})


# Beginning and end.


def test_a_socket_of_its_own_goes_with_its_directory() -> None:
    with SimulatedGuest() as guest:
        assert guest.path.is_socket()
        directory = guest.path.parent
    assert not directory.exists()


def test_a_path_that_is_taken_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(WrongUsage, match="exists and is not a socket"):
        SimulatedGuest(path=tmp_path / "taken")
    with pytest.raises(WrongUsage, match="exists and is not a socket"):
        SimulatedGuest(path=tmp_path / "guest", control=tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with SimulatedGuest(path=tmp_path / "guest"):
        with pytest.raises(WrongUsage, match="is in use"):
            SimulatedGuest(path=tmp_path / "guest")
        connected(tmp_path / "guest").close()


def test_closing_ends_connections_in_every_state_at_once(tmp_path: Path) -> None:
    faults = [parse_fault("add_mem:delay=3600s")]
    habits = Habits(echo=frozenset({7}))
    threads = threading.active_count()
    with descriptors_as_before():
        guest = SimulatedGuest(
            POD, habits, faults, path=tmp_path / "guest", control=tmp_path / "control"
        )
        streams = {
            "line": dial(guest.path),
            "service": dial(guest.path, b"CONNECT 219\n"),
            "idle": connected(guest.path),
            "busy": connected(guest.path),
            "dead": connected(guest.path),
            "echo": dial(guest.path, b"CONNECT 7\n"),
            "control": dial(tmp_path / "control"),
        }
        streams["busy"].sendall(ADD_MEM.encode())
        streams["dead"].sendall(DEL_9.encode())
        assert says_nothing(streams["busy"])
        begun = time.monotonic()
        guest.close()
        assert time.monotonic() - begun < 1.9  # it waits two seconds for a thread at most
        for name, stream in streams.items():
            with stream:
                while received := stream.recv(4096):
                    assert received, name
        guest.close()
    wait_until(lambda: threading.active_count() <= threads)
    assert list(tmp_path.iterdir()) == []


def test_in_one_process_connections_leave_nothing_behind() -> None:
    with SimulatedGuest(POD) as guest:
        threads = threading.active_count()
        with descriptors_as_before():
            for request in (ADD_MEM, DEL_9):
                with connected(guest.path) as stream:
                    stream.sendall(request.encode())
        wait_until(lambda: threading.active_count() <= threads)


# Load, on a guest in a process of its own.


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process may have two thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_five_hundred_connections_are_held_at_once(tmp_path: Path) -> None:
    with guest_process(tmp_path) as guest:
        before = guest.descriptors, guest.threads
        streams = [connected(guest.path) for _ in range(500)]
        assert guest.descriptors == before[0] + 500
        for stream in streams:
            stream.sendall(ADD_MEM.encode())
        for stream in streams:
            assert receive(stream, MESSAGE_SIZE) == ADD_MEM.reply(-1).encode()
            stream.close()
        wait_until(lambda: (guest.descriptors, guest.threads) == before)


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.torture)])
def test_thousands_of_connections_in_turn_leave_nothing_behind(tmp_path: Path, count: int) -> None:
    """A few hundred to warm up, then those that must cost nothing that stays."""
    world = tmp_path / "world.toml"
    world.write_text("[two]\nnr_cpu_ids = 2\ncpus_online = [0, 1]\n")

    def visit(number: int) -> None:
        with connected(guest.path) as stream:
            if number % 4:
                assert ask(stream, ADD_MEM).ret == -1
            else:
                stream.sendall(DEL_9.encode())

    with guest_process(tmp_path, "--world", world) as guest:
        before = guest.descriptors, guest.threads
        for number in range(300):
            visit(number)
        resident = guest.resident_kib
        for number in range(count):
            visit(number)
        wait_until(lambda: (guest.descriptors, guest.threads) == before)
        assert guest.resident_kib - resident < 512


def test_without_descriptors_new_clients_wait_until_there_are_some(tmp_path: Path) -> None:
    with guest_process(tmp_path) as guest:
        guest.limit_descriptors(guest.descriptors + 10)
        streams = [connected(guest.path) for _ in range(10)]
        waiting = dial(guest.path, b"CONNECT 219\n")
        assert says_nothing(waiting, 0.3)
        assert ask(streams[0], ADD_MEM).ret == -1
        streams.pop().close()
        assert receive_line(waiting).startswith(b"OK ")
        for stream in [waiting, *streams]:
            stream.close()
