"""Which line shows what: against the plainest way to work it out, for any traffic."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from upcall_trace.capture.records import Begins
from upcall_trace.trace.decoding import Connection
from upcall_trace.trace.operation_table import COLUMN_TYPES
from upcall_trace.trace.operations import Operations
from upcall_trace.tui.data.columns import GrowingColumns, RowsByConnection
from upcall_trace.views.line_order import Line, Order, Shows


def operations(rows: list[tuple[int, int | None]]) -> Operations:
    """Operations of (when they were sent, how long the answer took, None for none)."""
    columns: dict[str, Any] = {
        name: np.zeros(len(rows), dtype) for name, dtype in COLUMN_TYPES.items()
    }
    for row, (t_ns, latency_ns) in enumerate(rows):
        columns["t_ns"][row] = t_ns
        columns["answered"][row] = latency_ns is not None
        columns["latency_ns"][row] = -1 if latency_ns is None else latency_ns
    return Operations(columns, 0)


def connection(number: int, opened_ns: int, closed_ns: int | None) -> Connection:
    made = Connection(number, opened_ns, Begins.LINE, 219, True, None)
    made.closed_ns = closed_ns
    return made


def plainly(
    rows: list[tuple[int, int | None]], shown: list[int], connections: list[Connection]
) -> list[Line]:
    """Every line, sorted by time; at one time what opens comes first, what closes last."""
    events: list[tuple[int, int, int, Line]] = []
    latest = 0
    for place, row in enumerate(shown):
        t_ns, latency_ns = rows[row]
        latest = max(latest, t_ns)
        back = max(t_ns + (latency_ns or 0), latest) if latency_ns is not None else latest
        events.append((latest, 1, 2 * place, Line(Shows.REQUEST, row)))
        events.append((back, 1, 2 * place + 1, Line(Shows.REPLY, row)))
    for place, each in enumerate(connections):
        events.append((each.opened_ns, 0, place, Line(Shows.OPENED, place)))
        if each.closed_ns is not None:
            events.append((each.closed_ns, 2, place, Line(Shows.CLOSED, place)))
    return [line for *_, line in sorted(events, key=lambda event: event[:3])]


TIMES = st.integers(0, 30)
ROWS = st.lists(st.tuples(TIMES, st.none() | TIMES), max_size=12)
CONNECTIONS = st.lists(st.tuples(TIMES, st.none() | TIMES), max_size=4)


@given(rows=ROWS, ends=CONNECTIONS, picks=st.none() | st.sets(st.integers(0, 11)))
def test_every_line_is_where_time_puts_it_and_is_found_there(
    rows: list[tuple[int, int | None]],
    ends: list[tuple[int, int | None]],
    picks: set[int] | None,
) -> None:
    connections = [connection(n, *times) for n, times in enumerate(ends, start=1)]
    shown = [row for row in range(len(rows)) if picks is None or row in picks]
    kept = None if picks is None else np.array(shown, np.int64)
    order = Order(operations(rows), 0, kept, list(enumerate(connections)))
    expected = plainly(rows, shown, connections)
    assert len(order) == len(expected)
    found = [order.line(number) for number in range(len(order))]
    assert sorted(found) == sorted(expected)
    on_operations = [line for line in found if line.shows < Shows.OPENED]
    assert on_operations == [line for line in expected if line.shows < Shows.OPENED]
    for number, line in enumerate(found):
        assert order.number(line) == number
    for row in set(range(len(rows))) - set(shown):
        assert order.number(Line(Shows.REQUEST, row)) is None


@given(rows=ROWS, picks=st.sets(st.integers(0, 11)), wanted=st.sets(st.integers(0, 11)))
def test_the_next_wanted_row_is_the_next_one(
    rows: list[tuple[int, int | None]], picks: set[int], wanted: set[int]
) -> None:
    shown = sorted(row for row in picks if row < len(rows))
    mask = np.array([row in wanted for row in range(len(rows))], np.bool_)
    for kept, among in ((None, list(range(len(rows)))), (np.array(shown, np.int64), shown)):
        order = Order(operations(rows), 0, kept, [])
        for row in range(-1, len(rows) + 1):
            after = [other for other in among if other > row and other in wanted]
            before = [other for other in among if other < row and other in wanted]
            assert order.next_row(mask, row, 1) == (after[0] if after else None)
            assert order.next_row(mask, row, -1) == (before[-1] if before else None)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30), st.integers(0, 30))
def test_requests_are_found_by_connection_and_number(keys: list[tuple[int, int]], cut: int) -> None:
    columns: dict[str, Any] = {
        name: np.zeros(len(keys), dtype) for name, dtype in COLUMN_TYPES.items()
    }
    counts: dict[int, int] = {}
    expected: dict[tuple[int, int], int] = {}
    for row, (conn, restarts) in enumerate(keys):
        number = 0 if restarts == 5 else counts.get(conn, 0)
        if number == 0:
            expected = {key: at for key, at in expected.items() if key[0] != conn}
        counts[conn] = number + 1
        columns["conn"][row], columns["request"][row] = conn, number
        expected[conn, number] = row
    growing, rows = GrowingColumns(), RowsByConnection()
    for begin, end in ((0, cut), (cut, len(keys))):
        growing.put(begin, {name: column[begin:end] for name, column in columns.items()})
        rows.extend(Operations(growing, 0))
        if cut >= len(keys):
            break
    assert {key: rows.row(*key) for key in expected} == expected
    assert rows.row(9, 0) is None


def test_columns_that_grow_keep_what_was_there_and_take_changes() -> None:
    growing = GrowingColumns()
    first = operations([(n, None) for n in range(2000)])
    growing.put(0, {name: first.column(name) for name in first.names()})
    view = growing["t_ns"]
    second = operations([(n, 5) for n in range(1999, 5000)])
    growing.put(1999, {name: second.column(name) for name in second.names()})
    assert growing["t_ns"].tolist() == list(range(5000))
    assert growing["answered"].tolist() == [0] * 1999 + [1] * 3001
    assert len(view) == 2000
