"""What a relay needs of its proxy, and what is kept of lines that are not upcall's."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from dissectors.constants import CONNECT_LINE_LIMIT, OK_LINE_LIMIT

from ..sockets.addresses import Address
from .recorder import Records
from .ways import Pipes

Remark = Callable[[int, str], None]
"""Takes a request's number and what was done to it."""
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class GuestRoute:
    """Where guest-initiated connections to `port` go on the host."""

    port: int
    path: Path


@dataclass(frozen=True, slots=True)
class TamperStep:
    """What is to be done with a connection that is tampered with, `after_s` from now.

    `sent` goes on, to the guest or to the client; `close` ends the connection, with that reason.
    """

    to_guest: bool
    sent: bytes = b""
    after_s: float = 0.0
    close: str = ""


class Tamper(Protocol):
    """Faults on the live path: what becomes of bytes that came."""

    def received(
        self, conn: int, to_guest: bool, received: bytes, mark: Remark
    ) -> list[TamperStep]:
        """What to do instead of sending them on; `remark` takes one about a request."""

    def over(self, conn: int) -> None:
        """The connection has ended."""


class RelayHost(Pipes, Protocol):
    """What a relay needs of the proxy that it belongs to."""

    upstream: Address
    recorder: Records
    upcall_port: int
    source: int
    buffer: memoryview
    tamper: Tamper | None

    def is_upcall(self) -> None:
        """One more connection is for upcall."""

    def call_later(self, after_s: float, work: Callable[[], None]) -> None:
        """Have the loop do something after some time."""

    def watch(
        self, descriptor: int, events: int, handler: Callable[[int], None], before: int | None
    ) -> None:
        """Call `handler` when something of `events` can be done."""

    def unwatch(self, descriptor: int) -> None:
        """Wait for it no more."""

    def unreachable(self, name: str, error: OSError) -> None:
        """Where a connection should have gone is nobody."""

    def reachable(self, name: str) -> None:
        """Somebody is there."""

    def forget(self, relay: Any) -> None:
        """The relay is over."""


def noted(end: int, length: int) -> int:
    """How much of a first line is kept of a connection that is not upcall."""
    return end if end > 0 else min(length, CONNECT_LINE_LIMIT)


def first_line(answer: bytes) -> bytes:
    """The multiplexer's line at the start of `answer`, without any payload behind it."""
    end = answer.find(b"\n", 0, OK_LINE_LIMIT) + 1
    return answer[: end or OK_LINE_LIMIT]


def peer_of(client: socket.socket) -> tuple[int, int, int] | None:
    """pid, uid and gid of who is at the other end of a Unix socket."""
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid
