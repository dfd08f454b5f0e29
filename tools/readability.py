"""How easy the pages are to read: `python -m tools.readability` prints a figure for each page.

The figure is Flesch's reading ease: 60 is plain English, 30 a scientific paper. docs/style.md has
the limits, and tests/test_prose.py holds the pages to them.
"""

from __future__ import annotations

import re
import sys

from .generate_docs import ROOT


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
    """Print the figure of each page, the hardest first."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    figures = sorted((ease(sentences(page.read_text("utf-8"))), page.name) for page in pages)
    sys.stdout.writelines(f"{figure:6.1f}  {name}\n" for figure, name in figures)


if __name__ == "__main__":
    main()
