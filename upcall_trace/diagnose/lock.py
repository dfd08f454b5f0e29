"""Who holds the guest's hotplug lock: what answers and silences tell of it.

CPU and MMIO requests that really change something take the kernel's device hotplug lock. Two kinds
of requests never give it back: one whose thread dies with it, and one whose driver hangs. What
needs it then hangs as well, on any connection. But a single answer to a later request that needs it
proves that it is free, so nothing about a stuck lock is certain before the recording is over.
docs/protocol.md section 4.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from dissectors.constants import EBUSY, EEXIST, EIO, MAGIC_VERSION, Arch, MessageType

from .. import codes
from .finding import Ref
from .situation import LONG_NS, Situation

RESTS_ON_IT: Final = frozenset(
    {
        codes.REMOVAL_ORDER,
        codes.ADD_BEYOND_POSSIBLE,
        codes.DRIVER_HANGS,
        codes.HOTPLUG_LOCK_STUCK,
    }
)
"""Codes that say that the lock is held for ever: none is true once it was free again."""
LOCK_HOLDERS: Final = RESTS_ON_IT - {codes.HOTPLUG_LOCK_STUCK}
"""Those of them whose request holds it."""
START_LIMIT_NS: Final = 10_000_000_000
"""As long as a vCPU that does not start holds the lock; docs/protocol.md section 4."""
_NEARLY_NS: Final = 9_000_000_000
_SLOW_NS: Final = 250_000_000
_KEPT: Final = 64


def needs_lock(at: Situation) -> bool:
    """True for what takes the lock when it passes the checks before it."""
    if at.request.magic_version != MAGIC_VERSION:
        return False
    return at.is_mmio or (at.cpu is not None and at.cpu.count > 0)


def proves_free(at: Situation) -> bool:
    """True for an answer that only a request with the lock can have got."""
    return needs_lock(at) and _had_it(at)


def _had_it(at: Situation) -> bool:
    """The same of a request that needs it."""
    if at.ret is None or at.doubtful:
        return False
    if at.is_cpu:
        adding = at.request.msg_type == MessageType.ADD_CPU
        return at.ret in ((0, EIO, EEXIST, EBUSY) if adding else (0, 1, EBUSY))
    return at.ret == 0 or (at.ret == EBUSY and at.request.msg_type == MessageType.ADD_MMIO)


class LockWatch:
    """Tell it of requests and answers, in the order of the recording."""

    def __init__(self) -> None:
        self._open: dict[Ref, Situation] = {}
        """Requests that may hold the lock: no answer to them, and nothing since that got it."""
        self._busy: deque[tuple[Ref, int, int]] = deque(maxlen=_KEPT)
        """Requests that held it for long, and got an answer: (request, from, to)."""
        self.free_at: Ref | None = None
        """The last answer that proves it to have been free."""
        self.free_ns = -1
        """When that was asked."""

    def asked(self, at: Situation) -> None:
        if needs_lock(at) or (at.is_pci and at.request.msg_type == MessageType.ADD_PCI):
            self._open[at.ref] = at
            if len(self._open) > _KEPT:
                del self._open[next(iter(self._open))]

    @property
    def is_idle(self) -> bool:
        """Nothing may hold it."""
        return not self._open

    def was_free(self, ref: Ref, sent_ns: int) -> None:
        """A request that needs it has its answer at once, and no other may hold it."""
        if sent_ns >= self.free_ns:
            self.free_at, self.free_ns = ref, sent_ns

    def answered(self, at: Situation, now_ns: int) -> list[Situation]:
        """An answer came; returns the requests that are known not to hold the lock by it."""
        known = self._open.pop(at.ref, None)
        if known is None or at.is_pci or not _had_it(at):
            return []
        if now_ns - at.sent_ns > _SLOW_NS:
            self._busy.append((at.ref, at.sent_ns, now_ns))
        if at.sent_ns < self.free_ns:
            return []
        self.free_at, self.free_ns = at.ref, at.sent_ns
        if not self._open:
            return []
        over = [each for each in self._open.values() if each.sent_ns < at.sent_ns]
        for each in over:
            del self._open[each.ref]
        return [each for each in over if each.ref.conn != at.ref.conn]

    def forget(self, ref: Ref) -> None:
        """Nothing follows from this request: its answer is missing, or its guest is gone."""
        self._open.pop(ref, None)

    def held_up(self, at: Situation, now_ns: int) -> Ref | None:
        """Another connection's request that held the lock while this one waited."""
        waiting = [
            each.ref
            for each in self._open.values()
            if each.ref.conn != at.ref.conn and each.sent_ns < at.sent_ns and needs_lock(each)
        ]
        done = [
            ref
            for ref, begun, ended in self._busy
            if ref.conn != at.ref.conn and begun < at.sent_ns < ended
        ]
        return next(iter([*done, *waiting]), None)

    def holder(self, at: Situation, now_ns: int) -> tuple[Ref | None, bool]:
        """The request that may hold the lock for ever, so that this silent one waits for it.

        And whether nothing else is known that would keep it from an answer.
        """
        for each in self._open.values():
            if each.ref.conn != at.ref.conn and each.sent_ns < at.sent_ns and _may_keep(each):
                long = now_ns - each.sent_ns >= LONG_NS
                return each.ref, long and _can_only_keep(each)
        return None, False


def started_late(holder: Situation, at: Situation, now_ns: int) -> bool:
    """True when this answer came just as a vCPU of `holder` that does not start gives up."""
    return (
        holder.request.msg_type == MessageType.ADD_CPU
        and holder.arch is Arch.X86_64
        and at.sent_ns < holder.sent_ns + START_LIMIT_NS
        and now_ns - holder.sent_ns > _NEARLY_NS
    )


def _may_keep(at: Situation) -> bool:
    """True for what can die with the lock, or hang with it."""
    match at.request.msg_type:
        case MessageType.DEL_CPU:
            return at.arch is Arch.X86_64 and len(at.apic_ids) > 1
        case MessageType.ADD_CPU:
            return at.arch is Arch.AARCH64
        case MessageType.ADD_MMIO | MessageType.ADD_PCI:
            return True
    return False


def _can_only_keep(at: Situation) -> bool:
    """True for what leaves no other explanation of its silence than that it keeps the lock."""
    if at.request.msg_type == MessageType.ADD_MMIO:
        return at.history.mmio_works
    return at.request.msg_type == MessageType.ADD_CPU and at.arch is Arch.AARCH64
