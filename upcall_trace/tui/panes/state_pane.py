"""The state pane: what the guest has at the cursor, and what the operation there changed."""

from __future__ import annotations

import textwrap
from typing import Final

from ...diagnose.state import GuestState
from ...diagnose.state_report import as_text
from .line_view import TextLines, plain

_INDENT: Final = " " * 4


class StatePane(TextLines):
    """CPUs, windows, PCI functions, the hotplug lock, connections that are dead."""

    def __init__(self) -> None:
        super().__init__(id="state")
        self.border_title = "5 guest state"
        self._told: list[tuple[str, str]] = []

    def tell(self, key: str, before: GuestState, after: GuestState | None, is_reply: bool) -> None:
        """The state around operation `key`: before it, or on its reply after it."""
        shown = after if is_reply and after is not None else before
        told = "after" if shown is after else "before"
        self._told = [(f"{told} {key}", "key")]
        if after is None:
            self._told.append(("no answer came, so nothing more is known", "dim"))
        else:
            self._told += _changes(key, before, after)
        for text in as_text(shown):
            heading = text and not text.startswith(" ")
            self._told.append((text, "heading" if heading else ""))
        self._wrap()

    def say(self, text: str) -> None:
        """A remark instead of a state."""
        self._told = [(text, "dim")]
        self._wrap()

    def on_resize(self) -> None:
        self._wrap()

    def _wrap(self) -> None:
        width = max(self.scrollable_content_region.width - 1, 20)
        self.show(
            [
                plain(line, kind)
                for text, kind in self._told
                for line in textwrap.wrap(
                    text, width, subsequent_indent=_INDENT, drop_whitespace=False
                )
                or [""]
            ]
        )


def _changes(key: str, before: GuestState, after: GuestState) -> list[tuple[str, str]]:
    """What an operation changed, as lines that go and lines that come."""
    old, new = list(as_text(before)), list(as_text(after))
    gone = [line for line in old if line.startswith("  ") and line not in new]
    come = [line for line in new if line.startswith("  ") and line not in old]
    if not gone and not come:
        return [(f"{key} changed nothing that is known", "dim")]
    return [
        *((f"-{line[1:]}", "removed") for line in gone),
        *((f"+{line[1:]}", "added") for line in come),
    ]
