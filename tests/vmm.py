"""A small hybrid-vsock VMM on a real Unix socket: port 219 speaks upcall, others echo."""

from __future__ import annotations

import array
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from dissectors.channel import NEED_DATA, Client, RemoteProtocolError, Server
from dissectors.events import ConnectLine, Hello, OkLine, ReplyReceived, RequestReceived
from dissectors.events import ServiceByte as ServiceByteEvent
from dissectors.hvsock import connect_line, ok_line, parse_connect
from dissectors.messages import Reply, Request, hello
from dissectors.services import DEVICE_MANAGER

REFUSED_PORT = 9999
SERVICE_BYTE = ServiceByteEvent(DEVICE_MANAGER.byte, DEVICE_MANAGER, early=False)


class Vmm:
    """Listens at `path`; upcall requests are answered with 0, other ports echo, 9999 is closed.

    `passed` collects descriptors that came with passfd. `hold` keeps upcall replies back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed: list[tuple[bytes, int]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(512)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        with stream:
            try:
                self._converse(stream)
            except (OSError, RemoteProtocolError):
                pass  # the client went away or talked nonsense, as some tests want

    def _converse(self, stream: socket.socket) -> None:
        line = b""
        while not line.endswith(b"\n"):
            received = stream.recv(1)
            if not received or len(line) > 31:
                return
            line += received
        if line == b"passfd\n":
            text, control, _, _ = stream.recvmsg(64, socket.CMSG_SPACE(64))
            for _, _, payload in control:
                descriptors = array.array("i", payload)
                self.passed.append((text, descriptors[0]))
            stream.recv(1)
            return
        port = parse_connect(line)
        if port is None or port == REFUSED_PORT:
            return
        stream.sendall(ok_line(1 << 30).raw)
        if port == 219:
            self._upcall(stream)
            return
        while received := stream.recv(1 << 16):
            stream.sendall(received)

    def _upcall(self, stream: socket.socket) -> None:
        server = Server()
        server.receive_data(connect_line().raw)
        server.next_event()
        server.send(ok_line(219))
        while received := stream.recv(4096):
            server.receive_data(received)
            while (event := server.next_event()) is not NEED_DATA:
                self.hold.wait()
                if isinstance(event, RequestReceived) and isinstance(event.message, Request):
                    stream.sendall(server.send(event.message.reply()))
                else:
                    stream.sendall(server.send(hello()))


class Upcall:
    """A client of the upcall service at `path`, as a context manager."""

    def __init__(self, path: Path, timeout: float = 20) -> None:
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(timeout)
        self.stream.connect(str(path))
        self._client = Client()

    def __enter__(self) -> Self:
        assert isinstance(self._exchange(connect_line()), OkLine)
        assert isinstance(self._exchange(SERVICE_BYTE), Hello)
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def ask(self, request: Request) -> Reply:
        """Send a request and wait for its reply."""
        event = self._exchange(request)
        assert isinstance(event, ReplyReceived)
        assert isinstance(event.message, Reply)
        return event.message

    def _exchange(self, item: ConnectLine | ServiceByteEvent | Request) -> object:
        self.stream.sendall(self._client.send(item))
        while (event := self._client.next_event()) is NEED_DATA:
            received = self.stream.recv(4096)
            self._client.receive_data(received)
            if not received:
                raise ConnectionResetError("the peer closed")
        return event


def open_port(path: Path, port: int) -> socket.socket:
    """A stream to another port, once the multiplexer said OK."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(20)
    stream.connect(str(path))
    stream.sendall(connect_line(port).raw)
    assert stream.recv(64).startswith(b"OK ")
    return stream


@contextmanager
def descriptors_as_before() -> Iterator[None]:
    """Fails when the block leaves file descriptors open in this process."""
    before = _open_descriptors()
    yield
    for _ in range(100):
        if _open_descriptors() <= before:
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"{_open_descriptors() - before} descriptors left open")


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
