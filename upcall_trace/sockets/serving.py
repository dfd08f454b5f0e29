"""A Unix socket that is served: one thread a connection."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from .addresses import shut_down
from .listening import Listener

_ACCEPT_PAUSE_S: Final = 0.05
_JOIN_S: Final = 2.0


class StreamServer:
    """Listens at `path`; `serve` runs in a thread for each connection, which ends with it.

    An OSError out of `serve` means that the peer went away. Raises WrongUsage when the path cannot
    be listened on.
    """

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._stopping = False
        self._listener = Listener(path)
        threading.Thread(target=self._accept, daemon=True).start()

    def end_connections(self) -> None:
        """Shut every connection down; their threads notice by themselves."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            shut_down(stream)

    def close(self) -> None:
        """Stop listening, end every connection and wait for their threads."""
        with self._lock:
            self._stopping = True
            threads = self._threads - {threading.current_thread()}
        shut_down(self._listener.socket)
        self._listener.close()
        self.end_connections()
        for thread in threads:
            thread.join(_JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                stream, _ = self._listener.socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    threading.Event().wait(_ACCEPT_PAUSE_S)
                    continue
                return  # the listener was shut down
            thread = threading.Thread(target=self._run, args=(stream,), daemon=True)
            with self._lock:
                if self._stopping:  # `close` has already ended those it knew of
                    stream.close()
                    return
                try:
                    thread.start()
                except RuntimeError:  # no more threads to be had
                    stream.close()
                    continue
                self._streams.add(stream)
                self._threads.add(thread)

    def _run(self, stream: socket.socket) -> None:
        try:
            self._serve(stream)
        except OSError:
            pass  # the peer went away
        finally:
            with self._lock:
                self._streams.discard(stream)
                self._threads.discard(threading.current_thread())
            stream.close()
