"""The question at the end of a recording that the browser has started."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

_QUESTION = (
    "Stop the recording?\n\n"
    "y  stop it: the proxy ends, and its connections with it\n"
    "n  leave it running: traffic goes on, and so does the capture\n"
    "esc  stay here"
)


class StopScreen(ModalScreen[bool | None]):
    """Ends with whether the recording is to be stopped, with None to stay."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Stop it", id="stop_recording"),
        Binding("n", "answer(False)", "Leave it running", id="leave_recording"),
        Binding("escape", "stay", "Stay here", id="stay"),
    ]
    DEFAULT_CSS = """
    StopScreen { align: center middle; }
    StopScreen Static {
        width: 70%; max-width: 66; height: auto; border: round $text-accent; padding: 1 2;
        background: $surface;
    }
    """

    def compose(self) -> ComposeResult:
        yield Static(Content(_QUESTION))

    def action_answer(self, stop: bool) -> None:
        self.dismiss(stop)

    def action_stay(self) -> None:
        self.dismiss(None)
