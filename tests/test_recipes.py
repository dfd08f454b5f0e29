"""The recipes of docs/developing.md, followed to the letter in a copy of the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import golden, small_capture, write_capture
from tests.test_docs import text_of
from tests.test_imports import ROOT


def recipe(name: str) -> str:
    """What the page says about adding something, as one line."""
    (text,) = re.findall(rf"^\*\*{name}\*\* (.*?)\n\n", text_of("developing.md"), re.M | re.S)
    return " ".join(text.split())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the recipes change."""
    for name in ("upcall_trace", "dissectors", "tools", "docs", "captures"):
        skipped = shutil.ignore_patterns("__pycache__", "pictures")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skipped)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def python(tree: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with the modules of the copy, run from its top."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}, cwd=tree,
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def program(tree: Path, *arguments: str | Path) -> str:
    """What the program of the copy prints, which has to succeed."""
    ended = python(tree, "-m", "upcall_trace", *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def add_row(path: Path, table: str, row: str) -> None:
    """Put a row at the end of a table, a tuple or a dictionary at the top of a module."""
    before, found, after = path.read_text().partition(f"\n{table}")
    assert found, f"no {table} in {path}"
    end = re.search(r"^[)}]$", after, re.M)
    assert end
    path.write_text(f"{before}{found}{after[: end.start()]}    {row}\n{after[end.start() :]}")


def make_docs(tree: Path, page: str) -> str:
    """A page after `make docs`, which it needs: the check says so before."""
    stale = python(tree, "-m", "tools.generate_docs", "--check")
    assert (stale.returncode, f"docs/{page}: stale" in stale.stderr) == (1, True), stale.stderr
    made = python(tree, "-m", "tools.generate_docs")
    assert (made.returncode, made.stderr) == (0, "")
    return (tree / "docs" / page).read_text(encoding="utf-8")


SOURCE = '''
"""Transcripts that begin with a comment."""

from __future__ import annotations

from pathlib import Path

from .transcript import TranscriptSource


def read(path: Path) -> TranscriptSource:
    """Leave the comment out; raises OSError and UnreadableInput."""
    plain = path.with_suffix(".plain")
    plain.write_bytes(path.read_bytes().partition(b"\\n")[2])
    return TranscriptSource(plain)
'''
SOURCE_ROW = (
    'SourceFormat("remarked", "a transcript with a remark", '
    'lambda start: start.startswith(b"#r"), "upcall_trace.sources.remarked", since="0.2.0"),'
)


def test_a_source(tree: Path) -> None:
    told = recipe("A format that is read")
    folder = tree / "upcall_trace" / "sources"
    for words in ("`read(path)`", "`FORMATS` of `upcall_trace/sources/__init__.py`", "`make docs`"):
        assert words in told
    (folder / "remarked.py").write_text(SOURCE.lstrip())
    add_row(folder / "__init__.py", "FORMATS", SOURCE_ROW)
    path = tree / "x"
    path.write_bytes(b"#r\n" + golden("framing").read_bytes())
    expected = program(tree, "show", golden("framing"))
    assert program(tree, "show", path) == expected
    assert "| `remarked`" in make_docs(tree, "formats.md")


EXPORT = '''
"""How many operations there are."""

from __future__ import annotations

from typing import BinaryIO

from ..diagnose.whole_capture import WholeCapture
from . import Loss


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """One number."""
    out.write(b"%d\\n" % len(capture.operations))
    return []
'''
EXPORT_ROW = (
    'ExportFormat("number", "how many operations", (".number",), '
    '"upcall_trace.exports.number", loses="nearly all", since="0.2.0"),'
)


def test_an_export(tree: Path) -> None:
    told = recipe("A format that is written")
    folder = tree / "upcall_trace" / "exports"
    for words in ("`write(capture, out)`", "`FORMATS` of `upcall_trace/exports/__init__.py`"):
        assert words in told
    (folder / "number.py").write_text(EXPORT.lstrip())
    add_row(folder / "__init__.py", "FORMATS", EXPORT_ROW)
    capture = write_capture(tree / "x.upcap", small_capture())
    assert program(tree, "export", capture, "--format", "number", "-o", "-") == "3\n"
    program(tree, "export", capture, "-o", tree / "x.number")
    assert (tree / "x.number").read_text() == "3\n"
    assert "number       .number" in program(tree, "export", "--list")
    assert "| `number`" in make_docs(tree, "formats.md")


COMMAND = '''
"""`hello`: greets."""

from __future__ import annotations

import click

from ..errors import ExitCode
from .support.output import out


@click.command("hello")
@click.option("--name", default="you", help="Whom to greet.")
def hello_command(name: str) -> ExitCode:
    """Greet somebody."""
    out(f"hello {name}")
    return ExitCode.EXPECTED
'''


def test_a_command(tree: Path) -> None:
    told = recipe("A command")
    for words in ("`NAME_command`", "`COMMANDS` of `upcall_trace/cli/__init__.py`", "`make docs`"):
        assert words in told
    (tree / "upcall_trace" / "cli" / "hello.py").write_text(COMMAND.lstrip())
    row = '"hello": ("hello", "Greet somebody."),'
    add_row(tree / "upcall_trace" / "cli" / "__init__.py", "COMMANDS", row)
    assert program(tree, "hello", "--name", "all") == "hello all\n"
    assert "  hello       Greet somebody." in program(tree, "--help")
    page = make_docs(tree, "commands.md")
    assert "upcall-trace hello [OPTIONS]" in page
    assert "Whom to greet." in page


RULE = '''
"""UP699: answers that are too quick to be true."""

from __future__ import annotations

from ... import codes
from ..finding import Told
from ..situation import Situation
from .registry import Cue, rule


def _is_quick(at: Situation) -> bool:
    return at.latency_ns is not None and at.latency_ns < 2_500


@rule(codes.TOO_QUICK, {Cue.REPLY: _is_quick})
def too_quick(at: Situation) -> Told:
    """The guest answered within 2.5 us.

    **What it says.** No guest is that quick.
    """
    return Told(what=f"{at.op} was quick.", why="It was.", so="Nothing.", next="Look again.")
'''


def test_a_finding(tree: Path) -> None:
    told = recipe("A finding")
    rules = tree / "upcall_trace" / "diagnose" / "rules"
    for words in ("row in `upcall_trace/codes.py`", "`upcall_trace/diagnose/rules/`", "`@rule`"):
        assert words in told
    (rules / "quick.py").write_text(RULE.lstrip())
    table = tree / "upcall_trace" / "codes.py"
    row = 'TOO_QUICK: Final = _row("UP699", "too-quick", _N, _GUEST)\n'
    table.write_text(table.read_text() + row)
    capture = write_capture(tree / "x.upcap", small_capture())
    found = json.loads(program(tree, "diagnose", "--json", capture))["findings"]
    assert [(f["request"], f["what"]) for f in found if f["code"] == "UP699"] == [
        (1, "add_mmio 0xe0006000+0x2000 irq=5 was quick.")
    ]
    assert "No guest is that quick." in program(tree, "diagnose", "--explain", "too-quick")
    assert "\n## UP699 too-quick\n" in make_docs(tree, "codes.md")
