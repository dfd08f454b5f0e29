"""Marks and comments: kept in the capture, or in a small capture beside it."""

from __future__ import annotations

from pathlib import Path

from ...capture.index import StillRecording, append_mark
from ...capture.reader import CaptureReader, NotACapture
from ...capture.records import Header, Mark
from ...capture.writer import CaptureWriter
from ...errors import WrongUsage
from ...views.text import safe


def beside(path: Path) -> Path:
    """Where the marks of a capture are kept that cannot be written to itself."""
    return path.with_name(f"{path.name}.marks.upcap")


def marks_beside(path: Path) -> list[Mark]:
    """The marks that were kept beside a capture; none when there is no such file."""
    try:
        with CaptureReader(beside(path)) as reader:
            return [record for record in reader if isinstance(record, Mark)]
    except (OSError, NotACapture):
        return []


def save(path: Path, mark: Mark) -> Path:
    """Keep a mark in the capture at `path`, or beside it; returns the file that has it now.

    Beside is for what is read-only, still being recorded or no capture at all. Raises WrongUsage
    when it cannot be kept there either.
    """
    try:
        append_mark(path, mark)
    except (OSError, NotACapture, StillRecording):
        pass
    else:
        return path
    place = beside(path)
    try:
        if not place.exists():
            with CaptureWriter(place, Header("marks", notes={"of": path.name})):
                pass
        append_mark(place, mark)
    except (OSError, NotACapture, StillRecording) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise WrongUsage(
            f"the mark cannot be kept, neither in the capture nor as {safe(str(place))}: {why}"
        ) from None
    return place
