"""The timeline: the latencies of the whole capture as a strip, with what the ladder shows marked.

A stretch of time is one column; its height is the longest latency in it, on a logarithmic scale.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ...codes import Severity
from ...views.text import duration
from ..data.browsed import BrowsedCapture
from ..data.summary import worst_in
from .ladder_lines import Clock, time_text
from .looks import look
from .styled import DEADLINES, SEVERITY_LOOKS, SIGNS, Styled

_BARS: Final = "▁▂▃▄▅▆▇█"
_LEAST_NS: Final = 100_000
_NEVER_NS: Final = 1 << 62
_TICK_ROOM: Final = 18
"""Columns from one time to the next, at least."""
_HEIGHTS: Final = f"  ▁ {duration(_LEAST_NS)} █ {duration(DEADLINES[0].limit_ns)} ✗ none"


def nice_step(least_ns: int) -> int:
    """The shortest of 1, 2 or 5 times a power of ten ns that is not below."""
    power = 1
    while True:
        for times in (1, 2, 5):
            if times * power >= least_ns:
                return times * power
        power *= 10


class Timeline(Widget):
    """Three lines: bars, findings with the stretch that the ladder shows, and the scales."""

    class Picked(Message):
        """A column was clicked: this operation is the first in it."""

        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

    def __init__(self, recording: BrowsedCapture) -> None:
        super().__init__(id="timeline")
        self.recording = recording
        self._worst: NDArray[np.int64] = np.zeros(0, np.int64)
        self._begins: NDArray[np.int64] = np.zeros(0, np.int64)
        self._seen = (0, 0)
        self._measured = (-1, -1, -1)
        self.clock = Clock.SINCE_START

    def measure(self) -> None:
        """The capture has grown, or the screen has another width."""
        operations, width = self.recording.operations, self.size.width
        measured = (len(operations), self.recording.duration_ns, width)
        if width <= 0 or measured == self._measured:
            return
        self._measured = measured
        answered = operations.column("answered") == 1
        latency = operations.column("latency_ns")
        if not answered.all():
            latency = np.where(answered, latency, _NEVER_NS)
        self._begins, self._worst = worst_in(
            operations.t_ns(), latency, self.recording.duration_ns + 1, width
        )
        self.refresh()

    def see(self, first: int, last: int) -> None:
        """Mark the stretch from one operation to another as the one on the screen."""
        seen = (self._column(first), self._column(last))
        if seen != self._seen:
            self._seen = seen
            self.refresh()

    def _column(self, row: int) -> int:
        return max(int(np.searchsorted(self._begins, row, "right")) - 1, 0)

    def on_resize(self) -> None:
        self.measure()

    def on_click(self, event: events.Click) -> None:
        if event.x < len(self._begins) and len(self.recording):
            row = min(int(self._begins[event.x]), len(self.recording) - 1)
            self.post_message(self.Picked(row))

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 2:
            marks = self._scale(width)
            segment = Segment(marks, self.rich_style + look(self.app, "dim"))
            return Strip([segment]).adjust_cell_length(width, self.rich_style)
        cells = range(min(width, len(self._worst)))
        pieces = [self._bar(int(self._worst[x])) if y == 0 else self._below(x) for x in cells]
        segments = [
            Segment("".join(piece.text for piece in alike), self.rich_style + look(self.app, kind))
            for kind, alike in groupby(pieces, lambda piece: piece.kind)
        ]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _bar(self, worst_ns: int) -> Styled:
        if worst_ns < 0:
            return Styled(" ")
        if worst_ns == _NEVER_NS:
            return Styled("✗", "error")
        top = math.log(DEADLINES[0].limit_ns / _LEAST_NS)
        share = math.log(max(worst_ns, _LEAST_NS) / _LEAST_NS) / top
        bar = _BARS[min(int(share * (len(_BARS) - 1)), len(_BARS) - 1)]
        late = next((each.look for each in DEADLINES if worst_ns > each.limit_ns), "ok")
        return Styled(bar, late)

    def _scale(self, width: int) -> str:
        """Times from left to right, and what the heights stand for."""
        heights = _HEIGHTS if width > 3 * len(_HEIGHTS) else ""
        whole_ns = self.recording.duration_ns + 1
        line = [" "] * (width - len(heights))
        for t_ns in range(0, whole_ns, nice_step(whole_ns * _TICK_ROOM // max(width, 1))):
            column, told = t_ns * width // whole_ns, f"╵{self._told(t_ns)}"
            if column + len(told) < len(line):
                line[column : column + len(told)] = told
        return "".join(line) + heights

    def _told(self, t_ns: int) -> str:
        wall_ns = self.recording.wall_ns
        if self.clock is Clock.ABSOLUTE and wall_ns is not None:
            return time_text(self.clock, t_ns, 0, wall_ns)[len("2026-11-28 ") : -1]
        return f"{t_ns / 1e9:g}s"

    def _below(self, column: int) -> Styled:
        begins, worst = self._begins, self.recording.findings.worst
        end = int(begins[column + 1]) if column + 1 < len(begins) else len(self.recording)
        stretch = worst[int(begins[column]) : end]
        severity = int(stretch.max()) if len(stretch) else 0
        if severity >= Severity.ERROR:
            return Styled(SIGNS[severity], SEVERITY_LOOKS[severity])
        inside = self._seen[0] <= column <= self._seen[1]
        return Styled("━" if inside else "─", "key" if inside else "dim")
