"""One connection through the proxy: two directions that never wait, from first byte to end.

An upcall connection is copied receive by receive, so that each is recorded as it came. Every
other is spliced inside the kernel and only its beginning and its end are noted.
docs/protocol.md section 2.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Final

from dissectors.constants import CONNECT_LINE_LIMIT
from dissectors.hvsock import PASSFD_LINE, line_end, ok_line, parse_connect

from ..capture.records import MAX_CHUNK, Begins, Close, How, Open
from ..sockets.addresses import (
    VsockAddress,
    begin_unix,
    begin_vsock,
    is_hung_up,
    outcome_of_connect,
    shut_down,
)
from .relay_host import GuestRoute, RelayHost, first_line, noted, peer_of
from .ways import AGAIN, SinkBroken, Way

_DESCRIPTORS: Final = 16
_RIGHTS_ROOM: Final = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
_CREDENTIALS: Final = struct.Struct("3i")
_ONE_WAY_OVER: Final = (errno.EPIPE, errno.ESHUTDOWN)


class Phase(Enum):
    """How far a connection has come."""

    CONNECTING = auto()
    LINE = auto()
    DESCRIPTOR = auto()
    UPCALL = auto()
    OTHER = auto()
    OVER = auto()


class Relay:
    """A client, and what is behind the VMM's socket for it."""

    def __init__(
        self, proxy: RelayHost, number: int, client: socket.socket, route: GuestRoute | None
    ) -> None:
        self._proxy = proxy
        self._recorder = proxy.recorder
        self.number = number
        self.client = client
        self.guest: socket.socket | None = None
        self.phase = Phase.CONNECTING
        self._route = route
        self._line = b""
        self._answered = route is not None
        self._closed = False
        self._ways: tuple[Way, ...] = ()
        self._watched: dict[int, int] = {}

    # From the client's arrival until both ends are there.

    def begin(self) -> None:
        """The client was accepted."""
        route = self._route
        begins, port = (Begins.OTHER, route.port) if route else (Begins.LINE, None)
        now = self._recorder.now()
        peer = peer_of(self.client)
        self._recorder.record(Open(now, self.number, begins, port, None, peer, self._proxy.source))
        if self._route is None and isinstance(self._proxy.upstream, VsockAddress):
            self.phase = Phase.LINE  # as a multiplexer does: the line first
            self._watch(self.client, EPOLLIN, self._vsock_line)
        else:
            self.connect()

    @property
    def goal(self) -> Path:
        """The Unix socket that this client is for."""
        if self._route is not None:
            return self._route.path
        assert not isinstance(self._proxy.upstream, VsockAddress)
        return self._proxy.upstream.path

    def connect(self) -> bool:
        """Try to reach the Unix socket; False when it has no room just now."""
        try:
            self.guest = begin_unix(self.goal)
        except BlockingIOError:
            self._watch(self.client, 0, self._while_connecting)
            return False
        except OSError as error:
            self._proxy.unreachable(str(self.goal), error)
            self.refuse(How.AWAY, error.strerror or str(error))
            return True
        self._proxy.reachable(str(self.goal))
        self._paired(Phase.LINE if self._route is None else Phase.OTHER)
        return True

    def _while_connecting(self, events: int) -> None:
        """Only a hang-up is told of: the client left while the VMM did not accept."""
        self._ended(by_guest=False, how=How.CLOSE)
        self.finish()

    def _vsock_line(self, events: int) -> None:
        received = self._receive(self.client, by_guest=False)
        if received is None:
            return
        if not received:
            self.finish()
            return
        self._line += received
        self._recorder.chunk(self.number, True, received)
        end = line_end(self._line)
        if end == 0:
            return
        upstream = self._proxy.upstream
        assert isinstance(upstream, VsockAddress)
        port = parse_connect(self._line[:end]) if end > 0 else None
        if port is None:
            self._ended(by_guest=True, how=How.CLOSE)
            self.finish()
            return
        is_upcall = port == self._proxy.upcall_port
        if is_upcall and upstream.port is not None:
            port = upstream.port
        try:
            self.guest = begin_vsock(upstream.cid, port)
        except OSError:
            self._vsock_refused()
            return
        self.phase = Phase.CONNECTING
        self._watch(self.client, 0, self._while_connecting)
        phase, rest = Phase.UPCALL if is_upcall else Phase.OTHER, self._line[end:]
        self._watch(self.guest, EPOLLOUT, lambda _: self._vsock_connected(phase, rest))

    def _vsock_connected(self, phase: Phase, rest: bytes) -> None:
        assert self.guest is not None
        if outcome_of_connect(self.guest):
            self._vsock_refused()
            return
        answer = ok_line(self.guest.getsockname()[1]).raw
        self._recorder.chunk(self.number, False, answer)
        self._answered = True
        self._paired(phase)
        to_guest, from_guest = self._ways
        self._send(from_guest, answer)
        if rest and self.phase is not Phase.OVER:
            self._send(to_guest, rest)

    def _vsock_refused(self) -> None:
        self._ended(by_guest=True, how=How.CLOSE)
        self.finish()

    def _paired(self, phase: Phase) -> None:
        assert self.guest is not None
        self.phase = phase
        self._ways = (
            Way(self.client, self.guest, True, self._proxy),
            Way(self.guest, self.client, False, self._proxy),
        )
        self._update()

    # While both ends are there.

    def _update(self) -> None:
        """Wait for exactly what can go on now."""
        to_guest, from_guest = self._ways
        for stream, source, sink in (
            (to_guest.source, to_guest, from_guest), (from_guest.source, from_guest, to_guest),
        ):  # fmt: skip
            events = 0
            if not source.over and not source.is_full:
                events = EPOLLIN
            if sink.is_full:
                events |= EPOLLOUT
            # A side that has said its last is watched for leaving altogether.
            self._watch(stream, events, self._handler(source, sink), idle=not source.over)

    def _handler(self, source: Way, sink: Way) -> Callable[[int], None]:
        def ready(events: int) -> None:
            if source.over and events & (EPOLLHUP | EPOLLERR):
                self._ended(not source.to_guest, How.CLOSE)
                self.finish()
                return
            if events & EPOLLOUT and sink.is_full:
                self._drain(sink)
            if not events & ~EPOLLOUT or self.phase is Phase.OVER:
                return
            if not source.over and not source.is_full:
                self._forward(source)

        return self._quick(source, ready) if self.phase is Phase.UPCALL else ready

    def _quick(self, way: Way, otherwise: Callable[[int], None]) -> Callable[[int], None]:
        """What nearly every event of an upcall connection is: bytes, and room for them."""
        receive, send, buffer = way.source.recv_into, way.sink.send, self._proxy.buffer
        remember, settle = self._recorder.chunk, self._recorder.settle
        number, to_guest = self.number, way.to_guest

        def ready(events: int) -> None:
            if events != EPOLLIN or way.unsent or way.over:
                otherwise(events)
                return
            try:
                size = receive(buffer)
            except OSError as error:
                self._failed(way, error)
                return
            if not size:
                self._half_closed(way)
                return
            received = bytes(buffer[:size])
            remember(number, to_guest, received)
            try:
                sent = send(received)
            except OSError as error:
                if error.errno not in AGAIN:
                    self._broken(way, error)
                    return
                sent = 0
            if sent < size:
                way.unsent = received[sent:]
                self._update()
            settle()

        return ready

    def _forward(self, way: Way) -> None:
        if way.to_guest and self.phase in (Phase.LINE, Phase.DESCRIPTOR):
            self._first_line(way)
        elif not way.to_guest and not self._answered:
            self._first_answer(way)
        elif self.phase is Phase.OTHER:
            self._splice(way)
        else:
            self.copy(way)

    def copy(self, way: Way) -> None:
        """Receive, remember, send on."""
        try:
            size = way.source.recv_into(self._proxy.buffer)
        except OSError as error:
            self._failed(way, error)
            return
        if not size:
            self._half_closed(way)
            return
        received = bytes(self._proxy.buffer[:size])
        self._recorder.chunk(self.number, way.to_guest, received)
        self._send(way, received)
        self._recorder.settle()

    def _first_line(self, way: Way) -> None:
        try:
            received, control, _, _ = self.client.recvmsg(
                MAX_CHUNK, _RIGHTS_ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            self._failed(way, error)
            return
        rights = array.array("i")
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                rights.frombytes(payload[: len(payload) // 4 * 4])
        if not received:
            self._half_closed(way)
            return
        way.rights = rights.tolist()
        if self.phase is Phase.DESCRIPTOR:  # Dragonball's passfd: one message with a descriptor
            self._recorder.chunk(self.number, True, received[:CONNECT_LINE_LIMIT])
            self.phase = Phase.OTHER
        else:
            self._settle_line(received, bool(rights))
        self._send(way, received)
        if self.phase is not Phase.OVER:
            self._update()

    def _settle_line(self, received: bytes, has_rights: bool) -> None:
        begun = len(self._line)
        self._line += received
        end = line_end(self._line)
        is_upcall = end > 0 and parse_connect(self._line[:end]) == self._proxy.upcall_port
        kept = received if is_upcall else received[: noted(end, len(self._line)) - begun]
        self._recorder.chunk(self.number, True, kept)
        if end == 0:
            return
        if self._line[:end] == PASSFD_LINE and not has_rights and end == len(self._line):
            self.phase = Phase.DESCRIPTOR
        else:
            self.phase = Phase.UPCALL if is_upcall else Phase.OTHER

    def _first_answer(self, way: Way) -> None:
        received = self._receive(way.source, by_guest=True)
        if received is None:
            return
        if not received:
            self.finish()
            return
        self._answered = True
        upcall = self.phase is Phase.UPCALL
        self._recorder.chunk(self.number, False, received if upcall else first_line(received))
        self._send(way, received)

    def _send(self, way: Way, received: bytes) -> None:
        """Send on what can be sent; the rest waits until the sink has room."""
        try:
            way.send(received)
        except OSError as error:
            self._broken(way, error)
            return
        if way.is_full:
            self._update()

    def _drain(self, way: Way) -> None:
        """The sink has room again."""
        try:
            way.drain()
        except OSError as error:
            self._broken(way, error)
            return
        if not way.is_full:
            self._update()

    def _splice(self, way: Way) -> None:
        try:
            moved = way.splice(self._proxy.buffer)
        except SinkBroken as error:
            self._broken(way, error)
        except OSError as error:
            self._failed(way, error)
        else:
            if moved == 0:
                self._half_closed(way)
            elif way.is_full:
                self._update()

    # How it ends.

    def _receive(self, stream: socket.socket, by_guest: bool) -> bytes | None:
        """What came; empty when that was the end, None when nothing did."""
        try:
            received = stream.recv(MAX_CHUNK)
        except OSError as error:
            if error.errno in AGAIN:
                return None
            self._ended(by_guest, How.RESET)
            return b""
        if not received:
            self._ended(by_guest, How.CLOSE)
        return received

    def _failed(self, way: Way, error: OSError) -> None:
        """The source could not be read."""
        if error.errno in AGAIN:
            return
        self._ended(not way.to_guest, How.RESET)
        self.finish()

    def _broken(self, way: Way, error: OSError) -> None:
        """The sink could not be written."""
        if error.errno not in _ONE_WAY_OVER:
            self._ended(way.to_guest, How.RESET)
            self.finish()
            return
        # The sink closed. What it said before still has to reach the source, so only this
        # direction ends; the other one comes to its end by itself.
        shut_down(way.source, socket.SHUT_RD)
        self._one_over(way)

    def _half_closed(self, way: Way) -> None:
        """The end of the source was read: pass it on."""
        by_guest = not way.to_guest
        if is_hung_up(way.source):
            self._ended(by_guest, How.CLOSE)
            self.finish()
            return
        if not self._closed:
            now = self._recorder.now()
            self._recorder.record(Close(now, self.number, by_guest, How.HALF))
        shut_down(way.sink, socket.SHUT_WR)
        self._one_over(way)

    def _one_over(self, way: Way) -> None:
        way.end()
        if all(each.over for each in self._ways):
            self.finish()
        else:
            self._update()

    def refuse(self, how: How, reason: str) -> None:
        """End it for a reason of our own, which nobody else is to be blamed for."""
        if not self._closed:
            self._closed = True
            now = self._recorder.now()
            self._recorder.record(Close(now, self.number, False, how, reason))
        self.finish()

    def _ended(self, by_guest: bool, how: How) -> None:
        if not self._closed:
            self._closed = True
            self._recorder.record(Close(self._recorder.now(), self.number, by_guest, how))

    def cut(self) -> None:
        """The recording ends before the connection does: nobody closed it."""
        self._closed = True
        self.finish()

    def finish(self) -> None:
        """Let go of both ends."""
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        for descriptor in list(self._watched):
            self._proxy.unwatch(descriptor)
        self._watched.clear()
        for way in self._ways:
            way.end()
        for stream in (self.client, self.guest):
            if stream is not None:
                shut_down(stream)
                stream.close()
        self._ways = ()
        self._recorder.settle()
        self._proxy.forget(self)

    def _watch(
        self, stream: socket.socket, events: int, handler: Callable[[int], None], idle: bool = False
    ) -> None:
        """Have `handler` called; with `idle` and no events not at all, else for a hang-up."""
        descriptor = stream.fileno()
        if not events and idle:
            if self._watched.pop(descriptor, None) is not None:
                self._proxy.unwatch(descriptor)
            return
        self._proxy.watch(descriptor, events, handler, self._watched.get(descriptor))
        self._watched[descriptor] = events
