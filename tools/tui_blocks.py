"""Tables of the terminal browser's keys and signs, from its bindings.

`tools.generate_docs` names them in its table of blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from textual.binding import Binding, BindingType

from upcall_trace.codes import Severity
from upcall_trace.tui.data.settings import COLUMNS, USUAL_COLUMNS
from upcall_trace.tui.panes.bars import key_name
from upcall_trace.tui.panes.detail import HexDump
from upcall_trace.tui.panes.line_view import LineView
from upcall_trace.tui.panes.prompt import Prompt
from upcall_trace.tui.panes.styled import DEADLINES, SIGNS
from upcall_trace.tui.screens.capture_keys import APP_KEYS, CAPTURE_KEYS
from upcall_trace.tui.screens.replaying import ReplayScreen

from .markdown import code, table


def keys() -> str:
    """Every key with what it does and the name that settings call it by."""
    where: tuple[tuple[str, Iterable[BindingType]], ...] = (
        ("every pane", LineView.BINDINGS),
        ("bytes", HexDump.BINDINGS),
        ("a capture", CAPTURE_KEYS),
        ("a replay", ReplayScreen.BINDINGS),
        ("typing", Prompt.line_bindings()),
        ("everywhere", APP_KEYS),
    )
    rows = [row for place, bindings in where for row in _rows(place, bindings)]
    return table(("key", "what it does", "where", "name"), rows)


def _rows(place: str, bindings: Iterable[BindingType]) -> Iterable[tuple[str, str, str, str]]:
    for binding in bindings:
        assert isinstance(binding, Binding)
        shown = [key_name(each) for each in Binding.make_bindings([binding])]
        told = binding.description
        if binding.tooltip:
            told += f": {binding.tooltip[:1].lower()}{binding.tooltip[1:]}"
        yield (
            " ".join(code(key) for key in dict.fromkeys(shown)),
            told,
            place,
            code(binding.id or ""),
        )


def columns() -> str:
    """The columns that the ladder can have."""
    rows = [
        (code(name), told, "yes" if name in USUAL_COLUMNS else "no")
        for name, told in COLUMNS.items()
    ]
    return table(("column", "what it shows", "usual"), rows)


def signs() -> str:
    """The signs that say without colour what colours say."""
    rows = [(code(SIGNS[severity]), f"a finding: {severity.word}") for severity in Severity]
    rows += [(code(each.sign), each.meaning) for each in reversed(DEADLINES)]
    rows += [
        (code("#"), "there is a remark; the finding pane has its text"),
        (code("●"), "picked to be compared; in the sessions, what the ladder shows"),
        (code("~"), "in the field tree: left over from an earlier message"),
        (code("·"), "in the field tree: padding, never written"),
        (code("?"), "in the field tree: not to be told from what was recorded"),
    ]
    return table(("sign", "what it says"), rows)
