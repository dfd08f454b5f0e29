"""The index of a capture made while its records are written, segment by segment.

`Indexer` decodes what is recorded and lets go of it again, so its memory does not grow with the
capture. What it writes is the same whenever a segment ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..capture.frames import frame, pack
from ..capture.index import encode_columns
from ..capture.records import Header, Record
from ..capture.runs import MessageRun
from ..capture.segments import IndexSegment
from .bulk import take_run
from .decoding import Session

INDEX_VERSION: Final = 4
"""Raised whenever decoding changes: older indexes are then decoded anew. A change in a table of
messages needs no new one, because each connection says what its messages were read as."""
SEGMENT_BYTES: Final = 4 << 20
_SEGMENT_ROWS: Final = 1 << 15


class Indexer:
    """Feed it the records of a capture in order, and `cut` whenever `due` says so.

    Unless it `tells`, nothing is kept for `results`.
    """

    def __init__(self, header: Header, tells: bool = True) -> None:
        self._session = Session(header)
        self._tells = tells
        self._last: IndexSegment | None = None
        self._begin = 0
        self._results: list[tuple[str, str, int]] = []
        self.broken = False
        """True once a segment could not be written: then the capture has no index."""

    def feed(self, record: Record, offset: int) -> None:
        """Take the record that stands at `offset`."""
        self._session.feed(record, offset)

    def take(self, run: MessageRun) -> None:
        """The same for a run of messages."""
        take_run(self._session, run)

    def parts(self, run: MessageRun) -> Iterator[MessageRun]:
        """A run in parts, each ending where the segment should; each is taken before the next."""
        first = 0
        while first < len(run):
            end = int(np.searchsorted(run.offset, self._begin + SEGMENT_BYTES))
            asked = np.cumsum(run.to_guest[first:end])
            full = first + 1 + int(np.searchsorted(asked, _SEGMENT_ROWS - self._new_rows))
            end = max(first + 1, min(end, full))
            yield run.part(first, end)
            first = end

    def due(self, offset: int) -> bool:
        """Whether the segment should end before the record at `offset`."""
        return offset - self._begin >= SEGMENT_BYTES or self._new_rows >= _SEGMENT_ROWS

    @property
    def _new_rows(self) -> int:
        """Rows since the last segment."""
        first = self._last.first_row + self._last.rows if self._last else 0
        return len(self._session.table) - first

    @property
    def begin(self) -> int:
        """Where the segment begins that is being filled."""
        return self._begin

    def cut(self, end: int, offset: int, digest: bytes, ended: bool = False) -> bytes:
        """The frames of the segment that ends at `end`; they will stand at `offset`.

        `digest` is that of the bytes from `begin` to `end`.
        """
        session = self._session
        if ended:
            session.finish()
        self._gather()
        columns, changed = session.table.cut(session.unfinished_rows())
        tables: dict[str, NDArray[Any]] = {
            **columns,
            "changed": np.fromiter(changed, "<u8", len(changed)),
            "changed_rows": np.frombuffer(b"".join(changed.values()), np.uint8),
        }
        for name, values in (
            ("marks", session.marks), ("vmm", session.vmm), ("origins", session.origins),
            ("connections", session.let_go()),
        ):  # fmt: skip
            tables[name] = _as_json(values)
        rows = len(columns["conn"])
        segment = IndexSegment(
            offset=0, version=INDEX_VERSION, begin=self._begin, end=end, digest=digest,
            previous=self._last.offset if self._last else None, rows_at=offset,
            first_row=len(session.table) - rows, rows=rows, first_ns=session.first_ns,
            last_ns=session.last_ns, lost=session.lost, ended=ended,
        )  # fmt: skip
        try:
            framed = encode_columns(INDEX_VERSION, tables)
        except ValueError:
            self.broken = True
            return b""
        self._begin = end
        self._last = _at(segment, offset + len(framed))
        return framed + frame(pack(segment.values()))

    @property
    def rows(self) -> int:
        """How many operations there are so far."""
        return len(self._session.table)

    def results(self) -> list[tuple[str, str, int]]:
        """(operation, result, latency in ns or -1) of what was finished since the last call."""
        self._gather()
        found, self._results = self._results, []
        return found

    def _gather(self) -> None:
        finished = self._session.finished_rows
        if self._tells:
            self._results += [self._session.table.result(row) for row in finished]
        finished.clear()

    @property
    def last_at(self) -> int:
        """Where the last SEGMENT record stands, for the TAIL."""
        return self._last.offset if self._last else 0


def _at(segment: IndexSegment, offset: int) -> IndexSegment:
    return IndexSegment(offset, *segment.values()[1:])


def _as_json(values: Sequence[Any]) -> NDArray[Any]:
    listed = [asdict(value) for value in values]
    text = json.dumps(listed, default=lambda raw: raw.decode("latin-1"))
    return np.frombuffer(text.encode(), np.uint8)
