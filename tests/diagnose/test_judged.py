"""Codes and severities in filters, and in the JSON of operations."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import golden, run
from upcall_trace.diagnose.judged import codes_by_place, judging
from upcall_trace.diagnose.run import diagnose
from upcall_trace.errors import WrongUsage
from upcall_trace.trace.filters import BadFilter, parse
from upcall_trace.trace.opening import load

PATH = golden("mmio_lifecycle")
FOUND = codes_by_place(diagnose(PATH).findings)


def matching(expression: str) -> set[tuple[int, int]]:
    operations = load(PATH).operations
    operations.judge = judging(PATH)
    rows = np.flatnonzero(parse(expression).mask(operations)).tolist()
    return {(op.conn, op.request) for op in map(operations.operation, rows)}


@pytest.mark.parametrize("code", ["UP301", "UP304", "UP701", "UP207"])
def test_a_code_finds_the_operations_at_which_it_was_found(code: str) -> None:
    expected = {place for place, codes in FOUND.items() if code in codes}
    assert matching(f"code == {code}") == expected
    assert matching(f"code in ({code.lower()}, UP599)") == expected


def test_severities_are_ordered() -> None:
    errors, warnings = matching("finding >= error"), matching("finding >= warning")
    assert errors < warnings <= matching("finding >= note")
    assert matching("finding == warning") == warnings - errors
    assert matching("finding < note") == set()


def test_what_was_found_joins_with_what_crossed() -> None:
    assert matching("code == UP306 and mmio_irq == 9") == {(1, 10)}


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("code == UP999", "is not known"), ("code < UP301", "only == and !="),
        ("finding > bad", "known are note, warning, error, fatal"), ("code == 301", "a code, such"),
        ("finding", "needs a comparison"),
    ],
)  # fmt: skip
def test_mistakes_are_told(expression: str, words: str) -> None:
    with pytest.raises(BadFilter, match=words):
        parse(expression)


def test_without_a_file_it_is_said_that_nothing_is_known() -> None:
    with pytest.raises(WrongUsage, match="need a file"):
        parse("code == UP301").mask(load(PATH).operations)


def test_the_json_of_operations_has_their_codes() -> None:
    for each in run("show", "--json", PATH).objects:
        assert each["codes"] == FOUND.get((each["conn"], each["request"]), [])


def test_show_and_filter_take_codes(tmp_path: object) -> None:
    told = run("show", "--json", "--filter", "code == UP305", PATH)
    assert [(each["conn"], each["request"]) for each in told.objects] == [(1, 8)]
