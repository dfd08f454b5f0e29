"""What the browser knows of the capture it shows. Only message handlers change it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...capture.records import Header, Mark, Vmm
from ...diagnose.judged import judging
from ...trace.decoding import Connection
from ...trace.filters import Filter, Mask
from ...trace.opening import Capture
from ...trace.operations import Operations
from ...views.line_order import Order
from .columns import GrowingColumns, RowsByConnection
from .findings import Batch, FindingStore
from .reading import Grown
from .search import Told


class BrowsedCapture:
    """A capture, its findings so far, and the marks that were added to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = Header("")
        self.first_ns = 0
        self.duration_ns = 0
        self.operations = Operations(GrowingColumns(), 0)
        self.connections: list[Connection] = []
        self.places: dict[int, int] = {}
        """Where each connection stands in `connections`."""
        self.marks: list[Mark] = []
        self.own_marks: list[Mark] = []
        """Those that were saved beside the capture, or that this browser added."""
        self.vmm: list[Vmm] = []
        self.rows = RowsByConnection()
        self.findings = FindingStore()
        self.read = 0
        self.live = False
        self.ended = False
        self.glance = False
        """Only the beginning is known, and the whole comes next."""
        self.trouble = ""
        self._growing = GrowingColumns()
        self._early: list[Batch] = []

    def __len__(self) -> int:
        return len(self.operations)

    @property
    def wall_ns(self) -> int | None:
        """The wall clock at the capture's first record, None when it does not say."""
        wall_ns = self.header.wall_ns
        return None if wall_ns is None else wall_ns + self.first_ns

    def take_whole(self, capture: Capture, rows: RowsByConnection) -> None:
        """The capture has an index; `rows` knows all of its operations."""
        self.rows, self.glance = rows, False
        self.header, self.first_ns = capture.header, capture.first_ns
        self.duration_ns = capture.duration_ns
        self.operations = capture.operations
        self.operations.judge = judging(self.path)
        self.marks, self.vmm = capture.marks, capture.vmm
        self.ended = True
        self.trouble = "something is missing in the middle" if capture.gaps else ""
        self._take_connections(capture.connections)

    def take_grown(self, grown: Grown) -> None:
        """There is more of it."""
        self._growing.put(grown.first, grown.columns)
        self.header, self.first_ns = grown.header, grown.first_ns
        self.duration_ns = grown.last_ns - grown.first_ns
        # As they are now: workers read them while there is more to come.
        self.operations = Operations(dict(self._growing), grown.first_ns)
        self.operations.judge = judging(self.path)
        self.marks, self.vmm = grown.marks, grown.vmm
        self.read, self.live, self.ended = grown.read, grown.live, grown.ended
        self.trouble, self.glance = grown.trouble, grown.glance
        self._take_connections(grown.connections)

    def _take_connections(self, connections: list[Connection]) -> None:
        if len(connections) != len(self.connections):
            self.places = {c.number: place for place, c in enumerate(connections)}
        self.connections = connections
        self.rows.extend(self.operations)
        self.findings.grow(len(self.operations))
        early, self._early = self._early, []
        for batch in early:
            self.take_findings(batch)

    def take_findings(self, batch: Batch) -> None:
        """Something was found; what is ahead of the operations read so far has to wait."""
        if self._early or any(
            request >= self.rows.rows(conn) and not self.ended for conn, request in batch.places
        ):
            self._early.append(batch)
        else:
            self.findings.add(batch, self.rows.row)

    def connection(self, number: int) -> Connection | None:
        """The connection of that number."""
        place = self.places.get(number)
        return None if place is None else self.connections[place]

    def waiting(self) -> int:
        """How many requests of a recording that goes on wait for their answers."""
        rows = np.flatnonzero(self.operations.column("answered") == 0).tolist()
        return sum(self.waits(row) for row in rows)

    def waits(self, row: int) -> bool:
        """Whether an operation without an answer may still get one."""
        connection = self.connection(int(self.operations.column("conn")[row]))
        return self.live and connection is not None and connection.closed_ns is None

    def waited_ns(self, t_ns: int) -> int | None:
        """For how long something has waited that was sent at `t_ns`; None without a wall clock."""
        wall_ns = self.wall_ns
        return None if wall_ns is None else max(time.time_ns() - wall_ns - t_ns, 0)

    def told_at(self) -> Told:
        """What is told beside an operation now: codes of findings, and remarks."""
        remarks: dict[tuple[int, int], list[str]] = {}
        for mark in self.all_marks():
            if mark.conn is not None and mark.request is not None:
                remarks.setdefault((mark.conn, mark.request), []).append(mark.text)
        rows = {self.rows.row(*key): texts for key, texts in remarks.items()}
        codes = self.findings.codes_of
        return lambda row: [*codes(row), *rows.get(row, ())]

    def all_marks(self) -> Iterable[Mark]:
        """The capture's own, then those saved beside it or added now."""
        return [*self.marks, *self.own_marks]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the ladder is to show."""

    filter: Filter | None = None
    hiding: bool = True
    """What does not match is left out, not only dimmed."""
    conn: int | None = None
    """The chosen connection; None for all."""
    context: bool = True
    """Other connections are shown too, dimmed."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """The lines of what is wanted; `matching` has a truth value for each operation."""

    wanted: Wanted
    order: Order
    matching: Mask | None
    matches: int
    rows: int


def arrange(recording: BrowsedCapture, wanted: Wanted) -> Arranged:
    """Work out the lines; for a worker: it reads and changes nothing."""
    operations, connections = recording.operations, recording.connections
    count = len(operations)
    matching: Mask | None = None
    if wanted.filter is not None:
        matching = wanted.filter.mask(operations)[:count]
    shown: NDArray[np.bool_] | None = matching if wanted.hiding else None
    if wanted.conn is not None and not wanted.context:
        of_it: Mask = operations.column("conn") == wanted.conn
        shown = of_it if shown is None else shown & of_it
    rows = None if shown is None else np.flatnonzero(shown)
    beside = [
        (place, connection)
        for place, connection in enumerate(connections)
        if wanted.filter is None
        and (wanted.conn is None or wanted.context or connection.number == wanted.conn)
    ]
    matches = count if matching is None else int(matching.sum())
    order = Order(operations, recording.first_ns, rows, beside)
    return Arranged(wanted, order, matching, matches, count)
