"""Operations as an Arrow file. docs/tables.md."""

from __future__ import annotations

from typing import BinaryIO

from ..dataset.parquet import arrow_schema, pyarrow_or_refuse
from ..dataset.schema import OPERATIONS
from ..diagnose.whole_capture import WholeCapture
from . import Loss
from .tables import batches


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write the operations in batches; raises WrongUsage where pyarrow is missing."""
    schema = arrow_schema(OPERATIONS)
    with pyarrow_or_refuse().ipc.new_file(out, schema) as file:
        for batch in batches(capture):
            file.write_batch(batch)
    return []
