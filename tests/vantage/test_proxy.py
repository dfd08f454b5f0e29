"""The proxy between real sockets: what crosses is untouched, and recorded as it crossed."""

from __future__ import annotations

import array
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from dissectors.constants import EEXIST, MessageType
from dissectors.messages import cpu_request, hello, mmio_request
from tests.vmm import REFUSED_PORT, Upcall, Vmm, descriptors_as_before, open_port
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk, Close, Header, How, Open, Record
from upcall_trace.sockets.addresses import UnixAddress, VsockAddress
from upcall_trace.trace.opening import Capture, load
from upcall_trace.vantage.proxy import Proxy
from upcall_trace.vantage.recorder import Recorder
from upcall_trace.vantage.relay_host import GuestRoute
from upcall_trace.vantage.store import OnStoreError

ADD = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
OK = b"OK 1073741824\n"


class Recorded:
    """A proxy that runs in front of a VMM, and what it recorded once it has stopped."""

    def __init__(self, directory: Path) -> None:
        self.vmm = Vmm(directory / "vmm")
        self.path = directory / "proxy"
        self.file = directory / "c.upcap"
        self.said: list[str] = []
        self._listener = _listener(self.path)
        header = Header(source="proxy")
        self.recorder = Recorder(self.file, header, OnStoreError.STOP, threading.Event())
        self.proxy = Proxy(UnixAddress(self.vmm.path), self.recorder, self.said.append)
        self.proxy.listen(self._listener)

    def stop(self) -> None:
        self.proxy.stop()
        self._listener.close()
        self.recorder.close()
        self.vmm.__exit__()

    def capture(self) -> Capture:
        self.stop()
        return load(self.file)

    def records(self) -> list[Record]:
        self.stop()
        with CaptureReader(self.file) as reader:
            return list(reader)


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(512)
    return listener


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    with descriptors_as_before():
        yield Recorded(tmp_path)


def transcript(records: list[Record]) -> list[str]:
    """Records as lines: `1 > 'CONNECT 219\\n'` to the guest, `1 < …` from it, long ones cut."""
    lines = []
    for record in records:
        if isinstance(record, Chunk):
            arrow = ">" if record.to_guest else "<"
            short = record.data if len(record.data) < 40 else f"{len(record.data)} bytes"
            lines.append(f"{record.conn} {arrow} {short!r}")
        elif isinstance(record, Open):
            lines.append(f"{record.conn} open")
        elif isinstance(record, Close):
            side = "guest" if record.by_guest else "client"
            lines.append(f"{record.conn} {record.how} by {side}")
    return lines


def test_an_upcall_conversation_is_recorded_as_it_crossed(recorded: Recorded) -> None:
    with Upcall(recorded.path) as client:
        assert client.ask(ADD).ret == 0
        assert client.ask(cpu_request(MessageType.ADD_CPU, [1])).ret == 0
    assert transcript(recorded.records()) == [
        "1 open",
        r"1 > b'CONNECT 219\n'",
        rf"1 < {OK!r}",
        "1 > b'd'",
        "1 < '1024 bytes'",
        "1 > '1024 bytes'",
        "1 < '1024 bytes'",
        "1 > '1024 bytes'",
        "1 < '1024 bytes'",
        "1 close by client",
    ]


def test_the_recorded_bytes_and_operations_are_those_that_were_sent(recorded: Recorded) -> None:
    with Upcall(recorded.path) as client:
        client.ask(ADD)
    capture = recorded.capture()
    (operation,) = capture.operations
    assert (operation.conn, operation.request, operation.op) == (1, 0, "add_mmio")
    assert operation.fields == ADD.fields()
    assert (operation.ret, operation.anomalies) == (0, ())
    assert operation.latency_ns is not None
    assert operation.latency_ns > 0
    with CaptureReader(recorded.file) as reader:
        sent = [r.data for r in reader if isinstance(r, Chunk) and r.to_guest]
    assert sent == [b"CONNECT 219\n", b"d", ADD.encode()]


