"""The codes' table and pages, and examples of what `diagnose` says.

`tools.generate_docs` names them in its table of blocks.
"""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from upcall_trace.cli import cli
from upcall_trace.diagnose.rules.registry import Rule, rules

from .markdown import fenced, table
from .program_blocks import run, session

ROOT: Final = Path(__file__).resolve().parent.parent
_MMIO: Final = "captures/mmio_lifecycle.upcap"
_OOPS: Final = "captures/guest_oops.upcap"
_CONSOLE: Final = "tests/golden/guest_oops.console.log"


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


def diagnose_example() -> str:
    """What `diagnose` says of a recording."""
    return session("diagnose", _MMIO)


def _with_console(*arguments: str) -> str:
    """What `diagnose` says with the console of a recording; paths as in a checkout."""
    with chdir(ROOT):
        said = CliRunner().invoke(cli, ["diagnose", *arguments], catch_exceptions=False).stdout
    return fenced(f"$ upcall-trace diagnose {' '.join(arguments)}\n{said}", "console")


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
