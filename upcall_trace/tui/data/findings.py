"""The findings of a capture as they come: small in memory, found by row, told in full on demand."""

from __future__ import annotations

import pickle
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...codes import Severity
from ...diagnose.engine import sort_key
from ...diagnose.finding import Finding

_NOWHERE: Final = -1
_LEVEL: Final = 1
Group = tuple[str | None, int]
"""A guest, and the number of a failure of it that has several possible causes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Findings on their way from the diagnosis; their texts are packed."""

    places: list[tuple[int, int]]
    """(connection, request) of each, -1 for none."""
    severities: bytes
    codes: list[str]
    groups: list[Group | None]
    """Of each, whose alternative it is; None for what stands alone."""
    packed: bytes = field(repr=False)

    @staticmethod
    def of(findings: Sequence[Finding]) -> Batch:
        """Pack findings; done by the worker that found them."""
        return Batch(
            [
                (
                    _NOWHERE if finding.conn is None else finding.conn,
                    _NOWHERE if finding.request is None else finding.request,
                )
                for finding in findings
            ],
            bytes(finding.severity for finding in findings),
            [finding.code for finding in findings],
            [None if f.group is None else (f.sandbox, f.group) for f in findings],
            zlib.compress(pickle.dumps(list(findings)), _LEVEL),
        )

    def __len__(self) -> int:
        return len(self.codes)


class FindingStore:
    """All findings so far. `worst` has the highest severity at each row, 0 for none.

    `counts` has the findings of each severity; alternatives of one failure count once.
    """

    def __init__(self) -> None:
        self.worst: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.counts: dict[Severity, int] = dict.fromkeys(Severity, 0)
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self._conns: NDArray[np.int64] = np.zeros(0, np.int64)
        self._codes: list[str] = []
        self._severities = bytearray()
        self._begins: list[int] = []
        self._batches: list[bytes] = []
        self._size = 0
        self._whole: dict[int, int] = {}
        """Of each connection, the severity of what concerns it as a whole."""
        self._first: dict[int, tuple[int, int, int]] = {}
        """Of each connection, (weight, row, number) of the finding to name first."""
        self._groups: set[Group] = set()

    def __len__(self) -> int:
        return self._size

    def grow(self, rows: int) -> None:
        """There are so many operations now."""
        if rows > len(self.worst):
            self.worst = _with_room(self.worst, rows)

    def add(self, batch: Batch, row_of: Callable[[int, int], int | None]) -> None:
        """Take what was found; `row_of` gives the row of a (connection, request)."""
        begin = self._size
        self._begins.append(begin)
        self._batches.append(batch.packed)
        self._codes += map(intern_code, batch.codes)
        self._severities += batch.severities
        self._size += len(batch)
        self._rows = _with_room(self._rows, self._size)
        self._conns = _with_room(self._conns, self._size)
        for number, ((conn, request), severity, group) in enumerate(
            zip(batch.places, batch.severities, batch.groups, strict=True), start=begin
        ):
            row = row_of(conn, request) if request != _NOWHERE else None
            self._rows[number] = _NOWHERE if row is None else row
            self._conns[number] = conn
            if group is None or group not in self._groups:
                self.counts[Severity(severity)] += 1
            if group is not None:
                self._groups.add(group)
            if row is not None:
                self.worst[row] = max(self.worst[row], severity)
            elif conn != _NOWHERE:
                self._whole[conn] = max(self._whole.get(conn, 0), severity)
            weight = min(severity, Severity.ERROR)  # of failures the first, however bad
            rank = (-weight, _NOWHERE if row is None else row, number)
            if conn not in self._first or rank < self._first[conn]:
                self._first[conn] = rank

    def of_row(self, row: int) -> list[Finding]:
        """What was found about an operation: the worst first, of those causes first."""
        return self._told(np.flatnonzero(self._rows[: self._size] == row).tolist())

    def codes_of(self, row: int) -> list[str]:
        """The codes of an operation's findings, the worst first; cheap."""
        if not self.worst[row : row + 1].any():
            return []
        numbers = np.flatnonzero(self._rows[: self._size] == row).tolist()
        ranked = sorted((-self._severities[number], self._codes[number]) for number in numbers)
        return list(dict.fromkeys(code for _, code in ranked))

    def of_connection(self, conn: int | None) -> list[Finding]:
        """What concerns a whole connection, or with None the capture."""
        wanted = _NOWHERE if conn is None else conn
        rows, conns = self._rows[: self._size], self._conns[: self._size]
        return self._told(np.flatnonzero((rows == _NOWHERE) & (conns == wanted)).tolist())

    def connections(self) -> list[int]:
        """The connections that something concerns as a whole."""
        return list(self._whole)

    def severity_of_connection(self, conn: int) -> int:
        """Of what concerns the connection as a whole; 0 for nothing."""
        return self._whole.get(conn, 0)

    def first_told(self, conn: int) -> Finding | None:
        """A connection's first failure, or its first finding."""
        first = self._first.get(conn)
        return None if first is None else next(iter(self._told([first[2]])), None)

    def _told(self, numbers: Sequence[int]) -> list[Finding]:
        return sorted(self._unpacked(numbers), key=lambda f: (-f.severity, *sort_key(f)))

    def _unpacked(self, numbers: Sequence[int]) -> Iterator[Finding]:
        open_batch, findings = _NOWHERE, []
        for number in numbers:
            batch = bisect_right(self._begins, number) - 1
            if batch != open_batch:
                open_batch = batch
                findings = pickle.loads(zlib.decompress(self._batches[batch]))  # noqa: S301  # ours
            yield findings[number - self._begins[batch]]


_CODES: Final[dict[str, str]] = {}


def intern_code(code: str) -> str:
    """One string object for each code, however often it is found."""
    return _CODES.setdefault(code, code)


def _with_room(column: NDArray[Any], rows: int) -> NDArray[Any]:
    if rows <= len(column):
        return column
    larger = np.zeros(2 * rows, column.dtype)
    larger[: len(column)] = column
    return larger
