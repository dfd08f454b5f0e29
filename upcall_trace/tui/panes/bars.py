"""The lines at the top and bottom: what is shown, and what can be done or was just done."""

from __future__ import annotations

from typing import Any

from rich.segment import Segment
from textual.binding import Binding
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from ...views.text import safe
from .looks import look
from .styled import Line, Styled, cut


class Bar(Widget):
    """One line of pieces."""

    DEFAULT_CSS = "Bar { height: 1; background: $panel; }"

    def __init__(self, *, id: str) -> None:  # noqa: A002  # textual's name
        super().__init__(id=id)
        self.line: Line = []

    def show(self, line: Line) -> None:
        """Show these pieces from now on."""
        if line != self.line:
            self.line = line
            self.refresh()

    @property
    def text(self) -> str:
        """The line without its looks."""
        return "".join(piece.text for piece in self.line)

    def render_line(self, y: int) -> Strip:
        segments = []
        room = self.size.width
        for piece in self.line:
            text = cut(piece.text, room)
            room -= len(text)
            segments.append(Segment(text, self.rich_style + look(self.app, piece.kind)))
        return Strip(segments).adjust_cell_length(self.size.width, self.rich_style)


def hints(screen: Screen[Any]) -> Line:
    """The keys to know first, for the pane that has the focus."""
    shown = {
        active.binding.id: active.binding
        for active in reversed(screen.active_bindings.values())
        if active.binding.show and active.enabled
    }
    pieces: Line = []
    for binding in reversed(shown.values()):
        pieces += [Styled(f" {key_name(binding)}", "key")]
        pieces += [Styled(f" {binding.description.lower()} ")]
    return pieces


def key_name(binding: Binding) -> str:
    """A binding's key as it is printed on a keyboard."""
    if binding.key_display:
        return binding.key_display
    return safe(_NAMES.get(binding.key, binding.key))


_NAMES = {
    "slash": "/", "question_mark": "?", "colon": ":", "right_square_bracket": "]",
    "left_square_bracket": "[", "right_curly_bracket": "}", "left_curly_bracket": "{",
    "apostrophe": "'", "semicolon": ";", "escape": "esc", "pageup": "pgup", "pagedown": "pgdn",
}  # fmt: skip
