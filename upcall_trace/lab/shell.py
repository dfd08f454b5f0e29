"""Commands inside a lab guest, through the agent that its init starts."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dissectors.hvsock import connect_line

from ..errors import Unreachable, WrongUsage
from ..sockets.addresses import connect_unix
from .machines import SHELL_PORT

_LEAVE: Final = b"\x1d"
"""Ctrl-], as in telnet."""
_BULK: Final = 64 << 10


_ENDING: Final = 4
"""Bytes behind a command's output: a zero byte and its exit status."""
_LINE_LIMIT: Final = 4095
"""Bytes that the agent has room for."""
_OUTPUT_LIMIT: Final = 16 << 20


class Ran(NamedTuple):
    """A command's output, both streams together, and its exit status."""

    output: str
    status: int


class Command:
    """What `sh -c` runs in the guest behind a hybrid-vsock socket; raises WrongUsage, Unreachable.

    Iterating gives its output as it comes, both streams together; `status` is known at the end.
    """

    def __init__(self, vsock: Path, line: str, timeout_s: float | None = None) -> None:
        if not 0 < len(os.fsencode(line)) <= _LINE_LIMIT or "\0" in line:
            raise WrongUsage(f"a command is 1 to {_LINE_LIMIT} bytes without a zero byte")
        self.status = -1
        self._stream = _connect(vsock, 10.0)
        self._stream.settimeout(timeout_s)
        self._line = line

    def __iter__(self) -> Iterator[bytes]:
        with self._stream as stream:
            kept = b""
            try:
                stream.sendall(os.fsencode(self._line) + b"\0")
                while received := stream.recv(_BULK):
                    kept += received
                    yield kept[:-_ENDING]
                    kept = kept[-_ENDING:]
            except OSError as error:
                raise Unreachable(f"the guest's shell gave no answer: {error}") from None
        output, zero, status = kept.rpartition(b"\0")
        if not zero or not status.isdigit():
            raise Unreachable("the guest's shell ended in the middle of the command")
        yield output
        self.status = int(status)


def run(vsock: Path, line: str, timeout_s: float = 30.0) -> Ran:
    """Run a command and wait for it; raises Unreachable, also for more than 16 MiB of output."""
    command = Command(vsock, line, timeout_s)
    said = bytearray()
    for piece in command:
        said += piece
        if len(said) > _OUTPUT_LIMIT:
            raise Unreachable(f"the command printed more than {_OUTPUT_LIMIT >> 20} MiB")
    return Ran(said.decode("utf-8", "replace"), command.status)


def attach_shell(vsock: Path) -> None:
    """A shell in the guest on this terminal, until it ends; raises Unreachable."""
    with _connect(vsock, 5.0) as stream:
        stream.settimeout(None)
        stream.sendall(b"\0")
        relay_terminal(stream)


def relay_terminal(stream: socket.socket) -> None:
    """Keys to the stream and what comes back to the terminal, until either ends or Ctrl-]."""
    keys, screen = sys.stdin.fileno(), sys.stdout.buffer
    before = termios.tcgetattr(keys)
    tty.setraw(keys)
    try:
        while True:
            ready, _, _ = select.select([keys, stream], [], [])
            if stream in ready:
                said = stream.recv(_BULK)
                if not said:
                    return
                screen.write(said)
                screen.flush()
            if keys in ready:
                typed = os.read(keys, _BULK)
                if not typed or _LEAVE in typed:
                    return
                stream.sendall(typed)
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


def _connect(vsock: Path, timeout_s: float) -> socket.socket:
    try:
        stream = connect_unix(vsock)
    except OSError as error:
        raise Unreachable(f"{vsock} cannot be reached: {error.strerror}") from None
    try:
        stream.settimeout(timeout_s)
        stream.sendall(connect_line(SHELL_PORT).raw)
        answer = b""
        while not answer.endswith(b"\n"):
            received = stream.recv(1)
            if not received:
                raise Unreachable("the guest has no shell: its agent does not listen")
            answer += received
    except OSError as error:
        stream.close()
        raise Unreachable(f"the guest's shell gave no answer: {error}") from None
    except BaseException:
        stream.close()
        raise
    return stream
