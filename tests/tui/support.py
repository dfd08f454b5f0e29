"""The browser as a user has it, driven by keys, and its screen as plain text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual import events
from textual.message_pump import MessagePump
from textual.pilot import Pilot
from textual.widget import Widget

from upcall_trace.tui.app import Browser
from upcall_trace.tui.data.settings import Settings
from upcall_trace.tui.screens.capture_panes import CapturePanes
from upcall_trace.tui.screens.capture_screen import CaptureScreen
from upcall_trace.tui.screens.work import Given

ROOT = Path(__file__).parents[2]
CAPTURES = ROOT / "captures"
_PATIENCE = 5000
_QUIET = 3
_NAMES = {" ": "space", "=": "equals_sign", "<": "less_than_sign", "_": "underscore",
          "/": "slash", ".": "full_stop", "-": "minus", ">": "greater_than_sign"}  # fmt: skip
_LETTERS = {
    "slash": "/", "right_square_bracket": "]", "left_square_bracket": "[", "space": " ",
    "right_curly_bracket": "}", "left_curly_bracket": "{", "apostrophe": "'", "semicolon": ";",
    "question_mark": "?", "colon": ":",
}  # fmt: skip

Script = Callable[["Driven"], Coroutine[Any, Any, None]]


class Driven:
    """An app under a pilot."""

    def __init__(self, app: Browser, pilot: Pilot[bool]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def screen(self) -> CaptureScreen:
        """The screen of the capture, also below another one."""
        return self.screens[0]

    @property
    def screens(self) -> list[CaptureScreen]:
        """The same, none while a capture is being chosen."""
        return [s for s in self.app.screen_stack if isinstance(s, CaptureScreen)]

    @property
    def panes(self) -> CapturePanes:
        """What that screen shows."""
        return self.screen.panes

    @property
    def said(self) -> str:
        """The sentence in the bottom line."""
        return self.panes.said

    async def press(self, *keys: str) -> None:
        """Press keys, and wait for what follows from each of them."""
        for key in keys:
            self.send(key)
            await self.settle()

    def send(self, key: str) -> None:
        """Press a key and go on at once."""
        letter = _LETTERS.get(key, key if len(key) == 1 else None)
        self.app.post_message(events.Key(key, letter))

    async def type(self, text: str) -> None:
        """Type a text into the line that has the focus."""
        for letter in text:
            self.app.post_message(events.Key(_NAMES.get(letter, letter), letter))
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing is on its way any more: no worker, timer or message."""
        quiet = 0
        for _ in range(_PATIENCE):
            if self.app.return_value is not None:
                return
            await self.pilot.pause(0.0)
            busy = any(node.message_queue_size for node in self._nodes())
            screen = self.app.screen  # calls after a refresh wait for the screen's timer
            busy |= bool(screen._callbacks) or screen._layout_required
            busy |= any(node._layout_required for node in screen.walk_children(Widget))
            busy |= any(
                not s.is_at_rest for s in self.app.screen_stack if isinstance(s, CaptureScreen)
            )
            if self.screens and self.panes.recording.live:
                busy = False  # it never comes to rest
            quiet = 0 if busy else quiet + 1
            if quiet >= _QUIET:
                return
            await asyncio.sleep(0.002)
        raise TimeoutError("the screen does not come to rest")

    def _nodes(self) -> Iterator[MessagePump]:
        yield self.app
        for screen in self.app.screen_stack:
            yield screen
            yield from screen.walk_children()

    def is_at(self, pane: Widget) -> bool:
        """Whether a pane has the focus."""
        return self.screen.focused is pane

    async def until(self, text: str) -> None:
        """Wait until something is on the screen, which goes on changing."""
        for _ in range(_PATIENCE):
            if text in self.text():
                return
            await self.pilot.pause(0.005)
        raise AssertionError(f"{text} never came:\n{self.text()}")

    def text(self) -> str:
        """The whole screen, without colours and without blanks at the ends of lines."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips) + "\n"

    def lines(self) -> list[str]:
        """The screen line by line."""
        return self.text().splitlines()


@asynccontextmanager
async def driven(
    given: Given | Path | None, size: tuple[int, int] = (100, 40), settings: Settings | None = None,
    recording: bool = False,
) -> AsyncIterator[Driven]:  # fmt: skip
    """The browser on a capture, when all of it is there."""
    given = Given(given) if isinstance(given, Path) else given
    app = Browser(given, settings or Settings(), recording)
    async with app.run_test(size=size) as pilot:
        driven = Driven(app, pilot)
        while given is not None and not driven.screens:
            await pilot.pause()
        await driven.settle()
        yield driven


def drive(
    script: Script, given: Given | Path | None, size: tuple[int, int] = (100, 40),
    settings: Settings | None = None, recording: bool = False,
) -> None:  # fmt: skip
    """Run a script against the browser."""

    async def run() -> None:
        async with driven(given, size, settings, recording) as browser:
            await script(browser)

    asyncio.run(run())
