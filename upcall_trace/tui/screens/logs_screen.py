"""Logs without a capture: what was found in them, and their lines.

Enter goes from a piece of evidence to its line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer

from ...diagnose.finding import Finding
from ...diagnose.headline import by_guest, headline
from ...diagnose.log_inputs import read_logs
from ...diagnose.report import lines_in_full, section
from ...diagnose.told_by_logs import Span
from ...errors import UserError
from ...logs.evidence import Evidence
from ...views.log_lines import LogRow, read_log
from ...views.text import safe
from ..panes.line_view import LineView, TextLines, plain
from ..panes.log_pane import LogPane
from ..panes.styled import Line


class LogsScreen(Screen[None], inherit_bindings=False):
    """The findings above, the lines below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab,shift+tab", "other_pane", "Other pane", id="other_pane"),
    ]
    DEFAULT_CSS = """
    LogsScreen LineView { border: round $text-accent; height: 1fr; }
    """
    AUTO_FOCUS = "#findings"

    class Read(Message):
        """The logs are read."""

        def __init__(
            self, lines: list[tuple[Line, Evidence | None]], logs: Sequence[Sequence[LogRow]]
        ) -> None:
            super().__init__()
            self.lines = lines
            self.logs = logs

    def __init__(self, paths: Sequence[Path], span: Span | None = None) -> None:
        super().__init__()
        self._paths = paths
        self._span = span
        self._seen: list[Evidence | None] = []

    def compose(self) -> ComposeResult:
        """Two panes and the keys."""
        findings = TextLines(id="findings")
        findings.border_title = "findings"
        yield findings
        yield LogPane()
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#findings", TextLines).show([plain("reading …", "dim")])
        self.run_worker(self._read, thread=True, exclusive=True)

    def _read(self) -> None:
        try:
            found = read_logs(found=self._paths, span=self._span).findings()
            logs = [read_log(path, str(path)) for path in self._paths]
        except UserError as error:
            self.post_message(self.Read([(plain(safe(str(error)), "error"), None)], ()))
            return
        self.post_message(self.Read(list(_lines(found)), logs))

    def on_logs_screen_read(self, told: Read) -> None:
        """Show what was read."""
        self._seen = [evidence for _, evidence in told.lines]
        self.query_one("#findings", TextLines).show([line for line, _ in told.lines])
        self.query_one(LogPane).take(told.logs)

    def on_line_view_chosen(self, chosen: LineView.Chosen) -> None:
        """Enter on a piece of evidence goes to its line."""
        if chosen.pane.id != "findings" or chosen.pane.cursor >= len(self._seen):
            return
        evidence = self._seen[chosen.pane.cursor]
        pane = self.query_one(LogPane)
        line = None if evidence is None else evidence.line
        if evidence is not None and line is not None and pane.go(evidence.file or "", line):
            pane.focus()

    def action_other_pane(self) -> None:
        """Go to the other pane."""
        pane = self.query_one(LogPane)
        (self.query_one("#findings") if pane.has_focus else pane).focus()


def _lines(found: Sequence[Finding]) -> list[tuple[Line, Evidence | None]]:
    """The report's lines, each with the evidence that it is about."""
    head = headline(found)
    told: list[tuple[Line, Evidence | None]] = [
        (plain(safe(head) if head else "nothing found", "heading"), None), (plain(""), None),
    ]  # fmt: skip
    for sandbox, findings in by_guest(found):
        told.append((plain(section(sandbox, findings), "heading"), None))
        for finding in findings:
            told.extend((plain(text), where) for text, where in lines_in_full(finding))
    return told
