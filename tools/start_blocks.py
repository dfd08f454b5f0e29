"""The sessions of the pages for a start, as a reader sees them: messages, then output."""

from __future__ import annotations

import shlex
from contextlib import chdir
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from upcall_trace.cli import cli

from .markdown import fenced

ROOT: Final = Path(__file__).resolve().parent.parent
_LOGS: Final = "captures/logs"


def _typed(line: str) -> str:
    with chdir(ROOT):
        told = CliRunner().invoke(cli, shlex.split(line), catch_exceptions=False)
    return fenced(f"$ upcall-trace {line}\n{told.stderr}{told.stdout}", "console")


def operator_log() -> str:
    """A node's log, with two guests in it."""
    return _typed(f"diagnose {_LOGS}/kata.log")


def operator_console() -> str:
    """The console of another guest."""
    return _typed(f"diagnose {_LOGS}/console.log")
