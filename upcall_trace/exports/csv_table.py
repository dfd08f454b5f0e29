"""Operations as CSV: a heading, and one line an operation. docs/tables.md."""

from __future__ import annotations

import csv
import io
from typing import Any, BinaryIO

from ..dataset.schema import OPERATIONS, as_json
from ..diagnose.whole_capture import WholeCapture
from . import Loss
from .tables import rows


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write the operations; lists are joined by spaces, and null is an empty cell."""
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    table = csv.DictWriter(text, [column.name for column in OPERATIONS], lineterminator="\n")
    table.writeheader()
    for row in rows(capture):
        table.writerow({name: _cell(value) for name, value in row.items()})
    text.detach()
    return []


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else as_json(value)
