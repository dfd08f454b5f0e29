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
from tests.support import answer, ask, connect, run, write_capture
from upcall_trace.capture.records import Header, Mark, Record

VALIDATOR = Path(".venv/node/node_modules/.bin/html-validate")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b]0;x\a"


def report(capture: str | Path, tmp_path: Path) -> Path:
    written = tmp_path / "report.html"
    outcome = run("export", capture, "-o", written, "--overwrite")
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
def test_a_click_shows_the_bytes_of_both_messages(page: Any, tmp_path: Path) -> None:
    page.goto(report("captures/mmio_lifecycle.upcap", tmp_path).as_uri())
    page.click("tbody tr:nth-child(3)")
    shown = page.inner_text("#hex")
    assert "0000  00 01 4d 44 18 00 00 00 05 00 00 00" in shown
    assert "\nreply\n0000  00 01 4d 44" in shown


@needs_chromium
def test_hostile_text_stays_text(page: Any, tmp_path: Path) -> None:
    header = Header("test", notes={HOSTILE[:40]: HOSTILE})
    records = [*connect(), Mark(0, 1, None, "comment", HOSTILE)]
    name = "<img src=x onerror=alert(1)>&lt;b>.upcap"
    capture = write_capture(tmp_path / name, records, header)
    page.goto(report(capture, tmp_path).as_uri())
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
    page.fill("#search", "1.19998")
    matching(page, "1 of 20000")


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
    page.goto(report("captures/cpu_lifecycle.upcap", tmp_path).as_uri())
    page.click("tbody tr:nth-child(2)")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.Axe().run(page, options=rules).response["violations"]
    overflow = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    context.close()
    assert [(each["id"], [n["html"] for n in each["nodes"]][:3]) for each in found] == []
    assert not overflow


@pytest.mark.skipif(not VALIDATOR.exists(), reason="there is no html-validate here")
def test_the_page_is_valid_html(tmp_path: Path) -> None:
    for name in ("cpu_lifecycle", "framing"):
        written = report(f"captures/{name}.upcap", tmp_path)
        ended = subprocess.run([VALIDATOR, written], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout


def test_the_policy_allows_nothing_but_what_is_in_the_page(tmp_path: Path) -> None:
    text = html.unescape(report("captures/framing.upcap", tmp_path).read_text("utf-8"))
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    assert "http" not in text.replace("http-equiv", "")