def test_where_a_send_was_cut_stays_visible(recorded: Recorded) -> None:
    raw = ADD.encode()
    with Upcall(recorded.path) as client:
        client.stream.sendall(raw[:500])
        threading.Event().wait(0.1)
        client.stream.sendall(raw[500:])
        client.stream.recv(1024, socket.MSG_WAITALL)
    first, second = recorded.capture().operations
    assert (first.size, second.size) == (500, 524)
    assert second.anomalies == ("bad-magic", "split-request")


def test_peer_credentials_and_times_are_kept(recorded: Recorded) -> None:
    with Upcall(recorded.path):
        pass
    capture = recorded.capture()
    assert capture.connections[0].peer == (os.getpid(), os.getuid(), os.getgid())


def test_other_ports_leave_only_their_beginning_and_end(recorded: Recorded) -> None:
    with open_port(recorded.path, 1024) as stream:
        stream.sendall(b"secret")
        assert stream.recv(64) == b"secret"
    records = recorded.records()
    assert transcript(records) == [
        "1 open",
        r"1 > b'CONNECT 1024\n'",
        rf"1 < {OK!r}",
        "1 close by client",
    ]
    assert b"secret" not in recorded.file.read_bytes()


def test_payload_right_behind_another_ports_line_passes_and_is_not_kept(
    recorded: Recorded,
) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(recorded.path))
        stream.sendall(b"CONNECT 1024\nsecret")
        assert stream.recv(14 + 6, socket.MSG_WAITALL) == OK + b"secret"
    recorded.stop()
    assert b"secret" not in recorded.file.read_bytes()


def test_a_refused_port_and_a_malformed_line(recorded: Recorded) -> None:
    for line in (f"CONNECT {REFUSED_PORT}\n".encode(), b"HELLO\n"):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(recorded.path))
            stream.sendall(line)
            assert stream.recv(64) == b""
    assert transcript(recorded.records()) == [
        "1 open",
        rf"1 > b'CONNECT {REFUSED_PORT}\n'",
        "1 close by guest",
        "2 open",
        r"2 > b'HELLO\n'",
        "2 close by guest",
    ]


def test_a_half_close_passes_and_the_answer_still_arrives(recorded: Recorded) -> None:
    with open_port(recorded.path, 1024) as stream:
        stream.sendall(b"x" * 100_000)
        stream.shutdown(socket.SHUT_WR)
        received = b""
        while piece := stream.recv(1 << 16):
            received += piece
    assert received == b"x" * 100_000
    ends = [r for r in recorded.records() if isinstance(r, Close)]
    assert [(end.by_guest, end.how) for end in ends] == [(False, How.HALF), (True, How.CLOSE)]


def test_what_the_guest_said_before_it_closed_reaches_a_client_that_still_writes(
    tmp_path: Path,
) -> None:
    listener = _listener(tmp_path / "vmm2")

    def guest() -> None:
        stream, _ = listener.accept()
        stream.recv(12, socket.MSG_WAITALL)
        stream.sendall(OK + hello().encode())
        stream.close()

    threading.Thread(target=guest, daemon=True).start()
    recorder = Recorder(tmp_path / "c", Header("proxy"), OnStoreError.STOP, threading.Event())
    front = _listener(tmp_path / "front")
    proxy = Proxy(UnixAddress(tmp_path / "vmm2"), recorder, print)
    proxy.listen(front)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "front"))
        client.sendall(b"CONNECT 219\n")
        for _ in range(3):  # into the closed connection, while its last words are unread
            threading.Event().wait(0.05)
            with suppress(BrokenPipeError):
                client.sendall(b"d")
        received = client.recv(len(OK) + 1024, socket.MSG_WAITALL)
        assert received == OK + hello().encode()
    proxy.stop()
    front.close()
    listener.close()
    recorder.close()


