"""From the browser to a replay: planned here, sent only when that was typed out."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input

from tests.replay.playing import guest_of
from tests.support import golden
from upcall_trace.cli.support.browser_replays import FileReplays
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.tui.screens.replaying import ReplayScreen
from upcall_trace.tui.screens.work import Given

from .support import CAPTURES, Driven, drive

MMIO = CAPTURES / "mmio_lifecycle.upcap"
OOPS = CAPTURES / "guest_oops.upcap"


def replays(given: Given) -> FileReplays:
    return FileReplays(given.path, given.world)


async def enter(browser: Driven, text: str) -> None:
    """Type a line; there is one field only."""
    line = browser.app.screen.query_one(Input)
    line.value = ""
    await browser.type(text)
    await browser.press("enter")


async def planned_for(browser: Driven, guest: SimulatedGuest, key: str = "r") -> None:
    """Open the plan at the cursor for a guest."""
    browser.app.replays = replays
    await browser.press(key)
    assert isinstance(browser.app.screen, ReplayScreen)
    browser.app.screen.query_one(Input).value = str(guest.path)
    await browser.press("enter")
    await browser.until("type ")


def test_the_plan_is_shown_and_nothing_is_sent(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await planned_for(browser, guest)
        text = browser.text()
        assert "15 requests to " in text
        assert "undone by: send del-mmio 0xfeb00400 0x200 7" in text
        assert "to send 15 requests type send; escape sends nothing" in text
        await enter(browser, "yes")
        assert "nothing was sent: that is neither send nor step" in browser.text()
        await browser.press("escape")
        assert not isinstance(browser.app.screen, ReplayScreen)
        assert guest.state() == before

    with guest_of(golden("mmio_lifecycle"), tmp_path) as guest:
        before = guest.state()
        drive(script, MMIO)


def test_typed_out_it_is_sent_from_the_cursor_on(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await browser.press("G", "up", "up")  # the last request
        await planned_for(browser, guest)
        assert "replay from 1.14 on" in browser.text()
        await enter(browser, "send")
        await browser.until("escape closes")
        assert "1.14 del_mmio 0xfeb00400+0x200 irq=7: ENODEV (-19)" in browser.text()
        assert "1 of 1 requests replayed" in browser.text()
        assert "1 answered otherwise" in browser.text()

    with guest_of(golden("mmio_lifecycle"), tmp_path) as guest:
        drive(script, MMIO)


def test_step_by_step(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await planned_for(browser, guest, "s")
        assert "to send 15 requests type step; escape sends nothing" in browser.text()
        await browser.type("step")
        browser.send("enter")  # from here on it never rests: it waits for the next step
        await browser.until("s sends 1.0 add_mmio 0xfeb00400+0x200 irq=7; escape stops")
        assert guest.state() == before
        browser.send("s")
        await browser.until("1.0 add_mmio 0xfeb00400+0x200 irq=7: ok")
        await browser.until("s sends 1.1 add_mmio")
        assert len(guest.state()["mmio"]) == len(before["mmio"]) + 1
        browser.send("escape")
        await browser.until("1 of 15 requests replayed")
        await browser.until("escape closes")
        await browser.press("escape")
        assert not isinstance(browser.app.screen, ReplayScreen)

    with guest_of(golden("mmio_lifecycle"), tmp_path) as guest:
        before = guest.state()
        drive(script, MMIO)


def test_a_step_whose_answer_does_not_come_says_what_it_waits_for(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await planned_for(browser, guest)
        await browser.type("send")
        browser.send("enter")
        await browser.until("waiting for the answer to 1.0 add_mmio 0xfeb00400+0x200 irq=7")
        browser.send("escape")
        await browser.until("escape closes")

    with guest_of(golden("mmio_lifecycle"), tmp_path, "any:delay=1s") as guest:
        drive(script, MMIO)


def test_a_simulated_target_is_booted_anew_by_a_key(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        browser.app.replays = replays
        await browser.press("r", "ctrl+r")
        assert "is booted anew, once there is a plan" in browser.text()
        await browser.press("escape")
        await planned_for(browser, guest)
        assert "escape sends nothing; ctrl+r boots it anew" in " ".join(browser.text().split())
        await enter(browser, "send")
        await browser.until("escape closes")
        assert guest.state() != before
        await browser.press("ctrl+r")
        await browser.until("the target was booted anew")
        assert guest.state() == before

    with guest_of(golden("mmio_lifecycle"), tmp_path) as guest:
        before = guest.state()
        drive(script, MMIO, size=(140, 40))


def test_dangers_have_to_be_named(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        await planned_for(browser, guest)
        assert "type send UP206" in browser.text()
        await enter(browser, "send")
        assert "nothing was sent: that is neither send UP206 nor step UP206" in browser.text()
        await enter(browser, "send UP206")
        await browser.until("4 of 4 requests replayed")

    with guest_of(golden("guest_oops"), tmp_path) as guest:
        drive(script, OOPS)


def test_where_nobody_is(tmp_path: Path) -> None:
    async def script(browser: Driven) -> None:
        browser.app.replays = replays
        await browser.press("r")
        await enter(browser, "vsock://nowhere")
        await browser.until("is not vsock://CID")
        await enter(browser, str(tmp_path / "none"))
        await browser.until("nobody listens on")

    drive(script, MMIO, size=(140, 40))
