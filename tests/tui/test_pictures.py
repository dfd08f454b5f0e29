"""The documentation's pictures are those that the script makes."""

from __future__ import annotations

import asyncio
import re

import pytest

from tools.make_pictures import ALL, PICTURES, Picture, take

from .support import ROOT


def test_every_picture_is_made_by_the_script_and_shown_somewhere() -> None:
    made = {f"{picture.name}.svg" for picture in ALL}
    # That of Wireshark has a script of its own, since it needs Wireshark.
    assert {path.name for path in PICTURES.iterdir()} == made | {"wireshark.png"}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert set(re.findall(r"pictures/([\w-]+\.svg)\)", text)) == made


@pytest.mark.torture
@pytest.mark.parametrize("picture", ALL, ids=lambda picture: picture.name)
def test_the_pictures_are_up_to_date(picture: Picture) -> None:
    stored = (PICTURES / f"{picture.name}.svg").read_text(encoding="utf-8")
    assert words(asyncio.run(take(picture))) == words(stored), "run make docs"


def words(svg: str) -> list[str]:
    """What a picture says; its colours and coordinates may differ between versions."""
    return re.findall(r">([^<>]+)</text>", svg)