def test_a_gibibyte_on_another_port_arrives_whole(recorded: Recorded) -> None:
    block = os.urandom(1 << 20)
    sent = hashlib.sha256()
    for _ in range(1024):
        sent.update(block)
    with open_port(recorded.path, 5000) as stream:

        def send() -> None:
            for _ in range(1024):
                stream.sendall(block)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = hashlib.sha256()
        buffer = bytearray(1 << 20)
        size = 0
        while count := stream.recv_into(buffer):
            received.update(memoryview(buffer)[:count])
            size += count
        sender.join()
    assert size == 1 << 30
    assert received.digest() == sent.digest()
    recorded.stop()
    assert recorded.file.stat().st_size < 4000


def test_two_hundred_connections_at_once(recorded: Recorded) -> None:
    ready = threading.Barrier(200)

    def converse(number: int) -> int:
        with Upcall(recorded.path) as client:
            ready.wait(60)
            return client.ask(cpu_request(MessageType.ADD_CPU, [number])).ret

    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(converse, range(200))) == {0}
    capture = recorded.capture()
    assert len(capture.connections) == 200
    asked = sorted(operation.fields["apic_ids"][0] for operation in capture.operations)
    assert asked == list(range(200))
    assert not any(operation.anomalies for operation in capture.operations)


def test_passfd_takes_its_descriptor_along(recorded: Recorded) -> None:
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(recorded.path))
        stream.sendall(b"passfd\n")
        threading.Event().wait(0.05)
        rights = array.array("i", [write_end])
        stream.sendmsg([b"219 keep"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(write_end)
        for _ in range(200):
            if recorded.vmm.passed:
                break
            threading.Event().wait(0.02)
    ((text, passed),) = recorded.vmm.passed
    assert text == b"219 keep"
    os.write(passed, b"through the guest's end")
    os.close(passed)
    assert os.read(read_end, 64) == b"through the guest's end"
    os.close(read_end)
    assert transcript(recorded.records())[:3] == ["1 open", r"1 > b'passfd\n'", "1 > b'219 keep'"]


def test_garbage_silence_and_slowness_disturb_nobody(recorded: Recorded) -> None:
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(str(recorded.path))
    garbage = socket.socket(socket.AF_UNIX)
    garbage.connect(str(recorded.path))
    garbage.sendall(os.urandom(4096).replace(b"\n", b"x"))
    slow = socket.socket(socket.AF_UNIX)
    slow.connect(str(recorded.path))
    with Upcall(recorded.path) as client:
        for byte in b"CONNECT 219\nd":
            slow.sendall(bytes([byte]))
            assert client.ask(ADD).ret == 0
        assert slow.recv(14 + 1024, socket.MSG_WAITALL) == OK + hello().encode()
    for stream in (silent, garbage, slow):
        stream.close()
    capture = recorded.capture()
    by_line = {connection.line: connection for connection in capture.connections}
    assert by_line[b"CONNECT 219\n"].hello is not False
    assert len(capture.connections) == 4
    assert len(capture.operations) == 13
    assert not any(operation.failed for operation in capture.operations)


def test_a_client_that_vanishes_is_recorded_as_gone(recorded: Recorded) -> None:
    recorded.vmm.hold.clear()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(recorded.path))
    client.sendall(b"CONNECT 219\n")
    assert client.recv(64) == OK
    client.close()
    recorded.vmm.hold.set()
    assert transcript(recorded.records())[-1] == "1 close by client"


def test_the_end_of_the_recording_is_nobodys_close(recorded: Recorded) -> None:
    with Upcall(recorded.path) as client:
        client.ask(ADD)
        other = open_port(recorded.path, 1024)
        records = recorded.records()
        assert client.stream.recv(64) == b""
        assert other.recv(64) == b""
        other.close()
    assert not [record for record in records if isinstance(record, Close)]


def test_without_an_upstream_the_client_is_closed_and_the_user_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    recorder = Recorder(tmp_path / "c", Header("proxy"), OnStoreError.STOP, threading.Event())
    front = _listener(tmp_path / "front")
    proxy = Proxy(UnixAddress(tmp_path / "nobody"), recorder, said.append)
    proxy.listen(front)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "front"))
            assert client.recv(64) == b""
    proxy.stop()
    front.close()
    recorder.close()
    assert said == [f"cannot connect to {tmp_path / 'nobody'}: No such file or directory"]


