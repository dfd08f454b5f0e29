"""A command that goes on in the background once it is ready."""

from __future__ import annotations

import os
import signal
import sys

from ...errors import ExitCode, Interrupted, PeerDied


class Detached:
    """A child that goes on as the lab, and its parent, which waits until it is up."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.is_ready = False
        self._child = os.fork()
        self.parent = self._child != 0
        os.close(self._write if self.parent else self._read)
        if not self.parent:
            os.setsid()

    def wait(self) -> ExitCode:
        """The parent's side: until the lab is up, or has failed and said so."""
        try:
            if os.read(self._read, 1):
                return ExitCode.EXPECTED
        except KeyboardInterrupt:  # or another signal: nobody wants it any more
            os.kill(self._child, signal.SIGTERM)
        _, status = os.waitpid(self._child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            raise PeerDied("the lab was killed while it was starting")
        return ExitCode(code)

    def ready(self) -> None:
        """The child's side: what is said from now on, nobody reads. Raises Interrupted."""
        if sys.stdout is not None:
            sys.stdout.flush()
        try:
            os.write(self._write, b"+")
        except BrokenPipeError:
            raise Interrupted("who started this lab is gone, and so is the lab") from None
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(self._write)
        self.is_ready = True
