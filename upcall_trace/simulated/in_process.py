"""The simulated guest without sockets, with a virtual clock: for tests that must not wait.

    guest = MemoryGuest(kata_pod())
    stream = guest.connect()
    stream.send(b"CONNECT 219\\n")
    stream.receive()    # b"OK 1073741824\\n"
    guest.advance(10_000_000_000)

docs/guest.md.
"""

from __future__ import annotations

from typing import Any

from ..kernel.faults import Fault
from ..kernel.world import World, kata_pod
from .machine import Habits, Machine
from .multiplexer import Step


class MemoryGuest:
    """A guest whose time passes only in `advance`; all times in nanoseconds since its start."""

    def __init__(
        self,
        world: World | None = None,
        habits: Habits | None = None,
        faults: list[Fault] | None = None,
        seed: int = 0,
    ) -> None:
        self.strikes: list[str] = []
        """What the faults said when they struck."""
        self.machine = Machine(world or kata_pod(), habits, faults, seed, self.strikes.append)
        self.now_ns = 0
        self._streams: list[MemoryStream] = []

    def connect(self) -> MemoryStream:
        """A new connection to the guest's socket."""
        stream = MemoryStream(self)
        self._streams.append(stream)
        return stream

    def advance(self, nanoseconds: int) -> None:
        """Let time pass; everything that falls due happens at its own moment."""
        end_ns = self.now_ns + nanoseconds
        while True:
            due = [at for stream in self._streams if (at := stream.due_ns()) is not None]
            if not due or min(due) > end_ns:
                break
            self.now_ns = max(self.now_ns, min(due))
            for stream in self._streams:
                stream.work()
        self.now_ns = end_ns
        self._streams = [stream for stream in self._streams if not stream.closed]

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """One order of the control socket; raises BadOrder. A reset ends every connection."""
        before = self.machine.guest
        answer = self.machine.control(order)
        if self.machine.guest is not before:
            for stream in self._streams:
                stream.close()
        return answer

    def state(self) -> dict[str, Any]:
        """CPUs, devices and locks as JSON values."""
        state: dict[str, Any] = self.control({"state": True})["state"]
        return state


class MemoryStream:
    """The client's end of a connection; `closed` once the guest's side has closed it."""

    def __init__(self, guest: MemoryGuest) -> None:
        self._guest = guest
        self._link = guest.machine.link()
        self._sent: list[bytes] = []
        self._steps: list[Step] = []
        self._received = b""
        self.closed = False

    @property
    def silent(self) -> bool:
        """True when the guest's thread is gone: the connection is open and will say nothing."""
        return self._link.silent

    def send(self, sent: bytes) -> None:
        """One send of the client; as in a guest, a busy thread reads it later."""
        if self.closed:
            raise BrokenPipeError("the guest closed this connection")
        self._sent.append(sent)
        self.work()

    def receive(self) -> bytes:
        """What has arrived and was not yet taken; `b""` when nothing has."""
        received, self._received = self._received, b""
        return received

    def close(self) -> None:
        """The client closes."""
        self._link.receive(b"", self._guest.now_ns)
        self.closed = True

    def due_ns(self) -> int | None:
        """When something happens here next without a send, None when nothing will."""
        if self.closed:
            return None
        if self._steps:
            return self._steps[0].at_ns
        return self._link.deadline_ns

    def work(self) -> None:
        """Do what is due: send, read, close."""
        now = self._guest.now_ns
        while not self.closed:
            if self._steps:
                if self._steps[0].at_ns > now:
                    return
                step = self._steps.pop(0)
                self._received += step.sent or b""
                self.closed = step.sent is None
            elif self._sent and (size := self._link.read_size):
                # Sends that wait together are one stream to the thread that reads them at last.
                waiting = b"".join(self._sent)
                self._sent = [waiting[size:]] if waiting[size:] else []
                self._steps += self._link.receive(waiting[:size], now)
            elif self._link.deadline_ns is not None and self._link.deadline_ns <= now:
                self._steps += self._link.expire(now)
            else:
                return
