"""The simulated guest on a real Unix socket: one thread a connection, as in the kernel.

`SimulatedGuest` is the Python form of the `guest` command. docs/guest.md.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from .kernel.faults import Fault
from .kernel.world import World, kata_pod
from .listening import Listener
from .machine import BadOrder, Habits, Link, Machine, Step

_CONTROL_LINE_LIMIT: Final = 1024
"""Bytes of an order; far less than it takes to nest JSON too deep for a small stack."""
_ACCEPT_PAUSE_S: Final = 0.05
_JOIN_S: Final = 2.0


class SimulatedGuest:
    """A guest that answers at `path` until the context ends.

    Without a path the socket is made in a directory of its own, which goes with it. `control`
    is the path of a second socket for the VMM's side. `talk` hears of faults that strike.
    Raises WrongUsage when a path cannot be listened on.

        with SimulatedGuest(kata_pod()) as guest:
            connect(guest.path)
    """

    def __init__(
        self,
        world: World | None = None,
        habits: Habits | None = None,
        faults: list[Fault] | None = None,
        seed: int = 0,
        path: Path | None = None,
        control: Path | None = None,
        talk: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._directory = None if path else tempfile.TemporaryDirectory(prefix="upcall-guest-")
        self.path = path or Path(self._directory.name if self._directory else "") / "guest"
        self._machine = Machine(world or kata_pod(), habits, faults, seed, talk)
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._orderers: set[socket.socket] = set()
        """Streams of the guest, and of the control socket."""
        self._threads: set[threading.Thread] = set()
        self._stopping = threading.Event()
        self._listeners: list[Listener] = []
        try:
            self._listen(self.path, self._streams, self._serve)
            if control is not None:
                self._listen(control, self._orderers, self._serve_control)
        except BaseException:
            self.close()
            raise

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """Follow one order of the control socket; raises BadOrder. A reset ends connections."""
        ended: list[socket.socket] = []
        with self._lock:
            before = self._machine.guest
            answer = self._machine.control(order)
            if self._machine.guest is not before:
                ended = list(self._streams)
        for stream in ended:
            _shutdown(stream)
        return answer

    def state(self) -> dict[str, Any]:
        """CPUs, devices and locks as JSON values."""
        state: dict[str, Any] = self.control({"state": True})["state"]
        return state

    def reset(self) -> None:
        """Boot anew: connections end, and the state is the world's again."""
        self.control({"reset": True})

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._stopping.set()
        for listener in self._listeners:
            _shutdown(listener.socket)
            listener.close()
        with self._lock:
            streams = [*self._streams, *self._orderers]
            threads = list(self._threads)
        for stream in streams:
            _shutdown(stream)
        for thread in threads:
            thread.join(_JOIN_S)
        if self._directory is not None:
            self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(
        self, path: Path, kept: set[socket.socket], serve: Callable[[socket.socket], None]
    ) -> None:
        listener = Listener(path)
        self._listeners.append(listener)
        threading.Thread(
            target=self._accept, args=(listener.socket, kept, serve), daemon=True
        ).start()

    def _accept(
        self,
        listener: socket.socket,
        kept: set[socket.socket],
        serve: Callable[[socket.socket], None],
    ) -> None:
        while not self._stopping.is_set():
            try:
                stream, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._stopping.wait(_ACCEPT_PAUSE_S)
                    continue
                return  # the listener was shut down
            thread = threading.Thread(target=self._run, args=(stream, kept, serve), daemon=True)
            with self._lock:
                if self._stopping.is_set():  # `close` has already ended those it knew of
                    stream.close()
                    return
                try:
                    thread.start()
                except RuntimeError:  # no more threads to be had
                    stream.close()
                    continue
                kept.add(stream)
                self._threads.add(thread)

    def _run(
        self,
        stream: socket.socket,
        kept: set[socket.socket],
        serve: Callable[[socket.socket], None],
    ) -> None:
        try:
            serve(stream)
        except OSError:
            pass  # the client went away
        finally:
            with self._lock:
                kept.discard(stream)
                self._threads.discard(threading.current_thread())
            stream.close()

    def _serve(self, stream: socket.socket) -> None:
        with self._lock:
            link = Link(self._machine, time.monotonic_ns())
        while True:
            if link.silent:
                _wait_for_close(stream)
                return
            received = self._receive(stream, link)
            with self._lock:
                now = time.monotonic_ns()
                steps = link.expire(now) if received is None else link.receive(received, now)
            for step in steps:
                if not self._take(stream, step):
                    return

    def _receive(self, stream: socket.socket, link: Link) -> bytes | None:
        """What came, or None when the link's deadline passed before anything did."""
        if link.deadline_ns is None:
            return stream.recv(link.read_size)
        left_s = max(0.0, (link.deadline_ns - time.monotonic_ns()) / 1e9)
        stream.settimeout(left_s)
        try:
            return stream.recv(link.read_size)
        except (TimeoutError, BlockingIOError):
            return None
        finally:
            stream.settimeout(None)

    def _take(self, stream: socket.socket, step: Step) -> bool:
        """Wait until the step is due and do it; False when the connection is over."""
        wait_s = (step.at_ns - time.monotonic_ns()) / 1e9
        if wait_s > 0 and self._stopping.wait(wait_s):
            return False
        if step.sent is None:
            return False
        stream.sendall(step.sent)
        return True

    def _serve_control(self, stream: socket.socket) -> None:
        lines = stream.makefile("rb")
        while line := lines.readline(_CONTROL_LINE_LIMIT):
            whole = line.endswith(b"\n") or len(line) < _CONTROL_LINE_LIMIT
            answer = self._obey(line) if whole else _refusal("an order is a short line")
            stream.sendall(json.dumps(answer).encode() + b"\n")
            if not whole:
                return

    def _obey(self, line: bytes) -> dict[str, Any]:
        try:
            return self.control(json.loads(line))
        except BadOrder as error:
            return _refusal(str(error))
        except (ValueError, RecursionError):
            return _refusal("not a line of JSON")


def _refusal(why: str) -> dict[str, Any]:
    return {"ok": False, "error": why}


def _wait_for_close(stream: socket.socket) -> None:
    """Until the client closes; nothing is read, as by a thread that is gone."""
    poll = select.poll()
    poll.register(stream, select.POLLRDHUP)
    poll.poll()


def _shutdown(stream: socket.socket) -> None:
    try:
        stream.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is over already
