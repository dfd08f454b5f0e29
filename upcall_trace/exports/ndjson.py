"""Operations and findings as JSON, one object a line. docs/tables.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import BinaryIO

from ..dataset.schema import Row, as_json, finding_rows
from ..diagnose.whole_capture import WholeCapture
from . import Loss
from .tables import rows


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write every operation, then every finding; `kind` says which a line is."""
    _lines("operation", rows(capture), out)
    _lines("finding", finding_rows(capture.findings), out)
    return []


def _lines(kind: str, values_of: Iterable[Row], out: BinaryIO) -> None:
    for row in values_of:
        values = {"kind": kind} | {name: as_json(value) for name, value in row.items()}
        out.write(json.dumps(values).encode("ascii") + b"\n")
