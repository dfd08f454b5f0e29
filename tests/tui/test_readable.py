"""Everything on the screen can be read: in every theme, and without colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.color import Color as RichColor
from rich.segment import Segment
from textual.color import Color
from textual.screen import ModalScreen
from textual.theme import BUILTIN_THEMES

from upcall_trace.tui.app import Browser
from upcall_trace.tui.data.settings import Settings
from upcall_trace.tui.panes.looks import CURSOR, LEAST_CONTRAST, LOOKS, contrast, look
from upcall_trace.tui.screens.work import Given

from .support import CAPTURES, ROOT, Driven, drive

BOTH = ("textual-dark", "textual-light")
OF_THE_TERMINAL = {"ansi-dark", "ansi-light"}
"""These leave every colour to the terminal."""
CONSOLE = ROOT / "tests" / "golden" / "guest_oops.console.log"
WALK = (
    "right_square_bracket", "1", "2", "3", "4", "enter", "2", "enter", "5", "6", "7", "2", "space",
    "j", "j", "space", "d", "escape", "slash", "o", "escape", "x", "escape", "question_mark",
    "escape", "colon",
)  # fmt: skip
"""Through every pane, with something picked, compared and asked for; the palette is last."""


def drawn(browser: Driven) -> Iterator[tuple[str, RichColor, RichColor]]:
    """The pieces of text on the screen as they reach the terminal, with their two colours.

    What lies behind a question or a list is put out of use, and not asked to be read.
    """
    app = browser.app
    modal = isinstance(app.screen, ModalScreen)
    regions = [each.region for each in app.screen.children] if modal else [app.screen.region]
    strips = app.screen._compositor.render_strips()
    for strip in (
        strips[y].crop(region.x, region.right) for region in regions for y in region.line_range
    ):
        for line_filter in app._filters:
            if line_filter.enabled:
                strip = strip.apply_filter(line_filter, Color(0, 0, 0))
        for segment in strip:
            yield from _coloured(segment)


def _coloured(segment: Segment) -> Iterator[tuple[str, RichColor, RichColor]]:
    style = segment.style
    if segment.text.strip() and style and style.color and style.bgcolor:
        front, behind = style.color, style.bgcolor
        yield segment.text, *((behind, front) if style.reverse else (front, behind))


def of(colour: RichColor) -> Color:
    return Color.from_rich_color(colour)


def unreadable(browser: Driven) -> list[tuple[float, str]]:
    """What has too little contrast, with how much it has."""
    told = ((contrast(of(text), of(behind)), words) for words, text, behind in drawn(browser))
    return [(round(found, 2), words) for found, words in told if found < LEAST_CONTRAST]


async def look_around(browser: Driven) -> None:
    for key in WALK:
        await browser.press(key)
        assert unreadable(browser) == [], key


@pytest.mark.parametrize("theme", BOTH)
@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=str)
def test_every_piece_of_text_has_contrast_enough(size: tuple[int, int], theme: str) -> None:
    given = Given(CAPTURES / "guest_oops.upcap", console=CONSOLE)
    drive(look_around, given, size, Settings(theme=theme))


@pytest.mark.parametrize("theme", sorted(set(BUILTIN_THEMES) - OF_THE_TERMINAL))
def test_in_every_theme_every_look_can_be_read_on_every_ground(theme: str) -> None:
    app = Browser(None, Settings(theme=theme))
    variables = app.get_css_variables()
    under = look(app, CURSOR).bgcolor
    assert under is not None
    grounds = [Color.parse(variables[name]) for name in ("background", "surface", "panel")]
    plain = Color.parse(variables["foreground"]).rich_color
    for kind in LOOKS:
        text = of(look(app, kind).color or plain)
        assert min(contrast(text, each) for each in [*grounds, of(under)]) >= LEAST_CONTRAST, kind


@pytest.mark.parametrize("theme", BOTH)
def test_without_colour_it_can_be_read_and_failures_are_not_dimmer(
    theme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(browser: Driven) -> None:
        await browser.press("G")  # the cursor's line is bold as a whole
        told = [(contrast(of(a), of(b)), words) for words, a, b in drawn(browser)]
        for words in ("◄ EINVAL",):
            failed = [found for found, text in told if words in text]
            assert failed
            assert min(failed) >= max(found for found, _ in told) - 0.1, words
        assert all(a.triplet and len(set(a.triplet)) == 1 for _, a, _ in drawn(browser))
        await look_around(browser)

    drive(script, CAPTURES / "cpu_lifecycle.upcap", (100, 44), Settings(theme=theme))


@pytest.mark.parametrize("theme", sorted(OF_THE_TERMINAL))
def test_themes_of_the_terminal_start(theme: str, tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("right_square_bracket")
        assert "UP201" in browser.text()

    drive(script, CAPTURES / "cpu_lifecycle.upcap", (100, 30), Settings(theme=theme))
