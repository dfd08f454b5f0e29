"""The statistics pane: each kind of operation with its counts, latencies and a small chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...views.text import duration, safe
from ..data.summary import Summary
from .line_view import TextLines
from .styled import DEADLINES, Line, Styled, cut, deadline

_NAME: Final = 14
_WIDTHS: Final = (8, 7, 8, 8, 8)
_HEADINGS: Final = ("count", "failed", "p50", "p99", "max")
_LEAST_BAR: Final = 6


class StatisticsPane(TextLines):
    """The chart's bars are counts; the failed share of each is drawn in another sign."""

    def __init__(self) -> None:
        super().__init__(id="statistics")
        self.border_title = "6 statistics"
        self._summaries: Sequence[Summary] = ()

    def take(self, summaries: Sequence[Summary]) -> None:
        """Show these from now on."""
        self._summaries = summaries
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def heading(self, width: int) -> Line | None:
        cells = " ".join(f"{text:>{room}}" for text, room in zip(_HEADINGS, _WIDTHS, strict=True))
        return [Styled(f" {'operation':<{_NAME}} {cells}  █ ok ▒ failed", "heading")]

    def _draw(self) -> None:
        width = self.scrollable_content_region.width
        room = max(width - _NAME - sum(_WIDTHS) - len(_WIDTHS) - 4, _LEAST_BAR)
        most = max((summary.count for summary in self._summaries), default=1)
        lines = [self._line(summary, room, most) for summary in self._summaries]
        lines.append([Styled("")])
        lines += [
            [Styled(" "), Styled(f"{each.sign:<8}", each.look), Styled(each.meaning, "dim")]
            for each in reversed(DEADLINES)
        ]
        self.show(lines)

    def _line(self, summary: Summary, room: int, most: int) -> Line:
        times = (summary.p50_ns, summary.p99_ns, summary.max_ns)
        cells: Line = [
            Styled(f"{summary.count:>{_WIDTHS[0]}} "),
            Styled(f"{summary.failed:>{_WIDTHS[1]}} ", "error" if summary.failed else ""),
        ]
        for t_ns, column in zip(times, _WIDTHS[2:], strict=True):
            late = deadline(t_ns) if t_ns is not None else None
            text = "-" if t_ns is None else duration(t_ns)
            cells.append(Styled(f"{text:>{column}} ", late.look if late else ""))
        whole = max(round(room * summary.count / most), 1)
        failed = min(round(room * summary.failed / most), whole)
        failed = max(failed, 1) if summary.failed else 0
        return [
            Styled(" "),
            Styled(f"{cut(safe(summary.name), _NAME):<{_NAME}} ", "key"),
            *cells,
            Styled(" "),
            Styled("█" * (whole - failed), "ok"),
            Styled("▒" * failed, "error"),
        ]
