"""The state pane: what the guest has at the cursor, and what the operation there changed."""

from __future__ import annotations

import textwrap

from ..diagnose.state import State
from ..diagnose.state_report import as_text
from .line_view import TextLines, plain
from .pieces import Line, Piece


class StatePane(TextLines):
    """CPUs, windows, PCI functions, the hotplug lock, connections that are dead."""

    def __init__(self) -> None:
        super().__init__(id="state")
        self.border_title = "5 guest state"

    def tell(self, key: str, before: State, after: State | None, is_reply: bool) -> None:
        """The state around operation `key`: before it, or on its reply after it."""
        shown = after if is_reply and after is not None else before
        told = "after" if shown is after else "before"
        lines: list[Line] = [plain(f"{told} {key}", "key")]
        if after is None:
            lines.append(plain("no answer came, so nothing more is known", "dim"))
        elif after is not None:
            lines += self._changes(key, before, after)
        for text in as_text(shown):
            heading = text and not text.startswith(" ")
            lines.append(plain(text, "heading" if heading else ""))
        self.show(lines)

    def _changes(self, key: str, before: State, after: State) -> list[Line]:
        old, new = list(as_text(before)), list(as_text(after))
        gone = [line for line in old if line.startswith("  ") and line not in new]
        come = [line for line in new if line.startswith("  ") and line not in old]
        if not gone and not come:
            return [plain(f"{key} changed nothing that is known", "dim")]
        return [
            *(plain(f"-{line[1:]}", "removed") for line in gone),
            *(plain(f"+{line[1:]}", "added") for line in come),
        ]

    def say(self, text: str) -> None:
        """A remark instead of a state."""
        width = max(self.scrollable_content_region.width - 2, 20)
        self.show([[Piece(" "), Piece(line, "dim")] for line in textwrap.wrap(text, width)])
