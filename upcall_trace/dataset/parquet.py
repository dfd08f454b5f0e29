"""Operations as Arrow columns, without an object for each; and the Arrow types of our columns.

pyarrow comes with the extras `tables` and `fleet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import errno_name, op_name
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.tables import FieldRow

from ..errors import WrongUsage
from ..trace.operations import Operations, anomaly_names
from ..trace.rows import LOAD_COLUMNS, layout_at, reply_layout, store_of
from .schema import OPERATIONS, Column, operation_rows

if TYPE_CHECKING:
    import pyarrow

Codes = Mapping[tuple[int, int], list[str]]
"""The codes of the findings on each request, by connection and request."""
_SLICE: Final = 1 << 17
"""Operations that are turned into columns at once."""
_LAYOUTS: Final = {layout.number: layout for layout in DEVICE_MANAGER_TABLE.layouts}


def pyarrow_or_refuse() -> Any:
    """The library; raises WrongUsage where it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise WrongUsage("this format needs pyarrow: pip install 'upcall-trace[tables]'") from None
    return pyarrow


def arrow_schema(columns: Iterable[Column]) -> pyarrow.Schema:
    """Columns as Arrow types; each field has its meaning."""
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
            for column in columns
        ]
    )


def operation_batches(
    operations: Operations, codes: Codes, started: datetime | None
) -> Iterable[pyarrow.RecordBatch]:
    """The rows that `operation_rows` gives, as record batches of the columns of `OPERATIONS`."""
    pa = pyarrow_or_refuse()
    schema = arrow_schema(OPERATIONS)
    if not operations.ours().all():  # the fields of another service are its own business
        listed = list(operation_rows(operations, codes, started))
        yield pa.RecordBatch.from_pylist(listed, schema=schema)
        return
    found = _rows_by_place(operations, codes)
    for begin in range(0, len(operations), _SLICE):
        rows = np.arange(begin, min(begin + _SLICE, len(operations)))
        yield _batch(pa, schema, operations, rows, found, started)


def _rows_by_place(operations: Operations, codes: Codes) -> dict[int, list[str]]:
    """The codes by row."""
    if not codes:
        return {}
    keys = operations.column("conn").astype(np.uint64) << np.uint64(32)
    keys |= operations.column("request").astype(np.uint64)
    wanted = {conn << 32 | request: told for (conn, request), told in codes.items()}
    hit = np.flatnonzero(np.isin(keys, np.fromiter(wanted, np.uint64, len(wanted))))
    return {row: wanted[key] for row, key in zip(hit.tolist(), keys[hit].tolist(), strict=True)}


def _batch(
    pa: Any,
    schema: Any,
    operations: Operations,
    rows: NDArray[Any],
    codes: Mapping[int, list[str]],
    started: datetime | None,
) -> Any:
    def column(name: str) -> NDArray[Any]:
        values: NDArray[Any] = operations.column(name)[rows]
        return values

    answered = column("answered") == 1
    t_ns = operations.t_ns()[rows]
    ret, msg_type, load = column("ret"), column("msg_type"), column("reply_load")
    number = pa.int64()
    arrays: dict[str, Any] = {
        "conn": pa.array(column("conn"), number),
        "request": pa.array(column("request"), number),
        "t_ns": pa.array(t_ns, number),
        "time": _times(pa, t_ns, started),
        "op": _worded(pa, msg_type, _op),
        "msg_type": pa.array(msg_type, number),
        "ret": pa.array(ret, number, mask=~answered),
        "errno": _worded(pa, np.where(answered, ret, 0), errno_name),
        "latency_ns": pa.array(column("latency_ns"), number, mask=~answered),
        "reply_msg_size": pa.array(column("reply_size"), number, mask=~answered),
        "anomalies": _listed(pa, column("anomalies"), lambda bits: list(anomaly_names(bits))),
        "codes": _codes(pa, rows, codes),
    }
    layout = column("layout")
    for name in LOAD_COLUMNS:
        has = _having(layout, name)
        arrays[name] = pa.array(column(name), pa.uint64(), mask=~has)
        for part in _parts(name):
            values = (column(name) >> part.shift) & part.limit
            arrays[part.name] = pa.array(values, pa.uint64(), mask=~has)
    for name, numbers in _arrays().items():
        arrays[name] = _elements(pa, operations, rows, np.isin(layout, numbers))
    answering = _reply_layouts(layout, column("reply_type"))
    for name, numbers in _answers().items():
        has = answered & (load >= 0) & np.isin(answering, numbers)
        arrays[name] = pa.array(np.where(has, load, 0), pa.uint64(), mask=~has)
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _op(msg_type: int) -> str:
    known = DEVICE_MANAGER_TABLE.by_number.get(msg_type)
    return known.name if known else op_name(msg_type)


