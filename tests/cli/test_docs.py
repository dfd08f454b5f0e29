"""`docs`: every page in the terminal, of a checkout and of an installed wheel."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import completed, run
from tests.test_docs import commands
from tests.test_imports import ROOT
from upcall_trace.cli import cli
from upcall_trace.cli.support.pages import contents, page, page_names
from upcall_trace.errors import ExitCode

PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


def test_without_a_page_they_are_listed_with_what_they_are_for() -> None:
    listed = run("docs")
    assert listed.code == 0
    names = [line.split()[0] for line in listed.out.splitlines()]
    assert sorted([*names, "index"]) == PAGES == page_names()
    assert all(what for _, what in contents())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_printed_plainly_where_there_is_no_terminal(name: str) -> None:
    printed = run("docs", name)
    source = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert printed.code == 0
    assert printed.out.splitlines()[0] == source.splitlines()[0]
    assert not re.search("^<!--", printed.out, re.MULTILINE)
    assert "\x1b" not in printed.out


def test_a_page_may_be_named_as_messages_name_it() -> None:
    assert page("docs/replay.md") == page("replay.md") == page("Replay") == page("replay")


def test_an_unknown_page_names_the_nearest() -> None:
    ended = run("docs", "replya")
    assert ended.code == ExitCode.USAGE
    assert ended.err == "upcall-trace: no page is called 'replya'; did you mean 'replay'?\n"
    ended = run("docs", "../../etc/passwd")
    assert ended.code == ExitCode.USAGE
    assert "upcall-trace docs lists them" in ended.err


def test_page_names_are_completed() -> None:
    assert completed("upcall-trace docs ex") == ["exit-codes"]
    assert completed("upcall-trace docs ") == PAGES


def test_on_a_terminal_a_page_goes_formatted_through_the_pager(tmp_path: Path) -> None:
    for name in ("less", "other"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho $LESS\ncat > {tmp_path / 'paged'}\n")
        (tmp_path / name).chmod(0o755)
    coloured: dict[str, str] = {}
    for pager, settings, colours in (
        ("less", coloured, True),
        ("less", {"NO_COLOR": "1"}, False),
        ("other", coloured, False),
    ):
        script = [
            sys.executable, "-c",
            "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))",
            sys.executable, "-m", "upcall_trace", "docs", "exit-codes",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PAGER": str(tmp_path / pager),
            "TERM": "xterm",
            "COLUMNS": "70",
        }
        for variable in ("NO_COLOR", "LESS"):
            environment.pop(variable, None)
        ended = subprocess.run(
            script, env=environment | settings, cwd=ROOT, check=True, timeout=60,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        paged = (tmp_path / "paged").read_text(encoding="utf-8")
        assert ("\x1b[" in paged) is colours
        assert (b"-R" in ended.stdout) is colours  # or it would show the escapes themselves
        plain = re.sub(r"\x1b\[[0-9;]*m", "", paged)
        assert "as expected" in plain
        assert "| code" not in plain  # it is a table now
        assert max(map(len, plain.splitlines())) <= 70


def referring() -> Iterator[tuple[str, str]]:
    """(where, text) of all help."""
    for name, command in commands(cli):
        yield name, command.help or ""
        for option in command.params:
            yield name, getattr(option, "help", None) or ""


def test_help_refers_to_pages_by_the_command_that_shows_them() -> None:
    named = set()
    for where, text in referring():
        assert ".md" not in text, where
        named |= set(re.findall(r"upcall-trace docs ([a-z-]+)", text))
    assert named
    assert named <= set(PAGES)


def test_messages_refer_to_pages_by_the_command_that_shows_them() -> None:
    for path in (ROOT / "upcall_trace").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.value) for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                assert not re.search(r"docs/[a-z-]+\.md", str(node.value)), path


def test_the_wheel_has_every_page_and_reads_them(installed_wheel: Path) -> None:
    shipped = {path.stem for path in (installed_wheel / "upcall_trace" / "pages").iterdir()}
    assert shipped == set(PAGES)
    ended = subprocess.run(
        [sys.executable, "-m", "upcall_trace", "docs", "replay"],
        env={**os.environ, "PYTHONPATH": str(installed_wheel)}, cwd=installed_wheel,
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout.startswith("# Replaying a recording\n")
    (info,) = installed_wheel.glob("upcall_trace-*.dist-info/METADATA")
    assert "\nProject-URL: " in info.read_text(encoding="utf-8")
