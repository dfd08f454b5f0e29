"""The capture proxy: one loop that moves bytes first and records second.

Nothing in the loop waits for anybody: not for the VMM to accept, not for a client to read, not
for the disk. What has to wait is left until epoll says that it can go on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dissectors.constants import UPCALL_PORT

from ..capture.records import MAX_CHUNK, Close, How, Open
from ..sockets.addresses import Address, shut_down
from .arriving import Phase
from .recorder import Records
from .relay import Relay
from .relay_host import GuestRoute, Tamper, peer_of

DESCRIPTORS_EACH: Final = 2
"""Of a connection: one for the client, one for what it talks to."""
DESCRIPTORS_MOVING: Final = 2
"""More, for each direction in which bytes of another port wait on their way."""
_RESERVED: Final = 96
_PIPES_KEPT: Final = 16
_PIPE_SIZE: Final = 1 << 20
_ACCEPTED_AT_ONCE: Final = 64
_RETRY_S: Final = 0.01
_GRACE_S: Final = 0.1
_LOOK_S: Final = 0.25
_QUIET_S: Final = 0.004
"""After so long without an event, what is remembered is handed over."""
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Handler = Callable[[int], None]


@dataclass(slots=True)
class ProxyCounts:
    """What the proxy has done so far."""

    opened: int = 0
    upcall: int = 0
    refused: int = 0
    away: int = 0


def room_for(limit: int) -> int:
    """How many connections a limit of open files is enough for."""
    return max(1, (limit - _RESERVED) // DESCRIPTORS_EACH)


class Proxy:
    """Accepts connections and relays each to `upstream`, recording as it goes.

    `talk` is told, once, what a user should know about a connection that failed. `numbers` counts
    connections, and can be shared by the proxies of one recording, as the loop can.
    """

    def __init__(
        self,
        upstream: Address,
        recorder: Records,
        talk: Callable[[str], None],
        upcall_port: int = UPCALL_PORT,
        source: int = 0,
        loop: Loop | None = None,
        tamper: Tamper | None = None,
    ) -> None:
        self.upstream = upstream
        self.recorder = recorder
        self.upcall_port = upcall_port
        self.source = source
        self.tamper = tamper
        self._talk = talk
        self._own = loop is None
        self.loop = loop or Loop()
        self.counts = ProxyCounts()
        self._listening: list[socket.socket] = []
        self._relays: set[Relay] = set()
        self._unreachable: set[str] = set()
        self._refusing = False
        self.buffer = self.loop.buffer
        self.watch = self.loop.watch
        self.unwatch = self.loop.unwatch
        self.take_pipe = self.loop.take_pipe
        self.give_pipe = self.loop.give_pipe
        self.loop.when_idle(recorder.flush)

    def listen(self, listener: socket.socket, route: GuestRoute | None = None) -> None:
        """Accept from `listener`; with a route, what the guest initiated."""
        listener.setblocking(False)
        self._listening.append(listener)
        self.loop.call(
            lambda: self.watch(
                listener.fileno(), select.EPOLLIN, lambda _: self._accept(listener, route), None
            )
        )
        self.loop.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Accept no more, end every connection, and with a loop of our own end that too."""
        over = threading.Event()
        self.loop.call(lambda: self._begin_end(over))
        over.wait(timeout_s)
        if self._own:
            self.loop.stop(timeout_s)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._relays)

    def _accept(self, listener: socket.socket, route: GuestRoute | None) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM and self.loop.make_room():
                    self._refuse_one(listener, route, error.strerror or str(error))
                return
            client.setblocking(False)
            if self.loop.is_full:
                self._refuse(client, route, self.loop.why_full)
                continue
            self._refusing = False
            self.counts.opened += 1
            relay = Relay(self, self.loop.next_number(), client, route)
            self._relays.add(relay)
            self.loop.open += 1
            relay.begin()
            if relay.phase is Phase.CONNECTING and relay.guest is None:
                self.loop.try_later(relay)

    def _refuse_one(self, listener: socket.socket, route: GuestRoute | None, reason: str) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            pass
        else:
            self._refuse(client, route, reason)
        self.loop.keep_room()

    def _refuse(self, client: socket.socket, route: GuestRoute | None, reason: str) -> None:
        """Close at once, with a reason of our own in the capture and, the first time, on stderr."""
        self.counts.refused += 1
        number, now = self.loop.next_number(), self.recorder.now()
        self.recorder.record(Open(now, number, peer=peer_of(client), source=self.source))
        self.recorder.record(Close(now, number, False, How.REFUSED, reason))
        client.close()
        if not self._refusing:
            self._refusing = True
            self._talk(f"connection {number} was refused: {reason}")

    def is_upcall(self) -> None:
        """One more connection is for upcall."""
        self.counts.upcall += 1

    def call_later(self, after_s: float, work: Callable[[], None]) -> None:
        """Have the loop do something after some time."""
        self.loop.call_later(after_s, work)

    def unreachable(self, name: str, error: OSError) -> None:
        """Where a connection should have gone is nobody; said when that is news."""
        self.counts.away += 1
        if name not in self._unreachable:
            self._unreachable.add(name)
            self._talk(f"cannot connect to {name}: {error.strerror}")

    def reachable(self, name: str) -> None:
        """Somebody is there."""
        self._unreachable.discard(name)

    def forget(self, relay: Relay) -> None:
        """The relay is over."""
        if relay in self._relays:
            self._relays.discard(relay)
            self.loop.open -= 1
        self.loop.not_later(relay)

    def _begin_end(self, over: threading.Event) -> None:
        for listener in self._listening:
            self.unwatch(listener.fileno())
            shut_down(listener)
        self._listening.clear()

        def cut() -> None:
            for relay in list(self._relays):
                relay.cut()
            over.set()

        # A side that has closed by now is to be recorded as the one that did.
        if self._relays:
            self.loop.call_later(_GRACE_S, cut)
        else:
            over.set()


