"""What a replay does, in order: a recording's sends, what to wait for between, the VMM's actions.

Records in, steps out; no IO. A step waits for everything that had come before it in the recording,
whatever the connection, so the recorded order is kept without looking at clocks.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Final

from dissectors.constants import Arch
from dissectors.services import ServiceReply, ServiceRequest

from ..capture.records import Header, How

Key = tuple[int, int]
"""(connection, request) of an operation."""


def key_name(key: Key) -> str:
    """`1.3`, as operations are named everywhere."""
    return f"{key[0]}.{key[1]}"


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection."""

    t_ns: int
    conn: int


@dataclass(frozen=True, slots=True)
class Send:
    """One write; `requests` are those that the guest received of it.

    `what` is `line`, which only a Unix socket takes, `service` or `request`.
    """

    t_ns: int
    conn: int
    what: str
    data: bytes = field(repr=False)
    requests: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Await:
    """Something had come from the guest here: `line`, `hello`, `reply` or the `end`."""

    t_ns: int
    conn: int
    what: str
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """The client closed, or with `How.HALF` said that it would send no more."""

    t_ns: int
    conn: int
    how: How


@dataclass(frozen=True, slots=True)
class Act:
    """The VMM's side did something."""

    t_ns: int
    action: str


Step = Connect | Send | Await | Leave | Act


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the guest saw it, and what the recording has as its answer, if any.

    `raw` is what the guest's buffer held, bytes of earlier requests included; `size` bytes of it
    were received for this one. `place` counts the recording's requests from 0. Of one without an
    answer, `cut_off` says that the recording does not tell an answer from silence, and `watched_ns`
    for how long nothing came.
    """

    conn: int
    request: int
    place: int
    t_ns: int
    size: int
    message: ServiceRequest
    raw: bytes = field(repr=False)
    reply: ServiceReply | None = None
    reply_raw: bytes = field(default=b"", repr=False)
    latency_ns: int | None = None
    cut_off: bool = False
    watched_ns: int = 0

    @property
    def key(self) -> Key:
        """Connection and request."""
        return self.conn, self.request

    @property
    def name(self) -> str:
        """The two as `1.3`."""
        return key_name(self.key)


@dataclass(slots=True)
class Script:
    """A recording as it can be sent again; `asked` is in the order in which requests were sent.

    `left_out` tells in sentences what is not sent again. `accepted` are the connections that got
    through to the guest; `greetings` says of those with a CONNECT message whether it was a good
    one; on those in `talkative` the guest said more than it was asked.
    """

    header: Header
    steps: list[Step] = field(default_factory=list)
    asked: dict[Key, Asked] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    accepted: set[int] = field(default_factory=set)
    greetings: dict[int, bool] = field(default_factory=dict)
    talkative: set[int] = field(default_factory=set)

    @property
    def arch(self) -> Arch:
        """The guest's, as far as the recording says it; x86-64 where it says nothing known."""
        return Arch.named(self.header.arch) or Arch.X86_64

    @property
    def actions(self) -> list[str]:
        """What the VMM's side did."""
        return [step.action for step in self.steps if isinstance(step, Act)]

    def only(self, keys: Set[Key]) -> Script:
        """The same without other operations, and without connections that then have none.

        What the VMM's side did stays, up to the last of the operations: they may rest on it. So
        do operations that went in one write with a wanted one.
        """
        keys = {
            (step.conn, request)
            for step in self.steps
            if isinstance(step, Send) and any((step.conn, r) in keys for r in step.requests)
            for request in step.requests
        }
        conns = {conn for conn, _ in keys}
        last_of = dict(sorted(self.asked))

        def wanted(step: Step) -> bool:
            match step:
                case Act():
                    return True
                case Send(conn=conn, requests=requests) if requests:
                    return any((conn, request) in keys for request in requests)
                case Await(conn=conn, request=request) if request is not None:
                    return (conn, request) in keys
                case Await(conn=conn, what="end") if conn in conns:  # what came of the last one
                    return (conn, last_of[conn]) in keys
            return step.conn in conns

        last = max((self.asked[key].t_ns for key in keys if key in self.asked), default=-1)
        steps = [
            step for step in self.steps
            if wanted(step) and not (isinstance(step, Act) and step.t_ns > last)
        ]  # fmt: skip
        asked = {key: request for key, request in self.asked.items() if key in keys}
        return replace(self, steps=steps, asked=asked)


SILENCE_NS: Final = 1_000_000_000
"""A request that a recording has no answer to, and ends this soon after, may have been answered."""
