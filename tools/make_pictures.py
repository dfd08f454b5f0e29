"""Makes the documentation's pictures: `python -m tools.make_pictures`.

Drawings come from the program's tables (`tools.diagrams`), screenshots from the running browser and
from a report in Chromium. Each picture has a light file and a dark one, `NAME-dark`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from click.testing import CliRunner

from upcall_trace.cli import cli
from upcall_trace.tui.app import Browser
from upcall_trace.tui.data.settings import Settings
from upcall_trace.tui.screens.capture_screen import CaptureScreen
from upcall_trace.tui.screens.work import Given

from .diagrams import drawn
from .generate_docs import ROOT

PICTURES: Final = ROOT / "docs" / "pictures"
_PATIENCE: Final = 2000
_THEMES: Final = {"": "textual-light", "-dark": "textual-dark"}
"""The browser's theme by the ending of the picture's name."""
_REPORT_OF: Final = ROOT / "captures" / "cpu_lifecycle.upcap"
_CONSOLE_OF_IT: Final = ROOT / "tests" / "golden" / "cpu_lifecycle.console.log"
_REPORTS: Final = {
    "report.png": ("light", "h1"),
    "report-dark.png": ("dark", "h1"),
    "ladder.png": ("light", "#operations"),
    "ladder-dark.png": ("dark", "#operations"),
}
"""The scheme of each picture of the report, and what is at the top of it."""
_SCROLLED: Final = 300
"""Pixels that the ladder is scrolled, so that it shows an answer that is late."""


class Picture(NamedTuple):
    """One picture: of what, how large, and what is typed before it is taken."""

    name: str
    capture: str
    size: tuple[int, int]
    keys: tuple[str, ...] = ()
    console: bool = False


ALL: Final = (
    Picture("failure", "cpu_lifecycle", (120, 36), ("right_square_bracket",)),
    Picture("bytes", "stale_results", (120, 36), (*["right_square_bracket"] * 3, "4", *"jjjj")),
    Picture("wide", "guest_oops", (220, 44), ("right_square_bracket",), console=True),
    Picture("medium", "mmio_lifecycle", (100, 30), ("right_square_bracket",)),
    Picture("narrow", "pci_memory", (80, 24), ("right_square_bracket", "5")),
)


async def take(picture: Picture, ending: str) -> str:
    """The picture as SVG, in the theme that `ending` stands for."""
    golden = ROOT / "tests" / "golden" / f"{picture.capture}.console.log"
    path = ROOT / "captures" / f"{picture.capture}.upcap"
    given = Given(path, console=golden if picture.console else None)
    app = Browser(given, Settings(theme=_THEMES[ending]))
    async with app.run_test(size=picture.size) as pilot:
        for key in ("", *picture.keys):
            if key:
                await pilot.press(key)
            for _ in range(_PATIENCE):
                await pilot.pause(0.01)
                screen = app.screen
                if isinstance(screen, CaptureScreen) and screen.is_at_rest:
                    break
        await pilot.pause(0.2)
        return _trimmed(app.export_screenshot(title=f"upcall-trace tui {path.name}"))


def take_report(chromium: Any) -> dict[str, bytes]:
    """The HTML report in a Chromium of playwright as PNG, by the names of the files."""
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "report.html"
        logs = ["--console", str(_CONSOLE_OF_IT)]
        arguments = ["export", str(_REPORT_OF), "-o", str(page_file), *logs]
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
        for name, (scheme, top) in _REPORTS.items():
            page = chromium.new_page(viewport={"width": 960, "height": 900}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            page.locator(top).evaluate("what => what.scrollIntoView()")
            page.locator("#ladder").evaluate(f"box => {{ box.scrollTop = {_SCROLLED}; }}")
            taken[name] = page.screenshot()
            page.close()
    return taken


def main() -> None:
    """Write every picture anew; those of the report where there is a Chromium."""
    PICTURES.mkdir(exist_ok=True)
    for name, svg in drawn().items():
        (PICTURES / name).write_text(svg, encoding="utf-8")
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"XDG_STATE_HOME": home, "XDG_CONFIG_HOME": home}
        for picture in ALL:
            for ending in _THEMES:
                made = asyncio.run(take(picture, ending))
                (PICTURES / f"{picture.name}{ending}.svg").write_text(made, encoding="utf-8")
    if path := shutil.which("chromium"):
        from playwright.sync_api import sync_playwright

        with sync_playwright() as running:
            # It makes a socket in there, whose path has a limit.
            place: Any = {**os.environ, "TMPDIR": "/tmp"}  # noqa: S108
            opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"], env=place)
            for name, png in take_report(opened).items():
                (PICTURES / name).write_bytes(png)
            opened.close()


def _trimmed(svg: str) -> str:
    """Without fonts from elsewhere: a picture asks nobody for anything."""
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    svg = svg.replace("<!-- Generated with Rich https://www.textualize.io -->\n", "")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    main()
