"""Dragonball's side of upcall: its client as a state machine.

This is the client as it is, faults included: it checks neither magic, type nor size of a reply, has
no reply timeout, takes no reply in pieces, and does not notice that an idle channel is gone.
`dissectors.channel.Client` is the strict one. docs/protocol.md sections 5 and 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from dissectors.constants import (
    MESSAGE_SIZE,
    OK_LINE_LIMIT,
    RECONNECT_DELAY_NS,
    RECONNECT_LIMIT,
)
from dissectors.hvsock import connect_line
from dissectors.messages import decode_reply
from dissectors.services import DEVICE_MANAGER

from ..errors import UpcallError

RESET: Final = "connection reset"
"""What a stream says that is over: its end, too, is told like this."""
WOULD_BLOCK: Final = "operation would block"
"""What a read says when fewer bytes are there than it wants."""
_FLOOD: Final = (
    "we should get message from event handler when connection state is `ServiceConnected`"
)


class ClientState(Enum):
    """The states of Dragonball's client."""

    WAITING_SERVER = "WaitingServer"
    WAITING_SERVICE = "WaitingService"
    SERVICE_CONNECTED = "ServiceConnected"
    SERVICE_BUSY = "ServiceBusy"


@dataclass(frozen=True, slots=True)
class Logged:
    """A line of the client's log; with `endless` it is written again and again from now on."""

    level: str
    text: str
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a new stream to the multiplexer and write this line, not before `at_ns`.

    `logged` is what the log says then: of each but the first.
    """

    at_ns: int
    line: bytes
    logged: Logged | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Write these bytes to the stream."""

    sent: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """The open request's callback is called with UpcallReset."""


@dataclass(frozen=True, slots=True)
class CalledBack:
    """The open request's callback is called with this reply."""

    reply: bytes


Action = Dial | Write | Reset | CalledBack | Logged


class UpcallBusyError(UpcallError):
    """`upcall is busy now`: one request is outstanding."""


class UpcallNotReadyError(UpcallError):
    """`UpcallServerNotReady`: not connected yet, busy, or given up."""


class UpcallSendError(UpcallError):
    """`SendRequest`: the request could not be written; the log has nothing of it."""


class DragonballClient:
    """Feed it what the stream does; it returns what the client does.

    It reconnects 10 ms after a failure while connecting or while a request is open, 501 times in
    its life; after that it stays in WaitingServer for good. When an idle stream ends it logs
    without end, believes to be connected, and fails every later send.
    """

    def __init__(self) -> None:
        self.state = ClientState.WAITING_SERVER
        self.reconnects = 0
        self.gave_up = False
        self.lost = False
        """The stream ended while the client was idle."""
        self._unread = b""

    def start(self, now_ns: int) -> list[Action]:
        """The VM boots: connect for the first time."""
        return [Dial(now_ns, connect_line().raw)]

    @property
    def is_ready(self) -> bool:
        """What `UpcallServerNotReady` denies: connected and not busy, as far as it knows."""
        return self.state is ClientState.SERVICE_CONNECTED

    def send(self, request: bytes, now_ns: int) -> list[Action]:
        """Send a request; raises UpcallBusyError, UpcallNotReadyError or UpcallSendError."""
        if self.state is ClientState.SERVICE_BUSY:
            raise UpcallBusyError
        if not self.is_ready:
            raise UpcallNotReadyError
        if self.lost:
            raise UpcallSendError(RESET)
        self.state = ClientState.SERVICE_BUSY
        # Bytes that came while it was idle are still there, and are taken for the reply.
        return [Write(request), *(self._read(now_ns) if self._unread else ())]

    def received(self, received: bytes, now_ns: int) -> list[Action]:
        """The stream can be read and has these bytes, all that have come."""
        self._unread += received
        return self._read(now_ns)

    def ended(self, now_ns: int, error: str = RESET) -> list[Action]:
        """The stream ended, or a read of it failed with `error`."""
        if self.state is ClientState.SERVICE_CONNECTED:
            if self.lost:
                return []
            self.lost = True
            return [Logged("ERROR", _FLOOD, endless=True)]
        return self._failed(error, now_ns)

    def _read(self, now_ns: int) -> list[Action]:
        """One read, of as much as the state wants; what is left over makes for another."""
        match self.state:
            case ClientState.WAITING_SERVER:
                text, self._unread = self._unread[:OK_LINE_LIMIT], self._unread[OK_LINE_LIMIT:]
                if not text.startswith(b"OK"):
                    return self._failed("no OK", now_ns)
                self.state = ClientState.WAITING_SERVICE
                return [
                    Logged("INFO", "upcall connect server success"),
                    Write(bytes([DEVICE_MANAGER.byte])),
                    *(self._read(now_ns) if self._unread else ()),
                ]
            case ClientState.SERVICE_CONNECTED:
                return [Logged("ERROR", _FLOOD, endless=True)]
        if len(self._unread) < MESSAGE_SIZE:
            return self._failed(WOULD_BLOCK, now_ns)
        message, self._unread = self._unread[:MESSAGE_SIZE], self._unread[MESSAGE_SIZE:]
        if self.state is ClientState.SERVICE_BUSY:
            actions: list[Action] = [CalledBack(message)]
        elif decode_reply(message).is_hello:
            actions = [Logged("INFO", "upcall connect service success")]
        else:
            return self._failed("no CONNECT message", now_ns)
        self.state = ClientState.SERVICE_CONNECTED
        return actions + (self._read(now_ns) if self._unread else [])

    def _failed(self, error: str, now_ns: int) -> list[Action]:
        """Drop the stream and connect anew, unless out of tries."""
        match self.state:
            case ClientState.WAITING_SERVER:
                text = f"upcall connect server check failed, upcall server connect error: {error}"
                actions: list[Action] = [Logged("DEBUG", text)]
            case ClientState.WAITING_SERVICE:
                text = f"upcall connect service check failed, {error}"
                actions = [Logged("WARN", text)]
            case _:
                text = f"upcall response failed upcall get response error: {error}"
                actions = [Logged("WARN", text), Reset()]
        self.state = ClientState.WAITING_SERVER
        self._unread = b""
        if self.reconnects >= RECONNECT_LIMIT:
            self.gave_up = True
            return [*actions, Logged("ERROR", "upcall server's max reconnect time exceed")]
        self.reconnects += 1
        again = Logged("DEBUG", "upcall reconnect server...")
        return [*actions, Dial(now_ns + RECONNECT_DELAY_NS, connect_line().raw, again)]
