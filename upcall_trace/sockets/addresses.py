"""From an ADDRESS to a connected stream: a Unix socket path, or `vsock://CID[:PORT]`."""

from __future__ import annotations

import errno
import os
import select
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import Unreachable, WrongUsage

UNIX_PATH_LIMIT: Final = 107
"""Bytes that the kernel allows in the path of a Unix socket."""
_FOLDER_LIMIT: Final = 60
_SCHEME: Final = "vsock://"
_U32: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The VMM's hybrid-vsock Unix socket."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """A guest by its context id; `port` is where its upcall server listens when not on 219."""

    cid: int
    port: int | None = None

    def __str__(self) -> str:
        return f"{_SCHEME}{self.cid}" + ("" if self.port is None else f":{self.port}")


Address = UnixAddress | VsockAddress


def parse_address(text: str) -> Address:
    """Parse an ADDRESS; raises WrongUsage."""
    if not text.startswith(_SCHEME):
        return UnixAddress(check_socket_path(Path(text)))
    cid, colon, port = text.removeprefix(_SCHEME).partition(":")
    numbers = [cid, port] if colon else [cid]
    if not all(n.isdecimal() and int(n) < _U32 for n in numbers):
        raise WrongUsage(f"{text!r} is not vsock://CID or vsock://CID:PORT")
    return VsockAddress(int(cid), int(port) if colon else None)


def check_socket_path(path: Path) -> Path:
    """`path` itself, when the kernel can take it; raises WrongUsage."""
    size = len(str(path).encode())
    if size > UNIX_PATH_LIMIT:
        raise WrongUsage(
            f"the socket path {path} has {size} bytes, {UNIX_PATH_LIMIT} is the kernel's limit; "
            "use a shorter one, or a relative one"
        )
    if not str(path) or "\0" in str(path):
        raise WrongUsage("a socket path cannot be empty or hold a zero byte")
    return path


def short_temporary() -> Path:
    """Where temporary files are; /tmp, where sockets in there would have too long a path.

    A socket's path is limited, and TMPDIR may be as long as the limit.
    """
    there = tempfile.gettempdir()
    return Path(there if len(os.fsencode(there)) <= _FOLDER_LIMIT else "/tmp")  # noqa: S108  # what is made there is private


def socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of our own for sockets, for as long as its context, with a short path."""
    return tempfile.TemporaryDirectory(prefix="upcall-", dir=short_temporary())


def is_alive(path: Path) -> bool:
    """True when a living process holds the socket at `path`; no connection is made.

    A datagram socket cannot connect to a stream socket, and the kernel says so only when there
    is one behind the path. Raises OSError when there is no socket, or it is not ours to reach.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    return True


def answers(path: Path) -> bool:
    """The same, False too when there is no socket or it is not ours to reach."""
    try:
        return is_alive(path)
    except OSError:
        return False


def check_reachable(address: Address) -> None:
    """Raises Unreachable when nobody listens on a Unix socket; vsock is not looked at."""
    if isinstance(address, VsockAddress):
        return
    try:
        if not address.path.is_socket():
            there = "that is no socket" if address.path.exists() else "there is no such socket"
            raise Unreachable(f"nobody listens on {address.path}: {there}")
        if not is_alive(address.path):
            raise Unreachable(f"nobody listens on {address.path}: its process is gone")
    except OSError as error:
        raise Unreachable(f"{address.path} cannot be reached: {error.strerror}") from None


def connect_unix(path: Path, timeout_s: float | None = None) -> socket.socket:
    """A stream to the Unix socket at `path`, with a timeout if one is given; raises OSError."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout_s)
        stream.connect(str(path))
    except OSError:
        stream.close()
        raise
    return stream


def connect_vsock(cid: int, port: int) -> socket.socket:
    """A stream to `port` of the guest `cid`; raises OSError."""
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        stream.connect((cid, port))
    except OSError:
        stream.close()
        raise
    return stream


def begin_unix(path: Path) -> socket.socket:
    """A stream to the Unix socket at `path` that never waits.

    Raises BlockingIOError when its listener has no room just now, OSError when there is none.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        stream.connect(str(path))
    except OSError:
        stream.close()
        raise
    return stream


def begin_vsock(cid: int, port: int) -> socket.socket:
    """A stream that is being connected: once it can be written, `outcome_of_connect` tells.

    Raises OSError.
    """
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        stream.connect((cid, port))
    except BlockingIOError:
        pass
    except OSError:
        stream.close()
        raise
    return stream


def outcome_of_connect(stream: socket.socket) -> int:
    """The errno that a connect which was begun ended with, 0 when it is connected."""
    return stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def is_hung_up(stream: socket.socket) -> bool:
    """True when the peer closed its socket, False when it only shut down its sending side."""
    poll = select.poll()
    try:
        poll.register(stream, select.POLLIN)
        return any(events & select.POLLHUP for _, events in poll.poll(0))
    except (OSError, ValueError):
        return True


def shut_down(stream: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """End one or both directions; never raises."""
    try:
        stream.shutdown(how)
    except OSError:
        pass  # it is over already
