"""Opening and writing captures on behalf of commands, and telling what is missing in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..errors import ExitCode, UnreadableInput, WrongUsage
from ..opening import Capture, load
from .console import progress, talk

CAPTURE = click.Path(path_type=Path)


def open_capture(path: Path) -> Capture:
    """Load a capture with a progress bar where it takes long; raises UnreadableInput."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror or error}") from None
    with progress(f"decoding {path.name}", size) as report:
        return load(path, report)


def tell_losses(path: Path, capture: Capture) -> ExitCode:
    """Say on stderr what is missing of a capture; the exit code that this deserves."""
    lost = False
    for damage in capture.damage:
        where = "the end is torn" if damage.at_end else "damaged"
        talk(f"{path}: {where} at offset {damage.offset}: {damage.size} bytes cannot be read")
        lost = True
    if capture.gaps:
        talk(f"{path}: {capture.gaps} bytes of traffic were not recorded")
        lost = True
    if not capture.complete and not capture.live and not lost:
        talk(f"{path}: the recording was not closed cleanly; its last moments may be missing")
        lost = True
    return ExitCode.LOST if lost else ExitCode.EXPECTED


@contextmanager
def replacing(path: Path, *inputs: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds.

    Raises WrongUsage when `path` is one of the inputs or cannot be written.
    """
    for other in inputs:
        if path.exists() and other.exists() and path.samefile(other):
            raise WrongUsage(f"{path} is the input; give another name for the output")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror or error}") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        try:
            temporary.replace(path)
        except OSError as error:
            raise WrongUsage(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
