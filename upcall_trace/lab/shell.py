"""Commands inside a lab guest, through the agent that its init starts."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from pathlib import Path
from typing import Final, NamedTuple

from dissectors.hvsock import connect_line

from ..errors import Unreachable
from ..transport import connect_unix
from .machines import SHELL_PORT

_LEAVE: Final = b"\x1d"
"""Ctrl-], as in telnet."""
_BULK: Final = 64 << 10


class Ran(NamedTuple):
    """A command's output, both streams together, and its exit status."""

    output: str
    status: int


def run(vsock: Path, command: str, timeout_s: float = 30.0) -> Ran:
    """Run one line by `sh -c` in the guest behind the hybrid-vsock socket; raises Unreachable."""
    with _connect(vsock, timeout_s) as stream:
        try:
            stream.sendall(command.replace("\n", ";").encode() + b"\n")
            said = b""
            while received := stream.recv(_BULK):
                said += received
        except OSError as error:
            raise Unreachable(f"the guest's shell gave no answer: {error}") from None
    output, zero, status = said.rpartition(b"\0")
    if not zero or not status.isdigit():
        raise Unreachable("the guest's shell ended in the middle of the command")
    return Ran(output.decode("utf-8", "replace"), int(status))


def attach_shell(vsock: Path) -> None:
    """A shell in the guest on this terminal, until it ends; raises Unreachable."""
    with _connect(vsock, 5.0) as stream:
        stream.settimeout(None)
        stream.sendall(b"\n")
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
