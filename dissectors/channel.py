"""The two ends of an upcall connection as strict state machines without IO.

A participant is strict: what the peer may not do raises `RemoteProtocolError`, what we may not do
`LocalProtocolError`. `Client` is the VMM's side, `Server` the guest's; both walk `TRANSITIONS`,
from which the documentation's diagram is drawn, and differ only in who sends what. The bytes that
`send` returns are the caller's to write. docs/protocol.md sections 1 and 5.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, Final

from .constants import MAGIC_VERSION, MESSAGE_SIZE, Arch
from .errors import UpcallError
from .events import ConnectLine, Hello, OkLine, ReplyReceived, RequestReceived, ServiceByte
from .hvsock import line_end, ok_line_end, parse_connect, parse_ok
from .messages import Reply, Request, decode_request
from .services import DEVICE_MANAGER, service_for


class LocalProtocolError(UpcallError):
    """We asked the channel for something its state does not allow; nothing is to be sent."""


class RemoteProtocolError(UpcallError):
    """The peer broke the protocol; the channel is in its ERROR state and stays there."""


class State(Enum):
    """States of a connection, by their names in docs/protocol.md section 5."""

    UNCONNECTED = "unconnected"
    WAITING_SERVER = "waiting for OK"
    ACCEPTED = "accepted"
    WAITING_SERVICE = "waiting for the service"
    CONNECTED = "service connected"
    BUSY = "service busy"
    CLOSED = "closed"
    ERROR = "error"


class Signal(Enum):
    """What moves a connection from one state to the next."""

    CONNECT_LINE = "CONNECT line"
    OK_LINE = "OK line"
    SERVICE_BYTE = "service byte"
    HELLO = "CONNECT message"
    REQUEST = "request"
    REPLY = "reply"
    CLOSE = "close"


TRANSITIONS: Final[dict[State, dict[Signal, State]]] = {
    State.UNCONNECTED: {Signal.CONNECT_LINE: State.WAITING_SERVER, Signal.CLOSE: State.CLOSED},
    State.WAITING_SERVER: {Signal.OK_LINE: State.ACCEPTED, Signal.CLOSE: State.CLOSED},
    State.ACCEPTED: {Signal.SERVICE_BYTE: State.WAITING_SERVICE, Signal.CLOSE: State.CLOSED},
    State.WAITING_SERVICE: {Signal.HELLO: State.CONNECTED, Signal.CLOSE: State.CLOSED},
    State.CONNECTED: {Signal.REQUEST: State.BUSY, Signal.CLOSE: State.CLOSED},
    State.BUSY: {Signal.REPLY: State.CONNECTED, Signal.CLOSE: State.CLOSED},
    State.CLOSED: {Signal.CLOSE: State.CLOSED},
    State.ERROR: {Signal.CLOSE: State.CLOSED},
}
CLIENT_SENDS: Final = frozenset({Signal.CONNECT_LINE, Signal.SERVICE_BYTE, Signal.REQUEST})
SERVER_SENDS: Final = frozenset({Signal.OK_LINE, Signal.HELLO, Signal.REPLY})


class NeedData(Enum):
    """`next_event` has nothing to say before more bytes arrive."""

    NEED_DATA = "need data"


NEED_DATA: Final = NeedData.NEED_DATA
Sendable = ConnectLine | OkLine | ServiceByte | Request | Reply
Received = ConnectLine | OkLine | ServiceByte | Hello | RequestReceived | ReplyReceived


class Channel:
    """What both ends share: the state, the received bytes, and the checks of either direction."""

    _sends: ClassVar[frozenset[Signal]]

    def __init__(self, arch: Arch = Arch.X86_64, state: State = State.UNCONNECTED) -> None:
        """`state` is ACCEPTED for a vsock connection, which has no CONNECT and OK lines."""
        self.state = state
        self._arch = arch
        self._received = b""
        self._eof = False
        self._open: Request | None = None
        self._number = -1

    def send(self, item: Sendable) -> bytes:
        """The bytes of `item`, to be written whole; the state moves at once.

        Raises LocalProtocolError, and changes nothing, when the state or our role forbids it.
        """
        signal, raw = self._outgoing(item)
        if signal not in self._sends:
            raise LocalProtocolError(f"a {type(self).__name__.lower()} never sends {_a(signal)}")
        if signal not in TRANSITIONS[self.state]:
            raise LocalProtocolError(f"no {signal.value} while the channel is {self.state.value}")
        if signal is Signal.REQUEST and isinstance(item, Request):
            self._begin(item)
        self.state = TRANSITIONS[self.state][signal]
        return raw

    def receive_data(self, received: bytes) -> None:
        """Take what was read from the peer; `b""` is its end of file."""
        if received:
            self._received += received
        else:
            self._eof = True

    def next_event(self) -> Received | NeedData:
        """The next thing the peer did, `NEED_DATA` when it has not finished doing it.

        Raises RemoteProtocolError when the peer may not do it, or closed in the middle of it.
        """
        if self.state is State.ERROR:
            raise RemoteProtocolError("the peer broke the protocol earlier")
        expected = [s for s in TRANSITIONS[self.state] if s not in self._sends | {Signal.CLOSE}]
        if not expected:
            if self._received and self.state is not State.CLOSED:
                raise self._broken(f"bytes from the peer while the channel is {self.state.value}")
            if self._eof:
                self.close()
            return NEED_DATA
        event = self._incoming(expected[0]) if self._received else None
        if event is None:
            if self._eof and self._received:
                raise self._broken(f"the peer closed in the middle of {_a(expected[0])}")
            if self._eof:
                self.close()
            return NEED_DATA
        self.state = TRANSITIONS[self.state][expected[0]]
        return event

    def close(self) -> None:
        """The connection is over; allowed in every state."""
        self.state = TRANSITIONS[self.state][Signal.CLOSE]

    def _begin(self, request: Request) -> None:
        self._open = request
        self._number += 1

    def _outgoing(self, item: Sendable) -> tuple[Signal, bytes]:
        match item:
            case ConnectLine(raw=raw):
                return Signal.CONNECT_LINE, raw
            case OkLine(raw=raw):
                return Signal.OK_LINE, raw
            case ServiceByte(value=value):
                return Signal.SERVICE_BYTE, bytes([value])
            case Request():
                return Signal.REQUEST, item.encode()
            case Reply():
                answers = self._open is not None and self._open.msg_type == item.msg_type
                hello = item.is_hello and not answers  # a CONNECT request has such a reply too
                return (Signal.HELLO if hello else Signal.REPLY), item.encode()

    def _incoming(self, signal: Signal) -> Received | None:
        match signal:
            case Signal.CONNECT_LINE:
                line = self._take_line(line_end(self._received), signal)
                port = parse_connect(line) if line else None
                if line and port is None:
                    raise self._broken("not a CONNECT line")
                return ConnectLine(line, port) if line else None
            case Signal.OK_LINE:
                line = self._take_line(ok_line_end(self._received), signal)
                port = parse_ok(line) if line else None
                if line and port is None:
                    raise self._broken("the answer to the CONNECT line is not OK")
                return OkLine(line, port) if line else None
            case Signal.SERVICE_BYTE:
                value = self._take(1)[0]
                if service_for(value) is not DEVICE_MANAGER:
                    raise self._broken(f"no service {value:#04x}")
                return ServiceByte(value, DEVICE_MANAGER, early=False)
        if len(self._received) < MESSAGE_SIZE:
            return None
        raw = self._take(MESSAGE_SIZE)
        if signal is Signal.REQUEST:
            request = decode_request(raw, self._arch)
            if request.magic_version != MAGIC_VERSION:
                raise self._broken("a request with a wrong magic_version")
            self._begin(request)
            return RequestReceived(self._number, MESSAGE_SIZE, request, raw, 0)
        reply = DEVICE_MANAGER.decode_reply(raw, self._arch, self._open)
        assert isinstance(reply, Reply)  # the device manager's decoder makes nothing else
        if signal is Signal.HELLO:
            if not reply.is_hello:
                raise self._broken("the first message is not a CONNECT message")
            return Hello(reply, raw, valid=True)
        assert self._open is not None  # REPLY is expected only while a request is open
        if reply.magic_version != MAGIC_VERSION or reply.msg_type != self._open.msg_type:
            raise self._broken("the reply is not of the request's type")
        return ReplyReceived(self._number, reply, raw)

    def _take(self, size: int) -> bytes:
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _take_line(self, end: int, signal: Signal) -> bytes:
        if end < 0:
            raise self._broken(f"no end of line in the {signal.value}")
        return self._take(end)

    def _broken(self, why: str) -> RemoteProtocolError:
        self.state = State.ERROR
        return RemoteProtocolError(why)


def _a(signal: Signal) -> str:
    return f"{'an' if signal is Signal.OK_LINE else 'a'} {signal.value}"


class Client(Channel):
    """The VMM's end: CONNECT line, service byte, one request at a time."""

    _sends = CLIENT_SENDS


class Server(Channel):
    """The guest's end: OK line, CONNECT message, one reply to each request."""

    _sends = SERVER_SENDS
