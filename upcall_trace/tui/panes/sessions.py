"""The sessions pane: one line a connection, and one for all of them."""

from __future__ import annotations

from typing import Final

from ...views.connections import state_text
from ...views.text import duration
from ..data.browsed import BrowsedCapture
from ..data.summary import Summary
from .line_view import LineView
from .styled import Line, Styled, cut, deadline

_WIDTHS: Final = (5, 9, 13, 7, 6, 7, 7)
_HEADINGS: Final = ("conn", "opened", "state", "asked", "failed", "p50", "max")


class Sessions(LineView):
    """Line 0 stands for all connections, line n for the n-th of them."""

    def __init__(self, recording: BrowsedCapture) -> None:
        super().__init__(id="sessions")
        self.border_title = "1 sessions"
        self.recording = recording
        self.chosen: int | None = None
        """The number of the connection that the ladder is about."""
        self._summaries: dict[int, Summary] = {}

    def take(self, summaries: dict[int, Summary]) -> None:
        """Show these counts from now on."""
        self._summaries = summaries
        self.changed()

    def count(self) -> int:
        return len(self.recording.connections) + 1

    def heading(self, width: int) -> Line | None:
        cells = [
            f"{text:{'<' if text == 'state' else '>'}{room}}"
            for text, room in zip(_HEADINGS, _WIDTHS, strict=True)
        ]
        return [Styled("  " + " ".join(cells) + "  first finding", "heading")]

    def line(self, number: int, width: int) -> Line:
        if number == 0:
            return self._all(width)
        connection = self.recording.connections[number - 1]
        summary = self._summaries.get(connection.number)
        opened = f"{(connection.opened_ns - self.recording.first_ns) / 1e9:.3f}"
        finding = self.recording.findings.first_told(connection.number)
        failures = summary.failed if summary else 0
        cells = self._cells(
            str(connection.number), opened, state_text(connection), connection.requests, summary
        )
        failed = finding is not None and finding.severity.word
        found = f"{finding.code} {finding.name}" if finding else ""
        look = "error" if failures else ""
        return [
            Styled(" "),
            Styled("●" if connection.number == self.chosen else " ", "key"),
            *self._joined(cells, look, summary),
            Styled(cut(found, max(width - sum(_WIDTHS) - 10, 8)), failed or ""),
        ]

    def _all(self, width: int) -> Line:
        summaries = self._summaries.values()
        failed = sum(summary.failed for summary in summaries)
        longest = max((s.max_ns for s in summaries if s.max_ns is not None), default=None)
        whole = Summary("all", 0, failed, 0, None, None, longest)
        opened = len(self.recording.connections)
        state = f"{opened} in all"
        cells = self._cells("all", "", state, len(self.recording), whole)
        found = ", ".join(
            f"{count} {severity.word}"
            for severity, count in reversed(self.recording.findings.counts.items())
            if count
        )
        return [
            Styled(" "),
            Styled("●" if self.chosen is None else " ", "key"),
            *self._joined(cells, "error" if failed else "", whole),
            Styled(cut(found, max(width - sum(_WIDTHS) - 10, 8))),
        ]

    def _cells(
        self, name: str, opened: str, state: str, requests: int, summary: Summary | None
    ) -> list[str]:
        times = (None, None) if summary is None else (summary.p50_ns, summary.max_ns)
        return [
            name,
            opened,
            state,
            str(requests),
            str(summary.failed if summary else 0),
            *("" if t_ns is None else duration(t_ns) for t_ns in times),
        ]

    def _joined(self, cells: list[str], failed_look: str, summary: Summary | None) -> Line:
        late = deadline(summary.max_ns) if summary and summary.max_ns is not None else None
        looks = ("key", "dim", "", "", failed_look, "", late.look if late else "")
        pieces = []
        for name, text, room, look in zip(_HEADINGS, cells, _WIDTHS, looks, strict=True):
            side = "<" if name == "state" else ">"
            pieces.append(Styled(f"{cut(text, room):{side}{room}} ", look))
        return [*pieces, Styled(" ")]
