"""A simulated guest on a real Unix socket: one thread a connection, as in the kernel.

`GuestSocket` puts a machine or a recording on a socket; `SimulatedGuest` is the Python form of the
`guest` command. docs/guest.md.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from ..control.order_socket import serve_orders
from ..control.target_note import PostedNote, TargetNote
from ..errors import WrongUsage
from ..kernel.faults import Fault
from ..kernel.world import World, kata_pod
from ..sockets.addresses import UNIX_PATH_LIMIT, socket_folder
from ..sockets.serving import StreamServer
from .machine import Habits, Machine
from .multiplexer import Link, Step


class Answering(Protocol):
    """What can be put on a socket: a machine, or a recording."""

    def link(self) -> Link: ...

    def note(self, control: str | None = None) -> TargetNote: ...


class GuestSocket:
    """Whoever answers, at `path`, until the context ends; `note` stands beside the socket.

    Raises WrongUsage when the path cannot be listened on.
    """

    def __init__(self, machine: Answering, path: Path, control: Path | None = None) -> None:
        self.path = path
        self.note = machine.note(_reachable(control))
        self.lock = threading.Lock()
        """Held while the machine is asked."""
        self._machine = machine
        self._stopping = threading.Event()
        self._ending = ExitStack()
        try:
            self._server = StreamServer(path, self._serve)
            self._ending.callback(self._server.close)
            self._ending.callback(_post(path, self.note).close)
        except BaseException:
            self.close()
            raise

    def end_connections(self) -> None:
        """End every connection; new ones are accepted."""
        self._server.end_connections()

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._stopping.set()
        self._ending.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, stream: socket.socket) -> None:
        with self.lock:
            link = self._machine.link()
        converse(stream, link, self.lock, self._stopping)


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
        self._machine = Machine(world or kata_pod(), habits, faults, seed, talk)
        self._ending = ExitStack()
        try:
            if path is None:
                path = Path(self._ending.enter_context(socket_folder())) / "guest"
            self._socket = self._ending.enter_context(GuestSocket(self._machine, path, control))
            if control is not None:
                self._ending.callback(StreamServer(control, self._serve_control).close)
        except BaseException:
            self.close()
            raise
        self.path = path

    @property
    def note(self) -> TargetNote:
        """What stands beside the socket."""
        return self._socket.note

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """Follow one order of the control socket; raises BadOrder. A reset ends connections."""
        with self._socket.lock:
            before = self._machine.guest
            answer = self._machine.control(order)
            booted = self._machine.guest is not before
        if booted:
            self._socket.end_connections()
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
        self._ending.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve_control(self, stream: socket.socket) -> None:
        serve_orders(stream, self.control)


def _reachable(control: Path | None) -> str | None:
    """The path for the note; None if it can only be reached by a relative one."""
    where = str(control.absolute()) if control else None
    return None if where and len(where.encode()) > UNIX_PATH_LIMIT else where


def converse(
    stream: socket.socket, link: Link, lock: threading.Lock, stopping: threading.Event
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


def _receive(stream: socket.socket, link: Link) -> bytes | None:
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


def _post(path: Path, told: TargetNote) -> PostedNote:
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
