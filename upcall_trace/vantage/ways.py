"""One direction of a connection: receives and sends that never wait, and what is left over.

Bytes go by hand, or through a pipe inside the kernel, which they never leave.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import Final, Protocol

from ..errors import UpcallError

AGAIN: Final = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINPROGRESS)
_SPLICE_SIZE: Final = 1 << 20


class Pipes(Protocol):
    """Where pipes come from."""

    def take_pipe(self) -> tuple[int, int] | None:
        """A pipe to splice by, None when there are no descriptors for one."""

    def give_pipe(self, pipe: tuple[int, int]) -> None:
        """It is empty again."""


class Way:
    """From `source` to `sink`: what was received and the sink has not taken yet.

    `over` is set when no more goes this way. Methods raise OSError, but for a sink that has no
    room, which leaves the rest here.
    """

    __slots__ = (
        "_in_pipe", "_pipe", "_pipes", "_roomy", "over", "rights", "sink", "source", "to_guest",
        "unsent",
    )  # fmt: skip

    def __init__(
        self, source: socket.socket, sink: socket.socket, to_guest: bool, pipes: Pipes
    ) -> None:
        self.source = source
        self.sink = sink
        self.to_guest = to_guest
        self.unsent = b""
        self.rights: list[int] = []
        """Descriptors that go with the next byte."""
        self.over = False
        self._pipes = pipes
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0
        self._roomy = False

    @property
    def is_full(self) -> bool:
        """The sink has to take something before more is received."""
        return bool(self.unsent) or self._in_pipe > 0

    def send(self, received: bytes) -> None:
        """Send on what can be sent."""
        try:
            if self.rights:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.rights))]
                sent = self.sink.sendmsg([received], rights)
                self._drop_rights()
            else:
                sent = self.sink.send(received)
        except OSError as error:
            if error.errno not in AGAIN:
                raise
            sent = 0
        self.unsent = received[sent:]

    def drain(self) -> None:
        """Send on what was left over."""
        if self.unsent:
            self.send(self.unsent)
        else:
            self._empty_pipe()

    def splice(self, buffer: memoryview) -> int | None:
        """Move what has come; how much, 0 at the end, None when there was nothing.

        Raises OSError as it was said of the source; `SinkBroken` of the sink.
        """
        if not self._roomy:
            self._roomy = True  # more at once for whoever reads it
            self.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SPLICE_SIZE)
        if self._pipe is None:
            self._pipe = self._pipes.take_pipe()
        try:
            if self._pipe is None:  # no descriptors left for one
                return self._by_hand(buffer)
            moved = os.splice(
                self.source.fileno(), self._pipe[1], _SPLICE_SIZE, flags=os.SPLICE_F_NONBLOCK
            )
        except OSError as error:
            self._give_pipe()
            if error.errno in AGAIN:
                return None
            if error.errno == errno.EINVAL:  # a socket that cannot be spliced
                return self._by_hand(buffer)
            raise
        self._in_pipe = moved
        try:
            self._empty_pipe()
        except OSError as error:
            raise SinkBroken(error.errno, str(error)) from None
        return moved

    def _by_hand(self, buffer: memoryview) -> int | None:
        try:
            moved = self.source.recv_into(buffer)
        except OSError as error:
            if error.errno in AGAIN:
                return None
            raise
        try:
            if moved:
                self.send(bytes(buffer[:moved]))
        except OSError as error:
            raise SinkBroken(error.errno, str(error)) from None
        return moved

    def _empty_pipe(self) -> None:
        try:
            while self._in_pipe and self._pipe:
                self._in_pipe -= os.splice(
                    self._pipe[0], self.sink.fileno(), self._in_pipe, flags=os.SPLICE_F_NONBLOCK
                )
        except OSError as error:
            if error.errno in AGAIN:
                return
            raise
        self._give_pipe()

    def end(self) -> None:
        """No more goes this way; what was left over goes nowhere."""
        self.over = True
        self.unsent = b""
        self._drop_rights()
        if self._pipe is not None and self._in_pipe:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe, self._in_pipe = None, 0
        self._give_pipe()

    def _drop_rights(self) -> None:
        for descriptor in self.rights:
            os.close(descriptor)
        self.rights = []

    def _give_pipe(self) -> None:
        if self._pipe is not None:
            self._pipes.give_pipe(self._pipe)
            self._pipe = None


class SinkBroken(UpcallError, OSError):
    """What was received could not be sent on."""
