"""A guest that answers from a recording, on a real Unix socket. docs/guest.md."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Self

from ..control.target_note import TargetNote
from ..kernel.world import kata_pod
from ..sockets.serving import StreamServer
from .from_recording import RecordedLink, RecordedMachine
from .on_socket import converse, post_note


class RecordedGuest:
    """Answers at `path` from a recording until the context ends.

    Raises WrongUsage when the path cannot be listened on.
    """

    def __init__(self, machine: RecordedMachine, path: Path) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = StreamServer(path, self._serve)
        try:
            # What it looks like inside nobody knows; that nothing in it can break is certain.
            told = TargetNote("simulated", "recording", "recording", kata_pod(machine.arch))
            self._note = post_note(path, told)
        except BaseException:
            self._server.close()
            raise

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._stopping.set()
        self._note.close()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, stream: socket.socket) -> None:
        with self._lock:
            link = RecordedLink(self._machine, time.monotonic_ns())
        converse(stream, link, self._lock, self._stopping)
