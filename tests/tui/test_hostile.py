"""Text from outside shows, and does nothing else; files that go away cost a sentence."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from unicodedata import bidirectional, category

import pytest

from upcall_trace.capture.records import COMMENT, Chunk, Header, Mark, Record
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.tui.data.marks import beside, marks_beside, save
from upcall_trace.tui.screens.work import Given

from ..support import connect, small_capture, write_capture
from .support import CAPTURES, Driven, drive

PARTS = (
    "\x1b]0;renamed\x07", "\x1b[2J", "\x1b[?1049l", "\x1bP+q\x1b\\", "\x9b31m", "[/]", "[bold red]",
    "[@click=app.quit]x[/]", "[link=file:///]x", "]", "[", "\\[", "\u202eabc", "\u2066", "\u200b",
    "\u200d", "\ufeff", "\u0301" * 30, "\r", "\n", "\t", "\0", "\x7f", "\ud800", "日本語", "👩‍👩‍👧",
    "$primary", "{0}", "%s", "\u2028", "‼", "a" * 300,
)  # fmt: skip


def hostile(count: int, seed: int = 1) -> Iterator[str]:
    """Strings made of what has broken programs before."""
    chance = random.Random(seed)
    for _ in range(count):
        yield "".join(chance.choices(PARTS, k=chance.randint(1, 6)))


def check(browser: Driven) -> None:
    """Nothing on the screen steers a terminal, hides or turns text around."""
    for line in browser.text().splitlines():
        for letter in line:
            assert category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"), repr(line)
            assert bidirectional(letter) not in ("RLO", "LRO", "RLE", "LRE", "RLI"), repr(line)
    assert browser.app.is_running


def test_ten_thousand_hostile_strings_as_log_lines_and_remarks(tmp_path: Path) -> None:
    console = tmp_path / "con\x1b]0;sole[bold]\n.log"
    lines = [text.encode("utf-8", "surrogatepass") for text in hostile(5000)]
    with console.open("wb") as file:
        file.writelines(b"[%8.6f] db-dev-mgr: " % n + line + b"\n" for n, line in enumerate(lines))
        file.write(b"\x1b[31m" + b"x" * (10 << 20) + b"\n")
    marks = [
        Mark(n, 1, n % 2, text[:9] if n % 3 else COMMENT, text)
        for n, text in enumerate(hostile(5000, seed=2))
    ]
    path = tmp_path / "cap[bold]\x1b]0;x\x07\u202e.upcap"
    write_capture(path, [*small_capture(), *marks], Header("test", notes={"[/]": "\x1b[2J"}))

    async def script(browser: Driven) -> None:
        check(browser)
        for key in ("3", "pagedown", "G", "7", "pagedown", "G", "pageup", "enter", "1", "z", "2"):
            await browser.press(key)
            check(browser)

    drive(script, Given(path, console=console, vmm_log=console), size=(120, 40))


def test_hostile_messages_lines_and_answers(tmp_path: Path) -> None:
    chance = random.Random(3)

    def records() -> Iterator[Record]:
        for conn in range(1, 60):
            if conn % 3:
                yield from connect(conn, conn * 1000)
            else:
                line = next(hostile(1, conn)).encode("utf-8", "surrogatepass")
                yield Chunk(conn * 1000, conn, True, line[:30])
            for n in range(4):
                raw = next(hostile(1, conn + n)).encode("utf-8", "surrogatepass")
                yield Chunk(conn * 1000 + n, conn, bool(n % 2), raw)
                yield Chunk(conn * 1000 + n, conn, True, chance.randbytes(1024))
                yield Chunk(conn * 1000 + n, conn, False, chance.randbytes(1024))

    path = write_capture(tmp_path / "fuzz.upcap", records())

    async def script(browser: Driven) -> None:
        for key in ("pagedown", "enter", "escape", "right_curly_bracket", "4", "2", "G", "5", "6",
                    "2", "pageup", "y", "1", "pagedown", "enter"):  # fmt: skip
            await browser.press(key)
            check(browser)

    drive(script, path, size=(110, 40))


def test_what_is_typed_is_only_text(tmp_path: Path) -> None:
    path = Path(shutil.copy(CAPTURES / "guest_oops.upcap", tmp_path))

    async def script(browser: Driven) -> None:
        for text in ("[@click=app.quit]x[/]", "[/]", "op == [bold]", "\\[", "{x}"):
            await browser.press("slash", "ctrl+u")
            await browser.type(text)
            await browser.press("enter", "escape")
            await browser.press("semicolon")
            await browser.type(text)
            await browser.press("enter")
            assert text in browser.text()
            check(browser)

    drive(script, path)


def test_marks_of_what_cannot_be_written_go_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    shutil.copy(CAPTURES.parent / "tests" / "golden" / "framing.jsonl", path)

    async def script(browser: Driven) -> None:
        await browser.press("m", "a", "semicolon")
        await browser.type("kept")
        await browser.press("enter")
        assert browser.said == f"kept beside it, in {beside(path).name}"

    drive(script, path)
    assert [(mark.name, mark.text) for mark in marks_beside(path)] == [("a", ""), (COMMENT, "kept")]

    async def again(browser: Driven) -> None:
        assert "kept" in browser.text()

    drive(again, path)


def test_a_directory_that_takes_nothing_is_a_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "x.jsonl"
    blocked.write_text("")
    beside(blocked).mkdir()
    with pytest.raises(Exception, match="cannot be kept"):
        save(blocked, Mark(0, 1, 0, "a"))


@pytest.mark.parametrize("how", ["delete", "truncate", "replace"])
def test_a_file_that_goes_away_while_it_is_followed_is_a_sentence(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "live.upcap"
    writer = CaptureWriter(path, Header("test"))
    for record in small_capture():
        writer.write(record)
    writer.flush()
    monkeypatch.setattr("upcall_trace.capture.reader.is_being_written", lambda _: True)

    async def script(browser: Driven) -> None:
        await browser.until("3 operations")
        assert "● recording" in browser.lines()[0]
        while browser.panes.moment is None:  # what is known at the cursor is read once more
            await browser.pilot.pause(0.01)
        if how == "delete":
            path.unlink()
        elif how == "truncate":
            with path.open("r+b") as file:
                file.truncate(100)
        else:
            shutil.copy(CAPTURES / "guest_oops.upcap", tmp_path / "other")
            (tmp_path / "other").replace(path)
        while not browser.said:
            await browser.pilot.pause(0.01)
        words = {"delete": "deleted", "truncate": "cut short", "replace": "replaced"}
        assert words[how] in browser.said
        assert "stays on the screen" in browser.said
        monkeypatch.undo()
        await browser.pilot.press("j")
        assert browser.app.is_running

    try:
        drive(script, path)
    finally:
        writer._file.close()
