"""This machine's own journal, read through `journalctl`, once or as it goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from ..errors import UnreadableInput
from ..logs.entries import Scanner
from ..logs.opening import LogFile
from ..logs.table import understood, wanted
from .choosing import identity
from .finding import Finding
from .log_guests import Stories
from .log_inputs import read_stream
from .log_story import told_so_far
from .told_by_logs import Logs

IDENTIFIERS: Final = ("kata", "containerd", "dragonball", "kernel")
"""Whose entries are read: Kata's since 3.20, containerd's before, and kills by the kernel."""


def command(since: str | None, until: str | None, follow: bool) -> list[str]:
    """The command that prints the journal; raises UnreadableInput where there is no journal."""
    program = shutil.which("journalctl")
    if program is None:
        raise UnreadableInput(
            "this machine has no journalctl, so there is no journal to read: give a log's file"
        )
    words = [program, "--output=json", "--no-pager", "--quiet"]
    words += [f"--identifier={name}" for name in IDENTIFIERS]
    words += [f"--since={_for_journalctl(since)}"] if since else []
    words += [f"--until={_for_journalctl(until)}"] if until else []
    return [*words, "--follow", "--lines=all"] if follow else words


def _for_journalctl(text: str) -> str:
    """Our moments are written as journalctl's, but for the `T` of RFC 3339."""
    return text.replace("T", " ", 1) if text[:4].isdecimal() else text


def read_journal(sandbox: str | None, since: str | None, until: str | None) -> Logs:
    """All that the journal has; raises UnreadableInput."""
    with _Journal(command(since, until, follow=False)) as stream:
        return read_stream("journal", stream, sandbox)


def follow_journal(sandbox: str | None, since: str | None, until: str | None) -> Iterator[Finding]:
    """Findings as the journal goes on, each once, until interrupted; raises UnreadableInput."""
    with _Journal(command(since, until, follow=True)) as stream:
        yield from follow_stream(stream, sandbox)


def follow_stream(stream: IO[bytes], sandbox: str | None) -> Iterator[Finding]:
    """Findings of a log that is still being written, each once, until it ends."""
    stories = Stories()
    if sandbox is not None:
        stories.wanted = lambda whose: whose is not None and whose.startswith(sandbox)
    told: set[object] = set()
    blocks = LogFile(Path("journal"), stream).blocks()
    for said in understood(Scanner(wanted(), at_once=True), blocks, "journal"):
        guest = stories.guests.get(stories.feed(said))
        for finding in told_so_far(guest) if guest is not None else ():
            if (key := (identity(finding), finding.what)) not in told:
                told.add(key)
                yield finding


class _Journal:
    """The journal's output, and its program, which ends with the block."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self) -> IO[bytes]:
        assert self._process.stdout is not None  # it is a pipe
        return self._process.stdout

    def __exit__(self, kind: object, *rest: object) -> None:
        self._process.terminate()
        said = self._process.communicate()[1]
        if kind is None and self._process.returncode > 0:
            words = said.decode("utf-8", "backslashreplace").strip() or "no reason was given"
            raise UnreadableInput(f"the journal cannot be read: {words}")
