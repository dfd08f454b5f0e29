"""The phases that each direction of a connection goes through. docs/protocol.md section 1."""

from __future__ import annotations

from enum import Enum, auto


class Start(Enum):
    """What the recording of a connection begins with."""

    LINE = auto()
    """The CONNECT line: the VMM's Unix socket."""
    SERVICE = auto()
    """The service byte: a vsock connection to the upcall port seen from inside the guest."""
    MIDDLE = auto()
    """Anything: the recording began after the connection did."""
    OTHER = auto()
    """Another port's traffic, which has no meaning here."""


class StreamPhase(Enum):
    """Where one direction of a connection is."""

    LINE = auto()
    SERVICE = auto()
    MIDDLE = auto()
    HELLO = auto()
    MESSAGES = auto()
    OPAQUE = auto()


FIRST_PHASE = {
    Start.LINE: (StreamPhase.LINE, StreamPhase.LINE),
    Start.SERVICE: (StreamPhase.SERVICE, StreamPhase.HELLO),
    Start.MIDDLE: (StreamPhase.MIDDLE, StreamPhase.MIDDLE),
    Start.OTHER: (StreamPhase.OPAQUE, StreamPhase.OPAQUE),
}
