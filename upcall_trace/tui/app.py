"""The terminal browser as an application: its themes, its keys, and its first screen."""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from textual.app import App
from textual.binding import Binding, BindingType
from textual.dom import DOMNode

from ..diagnose.told_by_logs import Span
from ..errors import UserError, WrongUsage
from .data.settings import COLUMNS, Settings, remember, settings_path
from .data.settings_file import write_settings
from .panes.looks import readable_variables
from .screens.capture_keys import APP_KEYS
from .screens.capture_screen import CaptureScreen
from .screens.chooser import ChooserScreen
from .screens.help import HelpScreen, live_keys, pane_title
from .screens.key_choice import KeyScreen
from .screens.logs_screen import LogsScreen
from .screens.palette import Entries
from .screens.replaying import Replays
from .screens.stopping import StopScreen
from .screens.work import Given
from .terminal import Terminal

_LOOK_EVERY_S: Final = 0.25


class Browser(App[bool], inherit_bindings=False):
    """Opens what is `given`, or with None lets the user choose.

    `recording` is true while a recording of our own is being watched; then the app ends with
    whether it is to be stopped. `replays` makes what can send a capture again. `logs` are browsed
    in place of a capture, those lines of them that are in the `span`. It ends soon after
    `interrupted` is set, which a handler of signals may do.
    """

    TITLE = "upcall-trace"
    CSS = """
    * {
        scrollbar-color: $text-muted; scrollbar-color-hover: $text; scrollbar-color-active: $text;
        scrollbar-background: $background; scrollbar-background-hover: $background;
        scrollbar-background-active: $background;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*APP_KEYS]
    COMMANDS: ClassVar = {Entries}
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
        super().__init__(Terminal)
        self.interrupted = threading.Event()
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
        self.settings = settings
        """As they are kept; a change takes their place."""

    def get_css_variables(self) -> dict[str, str]:
        """Those of the theme, with colours of text that can be read on every ground."""
        return readable_variables(super().get_css_variables(), self.current_theme.dark)

    def on_mount(self) -> None:
        self.set_keymap(self.settings.keys)
        self.set_interval(_LOOK_EVERY_S, self._look_for_the_end)
        if self._logs:
            self.push_screen(LogsScreen(self._logs, self._span))
        elif self._given is not None:
            self._open(self._given)
        else:
            self.push_screen(ChooserScreen(), self._chosen)

    def _look_for_the_end(self) -> None:
        """A terminal can go away without a signal; then there is nobody to show anything to."""
        if self.interrupted.is_set():
            self.exit(False)
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
        self.push_screen(CaptureScreen(given, self.settings.columns, self.save_filter))

    def handle_bindings_clash(self, clashed_bindings: set[Binding], node: DOMNode) -> None:
        """A key that the user gave to another action: that one has it now."""
        self.clashes |= {binding.id for binding in clashed_bindings if binding.id}

    # What the palette changes for good.

    def _keep(self, changed: Settings, said: str) -> None:
        self.settings = changed
        try:
            write_settings(settings_path(), changed)
        except OSError as error:
            said += f"; it is not kept: {settings_path()}: {error.strerror}"
        except UserError as error:  # there is no home
            said += f"; it is not kept: {error}"
        for screen in self.screen_stack:
            if isinstance(screen, CaptureScreen):
                screen.panes.say(said)

    def use_theme(self, name: str) -> None:
        """Draw in a theme from now on."""
        self.theme = name
        self._keep(replace(self.settings, theme=name), f"the theme is {name}")

    def turn_column(self, name: str) -> None:
        """Show a column of the ladder, or hide it."""
        shown = {name} ^ set(self.settings.columns)
        columns = tuple(each for each in COLUMNS if each in shown)
        word = "shown" if name in columns else "hidden"
        self._keep(replace(self.settings, columns=columns), f"the column {name} is {word}")
        for screen in self.screen_stack:
            if isinstance(screen, CaptureScreen):
                screen.ladder.use_columns(columns)

    def ask_for_key(self, name: str, told: str) -> None:
        """Give an action the key that is pressed next."""

        def pressed(key: str | None) -> None:
            if key is not None:
                before = self.screen.active_bindings.get(key)
                other = before.binding if before and before.binding.id != name else None
                lost = f"; it was that of: {other.description}" if other else ""
                keys = {**self.settings.keys, name: key}
                self.set_keymap(keys)
                self._keep(replace(self.settings, keys=keys), f"{key} is the key of: {told}{lost}")

        self.push_screen(KeyScreen(told), pressed)

    def use_filter(self, name: str) -> None:
        """Show what a saved filter matches."""
        for screen in self.screen_stack:
            if isinstance(screen, CaptureScreen):
                screen.use_filter(self.settings.filters[name])

    def ask_for_filter_name(self) -> None:
        """Ask by what name the filter of the capture on the screen is to be saved."""
        for screen in self.screen_stack:
            if isinstance(screen, CaptureScreen):
                screen.ask_for_filter_name()

    def save_filter(self, name: str, text: str) -> None:
        """Keep a filter under a name, in place of one that had it."""
        filters = {**self.settings.filters, name: text}
        self._keep(replace(self.settings, filters=filters), f"the filter is saved as {name}")

    def forget_filter(self, name: str) -> None:
        """Keep a filter no longer."""
        filters = {each: text for each, text in self.settings.filters.items() if each != name}
        self._keep(replace(self.settings, filters=filters), f"the filter {name} is forgotten")

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
