"""Writing what is shown to a file: as text, as a capture, or in any format of `exports`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ...capture.writer import CaptureWriter
from ...diagnose.whole_capture import WholeCapture
from ...errors import NothingRun, UserError, WrongUsage
from ...exports import Loss, export_format, format_for
from ...sources import open_source
from ...trace.opening import build_index
from ...trace.operations import Operations
from ...trace.streams import all_records, with_dependencies
from ...transform.composing import keep_operations
from ...views.line_order import Rows
from ...views.text import HEADING, operation_text, safe

TEXT: Final = ".txt"
"""Asks for lines as `show` prints them."""
CAPTURE: Final = ".upcap"
"""Asks for a capture with these operations."""
_LOOK_UP: Final = 1024


def export(
    path: Path,
    target: Path,
    operations: Operations,
    rows: Rows | None,
    cancelled: Callable[[], bool],
    consoles: Sequence[Path] = (),
    vmm_logs: Sequence[Path] = (),
) -> tuple[int, list[Loss]]:
    """Write operations of the capture at `path`, with None all of them.

    The logs are those of `WholeCapture`. Returns how many, and what the format has no place for.
    Raises WrongUsage for a target that exists, cannot be written or has a suffix that no format
    has, and NothingRun when there is nothing to write.
    """
    name = None if target.suffix in (TEXT, CAPTURE) else format_for(target)
    count = len(operations) if rows is None else len(rows)
    if not count:
        raise NothingRun("there is nothing to export")
    numbers = np.arange(count) if rows is None else rows
    losses: list[Loss] = []
    try:
        with target.open("xb"):
            pass  # so that nothing of somebody else's is written over
        if target.suffix == TEXT:
            _write_text(target, operations, numbers, cancelled)
        elif name is None:
            _write_capture(path, target, operations, numbers)
        else:
            with tempfile.TemporaryDirectory() as folder:
                part = path
                if rows is not None:
                    part = Path(folder) / f"{path.stem}.upcap"
                    _write_capture(path, part, operations, rows)
                losses = _write_format(name, WholeCapture(part, consoles, vmm_logs), target)
    except FileExistsError:
        raise WrongUsage(f"{safe(str(target))} exists already; give another name") from None
    except OSError as error:
        raise WrongUsage(f"{safe(str(target))} cannot be written: {error.strerror}") from None
    return count, losses


def _write_text(
    target: Path, operations: Operations, rows: Rows, cancelled: Callable[[], bool]
) -> None:
    with target.open("w", encoding="utf-8") as file:
        file.write(f"{HEADING}\n")
        for number, row in enumerate(rows.tolist()):
            file.write(f"{operation_text(operations.operation(row))}\n")
            if number % _LOOK_UP == 0 and cancelled():
                break


def _write_format(name: str, whole: WholeCapture, target: Path) -> list[Loss]:
    """Write one of the formats of `exports`."""
    _, write = export_format(name)
    try:
        with target.open("wb") as out:
            return write(whole, out)
    except UserError:
        target.unlink(missing_ok=True)  # it is half of a file
        raise


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
