"""What a request can lead to in the guest, and the lock that much of it needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ..codes import Code
from ..errors import UpcallError


class Fate(Enum):
    """What a request does to its connection."""

    ANSWERED = auto()
    THREAD_DIED = auto()
    """The guest's thread oopsed: the connection stays open and silent for ever."""
    HANGS = auto()
    """The thread waits for a lock that nobody will release."""
    CUT_OFF = auto()
    """The device that the channel runs on was removed: no connection is of use any more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one receive of the guest leads to.

    `reply` is None for silence. `causes` are codes of what went wrong, the decisive one first,
    empty for plain success. `delay_ns` is how long the guest takes when nothing else holds it
    up, as far as the protocol fixes it; `takes_lock` tells whether it needs the hotplug lock.
    """

    fate: Fate
    reply: bytes | None
    causes: tuple[Code, ...]
    delay_ns: int = 0
    takes_lock: bool = False


class OopsError(UpcallError):
    """The thread that works on the request dies."""

    def __init__(self, code: Code, lock_held: bool) -> None:
        self.code = code
        self.lock_held = lock_held


class HangError(UpcallError):
    """The request needs the hotplug lock, which a dead thread holds."""


class CutOffError(UpcallError):
    """The channel's own device is gone."""


class FailedError(UpcallError):
    """The command gives an errno; `load` is what it wrote at the reply's load, if it did."""

    def __init__(self, ret: int, *causes: Code, load: int | None = None, delay_ns: int = 0) -> None:
        self.ret = ret
        self.causes = causes
        self.load = load
        self.delay_ns = delay_ns


@dataclass(frozen=True, slots=True)
class Done:
    """A command that succeeded; `ret` is None when it leaves the old value in the buffer."""

    ret: int | None = 0
    load: int | None = None


class HotplugLock:
    """The kernel's device hotplug lock; a thread that dies with it never gives it back."""

    def __init__(self) -> None:
        self.stuck = False
        self.taken = False
        """Taken by the request that is worked on now."""

    def take(self) -> None:
        """Raises HangError when a dead thread holds it."""
        self.taken = True
        if self.stuck:
            raise HangError
