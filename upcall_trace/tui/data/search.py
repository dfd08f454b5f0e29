"""Looking for a text in what the ladder shows, or for bytes in what crossed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import WrongUsage
from ...sources import open_source
from ...trace.operations import Operation, Operations
from ...views.frames import frames
from ...views.text import fields_text, result_text, safe

BYTES: Final = "hex:"
"""What is behind it are bytes as hexadecimal digits; blanks between them are allowed."""
_MANY: Final = 4096
_WORD: Final = re.compile(r"(?:\s*[0-9a-fA-F]{2})+\s*")
Told = Callable[[int], Iterable[str]]
"""The codes and remarks at a row."""


@dataclass(frozen=True, slots=True)
class Sought:
    """What is looked for: a text in lower case, or bytes."""

    text: str
    raw: bytes | None

    @classmethod
    def of(cls, typed: str) -> Sought:
        """What somebody typed means; raises WrongUsage for bytes that are none."""
        if not typed.lower().startswith(BYTES):
            return cls(typed.lower(), None)
        digits = typed[len(BYTES) :]
        if not _WORD.fullmatch(digits):
            raise WrongUsage(f"after {BYTES} come bytes of two digits each, as in {BYTES} 4d44")
        return cls("", bytes.fromhex(digits))


def line_text(operation: Operation, told: Iterable[str]) -> str:
    """An operation as one text: its number, fields, result, doubts, and what is told of it."""
    said = [
        f"{operation.conn}.{operation.request} {safe(operation.op)}",
        fields_text(operation.fields),
        result_text(operation),
        *operation.anomalies,
        *told,
    ]
    return " ".join(said).lower()


def rows_with(
    sought: Sought,
    path: Path,
    operations: Operations,
    row_of: Callable[[int, int], int | None],
    told: Told,
) -> Iterator[int | None]:
    """The rows that have it, the first ones first; now and then None, while nothing was found.

    Raises UnreadableInput.
    """
    if sought.raw is not None:
        yield from _with_bytes(sought.raw, path, len(operations), row_of)
        return
    for row in range(len(operations)):
        if sought.text in line_text(operations.operation(row), told(row)):
            yield row
        elif row % _MANY == 0:
            yield None


def _with_bytes(
    raw: bytes, path: Path, count: int, row_of: Callable[[int, int], int | None]
) -> Iterator[int | None]:
    with open_source(path) as source:
        for number, frame in enumerate(frames(source)):
            row = None
            if frame.request is not None and raw in frame.raw:
                row = row_of(frame.conn, frame.request)
            if row is not None and row < count:
                yield row
            elif number % _MANY == 0:
                yield None
