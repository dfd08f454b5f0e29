"""The columns of a capture that grows, and where a request of a connection stands in them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...trace.operation_table import COLUMN_TYPES
from ...trace.operations import Operations

_FIRST_ROOM: Final = 1024


class GrowingColumns(Mapping[str, NDArray[Any]]):
    """Columns of operations with room to grow; a view that was handed out never shrinks."""

    def __init__(self) -> None:
        self._rows = 0
        self._columns = {name: np.zeros(0, dtype) for name, dtype in COLUMN_TYPES.items()}

    def put(self, first: int, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take the rows from `first` on, new or changed, and all of the `extra` bytes."""
        rows = first + len(columns["conn"])
        for name, column in columns.items():
            if name == "extra":
                self._columns[name] = column
                continue
            kept = self._columns[name]
            if rows > len(kept):
                larger = np.zeros(max(2 * rows, _FIRST_ROOM), kept.dtype)
                larger[: self._rows] = kept[: self._rows]
                self._columns[name] = kept = larger
            kept[first:rows] = column
        self._rows = max(rows, self._rows)

    def __getitem__(self, name: str) -> NDArray[Any]:
        column = self._columns[name]
        return column if name == "extra" else column[: self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class RowsByConnection:
    """Finds the row of a request by its connection and number; eight bytes a row.

    Where numbers come again, after a connection's number was used anew, the last one counts.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._known: dict[int, tuple[array[int], array[int]]] = {}

    def extend(self, operations: Operations) -> None:
        """Take the rows that came since the last call."""
        conns = operations.column("conn")[self._rows :]
        if not len(conns):
            return
        requests = operations.column("request")[self._rows :]
        order = np.argsort(conns, kind="stable")
        found, begins = np.unique(conns[order], return_index=True)
        for conn, rows in zip(found.tolist(), np.split(order, begins[1:]), strict=True):
            numbers = requests[rows]
            restarts = np.flatnonzero(numbers[1:] <= numbers[:-1])
            known = self._known.setdefault(conn, (array("I"), array("I")))
            if len(restarts):
                rows = rows[restarts[-1] + 1 :]
                numbers = requests[rows]
            if len(restarts) or (known[0] and numbers[0] <= known[0][-1]):
                known = self._known[conn] = (array("I"), array("I"))
            known[0].frombytes(numbers.astype("<u4").tobytes())
            known[1].frombytes((rows + self._rows).astype("<u4").tobytes())
        self._rows += len(conns)

    def row(self, conn: int, request: int) -> int | None:
        """The row of request `conn.request`, None when it is not there, or not yet."""
        numbers, rows = self._known.get(conn, (array("I"), array("I")))
        at = bisect_left(numbers, request)
        return rows[at] if at < len(numbers) and numbers[at] == request else None

    def rows(self, conn: int) -> int:
        """How many operations the connection has."""
        return len(self._known[conn][0]) if conn in self._known else 0

    def first_row(self, conn: int) -> int | None:
        """The connection's first operation, None when it has none."""
        return self._known[conn][1][0] if conn in self._known else None
