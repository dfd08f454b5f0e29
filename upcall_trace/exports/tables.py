"""Operations as rows and as Arrow batches, for the formats that are tables. docs/tables.md.

pyarrow comes with the extra `tables`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ..dataset.schema import OPERATIONS, Row, codes_by_request, operation_rows
from ..diagnose.whole_capture import WholeCapture
from ..errors import WrongUsage

if TYPE_CHECKING:
    import pyarrow
_BATCH: Final = 20_000


def rows(capture: WholeCapture) -> Iterator[Row]:
    """The operations with the codes of what was found on them."""
    codes = codes_by_request(capture.findings)
    return operation_rows(capture.operations, codes, capture.opened.started)


def arrow_schema() -> pyarrow.Schema:
    """The columns of `OPERATIONS` as Arrow types; each field has its meaning."""
    pa = pyarrow_or_refuse()
    types = {
        "int": pa.int64(),
        "uint": pa.uint64(),
        "text": pa.string(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
        "ints": pa.list_(pa.int64()),
        "texts": pa.list_(pa.string()),
    }
    return pa.schema(
        [
            pa.field(column.name, types[column.kind], metadata={"meaning": column.meaning})
            for column in OPERATIONS
        ]
    )


def batches(capture: WholeCapture, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """The operations, some thousands at a time."""
    pa = pyarrow_or_refuse()
    found = rows(capture)
    while batch := list(islice(found, _BATCH)):
        yield pa.RecordBatch.from_pylist(batch, schema=schema)


def pyarrow_or_refuse() -> Any:
    """The library; raises WrongUsage where it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise WrongUsage("this format needs pyarrow: pip install 'upcall-trace[tables]'") from None
    return pyarrow
