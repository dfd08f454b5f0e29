"""The ladder: what crossed between VMM and guest, in the order of time, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ...capture.records import COMMENT
from ...codes import Severity
from ...trace.operations import Operation, Operations
from ...views.line_order import Line as Place
from ...views.line_order import Order, Shows
from ...views.text import safe
from ..data.browsed import Arranged, BrowsedCapture, Wanted
from ..data.settings import USUAL_COLUMNS
from .ladder_lines import (
    Beside,
    Clock,
    Columns,
    connection_line,
    heading,
    operation_line,
    time_room,
    time_text,
)
from .line_view import LineView, plain
from .styled import Line


class Ladder(LineView):
    """Draws the lines that `arranged` has; nothing is kept for a line that is not seen."""

    def __init__(self, recording: BrowsedCapture) -> None:
        super().__init__(id="ladder")
        self.border_title = "2 ladder"
        self.recording = recording
        self.clock = Clock.SINCE_START
        self.picked: list[int] = []
        self.shown_columns: Sequence[str] = USUAL_COLUMNS
        self.arranged = Arranged(Wanted(), Order(recording.operations, 0, None, ()), None, 0, 0)
        self.found: NDArray[np.bool_] | None = None
        """Which operations have what was looked for; None when nothing is."""
        self._signs: dict[tuple[int, int], str] = {}
        self._remarked: set[tuple[int, int]] = set()

    @property
    def order(self) -> Order:
        """Which line shows what."""
        return self.arranged.order

    def use_columns(self, columns: Sequence[str]) -> None:
        """Show these columns beside what crossed, by their names in the settings."""
        self.shown_columns = columns
        self.refresh()

    def _columns(self, width: int) -> Columns:
        whole = len(self.recording)
        room = time_room(self.clock, self.recording.wall_ns)
        return Columns.of(width, room, self.shown_columns, whole)

    def take(self, arranged: Arranged, follow: bool) -> None:
        """Show other lines; the cursor stays on what it is on, or with `follow` goes to the end."""
        here = self.place
        self.arranged = arranged
        number = None if here is None else self.order.number(here)
        if number is None and here is not None and here.shows in (Shows.REQUEST, Shows.REPLY):
            row = self.order.nearest_row(here.at)
            number = None if row is None else self.order.number(Place(here.shows, row))
        shift = 0 if number is None else number - self.cursor
        if shift:
            self.cursor = number or 0
        self.changed()
        if follow:
            self.move_to(self.count() - 1)
        elif shift:
            self.show_line(self.cursor)

    def remark(self) -> None:
        """The marks have changed."""
        self._signs, self._remarked = {}, set()
        for mark in self.recording.all_marks():
            if mark.conn is None or mark.request is None:
                continue
            if mark.name == COMMENT:
                self._remarked.add((mark.conn, mark.request))
            else:
                self._signs[mark.conn, mark.request] = safe(mark.name)[:1] or " "
                if mark.text:
                    self._remarked.add((mark.conn, mark.request))
        self.refresh()

    @property
    def place(self) -> Place | None:
        """What the cursor is on, None for an empty ladder."""
        return self.order.line(self.cursor) if self.cursor < len(self.order) else None

    @property
    def row(self) -> int | None:
        """The operation that the cursor is on, None on a connection's line."""
        place = self.place
        on_operation = place is not None and place.shows in (Shows.REQUEST, Shows.REPLY)
        return place.at if place is not None and on_operation else None

    @property
    def connection(self) -> int | None:
        """The number of the connection that the cursor is on."""
        place = self.place
        if place is None:
            return None
        if self.row is not None:
            return int(self.recording.operations.column("conn")[place.at])
        return self.recording.connections[place.at].number

    def rows_seen(self) -> tuple[int, int] | None:
        """The first and the last operation on the screen, None when there is none."""
        top = self.scroll_offset.y
        lines = map(self.order.line, range(top, min(top + self.page, len(self.order))))
        rows = [line.at for line in lines if line.shows in (Shows.REQUEST, Shows.REPLY)]
        return (min(rows), max(rows)) if rows else None

    def go(self, row: int, shows: Shows | None = None) -> bool:
        """Put the cursor on an operation's reply, or its request; False when it is not shown."""
        if shows is None:
            answered = bool(self.recording.operations.column("answered")[row])
            shows = Shows.REPLY if answered else Shows.REQUEST
        number = self.order.number(Place(shows, row))
        if number is None:
            return False
        self.move_to(number)
        return True

    def go_to_connection(self, conn: int) -> bool:
        """Put the cursor on the line where a connection opens; False when it is not shown."""
        place = self.recording.places.get(conn)
        number = None if place is None else self.order.number(Place(Shows.OPENED, place))
        if number is None:
            return False
        self.move_to(number)
        return True

    def go_to_finding(self, step: int, least: Severity) -> bool:
        """Go on or back to what was found; False when there is nothing more."""
        numbers = [*self._found_operation(step, least), *self._found_connection(step, least)]
        if not numbers:
            return False
        self.move_to(min(numbers) if step > 0 else max(numbers))
        return True

    def _found_operation(self, step: int, least: Severity) -> Iterator[int]:
        findings = self.recording.findings
        wanted = findings.worst[: len(self.recording)] >= least
        row = self._next(wanted, step)
        while row is not None:
            answered = bool(self.recording.operations.column("answered")[row])
            number = self.order.number(Place(Shows.REPLY if answered else Shows.REQUEST, row))
            if number is not None and (number - self.cursor) * step > 0:
                yield number
                return
            row = self.order.next_row(wanted, row, step)

    def _found_connection(self, step: int, least: Severity) -> Iterator[int]:
        findings = self.recording.findings
        for conn in findings.connections():
            if findings.severity_of_connection(conn) < least:
                continue
            place = self.recording.places.get(conn)
            number = None if place is None else self.order.number(Place(Shows.OPENED, place))
            if number is not None and (number - self.cursor) * step > 0:
                yield number

    def go_to_match(self, step: int) -> bool:
        """Go to the next or previous operation that was found, or else matches the filter.

        False at the last.
        """
        wanted = self.found if self.found is not None else self.arranged.matching
        if wanted is None:
            wanted = np.ones(len(self.recording), np.bool_)
        row = self._next(wanted, step)
        if row is not None and row == self.row:
            row = self.order.next_row(wanted, row, step)
        return row is not None and self.go(row, Shows.REQUEST)

    def take_found(self, rows: Sequence[int]) -> None:
        """These operations were found."""
        self.found = np.zeros(len(self.recording), np.bool_)
        self.found[list(rows)] = True

    def _next(self, wanted: np.ndarray[tuple[int], np.dtype[np.bool_]], step: int) -> int | None:
        """The next wanted operation from the cursor on; the one it is on may come again."""
        row = self.row
        if row is None:
            row = self._row_around(step)
        elif step > 0:
            row -= 1
        else:
            row += 1
        whole = np.zeros(self.arranged.rows, np.bool_)  # what came since has not been looked at
        known = wanted[: self.arranged.rows]
        whole[: len(known)] = known
        return self.order.next_row(whole, row, step)

    def _row_around(self, step: int) -> int:
        """On a connection's line: the operation that `step` leads away from."""
        number = self.cursor
        while 0 <= number < len(self.order):
            place = self.order.line(number)
            if place.shows in (Shows.REQUEST, Shows.REPLY):
                return place.at - step
            number += step
        return self.arranged.rows if step > 0 else -1

    def count(self) -> int:
        return len(self.order)

    def heading(self, width: int) -> Line | None:
        return heading(self._columns(width))

    def line(self, number: int, width: int) -> Line:
        place = self.order.line(number)
        if place.shows in (Shows.OPENED, Shows.CLOSED):
            return self._connection_line(place, width)
        operations = self.recording.operations
        operation = operations.operation(place.at)
        key = (operation.conn, operation.request)
        is_reply = place.shows is Shows.REPLY
        asked = self.arranged.wanted.conn
        matching = self.arranged.matching
        answered = operation.ret is not None
        tells = is_reply or not answered
        findings = self.recording.findings
        beside = Beside(
            time="" if is_reply else self._time(operations, operation),
            severity=int(findings.worst[place.at]) if tells else 0,
            codes=findings.codes_of(place.at) if is_reply else (),
            sign=" " if is_reply else self._sign(operation),
            remarked=not is_reply and key in self._remarked,
            waits=not answered and self.recording.waits(place.at),
            waited_ns=self.recording.waited_ns(operation.t_ns) if not answered else None,
            context=(asked is not None and asked != operation.conn)
            or (matching is not None and not matching[place.at]),
        )
        return operation_line(place.shows, operation, self._columns(width), beside)

    def _sign(self, operation: Operation) -> str:
        if operation.row in self.picked:
            return "●"
        return self._signs.get((operation.conn, operation.request), " ")

    def _connection_line(self, place: Place, width: int) -> Line:
        connection = self.recording.connections[place.at]
        opens = place.shows is Shows.OPENED
        raw_ns = connection.opened_ns if opens else connection.closed_ns
        if raw_ns is None:
            return plain("")
        t_ns = raw_ns - self.recording.first_ns
        findings = self.recording.findings
        chosen = self.arranged.wanted.conn
        told = findings.of_connection(connection.number) if opens else []
        return connection_line(
            place.shows,
            connection,
            self._columns(width),
            Beside(
                time=time_text(self.clock, t_ns, t_ns, self.recording.wall_ns),
                severity=findings.severity_of_connection(connection.number) if opens else 0,
                codes=[finding.code for finding in told],
                context=chosen is not None and chosen != connection.number,
            ),
        )

    def _time(self, operations: Operations, operation: Operation) -> str:
        before_ns = 0
        if self.clock is Clock.DELTA:
            before = self.order.row_before(operation.row)
            if before is not None:
                before_ns = int(operations.column("t_ns")[before]) - self.recording.first_ns
        return time_text(self.clock, operation.t_ns, before_ns, self.recording.wall_ns)
