"""Two operations side by side: what differs is marked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from ...trace.operations import Operation
from ...views.text import duration, fields_text, result_text, safe, seconds
from ...views.values import id_list
from ..panes.line_view import LineView, TextLines
from ..panes.styled import Line, Styled, cut

_NAME: Final = 14


class ComparedLines(TextLines):
    """One line a field: its name, both values, and a sign where they differ."""

    def __init__(self, one: Operation, other: Operation) -> None:
        super().__init__(id="comparison")
        self.border_title = "compare"
        self._pair = one, other

    def on_resize(self) -> None:
        room = max((self.scrollable_content_region.width - _NAME - 4) // 2, 8)
        self.show([_line(name, left, right, room) for name, left, right in rows(*self._pair)])


class CompareScreen(ModalScreen[None]):
    """Shows a comparison until it is closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,d,q", "dismiss", "Close", id="close"),
    ]
    DEFAULT_CSS = """
    CompareScreen { align: center middle; }
    CompareScreen ComparedLines {
        width: 90%; max-width: 120; height: 80%; border: round $text-accent; background: $surface;
    }
    """

    def __init__(self, one: Operation, other: Operation) -> None:
        super().__init__()
        self._pair = one, other

    def compose(self) -> ComposeResult:
        yield ComparedLines(*self._pair)

    def on_line_view_left(self, event: LineView.Left) -> None:
        self.dismiss()


def rows(one: Operation, other: Operation) -> Iterator[tuple[str, str, str]]:
    """(name, value, value) of everything that two operations have."""
    for name, (left, right) in {
        "request": tuple(f"{each.conn}.{each.request}" for each in (one, other)),
        "seconds": tuple(seconds(each.t_ns) for each in (one, other)),
        "operation": tuple(safe(each.op) for each in (one, other)),
    }.items():
        yield name, left, right
    names = dict.fromkeys([*one.fields, *other.fields])
    for name in names:
        yield safe(name), _value(one, name), _value(other, name)
    yield "bytes", str(one.size), str(other.size)
    yield "result", result_text(one), result_text(other)
    for name in dict.fromkeys([*(one.reply or {}), *(other.reply or {})]):
        left, right = (str((each.reply or {}).get(name, "-")) for each in (one, other))
        yield f"reply {name}", left, right
    left, right = (
        "-" if each.latency_ns is None else duration(each.latency_ns) for each in (one, other)
    )
    yield "latency", left, right
    yield "doubts", ", ".join(one.anomalies) or "-", ", ".join(other.anomalies) or "-"


def _value(operation: Operation, name: str) -> str:
    value = operation.fields.get(name, "-")
    if name == "apic_ids" and isinstance(value, list):
        return id_list(value)
    if name in ("mmio_base", "mmio_size") and isinstance(value, int):
        return hex(value)
    return fields_text({name: value}).partition("=")[2] or "-"


def _line(name: str, left: str, right: str, room: int) -> Line:
    differs = left != right
    look = "warning" if differs else ""
    return [
        Styled(" "),
        Styled("≠ " if differs else "  ", look),
        Styled(f"{cut(name, _NAME - 1):<{_NAME}}", "heading"),
        Styled(f"{cut(left, room):<{room}} ", look),
        Styled(cut(right, room), look),
    ]
