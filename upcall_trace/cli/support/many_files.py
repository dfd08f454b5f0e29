"""A command for one file, done for several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import ExitCode, UnreadableInput
from ...views.text import safe
from .output import out, talk


def each_of(
    files: Sequence[Path], do: Callable[[Path, str | None], ExitCode], as_json: bool
) -> ExitCode:
    """`do` with each file, and with its name where there are several; the worst exit code.

    One that cannot be read is told, and the others are done all the same. As text each has its name
    above it.
    """
    if len(files) == 1:
        return do(files[0], None)
    worst = ExitCode.EXPECTED
    for number, file in enumerate(files):
        if not as_json:
            out(f"{chr(10) if number else ''}== {safe(str(file))}")
        try:
            worst = max(worst, do(file, str(file)))
        except UnreadableInput as error:
            talk(f"upcall-trace: {error}")
            worst = max(worst, ExitCode.UNREADABLE)
    return worst
