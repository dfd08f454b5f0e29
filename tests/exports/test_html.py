"""The report in a real Chromium: it draws, filters, shows bytes, loads nothing and lets all in."""

from __future__ import annotations

import html
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.chromium import needs_chromium
from tests.support import GOLDEN, answer, ask, connect, run, write_capture
from upcall_trace.capture.records import Header, Mark, Record

VALIDATOR = Path(".venv/node/node_modules/.bin/html-validate")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b]0;x\a"


def report(capture: str | Path, tmp_path: Path, *options: str | Path) -> Path:
    written = tmp_path / "report.html"
    outcome = run("export", capture, "-o", written, "--overwrite", *options)
    assert outcome.code in (0, 3), outcome.err
    return written


def many(count: int) -> list[Record]:
    """A conversation of so many requests: a window comes and goes, every seventh is refused."""
    records: list[Record] = connect()
    for number in range(count):
        kind = MessageType.DEL_MMIO if number % 2 else MessageType.ADD_MMIO
        window = 0xE0000000 + number // 2 % 50 * 0x2000
        request = mmio_request(kind, window, 0x2000, 5)
        at_ns = 10_000 + number * 1_000_000
        records += [
            ask(request, at_ns),
            answer(request, at_ns + 400_000, ret=-17 * (number % 7 == 0)),
        ]
    return records


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test for an error in its console and for any request but its own."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda said: complaints.append(said.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith("file:") else complaints.append(asked.url),
    )
    yield opened
    context.close()
    assert complaints == []


CONSOLE = ("--console", GOLDEN / "cpu_lifecycle.console.log")


def drawn(page: Any, kind: str = "said") -> list[str]:
    """What is written in the ladder as far as it is in sight."""
    texts: list[str] = page.eval_on_selector_all(
        f"#drawing text.{kind}", "texts => texts.map(text => text.textContent)"
    )
    return texts


def wait_for(page: Any, script: str) -> None:
    """Wait until a condition in the page is true; its policy lets no wait_for_function in."""
    until = time.monotonic() + 60
    while not page.evaluate(script):
        assert time.monotonic() < until, script
        time.sleep(0.02)


def matching(page: Any, text: str) -> None:
    """Wait until the report says how many rows match; its policy lets no wait_for_function in."""
    until = time.monotonic() + 20
    while not page.inner_text("#matching").startswith(text):
        assert time.monotonic() < until, page.inner_text("#matching")
        time.sleep(0.02)


