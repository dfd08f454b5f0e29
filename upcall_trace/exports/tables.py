"""Operations as rows and as Arrow batches, for the formats that are tables. docs/tables.md.

pyarrow comes with the extra `tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..dataset.parquet import operation_batches
from ..dataset.schema import Row, codes_by_request, operation_rows
from ..diagnose.whole_capture import WholeCapture

if TYPE_CHECKING:
    import pyarrow


def rows(capture: WholeCapture) -> Iterator[Row]:
    """The operations with the codes of what was found on them."""
    codes = codes_by_request(capture.findings)
    return operation_rows(capture.operations, codes, capture.opened.started)


def batches(capture: WholeCapture) -> Iterable[pyarrow.RecordBatch]:
    """The operations, some thousands at a time."""
    codes = codes_by_request(capture.findings)
    return operation_batches(capture.operations, codes, capture.opened.started)
