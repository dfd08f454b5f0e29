"""The three pages for a start, followed as written: every session typed, its output compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import blocks
from tools.generate_docs import ROOT

NUMBERS = re.compile(r"\b\d+(?:\.\d+)?(?:ns|us|ms|s)\b[!*]?|\b\d+\.\d{6}\b")
"""Latencies and times, which differ from run to run."""


def words(text: str) -> list[str]:
    """What was printed, without times and the widths of columns."""
    return NUMBERS.sub("TIME", text).split()


def steps(page: str) -> Iterator[tuple[str, str]]:
    """Every command of a page and what the page shows below it."""
    for block in blocks(page, "console"):
        for step in block.removeprefix("$ ").split("\n$ "):
            command, _, shown = step.partition("\n")
            yield command, shown


class Shell:
    """A reader's terminal in a folder of their own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"}
        self.background: list[subprocess.Popen[bytes]] = []

    def type(self, command: str, shown: str) -> str:
        """What the command prints; for one in the background, once that is as much as shown."""
        output = self.place / f"output{time.monotonic_ns()}"
        with output.open("wb") as written:
            started = subprocess.Popen(
                ["bash", "-c", f"exec {command.removesuffix(' &')}"
                 if command.endswith(" &") else command],
                cwd=self.place, env=self.environment, stdout=written, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if not command.endswith(" &"):
            assert started.wait(60) == 0, output.read_text(encoding="utf-8")
            return output.read_text(encoding="utf-8")
        self.background.append(started)
        until = time.monotonic() + 30
        listening = re.search(r"--listen (\S+)", command)
        assert listening
        while not (self.place / listening[1]).exists() or not output.stat().st_size:
            assert time.monotonic() < until, command
            time.sleep(0.02)
        first = output.read_text(encoding="utf-8").splitlines()
        return "\n".join(first[: len(shown.splitlines())])

    def close(self) -> None:
        for started in reversed(self.background):
            started.terminate()
            assert started.wait(20) in (0, 130)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    (tmp_path / "captures").symlink_to(ROOT / "captures")
    opened = Shell(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("page", ["start-operator.md", "start-vmm.md", "start-ci.md"])
def test_the_path_works_as_written(page: str, shell: Shell) -> None:
    taken = list(steps(page))
    assert len(taken) >= 3
    for command, shown in taken:
        printed = shell.type(command, shown)
        if shown:
            assert words(printed) == words(shown), command


def test_the_captures_and_logs_that_the_pages_use_are_shipped() -> None:
    for page in ("start-operator.md", "start-ci.md"):
        for command, _ in steps(page):
            for path in re.findall(r"captures/\S+", command):
                assert (ROOT / path).is_file(), path
