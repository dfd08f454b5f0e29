"""A client that arrived at the proxy, until what it is for is there too.

Connecting never waits: a Unix socket without room is asked again later, and a vsock connection
tells when it is there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from select import EPOLLIN, EPOLLOUT

from dissectors.hvsock import line_end, ok_line, parse_connect

from ..capture.records import MAX_CHUNK, Begins, Close, How, Open
from ..sockets.addresses import VsockAddress, begin_unix, begin_vsock, outcome_of_connect
from .relay_host import GuestRoute, RelayHost, peer_of
from .ways import AGAIN, Way


class Phase(Enum):
    """How far a connection has come."""

    CONNECTING = auto()
    LINE = auto()
    DESCRIPTOR = auto()
    UPCALL = auto()
    OTHER = auto()
    OVER = auto()


class Arriving:
    """A client, and what is behind the VMM's socket for it; `Relay` is what goes on then."""

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
        if phase is Phase.UPCALL:
            self._proxy.is_upcall()
        self._connected(answer, phase, rest)

    def _vsock_refused(self) -> None:
        self._ended(by_guest=True, how=How.CLOSE)
        self.finish()

    def _connected(self, answer: bytes, phase: Phase, rest: bytes) -> None:
        """The guest is there: this goes to the client, and to the guest what came too early."""
        raise NotImplementedError

    def _paired(self, phase: Phase) -> None:
        """Both ends are there."""
        raise NotImplementedError

    def finish(self) -> None:
        """Let go of both ends."""
        raise NotImplementedError

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
