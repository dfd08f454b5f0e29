"""The records of a `.upcap` file: what each says. docs/capture-format.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from .frames import FORMAT_VERSION

MAX_CHUNK: Final = 64 << 10
"""A longer send is recorded in pieces of this size, a multiple of the guest's receive size."""
TIME_LIMIT: Final = 1 << 62
"""Times stay within 146 years of 0, so that the difference of two fits in 64 bits."""
TIMES: Final = "times"
NO_TIMES: Final = "none: memory has an order alone"
"""The note of a header, by name and text, that says that only the order of records counts."""
CONN_LIMIT: Final = 1 << 32
"""Connections are numbered below this."""


class Begins(StrEnum):
    """What the recorded bytes of a connection begin with."""

    LINE = "line"
    SERVICE = "service"
    MIDDLE = "middle"
    OTHER = "other"


class How(StrEnum):
    """How a side ended a connection, or its half of it.

    The last three are the recorder's own doing, and nobody else's: it refused the client, the
    VMM could not be reached, or a fault that was asked for closed the connection.
    """

    CLOSE = "close"
    HALF = "half"
    RESET = "reset"
    REFUSED = "refused"
    AWAY = "away"
    FAULT = "fault"

    @property
    def by_us(self) -> bool:
        """True when neither the guest nor the client ended it, but the recorder between them."""
        return self in (How.REFUSED, How.AWAY, How.FAULT)


@dataclass(frozen=True, slots=True)
class Header:
    """The first record: where, when, with what and of which guest this was recorded.

    `wall_ns` is the wall clock at `t_ns` 0, in nanoseconds since 1970, None when unknown;
    `resolution_ns` is the step of the clock behind `t_ns`, 0 when unknown. `notes` are the
    user's, or what a foreign format said about itself. Parts of one recording carry the same
    `recording`, and `part` counts them from 1; a capture that is whole in itself has 0.
    """

    source: str
    tool: str = ""
    host: str = ""
    arch: str | None = None
    wall_ns: int | None = None
    resolution_ns: int = 0
    port: int = 219
    notes: dict[str, str] = field(default_factory=dict)
    recording: str = ""
    part: int = 0
    sandbox: str | None = None
    version: int = FORMAT_VERSION

    @property
    def timed(self) -> bool:
        """Whether times mean anything: what stands in memory at one moment has an order alone."""
        return self.notes.get(TIMES) != NO_TIMES


@dataclass(frozen=True, slots=True)
class Origin:
    """One of several places that a recording takes its traffic from.

    `number` is what OPEN and CARRY records name it by; 0 is what the header itself describes.
    `kind` is as the header's `source`, `name` a socket's path, an address or a process.
    """

    t_ns: int
    number: int
    kind: str
    name: str
    sandbox: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Open:
    """A connection begins. `port` is what the guest's listener has, None until a line tells.

    `accepted` is known where no OK line crosses, inside the guest. `peer` is (pid, uid, gid).
    `source` is the number of an ORIGIN record, 0 for what the header describes.
    """

    t_ns: int
    conn: int
    begins: Begins = Begins.LINE
    port: int | None = None
    accepted: bool | None = None
    peer: tuple[int, int, int] | None = None
    source: int = 0


@dataclass(frozen=True, slots=True)
class Carry:
    """A connection that was open when this part of a recording began; its OPEN is in another.

    The other fields are those of its OPEN. Who has read the part before passes over this.
    """

    t_ns: int
    conn: int
    begins: Begins
    port: int | None
    accepted: bool | None
    peer: tuple[int, int, int] | None
    source: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One receive, as it came.

    With `uncertainty_ns` it was seen only later: it crossed at most so long before `t_ns`.
    """

    t_ns: int
    conn: int
    to_guest: bool
    data: bytes = field(repr=False)
    uncertainty_ns: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """The connection was ended: by one side, or by the recorder, with its `reason`."""

    t_ns: int
    conn: int
    by_guest: bool
    how: How = How.CLOSE
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The client waited `after_ns` for bytes that did not come, and stopped waiting."""

    t_ns: int
    conn: int
    after_ns: int


@dataclass(frozen=True, slots=True)
class Vmm:
    """The VMM's side did something that the guest cannot see on this channel."""

    t_ns: int
    action: str
    conn: int = 0


LEFT_OUT: Final = "left out on purpose"
DAMAGED: Final = "the file is damaged here"
CUT_OFF: Final = "cut off by the capture's packet size limit"
"""With this reason the missing bytes end the send that was recorded before."""


@dataclass(frozen=True, slots=True)
class Gap:
    """`size` bytes are not in the file.

    `conn` is 0 when it is not known of which connections: then `size` counts bytes of the file.
    `reason` is free text; with LEFT_OUT nothing was lost.
    """

    t_ns: int
    conn: int
    to_guest: bool
    size: int
    reason: str


COMMENT: Final = "comment"
"""The name of a mark that is only a remark; every other name is a user's own."""
THREAD_DIED: Final = "thread-died"
"""The name of a mark that says that the guest's thread was seen to be gone on this request."""
FAULT: Final = "fault"
"""The name of a mark that says which fault the recorder committed on this request."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark or comment, added while recording or later.

    `wall_ns` is when it was made, 0 when that is not known. It is about an operation, a
    connection, or with neither about the capture.
    """

    wall_ns: int
    conn: int | None
    request: int | None
    name: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The recording was closed cleanly at `t_ns`."""

    t_ns: int


Record = Header | Origin | Open | Carry | Chunk | Close | GaveUp | Vmm | Gap | Mark | End
