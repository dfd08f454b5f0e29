"""Dragonball's side of upcall: its client as a state machine, and what it makes of an answer.

This is the client as it is, faults included: it checks neither magic, type nor size of a reply, and
has no reply timeout. `dissectors.channel.Client` is the strict one. docs/protocol.md section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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


class ClientState(Enum):
    """The states of Dragonball's client."""

    WAITING_SERVER = "WaitingServer"
    WAITING_SERVICE = "WaitingService"
    SERVICE_CONNECTED = "ServiceConnected"
    SERVICE_BUSY = "ServiceBusy"


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a new stream to the multiplexer and write this line, not before `at_ns`."""

    at_ns: int
    line: bytes


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


Action = Dial | Write | Reset | CalledBack


class UpcallBusyError(UpcallError):
    """`upcall is busy now`: one request is outstanding."""


class UpcallNotReadyError(UpcallError):
    """`UpcallServerNotReady`: not connected yet, busy, or given up."""


class DragonballClient:
    """Feed it what the stream does; it returns what the client does.

    It reconnects 10 ms after a failure while connecting or while a request is open, 501 times in
    its life; after that it stays in WaitingServer for good. An end of file while idle it does not
    notice at all.
    """

    def __init__(self) -> None:
        self.state = ClientState.WAITING_SERVER
        self.reconnects = 0
        self.gave_up = False
        self._received = b""

    def start(self, now_ns: int) -> list[Action]:
        """The VM boots: connect for the first time."""
        return [Dial(now_ns, connect_line().raw)]

    @property
    def is_ready(self) -> bool:
        """What `UpcallServerNotReady` denies: connected and not busy."""
        return self.state is ClientState.SERVICE_CONNECTED

    def send(self, request: bytes) -> list[Action]:
        """Send a request; raises UpcallBusyError or UpcallNotReadyError."""
        if self.state is ClientState.SERVICE_BUSY:
            raise UpcallBusyError
        if not self.is_ready:
            raise UpcallNotReadyError
        self.state = ClientState.SERVICE_BUSY
        return [Write(request)]

    def received(self, received: bytes, now_ns: int) -> list[Action]:
        """Bytes from the stream, or with `b""` its end or a reset."""
        if not received:
            return self._failed(now_ns)
        self._received += received
        match self.state:
            case ClientState.WAITING_SERVER:
                line = self._received[:OK_LINE_LIMIT]
                if not b"OK".startswith(line[:2]):
                    return self._failed(now_ns)
                if b"\n" not in line:
                    return [] if len(self._received) < OK_LINE_LIMIT else self._failed(now_ns)
                self._received = self._received[line.index(b"\n") + 1 :]
                self.state = ClientState.WAITING_SERVICE
                return [Write(bytes([DEVICE_MANAGER.byte]))]
            case ClientState.WAITING_SERVICE if len(self._received) >= MESSAGE_SIZE:
                if not decode_reply(self._take()).is_hello:
                    return self._failed(now_ns)
                self.state = ClientState.SERVICE_CONNECTED
            case ClientState.SERVICE_BUSY if len(self._received) >= MESSAGE_SIZE:
                self.state = ClientState.SERVICE_CONNECTED
                return [CalledBack(self._take())]
        return []

    def _take(self) -> bytes:
        message, self._received = self._received[:MESSAGE_SIZE], self._received[MESSAGE_SIZE:]
        return message

    def _failed(self, now_ns: int) -> list[Action]:
        """The stream broke: reconnect, unless idle or out of tries."""
        if self.state is ClientState.SERVICE_CONNECTED:
            return []
        actions: list[Action] = [Reset()] if self.state is ClientState.SERVICE_BUSY else []
        self.state = ClientState.WAITING_SERVER
        self._received = b""
        if self.reconnects >= RECONNECT_LIMIT:
            self.gave_up = True
            return actions
        self.reconnects += 1
        return [*actions, Dial(now_ns + RECONNECT_DELAY_NS, connect_line().raw)]
