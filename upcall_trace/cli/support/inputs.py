"""Files that were given without an option: what each is, is found out by looking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...logs.opening import sniff
from ...sources import capture_kind


def by_kind(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(captures, logs); what can be read as a capture is one. Raises UnreadableInput."""
    captures: list[Path] = []
    logs: list[Path] = []
    for path in files:
        is_capture = path.is_dir() or capture_kind(sniff(path))
        (captures if is_capture else logs).append(path)
    return captures, logs
