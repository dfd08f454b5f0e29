"""What the places of `make odd` promise, asked in them: named apart, for elsewhere it is not so."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def test_a_terminal() -> None:
    assert os.isatty(0)
    assert sys.__stdout__ is not None
    assert sys.__stdout__.isatty()


def test_an_ordinary_user() -> None:
    assert os.geteuid() != 0
    assert os.access(".", os.W_OK)
    assert shutil.which("upcall-trace", path=Path(sys.executable).parent)


def test_no_git() -> None:
    assert shutil.which("git") is None
    assert shutil.which("sh") is not None


def test_a_newer_Python() -> None:
    assert sys.version_info >= (3, 13)
    assert os.getpid() < 100  # few processes are in there