def test_a_guest_initiated_connection_goes_to_the_host_side(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "c", Header("proxy"), OnStoreError.STOP, threading.Event())
    host = _listener(tmp_path / "proxy_1234")
    front = _listener(tmp_path / "vmm_1234")
    proxy = Proxy(UnixAddress(tmp_path / "vmm"), recorder, print)
    proxy.listen(front, GuestRoute(1234, tmp_path / "proxy_1234"))
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.connect(str(tmp_path / "vmm_1234"))
        vmm.sendall(b"log line")
        stream, _ = host.accept()
        assert stream.recv(64) == b"log line"
        stream.sendall(b"thanks")
        assert vmm.recv(64) == b"thanks"
        stream.close()
        assert vmm.recv(64) == b""
    proxy.stop()
    for listener in (host, front):
        listener.close()
    recorder.close()
    (connection,) = load(tmp_path / "c").connections
    assert (connection.port, connection.begins, connection.line) == (1234, "other", b"")
    assert b"log line" not in (tmp_path / "c").read_bytes()


@pytest.fixture
def vsock_guest(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, socket.socket]]:
    """Stands in for AF_VSOCK, which this machine cannot loop back: (cid, port, guest's end)."""
    connected: list[tuple[int, int, socket.socket]] = []

    def connect(cid: int, port: int) -> socket.socket:
        if port == REFUSED_PORT:
            raise ConnectionResetError
        ours, guests = socket.socketpair()
        monkeypatch.setattr(_Named, "number", 4242)
        connected.append((cid, port, guests))
        return _Named(fileno=ours.detach())

    monkeypatch.setattr("upcall_trace.vantage.arriving.begin_vsock", connect)
    return connected


class _Named(socket.socket):
    """A socket whose name is a vsock one: (cid, port)."""

    number = 0

    def getsockname(self) -> tuple[int, int]:
        return 2, self.number


@pytest.mark.parametrize(("upstream_port", "expected"), [(None, 219), (500, 500)])
def test_a_vsock_upstream_is_answered_as_a_multiplexer_does(
    tmp_path: Path,
    vsock_guest: list[tuple[int, int, socket.socket]],
    upstream_port: int | None,
    expected: int,
) -> None:
    recorder = Recorder(tmp_path / "c", Header("proxy"), OnStoreError.STOP, threading.Event())
    front = _listener(tmp_path / "front")
    proxy = Proxy(VsockAddress(7, upstream_port), recorder, print)
    proxy.listen(front)

    def connect(line: bytes) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(10)
        stream.connect(str(tmp_path / "front"))
        stream.sendall(line)
        return stream

    with connect(b"CONNECT 219\n") as client:
        assert client.recv(64) == b"OK 4242\n"
        ((cid, port, guest),) = vsock_guest
        assert (cid, port) == (7, expected)
        client.sendall(b"d")
        assert guest.recv(64) == b"d"
        guest.sendall(hello().encode())
        assert client.recv(1024, socket.MSG_WAITALL) == hello().encode()
        client.sendall(ADD.encode())
        assert guest.recv(1024, socket.MSG_WAITALL) == ADD.encode()
        guest.sendall(ADD.reply(EEXIST).encode())
        assert client.recv(1024, socket.MSG_WAITALL) == ADD.reply(EEXIST).encode()
        guest.close()
        assert client.recv(64) == b""
    for line in (f"CONNECT {REFUSED_PORT}\n".encode(), b"nonsense\n"):
        with connect(line) as client:
            assert client.recv(64) == b""
    proxy.stop()
    front.close()
    recorder.close()
    capture = load(tmp_path / "c")
    (operation,) = capture.operations
    assert (operation.ret, operation.errno) == (EEXIST, "EEXIST")
    assert [c.answer for c in capture.connections] == [b"OK 4242\n", b"", b""]
