"""The terminal browser as an application: its themes, its keys, and its first screen."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Final

from textual.app import App
from textual.binding import Binding, BindingType
from textual.dom import DOMNode

from ..diagnose.told_by_logs import Span
from ..errors import WrongUsage
from .data.settings import Settings, remember
from .screens.capture_keys import APP_KEYS
from .screens.capture_screen import CaptureScreen
from .screens.chooser import ChooserScreen
from .screens.help import HelpScreen, live_keys, pane_title
from .screens.logs_screen import LogsScreen
from .screens.palette import Actions
from .screens.replaying import Replays
from .screens.stopping import StopScreen
from .screens.work import Given

_LOOK_EVERY_S: Final = 1.0


class Browser(App[bool], inherit_bindings=False):
    """Opens what is `given`, or with None lets the user choose.

    `recording` is true while a recording of our own is being watched; then the app ends with
    whether it is to be stopped. `replays` makes what can send a capture again. `logs` are browsed
    in place of a capture, those lines of them that are in the `span`.
    """

    TITLE = "upcall-trace"
    BINDINGS: ClassVar[list[BindingType]] = [*APP_KEYS]
    COMMANDS: ClassVar = {Actions}
    COMMAND_PALETTE_BINDING = "ctrl+p"
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self,
        given: Given | None,
        settings: Settings,
        recording: bool = False,
        replays: Callable[[Given], Replays] | None = None,
        logs: Sequence[Path] = (),
        span: Span | None = None,
    ) -> None:
        super().__init__()
        self._given = given
        self._logs = logs
        self._span = span
        self._recording = recording
        self.replays = replays
        self.clashes: set[str] = set()
        if settings.theme is not None:
            if settings.theme not in self.available_themes:
                raise WrongUsage(
                    f"there is no theme {settings.theme}; known are "
                    + ", ".join(sorted(self.available_themes))
                )
            self.theme = settings.theme
        self._keys = settings.keys

    def on_mount(self) -> None:
        self.set_keymap(self._keys)
        self.set_interval(_LOOK_EVERY_S, self._look_for_terminal)
        if self._logs:
            self.push_screen(LogsScreen(self._logs, self._span))
        elif self._given is not None:
            self._open(self._given)
        else:
            self.push_screen(ChooserScreen(), self._chosen)

    def _look_for_terminal(self) -> None:
        """A terminal can go away without a signal; then there is nobody to show anything to."""
        if not self.is_headless:
            terminal = select.poll()
            terminal.register(sys.stdin.fileno(), 0)
            if terminal.poll(0):
                self.exit(False)

    def _chosen(self, path: Path | None) -> None:
        if path is not None:
            self._open(Given(path))

    def _open(self, given: Given) -> None:
        remember(given.path)
        self.push_screen(CaptureScreen(given))

    def handle_bindings_clash(self, clashed_bindings: set[Binding], node: DOMNode) -> None:
        """A key that the user gave to another action: that one has it now."""
        self.clashes |= {binding.id for binding in clashed_bindings if binding.id}

    def action_help(self) -> None:
        """Show the keys of the pane that has the focus."""
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(pane_title(self.screen), list(live_keys(self.screen))))

    async def action_quit(self) -> None:
        """Leave; a recording of our own is asked about first."""
        if self._recording:
            if not isinstance(self.screen, StopScreen):
                self.push_screen(StopScreen(), self._leave)
        else:
            self.exit(False)

    def _leave(self, stop: bool | None) -> None:
        if stop is not None:
            self.exit(stop)
