"""The detail pane: a message's fields and its bytes side by side, their cursors linked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar, Final

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.geometry import Size
from textual.message import Message as TextualMessage

from ...trace.provenance import Run
from ..data.walk import Message
from .line_view import LineView, TextLines, plain
from .message_fields import ShownField
from .styled import Line, Styled

_OFFSET: Final = 7
_FOR_16: Final = _OFFSET + 3 * 16 + 2 + 16
_FOR_8: Final = _OFFSET + 3 * 8 + 1 + 8
_SIGNS: Final = {"fresh": " ", "stale": "~", "padding": "·", "unknown": "?"}
"""Beside each line of fields, for screens without colour."""
_LEGEND: Final = "· padding  ~ stale  ? not known"


class FieldTree(TextLines):
    """One line a field; says which bytes its cursor is on."""

    class Points(TextualMessage):
        """The cursor is on a field."""

        def __init__(self, field: ShownField) -> None:
            super().__init__()
            self.field = field

    def __init__(self) -> None:
        super().__init__(id="fields")
        self.fields: Sequence[ShownField] = ()
        self._above_fields = 0

    def tell(self, heading: str, fields: Sequence[ShownField], facts: Sequence[str]) -> None:
        """Show a message's fields, and below them what else is known."""
        self.fields = fields
        lines = [plain(heading, "key")] if heading else []
        self._above_fields = len(lines)
        for field in fields:
            sign = "".join(_SIGNS[kind] for kind in field.kinds)[-1:] or " "
            look = next((k for k in ("stale", "padding") if k in field.kinds), "")
            label = f"{sign}{field.name:<14}"
            lines.append([Styled(" "), Styled(label, look or "heading"), Styled(field.value, look)])
        lines += [plain(fact, "dim") for fact in facts]
        self.cursor = self._above_fields if fields else 0
        self.show(lines)

    def point_at(self, offset: int) -> None:
        """Put the cursor on the field that holds a byte."""
        place = bisect_right(self.fields, offset, key=lambda field: field.offset) - 1
        if place >= 0:
            self.move_to(place + self._above_fields, tell=False)

    def move_to(self, number: int, tell: bool = True) -> None:
        super().move_to(number, tell=False)
        place = self.cursor - self._above_fields
        if tell and 0 <= place < len(self.fields):
            self.post_message(self.Points(self.fields[place]))


