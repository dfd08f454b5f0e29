"""The program on a pseudo terminal, typed at when it asks."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import command


def on_terminal(
    arguments: Sequence[str | Path],
    typed: str = "",
    asked: str = ": ",
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """How a command ended and what the terminal showed, for which `typed` came after `asked`."""
    plain = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs,
        env=plain | dict(environment or {}),
    ) as running:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
                if typed and asked.encode() in shown:
                    os.write(ours, typed.encode())
                    typed = ""
        except OSError:
            pass  # how Linux says that the other side has closed
    os.close(ours)
    return running.returncode, shown.decode().replace("\r\n", "\n")
