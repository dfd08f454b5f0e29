"""The simulated guest on a real Unix socket: one thread a connection, as in the kernel.

`SimulatedGuest` is the Python form of the `guest` command. docs/guest.md.
"""

from __future__ import annotations

import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from ..control.order_socket import serve_orders
from ..control.target_note import PostedNote, TargetNote
from ..errors import WrongUsage
from ..kernel.faults import Fault
from ..kernel.world import World, kata_pod
from ..sockets.addresses import UNIX_PATH_LIMIT
from ..sockets.serving import StreamServer
from .machine import Habits, Link, Machine, Step


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
        self._stopping = threading.Event()
        self._servers: list[StreamServer] = []
        self._note: PostedNote | None = None
        try:
            self._servers.append(StreamServer(self.path, self._serve))
            self._note = post_note(self.path, _note(self._machine, control))
            if control is not None:
                self._servers.append(StreamServer(control, self._serve_control))
        except BaseException:
            self.close()
            raise

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """Follow one order of the control socket; raises BadOrder. A reset ends connections."""
        with self._lock:
            before = self._machine.guest
            answer = self._machine.control(order)
            booted = self._machine.guest is not before
        if booted:
            self._servers[0].end_connections()
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
        if self._note is not None:
            self._note.close()
        for server in self._servers:
            server.close()
        if self._directory is not None:
            self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, stream: socket.socket) -> None:
        with self._lock:
            link = Link(self._machine, time.monotonic_ns())
        converse(stream, link, self._lock, self._stopping)

    def _serve_control(self, stream: socket.socket) -> None:
        serve_orders(stream, self.control)


def _note(machine: Machine, control: Path | None) -> TargetNote:
    where = str(control.absolute()) if control else None
    if where and len(where.encode()) > UNIX_PATH_LIMIT:
        where = None  # it can only be reached by a relative path
    backend = machine.habits.backend.value
    return TargetNote("simulated", backend, "simulated", machine.world, where)


class Served(Protocol):
    """One end of a connection without its socket: `machine.Link`, or one like it."""

    deadline_ns: int | None

    @property
    def read_size(self) -> int: ...

    @property
    def silent(self) -> bool: ...

    def receive(self, received: bytes, now_ns: int) -> list[Step]: ...

    def expire(self, now_ns: int) -> list[Step]: ...


def converse(
    stream: socket.socket, link: Served, lock: threading.Lock, stopping: threading.Event
) -> None:
    """Serve a stream with what `link` says, until either side ends it; `lock` guards the link."""
    while True:
        if link.silent:
            _wait_for_close(stream)
            return
        received = _receive(stream, link)
        with lock:
            now = time.monotonic_ns()
            steps = link.expire(now) if received is None else link.receive(received, now)
        for step in steps:
            if not _take(stream, step, stopping):
                return


def _receive(stream: socket.socket, link: Served) -> bytes | None:
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


def _take(stream: socket.socket, step: Step, stopping: threading.Event) -> bool:
    """Wait until the step is due and do it; False when the connection is over."""
    wait_s = (step.at_ns - time.monotonic_ns()) / 1e9
    if wait_s > 0 and stopping.wait(wait_s):
        return False
    if step.sent is None:
        return False
    stream.sendall(step.sent)
    return True


def post_note(path: Path, told: TargetNote) -> PostedNote:
    """Tell whoever looks at the socket that no real guest is behind it; raises WrongUsage."""
    try:
        return PostedNote(path, told)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be told to be simulated: {error.strerror}") from None


def _wait_for_close(stream: socket.socket) -> None:
    """Until the client closes; nothing is read, as by a thread that is gone."""
    poll = select.poll()
    poll.register(stream, select.POLLRDHUP)
    poll.poll()
