"""The documentation's pictures are those that `make docs` makes, in a light and a dark theme."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dissectors.channel import State
from dissectors.layouts import DEVICE_MANAGER_TABLE, formats
from tests.chromium import needs_chromium
from tools.diagrams import DIAGRAMS, drawn
from tools.generate_docs import ROOT
from tools.make_pictures import ALL, PICTURES, Picture, take, take_report
from tools.wings import WINGS

NEAR = 0.02
"""How far two pictures may be apart, of 1: other fonts and other edges, not other contents."""
APART = """async ([one, other]) => {
  const pixels = await Promise.all([one, other].map(async (data) => {
    const image = new Image();
    image.src = "data:image/png;base64," + data;
    await image.decode();
    const canvas = new OffscreenCanvas(160, 150).getContext("2d");
    canvas.drawImage(image, 0, 0, 160, 150);
    return canvas.getImageData(0, 0, 160, 150).data;
  }));
  return pixels[0].reduce((sum, value, at) => sum + Math.abs(value - pixels[1][at]), 0)
    / pixels[0].length / 255;
}"""


def words(svg: str) -> str:
    """What a drawing says."""
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_every_picture_is_made_by_a_script_and_shown_somewhere() -> None:
    shown = {f"{name}.svg" for name in [*DIAGRAMS, *(p.name for p in ALL)]}
    shown |= {"report.png", "ladder.png"}
    dark = {re.sub(r"\.", "-dark.", name) for name in shown}
    # That of Wireshark has a script of its own, since it needs Wireshark.
    assert {path.name for path in PICTURES.iterdir()} == shown | dark | {"wireshark.png"}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert set(re.findall(r"!\[.+?\]\((?:docs/)?pictures/([\w.-]+)\)", text)) == shown | {
        "wireshark.png"
    }


@pytest.mark.parametrize("name", drawn())
def test_a_drawing_is_what_the_script_draws(name: str) -> None:
    assert (PICTURES / name).read_text(encoding="utf-8") == drawn()[name], "run make docs"


def test_drawings_show_all_that_their_tables_have() -> None:
    made = drawn()
    assert {state.name for state in State} <= set(words(made["states.svg"]).split())
    assert set(WINGS) <= set(words(made["packages.svg"]).split())
    fields = {row.name for rows in formats(DEVICE_MANAGER_TABLE).values() for row in rows}
    assert fields - {"cpu_id"} <= set(words(made["message.svg"]).split())


def test_no_picture_asks_anybody_for_anything() -> None:
    for path in PICTURES.glob("*.svg"):
        elsewhere = re.findall(r"(?:href|src)=|url\((?!#)|@import", path.read_text("utf-8"))
        assert elsewhere == [], path


@pytest.mark.torture
@pytest.mark.parametrize("ending", ["", "-dark"])
@pytest.mark.parametrize("picture", ALL, ids=lambda picture: picture.name)
def test_the_browser_looks_as_in_its_pictures(picture: Picture, ending: str) -> None:
    stored = (PICTURES / f"{picture.name}{ending}.svg").read_text(encoding="utf-8")
    assert asyncio.run(take(picture, ending)) == stored, "run make docs"


@pytest.fixture
def canvas(browser: Any) -> Iterator[Any]:
    """An empty page, which compares pictures."""
    page = browser.new_page()
    yield page
    page.close()


def apart(canvas: Any, one: bytes, other: bytes) -> float:
    """The mean difference of two pictures, from 0 to 1."""
    far = canvas.evaluate(APART, [base64.b64encode(each).decode() for each in (one, other)])
    assert isinstance(far, (int, float))
    return float(far)


@needs_chromium
def test_the_report_looks_as_in_its_pictures(browser: Any, canvas: Any) -> None:
    report = take_report(browser)
    for name, png in report.items():
        assert apart(canvas, png, (PICTURES / name).read_bytes()) < NEAR, "run make docs"
    for name in ("report", "ladder"):
        light, dark = report[f"{name}.png"], report[f"{name}-dark.png"]
        assert apart(canvas, light, dark) > NEAR * 10


@needs_chromium
@pytest.mark.parametrize("name", sorted(drawn()))
def test_no_text_of_a_drawing_leaves_its_picture_or_its_box(canvas: Any, name: str) -> None:
    canvas.goto((PICTURES / name).as_uri())
    outside = canvas.evaluate("""() => {
      const [page, ...boxes] = [...document.querySelectorAll("rect")].map(r => r.getBBox());
      const within = (a, b) => a.x >= b.x - 1 && a.x + a.width <= b.x + b.width + 1;
      const meets = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width
        && a.y < b.y + b.height && b.y < a.y + a.height;
      const small = boxes.filter(b => b.height < 80);
      return [...document.querySelectorAll("text")].filter(text => {
        const box = text.getBBox();
        const middle = { x: box.x + box.width / 2, y: box.y + box.height / 2, width: 0, height: 0 };
        return !within(box, page) || small.some(b => meets(middle, b) && !within(box, b));
      }).map(text => text.textContent);
    }""")
    assert outside == []


@pytest.mark.torture
@needs_chromium
@pytest.mark.skipif(
    not all(map(shutil.which, ("wireshark", "Xvfb", "xdotool", "import"))),
    reason="the picture of Wireshark needs Wireshark, Xvfb, xdotool and ImageMagick",
)
def test_wireshark_looks_as_in_its_picture(tmp_path: Path, canvas: Any) -> None:
    made = tmp_path / "wireshark.png"
    subprocess.run([ROOT / "tools" / "picture_wireshark.sh", made], check=True, timeout=110)
    stored = (PICTURES / "wireshark.png").read_bytes()
    assert apart(canvas, made.read_bytes(), stored) < NEAR
