"""What a request can lead to in the guest, and the lock that much of it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from dissectors.slots import positional

from .. import codes
from ..codes import Code
from ..errors import UpcallError
from .world import PciDevice, Window


class Fate(Enum):
    """What a request does to its connection."""

    ANSWERED = auto()
    THREAD_DIED = auto()
    """The guest's thread oopsed: the connection stays open and silent for ever."""
    HANGS = auto()
    """The thread waits for what will not come: a lock that is lost, or a wrong interrupt."""
    CUT_OFF = auto()
    """The device that the channel runs on was removed: no connection is of use any more."""


class Cpus(Enum):
    """What a request has to do with CPUs that come and go while it is worked on."""

    INDIFFERENT = auto()
    START = auto()
    """It starts one, and a PCI device cannot be removed meanwhile."""
    FORBID = auto()
    """It probes a PCI device, and no CPU may come or go meanwhile."""
    WAIT = auto()
    """It waits until none is being started."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one receive of the guest leads to.

    `reply` is None for silence. `causes` are codes of what went wrong, the decisive one first,
    empty for plain success. `delay_ns` is how long the guest takes when nothing else holds it
    up, as far as the protocol or the world fixes it; `takes_lock` tells whether it needs the
    hotplug lock, and `cpus` what it has to do with the coming and going of CPUs meanwhile.
    """

    fate: Fate
    reply: bytes | None
    causes: tuple[Code, ...]
    delay_ns: int = 0
    takes_lock: bool = False
    cpus: Cpus = Cpus.INDIFFERENT


make_outcome: Final = positional(Outcome)
"""The same as `Outcome`, with all of its fields in their order: there is one for each request."""


class OopsError(UpcallError):
    """The thread that works on the request dies."""

    def __init__(self, code: Code, lock_held: bool) -> None:
        self.code = code
        self.lock_held = lock_held


class HangError(UpcallError):
    """The thread waits for ever, for the hotplug lock unless another code says otherwise."""

    def __init__(self, code: Code = codes.HOTPLUG_LOCK_STUCK) -> None:
        self.code = code


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
    """A command that succeeded; `ret` is None when it leaves the old value in the buffer.

    `delay_ns` and `cpus` are as in `Outcome`.
    """

    ret: int | None = 0
    load: int | None = None
    delay_ns: int = 0
    cpus: Cpus = Cpus.INDIFFERENT


@dataclass(slots=True)
class Changes:
    """What the request that is worked on has brought, and what it has taken away, so far.

    CPUs by what they are known by, the APIC id on x86-64 and the number on aarch64. A CPU that
    comes and loses its id by the same request is not among them.
    """

    came: list[int | Window | PciDevice] = field(default_factory=list)
    went: list[int | Window | PciDevice] = field(default_factory=list)

    def forget(self) -> None:
        """Another request is worked on."""
        self.came.clear()
        self.went.clear()


class HotplugLock:
    """The kernel's device hotplug lock; a thread that dies or hangs with it never gives it back."""

    def __init__(self) -> None:
        self.stuck = False
        self.taken = False
        """Taken by the request that is worked on now."""

    def take(self) -> None:
        """Raises HangError when it is never given back."""
        self.taken = True
        if self.stuck:
            raise HangError
