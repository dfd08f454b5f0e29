"""Asks for the key that an action is to have."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static


class KeyScreen(ModalScreen[str | None], inherit_bindings=False):
    """Ends with the name of the next key that is pressed, with None for Escape."""

    BINDINGS: ClassVar[list[BindingType]] = []
    DEFAULT_CSS = """
    KeyScreen { align: center middle; }
    KeyScreen Static {
        width: 70%; max-width: 66; height: auto; border: round $text-accent; padding: 1 2;
        background: $surface;
    }
    """

    def __init__(self, action: str) -> None:
        super().__init__()
        self._action = action

    def compose(self) -> ComposeResult:
        yield Static(Content(f"Press the key for: {self._action}\n\nesc  leave it as it is"))

    def on_key(self, event: events.Key) -> None:
        event.stop()
        self.dismiss(None if event.key == "escape" else event.key)
