"""Logs without a capture, on a screen."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.diagnose.judging import CASES
from tests.support import run
from upcall_trace.tui.app import Browser
from upcall_trace.tui.data.settings import Settings
from upcall_trace.tui.panes.line_view import TextLines
from upcall_trace.tui.panes.log_pane import LogPane

LOG = CASES / "src-cpu-refused" / "kata.log"


def words(pane: TextLines | LogPane) -> list[str]:
    return ["".join(part.text for part in pane.line(n, 200)) for n in range(pane.count())]


@pytest.mark.parametrize("folder", ["short", 5 * "a name that takes more than a line, "])
def test_a_logs_findings_and_lines_and_the_way_between_them(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(folder) / "kata.log"
    path.parent.mkdir()
    shutil.copy(LOG, path)

    async def script() -> None:
        app = Browser(None, Settings(), logs=[path])
        async with app.run_test(size=(120, 40)) as pilot:
            for _ in range(2000):
                await pilot.pause(0.02)
                findings = app.screen.query_one("#findings", TextLines)
                if "reading" not in words(findings)[0]:
                    break
            told = words(findings)
            assert told[0].startswith(
                " First failure at 2026-09-01T10:00:05.020Z: The guest refused"
            )
            log = app.screen.query_one(LogPane)
            assert log.count() == 8
            wanted = next(n for n, text in enumerate(told) if "kata.log:7" in text)
            findings.move_to(wanted)
            await pilot.press("enter")
            for _ in range(500):
                await pilot.pause(0.02)
                if log.has_focus:
                    break
            assert log.has_focus
            assert "get vcpu event" in words(log)[log.cursor]
            await pilot.press("tab")
            assert findings.has_focus
            await pilot.press("q")

    asyncio.run(script())


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    async def script() -> None:
        app = Browser(None, Settings(), logs=[tmp_path / "none"])
        async with app.run_test() as pilot:
            for _ in range(2000):
                await pilot.pause(0.02)
                told = words(app.screen.query_one("#findings", TextLines))
                if "reading" not in told[0]:
                    break
            assert "No such file" in told[0]

    asyncio.run(script())


def test_without_a_terminal_the_findings_come_as_text() -> None:
    told = run("tui", LOG)
    assert told.code == 0
    assert "UP702" in told.out
    assert "no terminal" in told.err
