"""Standard output as the place of a file, which commands call `-`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...capture.unpacking import STDOUT as STDOUT
from ...errors import WrongUsage


def named(path: Path) -> str:
    """An output as it is called in what the user reads."""
    return "standard output" if path == STDOUT else str(path)


def check_stdout() -> None:
    """Refuse a terminal, which would take the bytes of a file for its own; raises WrongUsage."""
    if sys.stdout is None or sys.stdout.isatty():
        raise WrongUsage("a terminal cannot show this file: give -o FILE, or pipe it on")


@contextmanager
def for_stdout() -> Iterator[Path]:
    """A temporary path; what is written there goes to standard output when the block succeeds."""
    import shutil
    import tempfile  # who only reads does not wait for them

    check_stdout()
    with tempfile.TemporaryDirectory(prefix="upcall-trace.") as folder:
        temporary = Path(folder, "output")
        temporary.touch(mode=0o600)
        yield temporary
        sys.stdout.flush()
        with temporary.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
