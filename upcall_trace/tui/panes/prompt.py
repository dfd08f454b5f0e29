"""The line at the bottom where something is typed: a filter, a comment, a file name, a letter."""

from __future__ import annotations

import re
from enum import Enum
from typing import ClassVar, Final

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.content import Content
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input, Static

from dissectors.constants import ERRNO_NAMES

from ...trace.filters import FLAGS, known_fields, known_operations

_WORD: Final = re.compile(r"(?<![\w.-])[A-Za-z_][A-Za-z0-9_-]*$")
"""A word of its own: not the unit of a number, nor a digit of a hexadecimal one."""
_AFTER: Final = re.compile(r"\b(op|errno)\s*(?:==|!=|=|in\s*\()\s*(?:[\w\s]*,\s*)*[A-Za-z_]*$")
_COMPARED: Final = re.compile(r"[=<>]\s*[A-Za-z_]*$")
_JOINS: Final = ("and", "or", "not", "in")


class Asks(Enum):
    """What a prompt is for; the label before the line."""

    FILTER = "filter"
    COMMENT = "comment"
    EXPORT = "export to"
    MARK = "mark with the letter"
    JUMP = "go to the mark"
    FIND = "find"
    NAME = "save the filter as"


_LETTER: Final = (Asks.MARK, Asks.JUMP)


def complete(text: str) -> str | None:
    """`text` with its last word completed in the filter language; None when nothing fits."""
    word = _WORD.search(text)
    if word is None:
        return None
    typed = word[0].lower()
    after = _AFTER.search(text)
    known: list[str]
    if after is not None:
        errno = after[1] == "errno"
        known = list(ERRNO_NAMES.values() if errno else known_operations())
    elif _COMPARED.search(text):
        return None
    else:
        known = [*known_fields(), *FLAGS, *_JOINS]
    found = next((name for name in known if name.lower().startswith(typed)), None)
    return None if found is None or len(found) == len(typed) else text + found[len(typed) :]


class _Completing(Suggester):
    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        return complete(value)


class _Line(Input):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "cursor_right", "Complete", id="complete", show=False),
        Binding("escape", "cancel", "Give up", id="cancel", show=False),
    ]  # fmt: skip

    def action_cancel(self) -> None:
        self.post_message(Prompt.Cancelled())


class Prompt(Container):
    """Asks one thing at a time. A remark that is too long to stand behind the line is below it."""

    class About(Message):
        """What the prompt is for, and its text."""

        def __init__(self, asks: Asks, text: str) -> None:
            super().__init__()
            self.asks = asks
            self.text = text

    class Answered(About):
        """Enter was pressed, or the one letter typed."""

    class Typed(About):
        """The text is another one now."""

    class Cancelled(Message):
        """Escape was pressed."""

    def __init__(self) -> None:
        super().__init__(id="prompt")
        self.asks: Asks | None = None
        self._suggester = _Completing()

    def compose(self) -> ComposeResult:
        with Horizontal(id="prompt-asked"):
            yield Static("", id="prompt-label", markup=False)
            yield _Line(id="prompt-line", compact=True, select_on_focus=False)
        yield Static("", id="prompt-remark", markup=False)

    @staticmethod
    def line_bindings() -> list[BindingType]:
        """The keys of ours that work while something is typed."""
        return list(_Line.BINDINGS)

    @property
    def line(self) -> Input:
        """Where it is typed."""
        return self.query_one("#prompt-line", Input)

    def ask(self, asks: Asks, text: str = "") -> None:
        """Begin to ask; `text` is there already."""
        self.asks = asks
        self.query_one("#prompt-label", Static).update(Content(f"{asks.value}: "))
        line = self.line
        line.suggester = self._suggester if asks is Asks.FILTER else None
        line.max_length = 1 if asks in _LETTER else 4000
        with line.prevent(Input.Changed):
            line.value = text
        line.cursor_position = len(text)
        if asks is Asks.EXPORT:  # a proposal: what is typed takes its place
            line.select_all()
        self.remark("")
        self.screen.add_class("-asking")
        self.screen.set_focus(line)  # now: the next key may be here already

    def close(self) -> None:
        """Ask nothing any more."""
        self.asks = None
        self.screen.remove_class("-asking")

    def remark(self, text: str, wrong: bool = False) -> None:
        """Say something behind the line, or below it."""
        self.set_class(len(text) > self.screen.size.width // 2 - 2, "-long")
        remark = self.query_one("#prompt-remark", Static)
        remark.update(Content(text))
        remark.set_class(wrong, "-wrong")

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.asks is None:
            return
        if self.asks in _LETTER and event.value:
            self.post_message(self.Answered(self.asks, event.value))
        else:
            self.post_message(self.Typed(self.asks, event.value))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self.asks is not None:
            self.post_message(self.Answered(self.asks, event.value))
