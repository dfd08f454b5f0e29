"""Looking for texts and bytes, in the ladder and in panes of lines."""

from __future__ import annotations

import pytest

from upcall_trace.errors import WrongUsage
from upcall_trace.tui.data.search import Sought
from upcall_trace.tui.screens.work import Given

from .support import CAPTURES, ROOT, Driven, drive

CPUS = CAPTURES / "cpu_lifecycle.upcap"
MMIO = CAPTURES / "mmio_lifecycle.upcap"


async def find(browser: Driven, text: str) -> None:
    await browser.press("f")
    assert "find:" in browser.lines()[-1]
    await browser.type(text)
    await browser.press("enter")


def at(browser: Driven) -> str:
    operation = browser.panes.operation
    return "" if operation is None else f"{operation.conn}.{operation.request}"


def test_a_text_is_found_in_fields_results_doubts_codes_and_remarks() -> None:
    async def script(browser: Driven) -> None:
        for text, first in (
            ("apic_ids=0,1", "1.8"), ("einval", "1.2"), ("stale-load", "1.2"), ("UP204", "1.8"),
            ("1.10", "1.10"), ("would remove all", "1.7"),
        ):  # fmt: skip
            await browser.press("escape", "g", "down")
            await find(browser, text)
            assert at(browser) == first, text

    drive(script, CPUS)


def test_next_and_before_go_through_what_was_found_and_escape_ends_it() -> None:
    async def script(browser: Driven) -> None:
        await find(browser, "del_cpu")
        assert browser.said == "5 operations have it; n and N go to them"
        places = [at(browser)]
        for _ in range(4):
            await browser.press("n")
            places.append(at(browser))
        assert places == ["1.4", "1.6", "1.7", "1.8", "1.9"]
        await browser.press("n")
        assert browser.said == "no more matches"
        await browser.press("N")
        assert at(browser) == "1.8"
        await browser.press("1", "escape")
        assert browser.said == "nothing is looked for any more"
        await browser.press("2", "n")
        assert at(browser) == "1.9"  # every operation is one now

    drive(script, CPUS)


def test_bytes_are_found_in_requests_and_replies() -> None:
    async def script(browser: Driven) -> None:
        await find(browser, "hex: 00 04 b0 fe")  # 0xfeb00400, as it crosses
        operation = browser.panes.operation
        assert operation is not None
        assert operation.fields["mmio_base"] == 0xFEB00400
        await find(browser, "hex:efffffff")  # -17
        assert "EEXIST" in browser.text()
        await find(browser, "hex: 123456789abcdef0")
        assert browser.said == "0 operations have it; n and N go to them"
        await find(browser, "hex: 1")
        assert browser.said == "after hex: come bytes of two digits each, as in hex: 4d44"

    drive(script, MMIO)


def test_in_the_log_its_lines_are_looked_through() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("7", "g")
        await find(browser, "page fault for address")
        log = browser.panes.log_pane
        assert browser.is_at(log)
        width = log.scrollable_content_region.width
        here = "".join(piece.text for piece in log.line(log.cursor, width))
        assert "page fault for address" in here.lower()
        await browser.press("n")
        assert browser.said == "no more lines have it"
        await find(browser, "nothing like this")
        assert browser.said == "no line here has it"

    console = ROOT / "tests" / "golden" / "guest_oops.console.log"
    drive(script, Given(CAPTURES / "guest_oops.upcap", console=console))


def test_with_a_filter_only_what_is_shown_is_gone_to() -> None:
    async def script(browser: Driven) -> None:
        await browser.press("slash")
        await browser.type("op == add_cpu")
        await browser.press("enter")
        await find(browser, "apic_ids=1")
        seen = set()
        for _ in range(8):
            seen.add(at(browser))
            await browser.press("n")
        assert seen <= {"1.0", "1.1", "1.2", "1.10"}

    drive(script, CPUS)


@pytest.mark.parametrize("typed", ["hex:", "hex: 1", "hex: 123", "hex: xy", "HEX: 1 2"])
def test_bytes_that_are_none_are_a_sentence(typed: str) -> None:
    with pytest.raises(WrongUsage, match="two digits"):
        Sought.of(typed)


def test_what_is_typed_means_a_text_or_bytes() -> None:
    assert Sought.of("0xFEB") == Sought("0xfeb", None)
    assert Sought.of("Hex: 4D44 00") == Sought("", b"\x4d\x44\x00")
