"""How easy the pages are to read: `python -m tools.readability` prints a figure for each page.

Below the figure of a page are its sentences that are too long or have a banned turn.
The figure is Flesch's reading ease: 60 is plain English, 30 a scientific paper. docs/style.md has
the limits, and tests/test_prose.py holds the pages to them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from .generate_docs import ROOT

LONGEST: Final = 32
"""Words in a sentence."""
EASIEST: Final = 60.0
"""The least reading ease of a page."""
_GUIDE: Final = (ROOT / "docs" / "style.md").read_text(encoding="utf-8")
BANNED: Final = re.compile(
    _GUIDE.partition("```text\n")[2].partition("```")[0].strip().replace("\n", "|"), re.IGNORECASE
)
"""The turns that the guide bans."""


def held() -> list[Path]:
    """The pages that are in the style."""
    beside = ("CONTRIBUTING.md", "SECURITY.md", "captures/README.md")
    return [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in beside)]


def wrong(said: list[str]) -> list[str]:
    """The sentences that are too long, or have a banned turn."""
    return [one for one in said if len(one.split()) > LONGEST or BANNED.search(one)]


def sentences(markdown: str) -> list[str]:
    """What people read as sentences: no code, tables, headings or generated parts."""
    text = re.sub(r"<!-- generated.*?<!-- end generated -->", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?:\||#|!\[|<!--).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"``.*?``|`[^`]*`", "it", text, flags=re.DOTALL)
    text = re.sub(r"^ *(?:- |\d+\. )", "\n\n", text, flags=re.MULTILINE)
    parts = (re.split(r"(?<=[.!?:])\s+", part) for part in re.split(r"\n\s*\n", text))
    return [" ".join(one.split()) for part in parts for one in part if one.strip()]


def syllables(word: str) -> int:
    """About how many a word has."""
    found = len(re.findall(r"[aeiouy]+", word.lower().removesuffix("e")))
    return max(found, 1)


def ease(said: list[str]) -> float:
    """Flesch reading ease of sentences."""
    words = [word for one in said for word in re.findall(r"[A-Za-z']+", one)]
    per_word = sum(map(syllables, words)) / len(words)
    return 206.835 - 1.015 * len(words) / len(said) - 84.6 * per_word


def main() -> None:
    """Print the figure of each page, the hardest first, and what is wrong in it."""
    said = {str(page.relative_to(ROOT)): sentences(page.read_text("utf-8")) for page in held()}
    for name in sorted(said, key=lambda name: ease(said[name])):
        sys.stdout.write(f"{ease(said[name]):6.1f}  {name}\n")
        sys.stdout.writelines(f"        {one}\n" for one in wrong(said[name]))


if __name__ == "__main__":
    main()
