"""What every pane is made of: lines that are drawn when they are seen, with a cursor on one."""

from __future__ import annotations

from typing import ClassVar, Final

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .looks import CURSOR, look
from .styled import Line, Styled

_EMPTY: Final = Strip([])


class LineView(ScrollView, can_focus=True, inherit_bindings=False):
    """A pane of lines. Subclasses give `count`, `line` and perhaps `heading`.

    Only lines on the screen are asked for. The cursor is a line's number; `Moved` says that it
    went elsewhere, `Chosen` that Enter was pressed on it, `Left` that Escape was.
    """

    DEFAULT_CSS = """
    LineView { overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up a line", id="up", show=False),
        Binding("down,j", "move(1)", "Down a line", id="down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Up a page", id="page_up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "Down a page", id="page_down", show=False),
        Binding("home,g", "first", "First line", id="first", show=False),
        Binding("end,G", "last", "Last line", id="last", show=False),
        Binding("left", "across(-1)", "Scroll left", id="scroll_left", show=False,
                tooltip="What is longer than the pane is wide"),
        Binding("right", "across(1)", "Scroll right", id="scroll_right", show=False),
        Binding("enter", "choose", "Go into it", id="enter"),
        Binding("escape", "leave", "Back out", id="escape", show=False),
    ]  # fmt: skip

    class OfPane(Message):
        """Something that a pane says."""

        def __init__(self, pane: LineView) -> None:
            super().__init__()
            self.pane = pane

    class Moved(OfPane):
        """The cursor stands on another line."""

    class Chosen(OfPane):
        """Enter was pressed, or a line clicked twice."""

    class Left(OfPane):
        """Escape was pressed."""

    def __init__(self, *, id: str) -> None:  # noqa: A002  # textual's name
        super().__init__(id=id)
        self.cursor = 0
        self.across = 0
        """Columns that are scrolled out at the left; the cursor's own is not."""

    def count(self) -> int:
        """How many lines there are."""
        raise NotImplementedError

    def line(self, number: int, width: int) -> Line:
        """Line `number` in `width` columns."""
        raise NotImplementedError

    def heading(self, width: int) -> Line | None:
        """A line that stays above the others, None for none."""
        return None

    @property
    def page(self) -> int:
        """How many lines fit."""
        return max(self.scrollable_content_region.height - self._above, 1)

    @property
    def _above(self) -> int:
        return 0 if self.heading(self.size.width) is None else 1

    def changed(self) -> None:
        """The lines are others now, or more."""
        size = Size(0, self.count() + self._above)
        if size != self.virtual_size:
            self.virtual_size = size
        self.cursor = max(min(self.cursor, self.count() - 1), 0)
        self.refresh()

    def move_to(self, number: int, tell: bool = True) -> None:
        """Put the cursor on a line and bring that into view."""
        number = max(min(number, self.count() - 1), 0)
        moved = number != self.cursor
        self.cursor = number
        self.show_line(number)
        if moved:
            self.refresh()
            if tell:
                self.post_message(self.Moved(self))

    def show_line(self, number: int) -> None:
        """Scroll so that a line can be seen; one from far away comes to the middle."""
        top, page = self.scroll_offset.y, self.page
        if top <= number < top + page:
            return
        near = top - page <= number < top + 2 * page
        target = (number if number < top else number - page + 1) if near else number - page // 2
        self.scroll_to(y=max(target, 0), animate=False, force=True)

    def action_move(self, step: int) -> None:
        self.move_to(self.cursor + step)

    def action_page(self, step: int) -> None:
        self.move_to(self.cursor + step * max(self.page - 1, 1))

    def action_across(self, step: int) -> None:
        """Scroll by half the width, as far as the longest line that can be seen."""
        width = self.scrollable_content_region.width
        top = self.scroll_offset.y
        seen = range(top, min(top + self.page, self.count()))
        longest = max(
            (cell_len("".join(p.text for p in self.line(n, width))) for n in seen), default=0
        )
        across = min(self.across + step * max(width // 2, 1), longest - width)
        self.across = max(across, 0)
        self.refresh()

    def action_first(self) -> None:
        self.move_to(0)

    def action_last(self) -> None:
        self.move_to(self.count() - 1)

    def action_choose(self) -> None:
        self.post_message(self.Chosen(self))

    def action_leave(self) -> None:
        self.post_message(self.Left(self))

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        number = offset.y - self._above + self.scroll_offset.y
        if offset.y >= self._above and 0 <= number < self.count():
            self.move_to(number)
            if event.chain == 2:
                self.action_choose()

    def on_resize(self) -> None:
        self.changed()
        self.show_line(self.cursor)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        above = self._above
        if y < above:
            return self._strip(self.heading(width) or [], width, "")
        number = y - above + self.scroll_offset.y
        if not 0 <= number < self.count():
            return _EMPTY.adjust_cell_length(width, self.rich_style)
        return self._strip(self.line(number, width), width, CURSOR if number == self.cursor else "")

    def _strip(self, line: Line, width: int, under: str) -> Strip:
        base = self.rich_style + look(self.app, under)
        segments = []
        for place, piece in enumerate(line):
            text = piece.text
            if under and place == 0 and text[:1] == " ":
                text = ("▌" if self.has_focus else "▏") + text[1:]  # to be seen without colour
            segments.append(Segment(text, base + look(self.app, piece.kind)))
        strip = Strip(Segment.simplify(segments))
        if self.across:
            strip = Strip.join([strip.crop(0, 1), strip.crop(1 + self.across, strip.cell_length)])
        return strip.adjust_cell_length(width, base)

    def find(self, text: str, step: int) -> bool:
        """Go to the next line with a text, or back; False when there is none."""
        width = self.scrollable_content_region.width
        end = self.count() if step > 0 else -1
        for number in range(self.cursor + step, end, step):
            if text in "".join(piece.text for piece in self.line(number, width)).lower():
                self.move_to(number)
                return True
        return False

    def as_text(self) -> list[str]:
        """The lines that can be seen, as plain text; for tests and for export."""
        region = Region(0, 0, *self.scrollable_content_region.size)
        return [strip.text.rstrip() for strip in self.render_lines(region)]


class TextLines(LineView):
    """A pane whose lines are there already; `show` replaces them."""

    def __init__(self, *, id: str) -> None:  # noqa: A002  # textual's name
        super().__init__(id=id)
        self._lines: list[Line] = []

    def show(self, lines: list[Line]) -> None:
        """Show these lines from now on, each beginning with a column for the cursor."""
        self._lines = lines
        self.changed()

    def count(self) -> int:
        return len(self._lines)

    def line(self, number: int, width: int) -> Line:
        return self._lines[number]


def plain(text: str, kind: str = "") -> Line:
    """A line of one kind, behind the column for the cursor."""
    return [Styled(" "), Styled(text, kind)]
