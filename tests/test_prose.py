"""The style of docs/style.md, held by every page that people write and by every help text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.test_docs import text_of
from tools.generate_docs import ROOT
from upcall_trace.cli import cli

HELD = ["start-operator", "start-vmm", "start-ci", "first-steps", "index", "install", "style"]
"""Pages in the style from their first to their last sentence."""
BANNED = re.compile(text_of("style.md").partition("```text\n")[2].partition("```")[0].strip()
                    .replace("\n", "|"), re.IGNORECASE)  # fmt: skip
LONGEST = 32
"""Words in a sentence."""
EASIEST = 50.0
"""The least Flesch reading ease of a page: 60 is plain English, 30 a scientific paper."""


def sentences(markdown: str) -> list[str]:
    """What people read as sentences: no code, tables, headings or generated parts."""
    text = re.sub(r"<!-- generated.*?<!-- end generated -->", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?:\||#|!\[|<!--).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "it", text)
    text = re.sub(r"^(?:- |\d+\. )", "\n\n", text, flags=re.MULTILINE)
    parts = (re.split(r"(?<=[.!?:])\s+", part) for part in re.split(r"\n\s*\n", text))
    return [" ".join(one.split()) for part in parts for one in part if one.strip()]


def syllables(word: str) -> int:
    """About how many a word has."""
    found = len(re.findall(r"[aeiouy]+", word.lower().removesuffix("e")))
    return max(found, 1)


def ease(said: list[str]) -> float:
    """Flesch reading ease."""
    words = [word for one in said for word in re.findall(r"[A-Za-z']+", one)]
    per_word = sum(map(syllables, words)) / len(words)
    return 206.835 - 1.015 * len(words) / len(said) - 84.6 * per_word


@pytest.mark.parametrize("name", HELD)
def test_a_page_is_in_the_style(name: str) -> None:
    said = sentences(text_of(f"{name}.md"))
    assert [one for one in said if len(one.split()) > LONGEST] == []
    assert [one for one in said if BANNED.search(one)] == []
    assert ease(said) >= EASIEST


def test_the_readme_is_in_the_style_and_fits_a_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Licence")[0]
    assert len(text.splitlines()) <= 60
    said = sentences(text)
    assert [one for one in said if len(one.split()) > LONGEST or BANNED.search(one)] == []


def helps() -> Iterator[tuple[str, str]]:
    """(command, a text of its help)."""
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield name, command.help or ""
        for parameter in command.params:
            yield name, getattr(parameter, "help", None) or ""


def test_no_help_text_has_a_banned_turn() -> None:
    assert [(name, text) for name, text in helps() if BANNED.search(text)] == []


def test_the_check_finds_what_it_is_for() -> None:
    assert BANNED.search("Who passes on a bundle also passes on scapy.")
    assert BANNED.search("It is correct for all we know.")
    assert sentences("# No\n\nOne `x.y` two. Three:\n\n```sh\nno\n```\n| no |\n- four") == [
        "One it two.", "Three:", "four",
    ]  # fmt: skip
    assert ease(["The cat sat on the mat."]) > 100 > 30 > ease(["Organizational considerations."])


def test_the_guide_shows_sentences_before_and_after_and_the_terms() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text_of("style.md"), re.MULTILINE)
    terms = {term for term, _ in rows}
    assert terms >= {"world", "machine", "target", "plan", "operation", "session", "capture"}
    pairs = text_of("style.md").partition("## Before and after")[2]
    changed = re.findall(r"^\| (.+?) \| (.+?) \|$", pairs, re.MULTILINE)[2:]
    assert len(changed) >= 20
    assert all(before != after and not BANNED.search(after) for before, after in changed)


def _pages() -> list[Path]:
    return sorted((ROOT / "docs").glob("*.md"))


EASE_OF_ALL = 35.0
"""What no page goes below, those not yet rewritten included."""


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.stem)
def test_no_page_is_harder_to_read_than_this(page: Path) -> None:
    said = sentences(page.read_text(encoding="utf-8"))
    assert ease(said) >= EASE_OF_ALL
