"""The ladder of a report has the browser's lines in their order, and lines of logs among them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support import PCAPS, TRANSCRIPTS
from tests.views.test_line_order import CONNECTIONS, ROWS, TIMES, connection, operations
from upcall_trace.diagnose.lines_beside import BEFORE, CONSOLE, VMM_LOG, LineBeside
from upcall_trace.exports.ladder import LOG, ladder
from upcall_trace.trace.opening import load
from upcall_trace.views.line_order import Order, Shows


def lines(drawn: dict[str, Any]) -> list[tuple[int, int]]:
    return [(int(shows), at) for shows, at in zip(drawn["shows"], drawn["at"], strict=True)]


def opened_of(rows: list[Any], ends: list[Any]) -> Any:
    return SimpleNamespace(
        operations=operations(rows),
        first_ns=0,
        connections=[
            connection(number, opened, None if closed is None else max(opened, closed))
            for number, (opened, closed) in enumerate(ends)
        ],
    )


BESIDE = st.lists(
    st.tuples(st.integers(BEFORE, 11), TIMES | st.none(), st.booleans(), st.booleans()), max_size=8
)


@given(rows=ROWS, ends=CONNECTIONS, said=BESIDE)
def test_each_line_of_a_log_is_behind_its_request_and_what_is_near_before_the_next(
    rows: list[Any], ends: list[Any], said: list[Any]
) -> None:
    opened = opened_of(rows, ends)
    beside: dict[int, list[LineBeside]] = {}
    for number, (row, t_ns, told, of_vmm) in enumerate(said):
        source = VMM_LOG if of_vmm else CONSOLE
        line = LineBeside(source, number, f"line {number}", t_ns, told and row != BEFORE)
        beside.setdefault(row, []).append(line)
    drawn = ladder(opened, len(rows), beside)
    found = lines(drawn)
    order = Order(opened.operations, 0, None, list(enumerate(opened.connections)))
    plain = [order.line(n) for n in range(len(order))]
    assert [each for each in found if each[0] != LOG] == [(int(e.shows), e.at) for e in plain]
    assert len(drawn["logs"]) == sum(row < len(rows) for row, *_ in said)
    place = {each: at for at, each in enumerate(found)}
    for number, (row, t_ns, source, told, _) in enumerate(drawn["logs"]):
        at = place[LOG, number]
        if row != BEFORE:
            assert at > place[Shows.REQUEST, row]
        about_it = any(other[0] == row and other[2:4] == [source, True] for other in drawn["logs"])
        if not told and not about_it and row + 1 < len(rows):
            assert at < place[Shows.REQUEST, row + 1]
        later = [n for n, o in enumerate(drawn["logs"]) if o[0] == row and o[2] == source]
        assert later == sorted(later, key=lambda n: int(drawn["logs"][n][4].split()[1]))
        if told and source == CONSOLE and t_ns is not None:
            assert at < place[Shows.REPLY, row]


def test_it_is_json_for_every_recording() -> None:
    for path in [*TRANSCRIPTS, *PCAPS]:
        opened = load(Path(path))
        drawn = json.loads(json.dumps(ladder(opened, len(opened.operations), {})))
        assert drawn["shows"].count("0") == drawn["shows"].count("1") == len(opened.operations)
        assert len(drawn["sent"]) == len(drawn["took"]) == len(opened.operations)
