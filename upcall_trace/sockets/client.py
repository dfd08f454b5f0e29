"""A careful client for single requests to any ADDRESS: it waits for OK and keeps deadlines."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Self

from dissectors.channel import NEED_DATA, Client, RemoteProtocolError, State
from dissectors.codecs import CodedReply
from dissectors.constants import MESSAGE_SIZE, UPCALL_PORT, Arch
from dissectors.events import ServiceByte
from dissectors.hvsock import connect_line
from dissectors.services import DEVICE_MANAGER, Service

from ..errors import Unreachable
from .addresses import Address, UnixAddress, connect_unix, connect_vsock


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply with its bytes and how long it took."""

    reply: CodedReply
    raw: bytes
    latency_ns: int


class UpcallClient:
    """A connected upcall service, as a context manager.

    `connect_s` bounds everything until the CONNECT message. Raises Unreachable, with the step
    that failed, when nobody listens, the port is refused, or no service answers. `service` is the
    one to ask for.
    """

    def __init__(
        self,
        address: Address,
        port: int = UPCALL_PORT,
        connect_s: float = 15.0,
        arch: Arch = Arch.X86_64,
        service: Service = DEVICE_MANAGER,
    ) -> None:
        self._arch = arch
        self._service = service
        self._address = address
        unix = isinstance(address, UnixAddress)
        self.received = 0
        """Bytes of the reply that came last, also of one that is not whole."""
        self.ended_by_guest = False
        """Whether the guest closed before a whole reply."""
        self._channel = Client(arch, State.UNCONNECTED if unix else State.ACCEPTED)
        self._stream = self._open(port)
        try:
            self._greet(port, time.monotonic() + connect_s)
        except BaseException:
            self._stream.close()
            raise

    def ask(self, request: bytes, timeout_s: float) -> Answer | None:
        """Send `request` in one write and wait for a whole reply.

        None when no whole reply came in time, or the guest closed, which `ended_by_guest` tells.
        Nothing of the reply is checked; it is decoded for the client's architecture.
        """
        begun = time.monotonic_ns()
        self._stream.settimeout(timeout_s)
        try:
            self._stream.sendall(request)
            raw = self._whole(self._service.reply_size, begun / 1e9 + timeout_s)
        except TimeoutError:
            return None
        except OSError:  # a reset, or a pipe that is broken already
            self.ended_by_guest = True
            return None
        if raw is None:
            return None
        latency_ns = time.monotonic_ns() - begun
        return Answer(self._service.decode_reply(raw, self._arch), raw, latency_ns)

    def _whole(self, size: int, deadline: float) -> bytes | None:
        """So many bytes, None when they do not come in time or the guest closes; raises OSError."""
        raw = b""
        self.received = 0
        while len(raw) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self._stream.settimeout(left_s)
            received = self._stream.recv(size - len(raw))
            if not received:
                self.ended_by_guest = True
                return None
            raw += received
            self.received = len(raw)
        return raw

    def exchange(self, sent: bytes, size: int, timeout_s: float) -> bytes:
        """Write `sent`, if it is not empty, and read up to `size` bytes.

        Fewer when no more came in time, or the guest closed; a timeout of 0 takes what is there.
        """
        end = time.monotonic() + timeout_s
        received = b""
        try:
            if sent:
                self._stream.settimeout(max(timeout_s, 0.001))
                self._stream.sendall(sent)
            while len(received) < size:
                self._stream.settimeout(max(0.0, end - time.monotonic()))
                piece = self._stream.recv(size - len(received))
                if not piece:
                    break
                received += piece
        except OSError:
            pass
        return received

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, port: int) -> socket.socket:
        address = self._address
        try:
            if isinstance(address, UnixAddress):
                return connect_unix(address.path)
            return connect_vsock(address.cid, address.port or port)
        except OSError as error:
            raise Unreachable(f"{address} cannot be reached: {error.strerror}") from None

    def _greet(self, port: int, deadline: float) -> None:
        if self._channel.state is State.UNCONNECTED:
            self._step(self._channel.send(connect_line(port)), deadline, f"OK for port {port}")
        if self._service is not DEVICE_MANAGER:
            self._greet_other(deadline)
            return
        service = ServiceByte(DEVICE_MANAGER.byte, DEVICE_MANAGER, early=False)
        self._step(self._channel.send(service), deadline, "CONNECT message")

    def _greet_other(self, deadline: float) -> None:
        """The channel knows the device manager's rules only: of others the sizes are known."""
        service = self._service
        try:
            self._stream.sendall(bytes([service.byte]))
            if self._whole(service.hello_size, deadline) is None:
                raise Unreachable(f"{self._address} has no service {service.name}")
        except OSError as error:
            raise Unreachable(f"{self._address} gave no {service.name}: {error}") from None

    def _step(self, sent: bytes, deadline: float, awaited: str) -> None:
        try:
            self._stream.settimeout(max(0.001, deadline - time.monotonic()))
            self._stream.sendall(sent)
            while self._channel.next_event() is NEED_DATA:
                if self._channel.state is State.CLOSED:
                    raise Unreachable(f"{self._address} closed instead of its {awaited}")
                self._stream.settimeout(max(0.001, deadline - time.monotonic()))
                self._channel.receive_data(self._stream.recv(MESSAGE_SIZE))
        except TimeoutError:
            raise Unreachable(f"{self._address} gave no {awaited} in time") from None
        except (OSError, RemoteProtocolError) as error:
            raise Unreachable(f"{self._address} gave no {awaited}: {error}") from None