def _times(pa: Any, t_ns: NDArray[Any], started: datetime | None) -> Any:
    kind = pa.timestamp("us", tz="UTC")
    if started is None:
        return pa.nulls(len(t_ns), kind)
    begun = (started - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    return pa.array(begun + t_ns // 1000, pa.int64()).cast(kind)


def _worded(pa: Any, numbers: NDArray[Any], word: Callable[[int], str | None]) -> Any:
    """A text for each number."""
    unique, places = np.unique(numbers, return_inverse=True)
    words = pa.array([word(value) for value in unique.tolist()], pa.string())
    return words.take(pa.array(places))


def _listed(pa: Any, numbers: NDArray[Any], listed: Callable[[int], list[str]]) -> Any:
    unique, places = np.unique(numbers, return_inverse=True)
    lists = pa.array([listed(value) for value in unique.tolist()], pa.list_(pa.string()))
    return lists.take(pa.array(places))


def _codes(pa: Any, rows: NDArray[Any], codes: Mapping[int, list[str]]) -> Any:
    first, places = int(rows[0]) if len(rows) else 0, np.zeros(len(rows), np.int64)
    lists: dict[tuple[str, ...], int] = {(): 0}
    for row in range(first, first + len(rows)) if codes else ():
        if row in codes:
            places[row - first] = lists.setdefault(tuple(codes[row]), len(lists))
    return pa.array([list(each) for each in lists], pa.list_(pa.string())).take(pa.array(places))


def _stores(of_reply: bool) -> Iterable[tuple[int, Sequence[FieldRow]]]:
    for number, layout in _LAYOUTS.items():
        yield number, store_of(DEVICE_MANAGER_TABLE, layout, of_reply).rows


def _having(layout: NDArray[Any], name: str) -> NDArray[Any]:
    numbers = [number for number, rows in _stores(False) if name in [row.name for row in rows]]
    return np.isin(layout, numbers)


def _parts(name: str) -> Sequence[Any]:
    for _, rows in _stores(False):
        for row in rows:
            if row.name == name:
                return row.bits
    return ()


def _arrays() -> dict[str, list[int]]:
    """Arrays of requests, and the layouts that have them."""
    found: dict[str, list[int]] = {}
    for number, rows in _stores(False):
        for row in rows:
            if row.count is not None:
                found.setdefault(row.name, []).append(number)
    return found


def _answers() -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, rows in _stores(True):
        for row in rows:
            found.setdefault(row.name, []).append(number)
    return found


def _reply_layouts(layout: NDArray[Any], reply_type: NDArray[Any]) -> NDArray[Any]:
    """The layout of each reply, by the request's architecture and the type that the reply tells."""
    pairs = layout.astype(np.int64) << 32 | reply_type.astype(np.int64)
    unique, places = np.unique(pairs, return_inverse=True)
    numbers = [
        reply_layout(
            DEVICE_MANAGER_TABLE, layout_at(DEVICE_MANAGER_TABLE, pair >> 32), pair & 0xFFFFFFFF
        ).number
        for pair in unique.tolist()
    ]
    return np.array(numbers, np.int64)[places]


def _elements(pa: Any, operations: Operations, rows: NDArray[Any], has: NDArray[Any]) -> Any:
    """The bytes in `extra` of the rows that have an array of bytes; null for the others."""
    sizes = np.where(has, operations.column("extra_size")[rows], 0).astype(np.int64)
    begins = operations.column("extra_end")[rows].astype(np.int64) - sizes
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    places = np.repeat(begins - offsets[:-1], sizes) + np.arange(int(offsets[-1]))
    values = pa.array(operations.column("extra")[places].astype(np.int64))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=pa.array(~has))
