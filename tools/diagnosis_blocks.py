"""The codes' table and pages, and examples of what `diagnose` says.

`tools.generate_docs` names them in its table of blocks.
"""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from click.testing import CliRunner

from upcall_trace.cli import cli
from upcall_trace.codes import Code
from upcall_trace.diagnose.rules.registry import Rule, rules
from upcall_trace.logs.meaning import Speaker
from upcall_trace.logs.table import ROWS

from .markdown import code, fenced, table
from .program_blocks import run, session

ROOT: Final = Path(__file__).resolve().parent.parent
_MMIO: Final = "captures/mmio_lifecycle.upcap"
_OOPS: Final = "captures/guest_oops.upcap"
_CONSOLE: Final = "tests/golden/guest_oops.console.log"
_CASES: Final = ROOT / "tests" / "cases"


def _anchor(rule: Rule) -> str:
    return f"codes.md#{rule.code.lower()}-{rule.name}"


def codes() -> str:
    """Every code, with the first sentence of its page."""
    rows = [
        (f"[{rule.code}]({_anchor(rule)})", rule.name, rule.severity.word, _first_line(rule))
        for rule in rules().values()
    ]
    return table(("code", "name", "severity", "what it says"), rows)


def _first_line(rule: Rule) -> str:
    return " ".join(rule.page.partition("\n\n")[0].split())


def code_pages() -> str:
    """Every code's page."""
    parts = []
    for rule in rules().values():
        parts += [f"## {rule.code} {rule.name}", f"Severity: {rule.severity.word}.", rule.page]
    return "\n\n".join(parts)


def log_lines() -> str:
    """Every line of a log that is understood, by whose words it is."""
    parts = []
    for speaker in Speaker:
        rows = [
            (
                "; ".join(_code(words) for words in row.words.split("; ")), row.says, row.since,
                ", ".join(_linked(each) for each in row.codes) or "none", _code(row.example),
            )
            for row in ROWS
            if row.speaker is speaker
        ]  # fmt: skip
        head = ("the line", "what it means", "since Kata", "leads to", "an example")
        parts += [f"### {speaker.value[0].upper()}{speaker.value[1:]}", table(head, rows)]
    return "\n\n".join(parts)


def _code(text: str) -> str:
    """Text as it is, also with backticks in it."""
    return f"`` {text} ``" if "`" in text else code(text)


def _linked(number: Code) -> str:
    return f"[{number}](codes.md#{number.lower()}-{number.name})"


def diagnose_example() -> str:
    """What `diagnose` says of a recording."""
    return session("diagnose", _MMIO)


def _with_console(*arguments: str) -> str:
    """What `diagnose` says with the console of a recording; paths as in a checkout."""
    with chdir(ROOT):
        said = CliRunner().invoke(cli, ["diagnose", *arguments], catch_exceptions=False).stdout
    return fenced(f"$ upcall-trace diagnose {' '.join(arguments)}\n{said}", "console")


def journal_example() -> str:
    """A node's journal with two pods."""
    with TemporaryDirectory() as folder, chdir(folder):
        Path("kata.log").write_bytes((_CASES / "node-mixed-qemu/node.log").read_bytes())
        told = CliRunner().invoke(cli, ["diagnose", "kata.log"], catch_exceptions=False)
    said = "".join(f"{line}\n" for line in (told.stderr + told.stdout).splitlines())
    return fenced(f"$ upcall-trace diagnose kata.log\n{said}", "console")


def console_example() -> str:
    """A console alone."""
    return _with_console("--console", _CONSOLE)


def joined_example() -> str:
    """The same with the recording."""
    return _with_console(_OOPS, "--console", _CONSOLE)


def json_finding() -> str:
    """One finding of `diagnose --json`, for reading."""
    finding = json.loads(run("diagnose", _MMIO, "--json"))["findings"][0]
    keys = ",\n".join(f"  {json.dumps(key)}: {json.dumps(each)}" for key, each in finding.items())
    return fenced("{\n" + keys + "\n}", "json")


def github_example() -> str:
    """The first lines for GitHub Actions."""
    first = run("diagnose", _OOPS, "--format", "github").partition("\n")[0]
    return fenced(first)
