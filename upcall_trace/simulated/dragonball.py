"""Dragonball's side of upcall: its client as a state machine, and what it makes of an answer.

This is the client as it is, faults included: it checks neither magic, type nor size of a reply, and
has no reply timeout. `dissectors.channel.Client` is the strict one. docs/protocol.md section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from dissectors.constants import (
    CALLER_TIMEOUT_NS,
    CPU_TYPES,
    MESSAGE_SIZE,
    OK_LINE_LIMIT,
    RECONNECT_DELAY_NS,
    RECONNECT_LIMIT,
    MessageType,
)
from dissectors.hvsock import connect_line
from dissectors.messages import decode_reply
from dissectors.services import DEVICE_MANAGER


class ClientState(Enum):
    """The states of Dragonball's client."""

    WAITING_SERVER = "WaitingServer"
    WAITING_SERVICE = "WaitingService"
    SERVICE_CONNECTED = "ServiceConnected"
    SERVICE_BUSY = "ServiceBusy"


@dataclass(frozen=True, slots=True)
class Connect:
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
class Answered:
    """The open request's callback is called with this reply."""

    reply: bytes


Action = Connect | Write | Reset | Answered


class UpcallBusyError(Exception):
    """`upcall is busy now`: one request is outstanding."""


class UpcallNotReadyError(Exception):
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
        return [Connect(now_ns, connect_line().raw)]

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
                return [Answered(self._take())]
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
        return [*actions, Connect(now_ns + RECONNECT_DELAY_NS, connect_line().raw)]


_RESIZE_FAILED: Final = (
    "nothing is reported; the caller times out after 250 ms and every later resize is refused "
    "with VcpuIsHotplugging"
)


def verdict(msg_type: int, ret: int | None, latency_ns: int | None) -> str:
    """What Dragonball and the Kata runtime make of an answer, in one sentence.

    `ret` and `latency_ns` are None when no answer came; docs/protocol.md section 5.
    """
    late = latency_ns is None or latency_ns > CALLER_TIMEOUT_NS
    if msg_type in CPU_TYPES:
        if ret is None:
            return f"the channel stays busy, {_RESIZE_FAILED}"
        if ret != 0:
            return _RESIZE_FAILED
        if late:
            return "the resize is done, but the caller has timed out after 250 ms before"
        return "done" if msg_type == MessageType.ADD_CPU else "done: it stops the vCPU threads"
    match msg_type:
        case MessageType.ADD_MMIO | MessageType.ADD_PCI if late:
            return (
                "a block device: the caller times out, the device stays in the VMM's list, and "
                "a retry says that it already exists; others: nobody waits for the answer"
            )
        case MessageType.ADD_MMIO | MessageType.ADD_PCI if ret:
            return "counted as done, the error is dropped: the device is silently lost"
        case MessageType.DEL_MMIO | MessageType.DEL_PCI if late:
            return "a block device: the caller times out and the VMM never removes the device"
        case MessageType.DEL_MMIO | MessageType.DEL_PCI if ret:
            return "the error is dropped, and the VMM removes the device all the same"
        case (
            MessageType.ADD_MMIO | MessageType.ADD_PCI | MessageType.DEL_MMIO | MessageType.DEL_PCI
        ):
            return "done"
    return "it never sends this"
