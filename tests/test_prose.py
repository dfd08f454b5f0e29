"""The style of docs/style.md, held by every table, finding, message and help text.

That pages hold it is in tests/test_docs.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from tests.test_docs import text_of
from tools.generate_docs import ROOT
from tools.readability import BANNED, EASIEST, LONGEST, ease, sentences, wrong
from upcall_trace.cli import cli
from upcall_trace.diagnose.rules.registry import rules

PAGES = sorted((ROOT / "docs").glob("*.md"))
PROGRAM = sorted((ROOT / "upcall_trace").rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_table_of_a_page_has_a_banned_turn(page: Path) -> None:
    text = page.read_text(encoding="utf-8").partition("## Before and after")[0]
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    assert [row for row in rows if BANNED.search(re.sub(r"`[^`]*`", "", row))] == []


def test_the_readme_is_in_the_style_and_fits_a_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Licence")[0]
    assert len(text.splitlines()) <= 60
    assert wrong(sentences(text)) == []
    assert ease(sentences(text)) >= EASIEST


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


def test_the_pages_of_the_codes_are_in_the_style() -> None:
    said = {rule.code: sentences(rule.page) for rule in rules().values()}
    assert {code: found for code, page in said.items() if (found := wrong(page))} == {}
    assert ease([one for page in said.values() for one in page]) >= EASIEST


def spoken(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string of a module that can reach a user; `{}` is what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = node.values
            silent |= {id(part) for part in parts}
            texts = (part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
            yield node.lineno, "".join(map(str, texts))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
        ):
            yield node.lineno, node.value


def test_no_message_of_the_program_has_a_banned_turn() -> None:
    found = [
        (str(path.relative_to(ROOT)), line, text)
        for path in PROGRAM
        for line, text in spoken(path)
        if BANNED.search(text) and len(text.split()) > 2
    ]
    assert found == []


def test_no_sentence_of_a_finding_is_too_long() -> None:
    folder = ROOT / "upcall_trace" / "diagnose"
    found = [
        (path.name, line, one)
        for path in PROGRAM
        if folder in path.parents
        for line, text in spoken(path)
        for one in re.split(r"(?<=[.!?]) +", text)
        if len(one.split()) > LONGEST
    ]
    assert found == []


def test_the_check_finds_what_it_is_for(tmp_path: Path) -> None:
    assert BANNED.search("Who passes on a bundle also passes on scapy.")
    assert BANNED.search("It is correct for all we know.")
    assert wrong(["word " * 33, "Short.", "He waits in vain."]) == [
        "word " * 33,
        "He waits in vain.",
    ]
    assert sentences("# No\n\nOne `x.y` two. Three:\n\n```sh\nno\n```\n| no |\n- four") == [
        "One it two.", "Three:", "four",
    ]  # fmt: skip
    assert ease(["The cat sat on the mat."]) > 100 > 30 > ease(["Organizational considerations."])
    module = tmp_path / "module.py"
    module.write_text('"""No."""\nX = 1\n"""No."""\ntalk(f"a {X} b")\nraise E("c d")\n')
    assert sorted(text for _, text in spoken(module)) == ["a {} b", "c d"]


@cache
def everything() -> str:
    """All pages but the guide itself, and all sources, in one line."""
    pages = [page.read_text("utf-8") for page in PAGES if page.stem != "style"]
    sources = [
        re.sub(r'"\s*\n\s*f?"', "", path.read_text("utf-8"))  # a string in two lines
        for path in PROGRAM
    ]
    return " ".join(" ".join([*pages, *sources]).replace("**", "").split())


def pairs() -> list[tuple[str, str]]:
    """(before, after) of every sentence of the guide."""
    table = text_of("style.md").partition("## Before and after")[2]
    return re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)[1:]


def test_the_guide_has_the_terms_and_sixty_sentences() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text_of("style.md"), re.MULTILINE)
    terms = {term for term, _ in rows}
    assert terms >= {"world", "machine", "target", "plan", "operation", "session", "capture"}
    assert len(set(pairs())) >= 60


@pytest.mark.parametrize(("before", "after"), pairs())
def test_a_sentence_of_the_guide_is_rewritten_where_it_stood(before: str, after: str) -> None:
    assert before not in everything()
    assert after in everything()
    assert not BANNED.search(after)
