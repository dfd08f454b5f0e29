"""Finding a recording's operations in a console: by content, and by time once that is clear."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from dissectors.constants import MessageType

from ..logs.guest_console import ConsoleOperation
from ..views.text import duration, seconds
from .situation import Situation


class ConsoleMatcher:
    """Finds a recording's operations in a console: by content, and by time once that is clear."""

    _TOLERANCE_NS: Final = 2_000_000_000

    def __init__(self, operations: Sequence[ConsoleOperation]) -> None:
        self._waiting: dict[tuple[object, ...], deque[ConsoleOperation]] = {}
        for operation in operations:
            if operation.msg_type is not None:
                self._waiting.setdefault(operation.key, deque()).append(operation)
        self.matched: list[ConsoleOperation] = []
        self._offsets: deque[int] = deque(maxlen=15)

    def find(self, at: Situation) -> ConsoleOperation | None:
        """The console's account of an operation, None when there is none to be found."""
        key = _key(at)
        queue = self._waiting.get(key) if key is not None else None
        offset = self.offset_ns
        while queue:
            operation = queue.popleft()
            guest_ns = operation.lines[0].guest_ns
            if guest_ns is not None and offset is not None:
                difference = guest_ns + offset - at.sent_ns
                if difference < -self._TOLERANCE_NS:
                    continue  # of a time before the recording's
                if difference > self._TOLERANCE_NS + (at.latency_ns or 0):
                    queue.appendleft(operation)
                    return None
            if guest_ns is not None:
                self._offsets.append(at.sent_ns - guest_ns)
            self.matched.append(operation)
            return operation
        return None

    @property
    def account(self) -> str:
        """How many operations were found, and how sure the clocks' offset is."""
        found = f"{len(self.matched)} operations of the recording found in the console"
        offset = self.offset_ns
        if offset is None:
            return f"{found}; too few to compare the clocks"
        spread = max(abs(each - offset) for each in self._offsets)
        return (
            f"{found}; the guest's clock differs by {seconds(-offset)} s, "
            f"within {duration(spread)} ({len(self._offsets)} matches)"
        )

    @property
    def offset_ns(self) -> int | None:
        """What to add to the guest's clock to get the recording's; None until three agree."""
        if len(self._offsets) < 3:
            return None
        ordered = sorted(self._offsets)
        return ordered[len(ordered) // 2]


def _key(at: Situation) -> tuple[object, ...] | None:
    kind = MessageType(at.request.msg_type) if at.is_cpu or at.is_pci else None
    if at.cpu is not None:
        return (kind, at.cpu.count)
    if at.pci is not None:
        return (kind, at.pci.busno, at.pci.devfn)
    if at.mmio is not None and at.request.msg_type == MessageType.ADD_MMIO:
        return ("mmio", at.mmio.mmio_base)
    return None
