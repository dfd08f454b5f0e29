"""The website: built offline and strictly, whole, searched, and shown without any other request."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import needs_chromium
from tools.generate_docs import ROOT, pages

MKDOCS = ROOT / ".venv" / "site" / "bin" / "mkdocs"
pytestmark = pytest.mark.skipif(not MKDOCS.exists(), reason="make site has not set up MkDocs")
KINDS = ["index", "start-operator", "find-the-cause", "protocol", "codes", "upcall"]
"""A page of every kind: map, start, how-to, reference, one that is generated, explanation."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does it."""
    made = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [MKDOCS, "build", "--quiet", "--strict", "--site-dir", made],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False, timeout=110,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return made


def clicks(site: Path, page: str) -> set[str]:
    """The pages that the links of a page lead to."""
    text = (site / page).read_text(encoding="utf-8")
    return {
        os.path.normpath(Path(page).parent / link)
        for link in re.findall(r'href="([^"#:]+\.html)[#"]', text)
    }


def test_every_page_is_within_three_clicks(site: Path) -> None:
    reached = {"index.html"}
    for _ in range(3):
        reached |= {link for page in reached for link in clicks(site, page)}
    made = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert made == reached
    assert {f"{page.stem}.html" for page in pages(ROOT)} - {"README.html"} <= made


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"?(\w+:)?//", text)
        assert not loaded, path
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", text), path


def shown(browser: Any, address: str, asked: list[str], **settings: Any) -> Any:
    """A page of the site, with every request that it makes noted in `asked`."""
    opened = browser.new_context(**settings).new_page()
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    return opened


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served on this machine."""
    handler = partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that does not log."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        """Say nothing."""


@needs_chromium
@pytest.mark.parametrize("place", ["on a server", "in a file"])
def test_the_search_finds_a_code_and_asks_nobody_else(
    browser: Any, address: str, site: Path, place: str
) -> None:
    asked: list[str] = []
    start = address if place == "on a server" else f"{site.as_uri()}/"
    page = shown(browser, f"{start}index.html", asked)
    page.keyboard.press("/")
    page.keyboard.type("resize-wedged", delay=20)
    page.wait_for_selector("a.md-search-result__link", timeout=30_000)
    found = page.eval_on_selector_all("a.md-search-result__link", "all => all.map(a => a.href)")
    page.context.close()
    assert any("codes.html" in link for link in found)
    assert [url for url in asked if not url.startswith((start, "blob:", "data:"))] == []


@needs_chromium
@pytest.mark.parametrize(("scheme", "ending"), [("light", ""), ("dark", "-dark")])
def test_a_picture_is_shown_in_the_theme_of_the_page(
    browser: Any, site: Path, scheme: str, ending: str
) -> None:
    page = shown(browser, (site / "upcall.html").as_uri(), [], color_scheme=scheme)
    seen = page.eval_on_selector_all(
        "article img", "all => all.filter(i => i.offsetWidth && i.naturalWidth).map(i => i.src)"
    )
    page.context.close()
    wanted = [f"{name}{ending}.svg" for name in ("vantage", "connection", "hotplug")]
    assert [url.partition("#")[0].rpartition("/")[2] for url in seen] == wanted


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_against_wcag_aa(
    browser: Any, site: Path, kind: str, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    asked: list[str] = []
    page = shown(browser, (site / f"{kind}.html").as_uri(), asked, color_scheme=scheme)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.Axe().run(page, options=rules).response["violations"]
    page.context.close()
    assert [(each["id"], [n["html"] for n in each["nodes"]][:3]) for each in found] == []
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
