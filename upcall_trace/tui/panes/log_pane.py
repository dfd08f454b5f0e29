"""The log pane: lines of the guest's console and the VMM's log, in step with the ladder."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from ...views.log_lines import LogRow, timed
from ...views.text import safe, seconds
from .line_view import LineView
from .styled import Line, Styled, cut

_TIME: Final = 13
_TROUBLE: Final = "!"
_SOURCES: Final = {
    "vmm-log": ("vmm", "link"),
    "console": ("guest", "heading"),
    _TROUBLE: (_TROUBLE, "error"),
}
"""How lines beside a capture are marked; those of logs alone have their numbers."""


def trouble_row(why: str) -> LogRow:
    """Stands in the place of a log that cannot be read."""
    return LogRow(_TROUBLE, 0, safe(why), None, None)


class LogPane(LineView):
    """All logs together in the order of time; a line without a time stays with the one before."""

    def __init__(self) -> None:
        super().__init__(id="log")
        self.border_title = "7 log"
        self._logs: Sequence[Sequence[LogRow]] = ()
        self._lines: list[LogRow] = []
        self._times: list[int] = []

    def take(self, logs: Sequence[Sequence[LogRow]]) -> None:
        """Show these logs from now on."""
        self._logs = logs
        self._lines = [line for log in logs for line in log]
        self._times = []
        self.changed()

    def align(self, wall_ns: int | None, guest_offset_ns: int | None) -> None:
        """Put the lines in order by what is known of the clocks.

        `wall_ns` is the wall clock at the capture's first record, `guest_offset_ns` what to add to
        the guest's clock to get the time since then.
        """
        pairs = [pair for log in self._logs for pair in timed(log, wall_ns, guest_offset_ns)]
        pairs.sort(key=lambda pair: pair[0])
        self._times = [t_ns for t_ns, _ in pairs]
        self._lines = [line for _, line in pairs]
        self.changed()

    def follow(self, t_ns: int) -> None:
        """Bring the last line before a moment into view, with the cursor on it."""
        if self._times and self._times[0] != self._times[-1]:
            self.move_to(max(bisect_right(self._times, t_ns) - 1, 0), tell=False)

    @property
    def t_ns(self) -> int | None:
        """The moment of the cursor's line, None where the clocks do not tell."""
        known = self.cursor < len(self._times) and self._times[0] != self._times[-1]
        return self._times[self.cursor] if known else None

    def go(self, source: str, number: int) -> bool:
        """Put the cursor on a line by its number in its file; False when it is not there."""
        for place, line in enumerate(self._lines):
            if (line.source, line.number) == (source, number):
                self.move_to(place)
                return True
        return False

    def count(self) -> int:
        return max(len(self._lines), 1)

    def line(self, number: int, width: int) -> Line:
        if not self._lines:
            return [Styled(" "), Styled("no log was given: --console FILE, --vmm-log FILE", "dim")]
        line = self._lines[number]
        time = seconds(self._times[number]) if self.t_ns is not None else ""
        name, look = _SOURCES.get(line.source, (f"{line.number}", "dim"))
        return [
            Styled(" "),
            Styled(f"{name:<6}", look),
            Styled(f"{cut(time, _TIME - 1):>{_TIME - 1}} ", "dim"),
            Styled(line.text),
        ]