class Loop:
    """Waits for every descriptor at once, in a thread of its own, and calls what is ready.

    Connections of all its proxies share their numbers, the room for them, and pipes to splice by.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit or resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.room = room_for(self.limit)
        self.open = 0
        self.buffer = memoryview(bytearray(MAX_CHUNK))
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._number = 0
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._pipes: list[tuple[int, int]] = []
        self._calls: list[Callable[[], None]] = []
        self._timed: list[tuple[float, Callable[[], None]]] = []
        self._later: OrderedDict[Relay, None] = OrderedDict()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._handlers[self._wake_read] = self._woken
        self._stopping = False
        self._idle: list[Callable[[], bool]] = []
        self._thread: threading.Thread | None = None

    def when_idle(self, work: Callable[[], bool]) -> None:
        """Do this each time that nothing moves any more, and soon again while it is true."""
        self._idle.append(work)

    def start(self) -> None:
        """Begin, unless it was begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
            self._thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """Have the loop's thread do something; before the loop is started, at once."""
        if self._thread is None:
            work()
            return
        self._calls.append(work)
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            pass  # it is being woken
        except OSError:
            work()  # the loop is over

    def call_later(self, after_s: float, work: Callable[[], None]) -> None:
        """The same after some time; for the loop's own thread."""
        self._timed.append((time.monotonic() + after_s, work))

    def stop(self, timeout_s: float) -> None:
        """End the thread."""

        def end() -> None:
            self._stopping = True

        thread = self._thread
        if thread is None:
            self._close()
            return
        self.call(end)
        if thread is not threading.current_thread():
            thread.join(timeout_s)

    # For relays, in the loop's own thread.

    def watch(self, descriptor: int, events: int, handler: Handler, before: int | None) -> None:
        """Call `handler` when something of `events` can be done; `before` is what was waited for.

        A hang-up is always told.
        """
        self._handlers[descriptor] = handler
        if before is None:
            self._epoll.register(descriptor, events)
        elif before != events:
            self._epoll.modify(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """Wait for it no more."""
        if self._handlers.pop(descriptor, None) is not None:
            try:
                self._epoll.unregister(descriptor)
            except OSError:
                pass  # it was closed

    def next_number(self) -> int:
        """The number of the next connection."""
        self._number += 1
        return self._number

    @property
    def is_full(self) -> bool:
        """No more connections can be taken."""
        return self.open >= self.room

    @property
    def why_full(self) -> str:
        """What to say to that."""
        return f"{self.open} connections are open, and the limit of open files is {self.limit}"

    def make_room(self) -> bool:
        """One descriptor is left for telling a client that there are none."""
        if self._spare < 0:
            return False
        os.close(self._spare)
        self._spare = -1
        return True

    def keep_room(self) -> None:
        """Get that one back."""
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass

    def take_pipe(self) -> tuple[int, int] | None:
        """A pipe to splice by, None when there are no descriptors for one."""
        if self._pipes:
            return self._pipes.pop()
        try:
            pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # this user has used up its share of large pipes
        return pipe

    def give_pipe(self, pipe: tuple[int, int]) -> None:
        """It is empty again."""
        if len(self._pipes) < _PIPES_KEPT:
            self._pipes.append(pipe)
        else:
            os.close(pipe[0])
            os.close(pipe[1])

    def try_later(self, relay: Relay) -> None:
        """A VMM that has no room for a connection just now is asked again in a moment."""
        self._later[relay] = None

    def not_later(self, relay: Relay) -> None:
        """It is not waiting any more."""
        self._later.pop(relay, None)

    def _retry(self) -> None:
        full: set[Path] = set()
        for relay in list(self._later):
            if relay.goal in full:
                continue
            if relay.connect():
                self._later.pop(relay, None)
            else:
                full.add(relay.goal)

    def _woken(self, _: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except OSError:
            pass
        while self._calls:
            self._calls.pop(0)()

    def _run(self) -> None:
        poll, handlers = self._epoll.poll, self._handlers
        soon = False
        while not self._stopping:
            timeout = _QUIET_S if soon else _RETRY_S if self._later or self._timed else _LOOK_S
            ready = poll(timeout, 256)
            soon = bool(ready)
            if not soon:
                for work in self._idle:
                    soon |= work()
            for descriptor, events in ready:
                handler = handlers.get(descriptor)
                if handler is not None:
                    handler(events)
            if self._later:
                self._retry()
            if self._timed:
                self._due()
        self._close()

    def _due(self) -> None:
        now = time.monotonic()
        due = [work for when, work in self._timed if when <= now]
        self._timed = [(when, work) for when, work in self._timed if when > now]
        for work in due:
            work()

    def _close(self) -> None:
        for descriptor in (self._wake_read, self._wake_write, self._spare):
            if descriptor >= 0:
                os.close(descriptor)
        for pipe in self._pipes:
            os.close(pipe[0])
            os.close(pipe[1])
        self._pipes.clear()
        self._epoll.close()
