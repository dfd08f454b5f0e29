"""One connection of a replay: its socket, and how far it has come."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..sockets.addresses import Address, UnixAddress, connect_unix, connect_vsock

_CONNECT_S: Final = 15.0
_RETRY_S: Final = 0.01


@dataclass(slots=True)
class PlayedStream:
    """One connection while it is played."""

    conn: int
    socket: socket.socket
    accepted: bool = False
    greeted: bool = False
    ended: bool = False
    """The guest's side is over."""
    flooded: bool = False
    """So much came that nothing more is read."""
    lost: str = ""
    """Why nothing is sent on it any more."""
    short: bool = False
    """The last send was not a whole number of requests."""
    last_sent_ns: int = 0
    last_t_ns: int = 0
    sent: list[int] = field(default_factory=list)
    """The recording's numbers of the requests that were sent, in order."""
    waiting: dict[int, int] = field(default_factory=dict)
    """When each request that has no answer yet was sent."""
    received: int = 0
    extra: int = 0
    """Bytes that came without being asked for."""

    def is_over(self, request: int) -> bool:
        """Whether nothing is to be waited for: it is answered, or will not be."""
        return request not in self.waiting or self.ended


def open_stream(address: Address, port: int) -> socket.socket:
    """A stream to a guest's upcall server or its multiplexer; raises OSError."""
    if isinstance(address, UnixAddress):
        return _patient_connect(address.path)
    return connect_vsock(address.cid, address.port or port)


def _patient_connect(path: Path) -> socket.socket:
    """A stream to a Unix socket; one whose queue is full is asked again. Raises OSError."""
    deadline = time.monotonic() + _CONNECT_S
    while True:
        try:
            return connect_unix(path, _CONNECT_S)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
