"""Screens of every pane at three sizes, in a dark and a light theme, against the stored ones.

`UPCALL_TRACE_SCREENS=write` writes them anew. Text does not depend on the theme;
`test_readable.py` looks at the colours.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.color import Color

from upcall_trace.tui.data.settings import Settings
from upcall_trace.tui.screens.work import Given

from .support import CAPTURES, ROOT, Driven, drive

SCREENS = Path(__file__).parent / "screens"
WRITE = os.environ.get("UPCALL_TRACE_SCREENS") == "write"
THEMES = ("textual-dark", "textual-light")
PANES = {"1": "sessions", "2": "ladder", "3": "finding", "4": "detail", "5": "state",
         "6": "statistics", "7": "log"}  # fmt: skip
SHOWN = {(80, 24): "1234567", (150, 40): "457", (230, 50): "2"}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SHOWN, ids=str)
def test_every_pane_looks_as_it_did(size: tuple[int, int], theme: str) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("right_square_bracket")
        for key in SHOWN[size]:
            await browser.press(key)
            compare(f"{PANES[key]}-{size[0]}x{size[1]}", browser)

    golden = ROOT / "tests" / "golden" / "guest_oops.console.log"
    given = Given(CAPTURES / "guest_oops.upcap", console=golden)
    drive(script, given, size, Settings(theme=theme))


def compare(name: str, browser: Driven) -> None:
    """Compare the screen with the stored one of that name."""
    path = SCREENS / f"{name}.txt"
    if WRITE:
        path.write_text(browser.text(), encoding="utf-8")
    assert browser.text() == path.read_text(encoding="utf-8"), name


def test_without_colour_cursor_focus_and_findings_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(browser: Driven) -> None:
        await browser.press("right_square_bracket")
        (line,) = (line for line in browser.lines() if line.startswith("▌"))
        assert "✗" in line
        assert ">10s" in line
        assert any(line.startswith("━2 ladder━") for line in browser.lines())
        colours = {
            color.triplet
            for strip in browser.app.screen._compositor.render_strips()
            for segment in strip.apply_filter(browser.app._filters[-1], Color(0, 0, 0))
            for color in [segment.style and segment.style.color]
            if color and color.triplet
        }
        assert all(each.red == each.green == each.blue for each in colours)

    drive(script, CAPTURES / "cpu_lifecycle.upcap")


@pytest.mark.parametrize(
    "size", [(20, 5), (1, 1), (59, 15), pytest.param((300, 70), marks=pytest.mark.torture)], ids=str
)
def test_any_size_will_do(size: tuple[int, int]) -> None:
    async def script(browser: Driven) -> None:
        for key in ("right_square_bracket", "1", "2", "4", "7", "question_mark", "escape"):
            await browser.press(key)
        await browser.pilot.resize_terminal(80, 24)
        await browser.pilot.resize_terminal(*size)
        await browser.press("2")
        if size == (20, 5):
            assert any(line.startswith("▌") for line in browser.lines())

    drive(script, CAPTURES / "guest_oops.upcap", size=size)