@needs_chromium
def test_the_headline_the_findings_and_every_operation_are_there(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/cpu_lifecycle.upcap", tmp_path).as_uri())
    said = json.loads(run("diagnose", "--json", "captures/cpu_lifecycle.upcap").out)
    headline = page.inner_text(".headline")
    assert headline == said["headline"]
    assert "UP201 vcpu-not-started, on the VMM's side" in headline
    shown = [
        json.loads(line)
        for line in run("show", "--json", "captures/cpu_lifecycle.upcap").out.splitlines()
    ]
    keys = page.eval_on_selector_all("tbody th", "cells => cells.map(cell => cell.textContent)")
    assert keys == [f"{o['conn']}.{o['request']}" for o in shown]
    assert page.locator(".finding").count() == 12
    assert page.locator("circle").count() == len(shown)


@needs_chromium
def test_rows_are_filtered_by_words_kind_and_code(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/mmio_lifecycle.upcap", tmp_path).as_uri())
    whole = page.locator("tbody tr:visible").count()
    page.fill("#search", "0xfeb00400 eexist")
    matching(page, "1 of ")
    assert page.locator("tbody tr:visible").count() == 1
    page.fill("#search", "")
    page.select_option("#code", "UP304")
    matching(page, "1 of ")
    page.select_option("#code", "")
    page.select_option("#kind", "bad")
    refused = page.locator("tbody tr.bad").count()
    matching(page, f"{refused} of ")
    assert page.locator("tbody tr:visible").count() == refused < whole


@needs_chromium
def test_the_ladder_has_what_crossed_in_the_order_of_time(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/framing.upcap", tmp_path).as_uri())
    page.eval_on_selector("#ladder", "box => { box.style.height = '4000px'; }")
    page.evaluate("window.dispatchEvent(new Event('resize'))")
    wait_for(page, "document.querySelectorAll('#drawing .asks').length === 9")
    said = drawn(page)
    assert said[:4] == [
        "1.0 add_mem",
        "1.1 del_mem",
        "✗ EPERM (-1) the guest has no handler for it",
        "✗ EPERM (-1) the guest has no handler for it",
    ]
    # What went wrong differs by its line and its words, not only by its colour.
    dashes = page.eval_on_selector_all(
        "#drawing .answers",
        "lines => lines.map(line => [line.getAttribute('class').split(' ').slice(1).join(' '),"
        " getComputedStyle(line).strokeDasharray])",
    )
    by_kind = dict(dashes)
    assert len(set(by_kind.values())) == len(by_kind) >= 3
    assert by_kind["ok"] == "none"
    assert any(text.endswith(", late") for text in said)
    assert drawn(page, "connection")[0] == "connection 1 opens, port 219: was ready"


@needs_chromium
def test_a_request_without_an_answer_has_a_cross_and_no_arrow(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/guest_oops.upcap", tmp_path).as_uri())
    asked = page.locator("#drawing .asks").count()
    assert asked == page.locator("tbody tr[id]").count()
    silent = page.locator("#drawing .cross").count()
    assert silent == page.locator("tbody tr.silent").count() >= 1
    assert page.locator("#drawing .answers").count() == asked - silent
    assert "✗ no answer" in drawn(page)


@needs_chromium
def test_the_filter_is_the_ladders_too(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/framing.upcap", tmp_path).as_uri())
    page.fill("#search", "0xd1000000")
    matching(page, "1 of ")
    assert drawn(page)[0].startswith("2.0 add_mmio")
    assert page.locator("#drawing .asks").count() == 1
    assert drawn(page, "connection") == []
    page.fill("#search", "")
    page.select_option("#conn", "1")
    matching(page, "3 of ")
    assert [text[:3] for text in drawn(page) if text[0] != "✗"] == ["1.0", "1.1", "1.2"]


@needs_chromium
def test_lines_of_the_console_stand_beside_their_requests(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/cpu_lifecycle.upcap", tmp_path, *CONSOLE).as_uri())
    assert page.locator("tbody tr[id]").count() == 11
    beside = page.inner_text("#r1-2 + tr.lines")
    assert "apci_id 1 is already been used." in beside
    assert "console 24 10.253671 about it" in beside
    assert any("db-dev-mgr: adding vcpu apic_id 1" in text for text in drawn(page, "log"))
    assert page.locator("#drawing .dot.about").count() >= 2
    page.fill("#search", "apci_id 1 is already")
    matching(page, "1 of 11")
    assert page.locator("tbody tr.lines:visible").count() == 1
    assert drawn(page)[0].startswith("1.2 ")
    assert any("apci_id 1 is already" in text for text in drawn(page, "log"))


@needs_chromium
def test_the_keys_and_a_click_choose_in_the_ladder_and_show_the_bytes(
    page: Any, tmp_path: Path
) -> None:
    page.goto(report("captures/mmio_lifecycle.upcap", tmp_path).as_uri())
    page.focus("#ladder")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#bytes") == "Bytes of request 1.0"
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#bytes") == "Bytes of request 1.1"
    assert page.locator("tr.picked").get_attribute("id") == "r1-1"
    page.locator("#drawing text.said", has_text="1.0 ").click()
    assert page.inner_text("#bytes") == "Bytes of request 1.0"
    page.click("tbody tr:nth-child(3)")
    wait_for(page, "document.querySelectorAll('#drawing .chosen').length >= 1")


@needs_chromium
def test_in_print_the_ladder_stands_in_pieces_up_to_a_bound(page: Any, tmp_path: Path) -> None:
    page.goto(report(write_capture(tmp_path / "many.upcap", many(1000)), tmp_path).as_uri())
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("#ladder").is_hidden()
    assert page.locator("#paper svg").first.is_visible()
    assert page.locator("#paper .asks").count() == 300
    assert "The first 600 of 2001 lines are printed." in page.inner_text("#paper")


@needs_chromium
def test_a_click_shows_the_bytes_of_both_messages(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/mmio_lifecycle.upcap", tmp_path).as_uri())
    page.click("tbody tr:nth-child(3)")
    shown = page.inner_text("#hex")
    assert "0000  00 01 4d 44 18 00 00 00 05 00 00 00" in shown
    assert "\nreply\n0000  00 01 4d 44" in shown


@needs_chromium
def test_hostile_text_stays_text(page: Any, tmp_path: Path) -> None:
    header = Header("test", notes={HOSTILE[:40]: HOSTILE})
    request = mmio_request(MessageType.ADD_MMIO, 0xE0000000, 0x2000, 5)
    records = [
        *connect(),
        ask(request, 10_000),
        answer(request, 20_000, ret=0),
        Mark(0, 1, 0, "comment", HOSTILE),
        Mark(0, 1, 0, HOSTILE, HOSTILE),
    ]
    log = tmp_path / "console.log"
    log.write_text(
        "[    1.000000] virtio-mmio: Registering device virtio-mmio.0 at 0xe0000000-0xe0001fff, "
        f"IRQ 5.\n{HOSTILE}\n",
        "utf-8",
    )
    name = "<img src=x onerror=alert(1)>&lt;b>.upcap"
    capture = write_capture(tmp_path / name, records, header)
    page.goto(report(capture, tmp_path, "--console", log).as_uri())
    assert page.inner_text("tr.lines").count("document.title='owned'") == 4
    assert sum("<img src=x" in text for text in drawn(page, "log")) == 3
    assert page.title() == f"Upcall report: {name}"
    assert page.inner_text("h1") == f"Upcall report: {name}"
    assert "document.title='owned'" in page.inner_text("dl")
    assert page.locator("img").count() == 0


@needs_chromium
def test_twenty_thousand_operations_scroll_and_filter(page: Any, tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "many.upcap", many(20_000))
    page.goto(report(capture, tmp_path).as_uri())
    page.eval_on_selector(".scroll", "box => { box.scrollTop = box.scrollHeight; }")
    until = time.monotonic() + 20
    while not page.evaluate(
        "(() => { const r = document.getElementById('r1-19999').getBoundingClientRect();"
        " const b = document.querySelector('.scroll').getBoundingClientRect();"
        " return r.bottom <= b.bottom + 2 && r.top >= b.top; })()"
    ):
        assert time.monotonic() < until
    page.eval_on_selector("#ladder", "box => { box.scrollTop = box.scrollHeight; }")
    wait_for(page, "document.querySelector('#drawing').textContent.includes('1.19999 del_mmio')")
    assert page.locator("#drawing .asks").count() < 30
    page.fill("#search", "1.19998")
    matching(page, "1 of 20000")
    assert drawn(page)[0].startswith("1.19998 add_mmio")


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing_against_wcag_aa(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    page.goto(report("captures/cpu_lifecycle.upcap", tmp_path, *CONSOLE).as_uri())
    page.click("tbody tr[id]")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.Axe().run(page, options=rules).response["violations"]
    overflow = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    context.close()
    assert [(each["id"], [n["html"] for n in each["nodes"]][:3]) for each in found] == []
    assert not overflow


@pytest.mark.skipif(not VALIDATOR.exists(), reason="there is no html-validate here")
def test_the_page_is_valid_html(tmp_path: Path) -> None:
    for name in ("cpu_lifecycle", "framing"):
        console = GOLDEN / f"{name}.console.log"
        written = report(f"captures/{name}.upcap", tmp_path, "--console", console)
        ended = subprocess.run([VALIDATOR, written], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout


def test_the_policy_allows_nothing_but_what_is_in_the_page(tmp_path: Path) -> None:
    text = html.unescape(report("captures/framing.upcap", tmp_path).read_text("utf-8"))
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    assert "http" not in text.replace("http-equiv", "")