class HexDump(LineView):
    """Bytes in hexadecimal, each drawn as fresh, stale or padding; the cursor is on one byte."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "byte(-1)", "Back a byte", id="byte_back", show=False),
        Binding("right,l", "byte(1)", "On a byte", id="byte_on", show=False),
    ]  # fmt: skip

    class Points(TextualMessage):
        """The cursor is on a byte."""

        def __init__(self, offset: int) -> None:
            super().__init__()
            self.offset = offset

    def __init__(self) -> None:
        super().__init__(id="hex")
        self.raw = b""
        self.byte = 0
        self.span = 1
        """Bytes from `byte` on that are marked: those of a field."""
        self._runs: Sequence[Run] = ()
        self._begins: list[int] = []

    def tell(self, raw: bytes, runs: Sequence[Run]) -> None:
        """Show these bytes; without runs nothing is said of where they come from."""
        self.raw, self._runs = raw, runs
        self._begins = [run.offset for run in runs]
        self.byte, self.span, self.cursor = 0, 1, 0
        self.changed()

    @property
    def row_size(self) -> int:
        """Bytes in a line: as many as there is room for."""
        width = self.scrollable_content_region.width
        return 16 if width >= _FOR_16 else 8 if width >= _FOR_8 else 4

    def point_at(self, offset: int, size: int = 1, tell: bool = False) -> None:
        """Mark `size` bytes and put the cursor on the first of them."""
        if not self.raw:
            return
        self.byte = max(min(offset, len(self.raw) - 1), 0)
        self.span = max(size, 1)
        self.cursor = self.byte // self.row_size
        self.show_line(self.cursor)
        self.refresh()
        if tell:
            self.post_message(self.Points(self.byte))

    def run_at(self, offset: int) -> Run | None:
        """The run that a byte is in, None where that is not known."""
        place = bisect_right(self._begins, offset) - 1
        return self._runs[place] if place >= 0 else None

    def move_to(self, number: int, tell: bool = True) -> None:
        column = self.byte % self.row_size
        number = max(min(number, self.count() - 1), 0)
        self.point_at(number * self.row_size + column, tell=tell)

    def action_byte(self, step: int) -> None:
        self.point_at(self.byte + step, tell=True)

    def changed(self) -> None:
        self.virtual_size = Size(0, self.count())
        self.cursor = self.byte // self.row_size
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or not self.raw:
            return
        column = max(min((offset.x - _OFFSET) // 3, self.row_size - 1), 0)
        self.point_at((offset.y + self.scroll_offset.y) * self.row_size + column, tell=True)

    def count(self) -> int:
        return -(-len(self.raw) // self.row_size)

    def line(self, number: int, width: int) -> Line:
        begin = number * self.row_size
        row = self.raw[begin : begin + self.row_size]
        hexes: Line = []
        letters: Line = []
        for at, byte in enumerate(row, start=begin):
            run = self.run_at(at)
            kind = "" if run is None or run.kind == "unknown" else run.kind
            marked = self.byte <= at < self.byte + self.span
            look = "marked" if marked else kind
            gap = " " if at % self.row_size else ""
            hexes += [Styled(gap, ""), Styled(f"{byte:02x}", look)]
            letters.append(Styled(chr(byte) if 32 <= byte < 127 else ".", look))
        room = self.row_size * 3 - 1
        filled = max(len(row) * 3 - 1, 0)
        return [
            Styled(" "),
            Styled(f"{begin:04x}  ", "dim"),
            *hexes,
            Styled(" " * (room - filled + 2)),
            *letters,
        ]


class Detail(Horizontal):
    """A message: its fields, its bytes, and whose the byte under the cursor is."""

    def __init__(self) -> None:
        super().__init__(id="detail")
        self.border_title = "4 detail"
        self._what = ""

    def compose(self) -> ComposeResult:
        yield FieldTree()
        yield HexDump()

    @property
    def fields(self) -> FieldTree:
        """The left half."""
        return self.query_one(FieldTree)

    @property
    def hex(self) -> HexDump:
        """The right half."""
        return self.query_one(HexDump)

    def tell(
        self,
        heading: str,
        fields: Sequence[ShownField],
        facts: Sequence[str],
        message: Message | None,
    ) -> None:
        """Show a message, or with None only facts; `facts` are lines below the fields."""
        self.fields.tell(heading, fields, facts)
        self.hex.tell(message.raw if message else b"", message.runs if message else ())
        self._what = "reply" if heading.startswith("reply") else "request"
        if fields:
            self.hex.point_at(fields[0].offset, fields[0].size)
        self._tell_whose(0 if message else None)

    @on(FieldTree.Points)
    def _field(self, event: FieldTree.Points) -> None:
        self.hex.point_at(event.field.offset, event.field.size)
        self._tell_whose(event.field.offset)

    @on(HexDump.Points)
    def _byte(self, event: HexDump.Points) -> None:
        self.fields.point_at(event.offset)
        self._tell_whose(event.offset)

    def _tell_whose(self, offset: int | None) -> None:
        if offset is None:
            self.border_subtitle = ""
            return
        run = self.hex.run_at(offset)
        whose = "" if run is None or run.request is None else f", of {self._what} {run.request}"
        kind = "" if run is None else "not known" if run.kind == "unknown" else run.kind
        told = f"byte {offset:#06x} {kind}{whose}".rstrip()
        self.border_subtitle = f"{told}  {_LEGEND}"
