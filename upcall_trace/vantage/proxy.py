"""The capture proxy: moves bytes first, records second.

One thread settles each connection's first line and then moves one direction; a second one moves
the other. An upcall connection is copied receive by receive, so that each is recorded as it came;
every other is spliced inside the kernel and only its beginning and its end are noted.
docs/protocol.md section 2.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dissectors.constants import CONNECT_LINE_LIMIT, OK_LINE_LIMIT, UPCALL_PORT
from dissectors.hvsock import PASSFD_LINE, line_end, ok_line, parse_connect

from ..capture.records import MAX_CHUNK, Begins, Close, How, Open
from ..sockets.addresses import (
    Address,
    VsockAddress,
    connect_unix,
    connect_vsock,
    is_hung_up,
    shut_down,
)
from .recorder import Recorder

_SPLICE_SIZE: Final = 1 << 20
_PIPE_SIZE: Final = 1 << 20
_DESCRIPTORS: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")
_STACK_SIZE: Final = 256 << 10
_ACCEPT_PAUSE_S: Final = 0.05
_GRACE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class GuestRoute:
    """Where guest-initiated connections to `port` go on the host."""

    port: int
    path: Path


class Proxy:
    """Accepts connections and relays each to `upstream`, recording as it goes.

    `talk` is told, once, what a user should know about a connection that failed.
    """

    def __init__(
        self,
        upstream: Address,
        recorder: Recorder,
        talk: Callable[[str], None],
        upcall_port: int = UPCALL_PORT,
    ) -> None:
        self._upstream = upstream
        self._recorder = recorder
        self._talk = talk
        self._port = upcall_port
        self._lock = threading.Lock()
        self._count = 0
        self._relays: set[_Relay] = set()
        self._listening: list[socket.socket] = []
        self._stopping = False
        self._unreachable: set[Path] = set()

    def listen(self, listener: socket.socket, route: GuestRoute | None = None) -> None:
        """Accept from `listener` in a thread; with a route, what the guest initiated."""
        self._listening.append(listener)
        threading.stack_size(_STACK_SIZE)
        threading.Thread(
            target=self._accept, args=(listener, route), name="accept", daemon=True
        ).start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Accept no more, end every connection, and wait for their threads."""
        with self._lock:
            self._stopping = True
            relays = list(self._relays)
        for listener in self._listening:
            shut_down(listener)
        # A side that has closed by now is to be recorded as the one that did.
        grace_ends = time.monotonic() + _GRACE_S
        for relay in relays:
            relay.done.wait(max(0.0, grace_ends - time.monotonic()))
        for relay in relays:
            relay.cut()
        for relay in relays:
            relay.done.wait(timeout_s)

    def _accept(self, listener: socket.socket, route: GuestRoute | None) -> None:
        while not self._stopping:
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    threading.Event().wait(_ACCEPT_PAUSE_S)
                    continue
                return  # the listener was shut down
            with self._lock:
                if self._stopping:
                    client.close()
                    return
                self._count += 1
                relay = _Relay(self, self._count, client, route)
                self._relays.add(relay)
            try:
                threading.Thread(target=relay.run, name=f"conn {self._count}", daemon=True).start()
            except RuntimeError:  # no thread to be had: refuse this one, keep the others
                client.close()
                self.forget(relay)

    def connect(self, path: Path) -> socket.socket:
        """A stream to the Unix socket at `path`; raises OSError, and says so when that is news."""
        try:
            stream = connect_unix(path)
        except OSError as error:
            if path not in self._unreachable:
                self._unreachable.add(path)
                self._talk(f"cannot connect to {path}: {error.strerror}")
            raise
        self._unreachable.discard(path)
        return stream

    def forget(self, relay: _Relay) -> None:
        """The relay is over."""
        with self._lock:
            self._relays.discard(relay)
        relay.done.set()

    @property
    def upstream(self) -> Address:
        """Where connections go."""
        return self._upstream

    @property
    def upcall_port(self) -> int:
        """The port whose connections are recorded."""
        return self._port

    @property
    def recorder(self) -> Recorder:
        """Where they are recorded."""
        return self._recorder


