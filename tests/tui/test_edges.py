"""What is told at the edges: what is missing or wrong, what is too long, what has no room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import golden
from upcall_trace.codes import Severity, table
from upcall_trace.diagnose.finding import Finding
from upcall_trace.kernel.world import kata_pod
from upcall_trace.tui.data.findings import Batch, FindingStore
from upcall_trace.tui.panes.ladder_lines import Clock, time_text
from upcall_trace.tui.screens.work import Given

from .support import CAPTURES, Driven, drive

OOPS = CAPTURES / "guest_oops.upcap"
WALL_NS = 1_700_000_000_123_456_789
SIZES = [(80, 24), (160, 50)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_log_that_cannot_be_read_is_told_at_once_and_stays(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async def script(browser: Driven) -> None:
        assert "nowhere.log" in browser.said
        assert "! no console" in browser.lines()[0]
        await browser.press("j", "7")
        seen = browser.text()
        while browser.panes.log_pane.across < 200:
            before = browser.panes.log_pane.across
            await browser.press("right")
            seen += browser.text()
            if browser.panes.log_pane.across == before:
                break
        assert "No such file" in seen
        assert "! no console" in browser.lines()[0]
        assert browser.panes.walked[2]  # it was diagnosed without that log

    drive(script, Given(OOPS, console=tmp_path / "nowhere.log", world=kata_pod()), size)


def test_a_log_that_can_be_read_is_shown_beside_one_that_cannot(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("7")
        assert "! no vmm-log" in browser.lines()[0]
        assert "Oops: 0000" in browser.text()

    console = golden("guest_oops").with_suffix(".console.log")
    drive(script, Given(OOPS, console=console, vmm_log=tmp_path / "nowhere.log"), (100, 40))


def test_a_missing_world_is_told() -> None:
    async def script(browser: Driven) -> None:
        assert "it notes the machine 'microvm'" in browser.said
        await browser.press("j", "5")
        assert "! no world" in browser.lines()[0]
        assert "as of a default pod" in browser.text()

    async def quiet(browser: Driven) -> None:
        assert browser.said == ""
        assert "no world" not in browser.text()

    drive(script, OOPS)
    drive(quiet, Given(OOPS, world=kata_pod()))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_zoomed_pane_leaves_the_lines_at_top_and_bottom(size: tuple[int, int]) -> None:
    async def script(browser: Driven) -> None:
        for key in "1234567":
            await look_at(browser, key)

    async def look_at(browser: Driven, key: str) -> None:
        await browser.press(key)
        pane = browser.screen.focused
        assert pane is not None
        await browser.press("z")
        zoomed = browser.panes.zoomed
        assert zoomed is not None
        above = 1 + browser.panes.headline.region.height
        assert (zoomed.region.width, zoomed.region.height) == (size[0], size[1] - 1 - above)
        await browser.press("slash", "ctrl+u")
        await browser.type("ret < 0")
        assert "filter: ret < 0" in browser.lines()[-1]
        await browser.press("enter")
        assert "1 of 4 match ret < 0" in browser.lines()[0]
        assert browser.is_at(pane)
        await browser.press("tab")
        assert browser.screen.focused in (pane, browser.panes.detail.hex)
        await browser.press("2")
        assert browser.panes.zoomed is browser.panes.ladder
        assert browser.is_at(browser.panes.ladder)
        await browser.press("z")
        assert browser.panes.zoomed is None
        assert browser.panes.sessions.region.height > 0

    drive(script, OOPS, size)


def test_the_focus_is_on_no_hidden_pane_when_the_screen_shrinks() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("6")
        await browser.pilot.click(browser.panes.log_pane)
        await browser.settle()
        await browser.pilot.resize_terminal(80, 24)
        await browser.settle()
        assert browser.is_at(browser.panes.log_pane)
        assert browser.panes.log_pane.region.height > 0

    drive(script, OOPS, (230, 50))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_date_is_whole_with_its_zone(size: tuple[int, int]) -> None:
    async def script(browser: Driven) -> None:
        recording = browser.panes.recording
        recording.header = replace(recording.header, wall_ns=WALL_NS - recording.first_ns)
        await browser.press("t", "t")
        assert "     1.0 2023-11-14 22:13:20.140195Z ├─" in browser.text()
        assert "date" not in browser.said

    assert time_text(Clock.ABSOLUTE, 0, 0, WALL_NS) == "2023-11-14 22:13:20.123456Z"
    drive(script, OOPS, size)


def test_a_long_line_of_a_log_is_scrolled() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("7", "g")
        log = browser.panes.log_pane
        assert log.go("console", 13)
        await browser.settle()
        assert "page fault for address" in browser.text()
        assert "ffffffffa1ad3480" not in browser.text()
        await browser.press("right")
        assert "ffffffffa1ad3480" in browser.text()
        await browser.press("right", "right", "right")
        across = log.across
        await browser.press("right")
        assert log.across == across  # no further than the longest line
        await browser.press(*["left"] * 5)
        assert log.across == 0

    console = golden("guest_oops").with_suffix(".console.log")
    drive(script, Given(OOPS, console=console), (80, 24))


def told(severity: Severity, request: int | None = 0, group: int | None = None) -> Finding:
    code = next(code for code in table() if code.severity is severity)
    return Finding(
        code, code.name, severity, 1, request, False, severity.word, "", "", "", group=group
    )


def stored(*findings: Finding) -> FindingStore:
    store = FindingStore()
    store.grow(9)
    store.add(Batch.of(findings), lambda _conn, request: request)
    return store


def test_an_error_is_not_hidden_behind_a_note() -> None:
    note, warning, error = map(told, (Severity.NOTE, Severity.WARNING, Severity.ERROR))
    assert [f.what for f in stored(note, warning, error).of_row(0)] == ["error", "warning", "note"]
    first = stored(note, told(Severity.WARNING, request=3)).first_told(1)
    assert first is not None
    assert first.severity is Severity.WARNING


def test_of_several_failures_the_first_is_named() -> None:
    first = stored(told(Severity.FATAL, request=3), told(Severity.ERROR, request=2)).first_told(1)
    assert first is not None
    assert first.request == 2


def test_alternatives_of_one_failure_count_once() -> None:
    store = stored(*(told(Severity.ERROR, group=each) for each in (1, 1, 2, None, None)))
    assert len(store) == 5
    assert store.counts[Severity.ERROR] == 4
