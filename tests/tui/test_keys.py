"""Every key of the help does what it says; contents first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import GOLDEN, has_index, run
from upcall_trace.capture.records import COMMENT
from upcall_trace.trace.filters import BadFilter, parse
from upcall_trace.trace.opening import load
from upcall_trace.tui.app import Browser
from upcall_trace.tui.data.settings import Settings
from upcall_trace.tui.panes.ladder_lines import Clock
from upcall_trace.tui.screens.compare import CompareScreen
from upcall_trace.tui.screens.help import HelpScreen, live_keys
from upcall_trace.tui.screens.work import Given

from .support import CAPTURES, Driven, drive

CPUS = CAPTURES / "cpu_lifecycle.upcap"
OOPS = CAPTURES / "guest_oops.upcap"
STALE = CAPTURES / "stale_results.upcap"


def key_of(browser: Driven) -> str:
    """What the cursor is on, as `conn.request`, with `<` on a reply."""
    operation, place = browser.panes.operation, browser.panes.ladder.place
    if operation is None or place is None:
        return f"connection {browser.panes.ladder.connection}"
    return f"{operation.conn}.{operation.request}" + ("<" if place.shows else "")


def test_moving_in_the_ladder() -> None:
    async def script(browser: Driven) -> None:
        assert key_of(browser) == "1.0"
        for key, expected in (
            ("down", "1.0<"), ("j", "1.1"), ("up", "1.0<"), ("k", "1.0"), ("G", "connection 1"),
            ("up", "1.10<"), ("g", "connection 1"), ("end", "connection 1"), ("k", "1.10<"),
            ("home", "connection 1"), ("pagedown", "1.5<"), ("pageup", "connection 1"),
            ("ctrl+f", "1.5<"), ("ctrl+b", "connection 1"),
        ):  # fmt: skip
            await browser.press(key)
            assert key_of(browser) == expected, key

    drive(script, CPUS)


def test_a_line_that_is_no_operation_cannot_be_sent_again() -> None:
    async def script(browser: Driven) -> None:
        for key in ("r", "s"):
            await browser.press("g", key)
            assert browser.said == "only operations can be sent again; this line is none"

    drive(script, CPUS)


def test_failures_and_findings() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("right_square_bracket")
        assert key_of(browser) == "1.0<"
        text = browser.text()
        assert "UP201 vcpu-not-started at 1.0" in text
        assert "APIC id 1 did not start: the VMM does not run that vCPU." in text
        await browser.press("right_square_bracket")
        assert key_of(browser) == "1.2<"
        await browser.press("left_square_bracket", "left_square_bracket")
        assert key_of(browser) == "1.0<"
        assert "no more failures above" in browser.said
        await browser.press("right_curly_bracket", "right_curly_bracket")
        assert key_of(browser) == "1.3<"  # 289 ms, a warning
        assert "UP601" in browser.text()
        await browser.press("left_curly_bracket")
        assert key_of(browser) == "1.2<"

    drive(script, CPUS)


def test_a_filter_is_completed_checked_while_it_is_typed_and_kept() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("slash")
        await browser.type("op == del_c")
        assert "did you mean" in browser.lines()[-1]
        await browser.press("tab")
        assert browser.panes.prompt.line.value == "op == del_cpu"
        assert "5 of 11 match" in browser.lines()[-1]
        await browser.type(" and ret <")
        await browser.press("enter")
        assert "missing at the end" in browser.lines()[-1]
        await browser.type(" 0")
        await browser.press("enter")
        assert browser.panes.ladder.arranged.matches == 2
        assert browser.panes.ladder.count() == 4
        assert "2 of 11 match op == del_cpu and ret < 0" in browser.lines()[0]
        await browser.press("n")
        assert key_of(browser) == "1.8"
        await browser.press("n")
        assert browser.said == "no more matches"
        await browser.press("N")
        assert key_of(browser) == "1.7"
        await browser.press("h")
        assert browser.panes.ladder.count() == 22
        await browser.press("n", "n")
        assert key_of(browser) == "1.8"
        await browser.press("h", "slash", "escape")
        assert browser.panes.ladder.arranged.matches == 2
        await browser.press("slash", "ctrl+u", "enter")
        assert browser.panes.ladder.count() == 24

    drive(script, CPUS)


@pytest.mark.parametrize(
    "text", ["latency>1ms", "latency > 1m", "mmio_base == 0xc", "ret in 0..2a"]
)
def test_tab_inserts_nothing_after_a_number(text: str) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("slash")
        await browser.type(text)
        await browser.press("tab")
        assert browser.panes.prompt.line.value == text

    drive(script, CPUS)


def test_what_is_wrong_with_a_filter_is_whole_on_a_narrow_screen() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("slash")
        await browser.type("op == del_cpux")
        error, lines = wrong("op == del_cpux"), browser.lines()
        assert len(error) > 40
        assert error in " ".join(" ".join(lines[-3:]).split())
        assert "did you mean" in error
        await browser.press("backspace")
        assert "filter: op == del_cpu" in browser.lines()[-1]
        assert "5 of 11 match" in browser.lines()[-1]

    drive(script, CPUS, size=(80, 24))


def wrong(text: str) -> str:
    """What is wrong with a filter, as the line says it."""
    with pytest.raises(BadFilter) as caught:
        parse(text)
    return f"{caught.value.position + 1}: {caught.value.why}"


def test_a_typed_name_takes_the_place_of_the_proposed_one(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("x")
        assert browser.panes.prompt.line.value == "cpu_lifecycle.txt"
        await browser.type(str(tmp_path / "mine.txt"))
        assert browser.panes.prompt.line.value == str(tmp_path / "mine.txt")
        await browser.press("enter")

    drive(script, CPUS)
    assert (tmp_path / "mine.txt").exists()


def test_into_panes_and_out_again() -> None:
    async def script(browser: Driven) -> None:
        panes = browser.panes
        await browser.press("enter")
        assert browser.is_at(panes.detail.fields)
        await browser.press("enter")
        assert browser.is_at(panes.detail.hex)
        await browser.press("escape")
        assert browser.is_at(panes.detail.fields)
        await browser.press("escape")
        assert browser.is_at(panes.ladder)
        await browser.press("escape")
        assert browser.is_at(panes.sessions)
        for number, pane in enumerate(
            (panes.sessions, panes.ladder, panes.finding, panes.detail.fields, panes.state,
             panes.statistics, panes.log_pane), start=1,
        ):  # fmt: skip
            await browser.press(str(number))
            assert browser.is_at(pane)
            assert pane.region.height > 0
        await browser.press("2", "z")
        assert panes.zoomed is panes.ladder
        await browser.press("escape")
        assert panes.zoomed is None
        await browser.press("tab")
        assert browser.is_at(panes.log_pane)
        await browser.press("shift+tab")
        assert browser.is_at(panes.ladder)

    drive(script, CPUS, size=(80, 24))


def test_a_connection_is_chosen_and_others_are_context() -> None:
    async def script(browser: Driven) -> None:
        panes = browser.panes
        await browser.press("1", "j", "j", "enter")
        assert browser.is_at(panes.ladder)
        assert panes.ladder.arranged.wanted.conn == 2
        assert key_of(browser) == "connection 2"
        assert panes.ladder.count() == 12
        await browser.press("o")
        assert panes.ladder.count() == 6
        await browser.press("o", "escape", "escape")
        assert panes.ladder.arranged.wanted.conn is None

    drive(script, OOPS)


def test_the_cursors_of_fields_and_bytes_are_linked() -> None:
    async def script(browser: Driven) -> None:
        panes = browser.panes
        await browser.press("right_square_bracket", "right_square_bracket", "enter")
        fields, hexes = panes.detail.fields, panes.detail.hex
        assert [field.name for field in fields.fields][4:] == ["ret", "padding"]
        await browser.press("j", "j", "j", "j")
        assert (hexes.byte, hexes.span) == (16, 4)
        await browser.press("enter", "l", "l", "l", "l")
        assert hexes.byte == 20
        assert fields.fields[fields.cursor - 1].name == "padding"
        await browser.press("h")
        assert fields.fields[fields.cursor - 1].name == "ret"
        await browser.press("right", "left", "down")
        assert hexes.byte == 19 + hexes.row_size

    drive(script, STALE)


def test_stale_bytes_are_told_with_the_request_that_left_them() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("right_square_bracket", "right_square_bracket", "right_square_bracket")
        assert key_of(browser) == "1.3<"
        await browser.press("enter", "j", "j", "j", "j")
        assert browser.panes.detail.fields.fields[4].kinds == ("stale",)
        assert "stale, of reply 2" in str(browser.panes.detail.border_subtitle)

    drive(script, STALE)


def test_times() -> None:
    async def script(browser: Driven) -> None:
        def clock() -> Clock:
            return browser.panes.ladder.clock

        assert "10.108038" in browser.text()
        await browser.press("t")
        assert clock() is Clock.DELTA
        assert "+10.08s" in browser.text()
        await browser.press("t")
        assert clock() is Clock.ABSOLUTE
        assert "does not know its date" in browser.said
        await browser.press("t")
        assert clock() is Clock.SINCE_START

    drive(script, CPUS)


def test_a_text_is_looked_for() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("f")
        await browser.type("ids=3,2")
        await browser.press("enter")
        assert key_of(browser) == "1.6"

    drive(script, CPUS)


def test_two_operations_are_compared() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("d")
        assert "pick two" in browser.said
        await browser.press("space", "j", "j", "space")
        assert browser.panes.ladder.picked == [0, 1]
        await browser.press("d")
        assert isinstance(browser.app.screen, CompareScreen)
        text = browser.text()
        assert "≠ result" in text
        assert "ok apic_index=1" in text
        assert "≠ apic_ids" not in text
        await browser.press("escape", "space")
        assert browser.panes.ladder.picked == [0]

    drive(script, CPUS)


def test_marks_and_comments_are_kept_in_the_capture(tmp_path: Path) -> None:
    path = Path(shutil.copy(CPUS, tmp_path))

    async def script(browser: Driven) -> None:
        await browser.press("G", "m")
        assert "only operations" in browser.said
        await browser.press("k", "m", "q")
        assert browser.said == "kept in the capture"
        await browser.press("semicolon")
        await browser.type("look here")
        await browser.press("enter")
        assert "look here" in browser.text()
        await browser.press("g", "apostrophe", "q")
        assert key_of(browser) == "1.10<"
        await browser.press("apostrophe", "z")
        assert "is marked z" in browser.said

    drive(script, path)
    added = load(path).marks[-2:]
    assert [(mark.conn, mark.request, mark.name, mark.text) for mark in added] == [
        (1, 10, "q", ""), (1, 10, COMMENT, "look here"),
    ]  # fmt: skip
    assert has_index(path)


def test_an_operation_is_copied_as_a_command() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("y")
        command = "upcall-trace send --to ADDRESS add-cpu 1"
        assert browser.app.clipboard == command
        assert browser.said == f"copied: {command}"
        await browser.press("g", "y")
        assert "only operations" in browser.said

    drive(script, CPUS)


def test_what_is_shown_is_exported(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("slash")
        await browser.type("ret < 0")
        await browser.press("enter")
        for name in (
            "some.txt",
            "some.jsonl",
            "some.ndjson",
            "some.csv",
            "some.html",
            "some.upcap",
        ):
            await browser.press("x", "ctrl+u")
            await browser.type(str(tmp_path / name))
            await browser.press("enter")
            assert "4 operations written" in browser.said, browser.said
        await browser.press("x", "ctrl+u")
        await browser.type(str(tmp_path / "some.txt"))
        await browser.press("enter")
        assert "exists already" in browser.said
        await browser.press("x", "ctrl+u")
        await browser.type(str(tmp_path / "some.xyz"))
        await browser.press("enter")
        assert "no format has the suffix" in browser.said
        assert not (tmp_path / "some.xyz").exists()
        await browser.press("x", "ctrl+u")
        await browser.type("~nosuchuser/some.txt")
        await browser.press("enter")
        assert browser.said == "~nosuchuser is not a user with a home folder here"

    drive(script, CPUS)
    assert (tmp_path / "some.txt").read_text().count("EINVAL") == 3
    assert len((tmp_path / "some.csv").read_text().splitlines()) == 1 + 4
    kinds = [json.loads(line) for line in (tmp_path / "some.ndjson").read_text().splitlines()]
    assert sum("op" in each for each in kinds) == 4
    assert len(load(tmp_path / "some.jsonl").operations) == 4  # a transcript, as `export` writes it
    assert "<html" in (tmp_path / "some.html").read_text()
    assert len(load(tmp_path / "some.upcap").operations) == 4


@pytest.mark.parametrize("vmm_log", [None, Path("nowhere.log")], ids=["", "one cannot be read"])
def test_a_report_is_written_with_the_logs_that_were_given(
    vmm_log: Path | None, tmp_path: Path
) -> None:
    console = GOLDEN / "guest_oops.console.log"

    async def script(browser: Driven) -> None:
        await browser.press("x", "ctrl+u")
        await browser.type(str(tmp_path / "browser.html"))
        await browser.press("enter")
        assert "operations written" in browser.said, browser.said

    drive(script, Given(OOPS, console=console, vmm_log=vmm_log))
    run("export", OOPS, "-o", tmp_path / "command.html", "--console", console)
    report = (tmp_path / "command.html").read_text()
    assert "unable to handle page fault" in report
    assert (tmp_path / "browser.html").read_text() == report


def test_a_complete_capture_does_not_grow_and_can_be_paused() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("F")
        assert "complete" in browser.said
        assert key_of(browser) == "connection 1"
        await browser.press("p")
        assert "paused" in browser.lines()[0]
        await browser.press("p")
        assert "paused" not in browser.lines()[0]

    drive(script, CPUS)


def test_help_palette_and_quit() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("question_mark")
        assert isinstance(browser.app.screen, HelpScreen)
        assert "keys in ladder" in browser.text()
        await browser.press("escape", "colon")
        await browser.type("next fail")
        assert "Next failure (])" in browser.text()
        await browser.press("enter")
        assert key_of(browser) == "1.0<"
        await browser.press("q")
        assert browser.app.return_value is False

    drive(script, CPUS)


@pytest.mark.parametrize("key", ["ctrl+q", "ctrl+c"])
def test_it_can_be_left_by_other_keys_too(key: str) -> None:
    async def script(browser: Driven) -> None:
        await browser.pilot.press(key)
        assert browser.app.return_value is False

    drive(script, CPUS)


def test_evidence_leads_to_what_it_is_about() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("right_square_bracket", "right_square_bracket", "3")
        assert key_of(browser) == "1.2<"
        finding = browser.panes.finding
        while finding.evidence is None:
            await browser.press("j")
        await browser.press("enter")
        assert key_of(browser) == "1.1<"
        assert browser.screen.focused is browser.panes.ladder

    drive(script, STALE)


def test_keys_can_be_changed() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("f5")
        assert key_of(browser) == "1.0<"
        keys = {name: keys for name, keys, _ in live_keys(browser.screen)}
        assert keys["next_failure"] == ["f5"]

    drive(script, CPUS, settings=Settings(keys={"next_failure": "f5"}))


def test_every_key_of_the_help_is_pressed_in_this_file() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    pressed = {word for line in source.splitlines() for word in line.split('"')[1::2]}

    async def script(browser: Driven) -> None:
        for pane in ("2", "4", "enter", "slash"):
            await browser.press(pane)
            active = browser.app.screen.active_bindings
            assert [name for name, _, _ in live_keys(browser.app.screen)]
            for key, binding in active.items():
                if binding.binding.id and not key.isdigit():
                    assert key in pressed, (key, binding.binding.id)

    drive(script, CPUS)


def test_no_two_bindings_share_a_key_and_all_have_names() -> None:
    async def script(browser: Driven) -> None:
        for active in browser.app.screen.active_bindings.values():
            assert active.binding.id, active.binding
        assert isinstance(browser.app, Browser)
        assert browser.app.clashes == set()

    drive(script, CPUS)


def test_the_mouse_moves_goes_in_and_picks_a_time() -> None:
    async def script(browser: Driven) -> None:
        ladder = browser.panes.ladder
        await browser.pilot.click(ladder, offset=(30, 5))
        await browser.settle()
        assert ladder.cursor == 3
        await browser.pilot.click(ladder, offset=(30, 6), times=2)
        await browser.settle()
        assert ladder.cursor == 4
        assert browser.is_at(browser.panes.detail.fields)
        hexes = browser.panes.detail.hex
        await browser.pilot.click(hexes, offset=(7 + 3 * 2, 1))
        await browser.settle()
        assert hexes.byte == hexes.row_size + 2
        await browser.pilot.click(browser.panes.timeline, offset=(99, 0))
        await browser.settle()
        assert (ladder.row or 0) > 5

    drive(script, CPUS)
