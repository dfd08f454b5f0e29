"""Writing what is shown to a file: as text, as JSON lines, or as a capture of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from ...capture.writer import CaptureWriter
from ...errors import NothingRun, WrongUsage
from ...sources import open_source
from ...trace.opening import build_index
from ...trace.operations import Operations
from ...trace.streams import all_records, with_dependencies
from ...transform.composing import keep_operations
from ...views.json_objects import operation_object
from ...views.text import HEADING, operation_text, safe
from .line_order import Rows

KINDS: Final = {
    ".txt": "text, as show prints it",
    ".jsonl": "JSON lines, as show --json prints them",
    ".upcap": "a capture with these operations",
}
"""What a file's suffix asks for."""
_LOOK_UP: Final = 1024


def export(
    path: Path,
    target: Path,
    operations: Operations,
    rows: Rows | None,
    cancelled: Callable[[], bool],
) -> int:
    """Write operations of the capture at `path`, with None all of them; returns how many.

    Raises WrongUsage for a target that exists, cannot be written or has another suffix, and
    NothingRun when there is nothing to write.
    """
    if target.suffix not in KINDS:
        raise WrongUsage(f"name a file that ends in {', '.join(KINDS)}")
    count = len(operations) if rows is None else len(rows)
    if not count:
        raise NothingRun("there is nothing to export")
    numbers = np.arange(count) if rows is None else rows
    try:
        with target.open("x", encoding="utf-8") as file:
            if target.suffix != ".upcap":
                for number, line in enumerate(_lines(target.suffix, operations, numbers)):
                    file.write(f"{line}\n")
                    if number % _LOOK_UP == 0 and cancelled():
                        break
                return count
        _write_capture(path, target, operations, numbers)
    except FileExistsError:
        raise WrongUsage(f"{safe(str(target))} exists already; give another name") from None
    except OSError as error:
        raise WrongUsage(f"{safe(str(target))} cannot be written: {error.strerror}") from None
    return count


def _lines(suffix: str, operations: Operations, rows: Rows) -> Iterator[str]:
    if suffix == ".txt":
        yield HEADING
    for row in rows.tolist():
        operation = operations.operation(row)
        if suffix == ".txt":
            yield operation_text(operation)
        else:
            yield json.dumps(operation_object(operation))


def _write_capture(path: Path, target: Path, operations: Operations, rows: Rows) -> None:
    wanted = np.zeros(len(operations), np.bool_)
    wanted[rows] = True
    keys = with_dependencies(operations, wanted)
    with open_source(path) as source:
        header = dataclasses.replace(source.header, notes={**source.header.notes, "of": path.name})
        with CaptureWriter(target, header) as writer:
            for record in keep_operations(header, all_records(source), keys):
                writer.write(record)
    build_index(target)
