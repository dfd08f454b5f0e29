"""The first screen when no capture is named: recent ones and the bundled samples."""

from __future__ import annotations

import os
from pathlib import Path

from textual.app import ComposeResult
from textual.screen import Screen

from ...trace.samples import samples
from ...views.text import safe
from ..data.settings import recent
from ..panes.bars import Bar
from ..panes.line_view import LineView, plain
from ..panes.styled import Line, Styled, cut


class Choices(LineView):
    """Captures to choose from; a line without a path is a heading."""

    def __init__(self) -> None:
        super().__init__(id="choices")
        self.border_title = "choose a capture"
        self._choices: list[tuple[Line, Path | None]] = []

    def on_mount(self) -> None:
        self._list("opened lately", recent())
        self._list("recordings of real guests", samples())
        first = next((n for n, (_, path) in enumerate(self._choices) if path is not None), 0)
        self.changed()
        self.move_to(first)

    def _list(self, title: str, paths: list[Path]) -> None:
        if not paths:
            return
        self._choices.append((plain(title, "heading"), None))
        for path in paths:
            name = f"   {cut(safe(path.stem), 30):<32}"
            line = [Styled(name, "key"), Styled(safe(os.fspath(path.parent)), "dim")]
            self._choices.append((line, path))
        self._choices.append((plain(""), None))

    @property
    def path(self) -> Path | None:
        """What the cursor is on."""
        return self._choices[self.cursor][1] if self._choices else None

    def count(self) -> int:
        return len(self._choices)

    def line(self, number: int, width: int) -> Line:
        return self._choices[number][0]


class ChooserScreen(Screen[Path]):
    """Ends with the path that was chosen."""

    DEFAULT_CSS = """
    ChooserScreen { layout: vertical; }
    ChooserScreen Choices { height: 1fr; border-top: heavy $text-accent; background: $background; }
    """

    def compose(self) -> ComposeResult:
        yield Choices()
        yield Bar(id="bottom")

    def on_mount(self) -> None:
        self.query_one(Choices).focus()
        hints: Line = []
        for key, told in (("enter", "open"), ("j k", "move"), ("?", "help"), ("q", "quit")):
            hints += [Styled(f" {key}", "key"), Styled(f" {told} ")]
        self.query_one(Bar).show(hints)

    def on_line_view_chosen(self, event: LineView.Chosen) -> None:
        path = self.query_one(Choices).path
        if path is not None:
            self.dismiss(path)
