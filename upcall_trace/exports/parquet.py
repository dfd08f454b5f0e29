"""Operations as a Parquet file. docs/tables.md."""

from __future__ import annotations

from typing import BinaryIO

from ..dataset.parquet import arrow_schema
from ..dataset.schema import OPERATIONS
from ..diagnose.whole_capture import WholeCapture
from . import Loss
from .tables import batches


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write the operations in batches; raises WrongUsage where pyarrow is missing."""
    schema = arrow_schema(OPERATIONS)
    from pyarrow import parquet  # after the line above has said what is missing

    with parquet.ParquetWriter(out, schema, compression="zstd") as file:
        for batch in batches(capture):
            file.write_batch(batch)
    return []