class _Relay:
    """One connection from its first byte to its end."""

    def __init__(
        self, proxy: Proxy, number: int, client: socket.socket, route: GuestRoute | None
    ) -> None:
        self._proxy = proxy
        self._recorder = proxy.recorder
        self._number = number
        self._client = client
        self._route = route
        self._guest: socket.socket | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.done = threading.Event()

    def run(self) -> None:
        """Relay until both directions are over."""
        recorder, number = self._recorder, self._number
        begins, port = (Begins.OTHER, self._route.port) if self._route else (Begins.LINE, None)
        recorder.record(Open(recorder.now(), number, begins, port, None, _peer(self._client)))
        try:
            try:
                upcall = self._settle()
            except OSError:
                self._ended(by_guest=True, how=How.RESET)
                return
            if self._guest is None or upcall is None:
                return
            pump = self._copy if upcall else self._splice
            other = threading.Thread(
                target=self._one_way, args=(pump, self._guest, self._client, False), daemon=True
            )
            other.start()
            self._one_way(pump, self._client, self._guest, True)
            other.join()
        finally:
            recorder.settle()
            for stream in (self._client, self._guest):
                if stream is not None:
                    stream.close()
            self._proxy.forget(self)

    def cut(self) -> None:
        """End both directions now, from another thread; the recording ends before they do."""
        with self._lock:
            self._closed = True  # what the two sides see from here on is our doing
        for stream in (self._client, self._guest):
            if stream is not None:
                shut_down(stream)

    def _settle(self) -> bool | None:
        """Relay until the first line is known: True for upcall, False to let it pass.

        None when the connection was over before that. Raises OSError when there is no upstream.
        """
        if self._route is not None:
            self._guest = self._proxy.connect(self._route.path)
            return False
        if isinstance(self._proxy.upstream, VsockAddress):
            return self._settle_vsock(self._proxy.upstream)
        self._guest = guest = self._proxy.connect(self._proxy.upstream.path)
        line = b""
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        poll.register(guest, select.POLLIN)
        answered = False
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == guest.fileno():
                    answer = self._receive(guest, by_guest=True)
                    if not answer:
                        return None
                    if not answered:
                        self._recorder.chunk(self._number, False, _first_line(answer))
                        answered = True
                    self._client.sendall(answer)
                    continue
                received, descriptors = self._receive_with_descriptors()
                if not received and not self._half_closed(self._client, guest):
                    return None
                if not received:
                    poll.unregister(self._client)
                    continue
                begun = len(line)
                line += received
                end = line_end(line)
                is_upcall = end > 0 and parse_connect(line[:end]) == self._proxy.upcall_port
                kept = received if is_upcall else received[: _noted(end, len(line)) - begun]
                self._recorder.chunk(self._number, True, kept)
                _send_with_descriptors(guest, received, descriptors)
                if end == 0:
                    continue
                if line[:end] == PASSFD_LINE and not descriptors and end == len(line):
                    self._pass_descriptor(guest)
                return is_upcall

    def _settle_vsock(self, upstream: VsockAddress) -> bool | None:
        """As a multiplexer does: read the CONNECT line, connect, answer it."""
        line = b""
        while (end := line_end(line)) == 0:
            received = self._receive(self._client, by_guest=False)
            if not received:
                return None
            line += received
            self._recorder.chunk(self._number, True, received)
        port = parse_connect(line[:end]) if end > 0 else None
        if port is None:
            self._ended(by_guest=True, how=How.CLOSE)
            return None
        is_upcall = port == self._proxy.upcall_port
        if is_upcall and upstream.port is not None:
            port = upstream.port
        try:
            self._guest = connect_vsock(upstream.cid, port)
        except OSError:
            self._ended(by_guest=True, how=How.CLOSE)
            return None
        answer = ok_line(self._guest.getsockname()[1]).raw
        self._recorder.chunk(self._number, False, answer)
        self._client.sendall(answer)
        if line[end:]:
            self._guest.sendall(line[end:])
        return is_upcall

    def _pass_descriptor(self, guest: socket.socket) -> None:
        """Dragonball's passfd: one more message, with the descriptor."""
        received, descriptors = self._receive_with_descriptors()
        if received:
            self._recorder.chunk(self._number, True, received[:CONNECT_LINE_LIMIT])
            _send_with_descriptors(guest, received, descriptors)

    def _receive(self, stream: socket.socket, by_guest: bool) -> bytes:
        try:
            received = stream.recv(MAX_CHUNK)
        except OSError:
            received = b""
            self._ended(by_guest, How.RESET)
        else:
            if not received:
                self._ended(by_guest, How.CLOSE)
        return received

    def _receive_with_descriptors(self) -> tuple[bytes, list[int]]:
        """A receive that loses no descriptor: plain recv would drop them without a word."""
        room = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
        try:
            received, control, _, _ = self._client.recvmsg(MAX_CHUNK, room, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return b"", []
        descriptors = array.array("i")
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) // 4 * 4])
        return received, descriptors.tolist()

    def _half_closed(self, stream: socket.socket, other: socket.socket) -> bool:
        """The end of `stream` was read: pass it on. True when only that direction is over."""
        by_guest = stream is not self._client
        if is_hung_up(stream):
            self._ended(by_guest, How.CLOSE)
            shut_down(other)
            return False
        if not self._closed:
            self._recorder.record(Close(self._recorder.now(), self._number, by_guest, How.HALF))
        shut_down(other, socket.SHUT_WR)
        return True

    def _one_way(
        self,
        pump: Callable[[socket.socket, socket.socket, bool], None],
        source: socket.socket,
        sink: socket.socket,
        to_guest: bool,
    ) -> None:
        try:
            pump(source, sink, to_guest)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ESHUTDOWN):
                # The sink closed. What it said before still has to reach the source, so only
                # this direction ends; the other one comes to its end by itself.
                shut_down(source, socket.SHUT_RD)
            else:
                self._ended(not to_guest, How.RESET)
                shut_down(sink)
        else:
            self._half_closed(source, sink)

    def _copy(self, source: socket.socket, sink: socket.socket, to_guest: bool) -> None:
        """Receive, remember, send on, encode: until the end of `source`."""
        receive, send = source.recv_into, sink.sendall
        remember, settle, number = self._recorder.chunk, self._recorder.settle, self._number
        # One buffer for all: making a large one for each receive costs as much as the receive.
        buffer = memoryview(bytearray(MAX_CHUNK))
        while size := receive(buffer):
            received = bytes(buffer[:size])
            remember(number, to_guest, received)
            send(received)
            settle()

    def _splice(self, source: socket.socket, sink: socket.socket, to_guest: bool) -> None:
        """Move everything inside the kernel; only a first answer line is noted."""
        if not to_guest and self._route is None:
            first = source.recv(MAX_CHUNK)
            if not first:
                return
            self._recorder.chunk(self._number, False, _first_line(first))
            sink.sendall(first)
        from_fd, to_fd = source.fileno(), sink.fileno()
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            room = fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
            while moved := os.splice(from_fd, write_end, _SPLICE_SIZE):
                if moved * 2 >= room and room < _PIPE_SIZE:
                    room = _enlarge(write_end, room)
                while moved:
                    moved -= os.splice(read_end, to_fd, moved)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            while received := source.recv(MAX_CHUNK):  # a socket that cannot be spliced
                sink.sendall(received)
        finally:
            os.close(read_end)
            os.close(write_end)

    def _ended(self, by_guest: bool, how: How) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._recorder.record(Close(self._recorder.now(), self._number, by_guest, how))


def _noted(end: int, length: int) -> int:
    """How much of a first line is kept of a connection that is not upcall."""
    return end if end > 0 else min(length, CONNECT_LINE_LIMIT)


def _first_line(answer: bytes) -> bytes:
    """The multiplexer's line at the start of `answer`, without any payload behind it."""
    end = answer.find(b"\n", 0, OK_LINE_LIMIT) + 1
    return answer[: end or OK_LINE_LIMIT]


def _peer(client: socket.socket) -> tuple[int, int, int] | None:
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def _send_with_descriptors(sink: socket.socket, sent: bytes, descriptors: list[int]) -> None:
    """Send all of `sent`, the descriptors with its first byte, and close our copies of them."""
    try:
        if descriptors:
            rights = array.array("i", descriptors)
            done = sink.sendmsg([sent], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            sent = sent[done:]
        sink.sendall(sent)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _enlarge(pipe: int, room: int) -> int:
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:
        return room  # this user has used up its share of large pipes
