"""The help: the keys that work in the pane that has the focus, read off its live bindings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widgets import Input

from ..panes.bars import key_name
from ..panes.line_view import LineView, TextLines, plain
from ..panes.styled import Line, Styled

_KEYS: Final = 16


def live_keys(screen: Screen[Any]) -> Iterator[tuple[str, list[str], str]]:
    """(action, keys as they are printed, what they do) of every binding that works now."""
    found: dict[str, tuple[list[str], str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if not binding.description or binding.system or binding.id is None:
            continue
        told = binding.description
        told += f": {binding.tooltip[:1].lower()}{binding.tooltip[1:]}" if binding.tooltip else ""
        keys, _ = found.setdefault(binding.id, ([], told))
        if key_name(binding) not in keys:
            keys.append(key_name(binding))
    for name, (keys, told) in found.items():
        yield name, keys, told


def pane_title(screen: Screen[Any]) -> str:
    """The pane that the keys are for."""
    focused = screen.focused
    if focused is None or isinstance(focused, Input):
        return "the line at the bottom"
    return focused.id or ""


class HelpScreen(ModalScreen[None]):
    """Lists the keys until it is closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "Close", id="close"),
    ]
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen TextLines {
        width: 90%; max-width: 96; height: 90%; border: round $text-accent; background: $surface;
    }
    """

    def __init__(self, pane: str, keys: Sequence[tuple[str, list[str], str]]) -> None:
        super().__init__()
        self._pane = pane
        self._keys = keys

    def compose(self) -> ComposeResult:
        lines = TextLines(id="help")
        lines.border_title = f"keys in {self._pane}"
        yield lines

    def on_mount(self) -> None:
        lines: list[Line] = [
            [Styled(" "), Styled(f"{' '.join(keys):>{_KEYS}}  ", "key"), Styled(told)]
            for _, keys, told in self._keys
        ]
        lines += [plain(""), plain("  arrows: ─► a request, ◄─ its answer, ✗ no answer", "dim")]
        lines.append(
            plain("  signs: ✗ error, ‼ fatal, ! warning, · note, # remark, ● picked", "dim")
        )
        self.query_one(TextLines).show(lines)

    def on_line_view_left(self, event: LineView.Left) -> None:
        self.dismiss()
