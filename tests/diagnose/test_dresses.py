"""A log says the same in every dress."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.diagnose.dresses import KEYED, no_keys, records
from tests.diagnose.judging import CASES
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.log_inputs import read_logs

JOURNALS = sorted(
    path
    for path in CASES.glob("*/kata.log")
    if path.read_bytes().startswith(b'{"__REALTIME_TIMESTAMP"')
)
CODES = set[tuple[str, bool]]


def told(path: Path) -> CODES:
    return {(f.code, f.inferred) for f in found(path)}


def found(path: Path) -> list[Finding]:
    return read_logs(found=[path]).findings()


@pytest.mark.parametrize("dress", KEYED)
@pytest.mark.parametrize("journal", JOURNALS, ids=lambda path: path.parent.name)
def test_every_dress_says_the_same(tmp_path: Path, journal: Path, dress: str) -> None:
    (tmp_path / "log").write_bytes(KEYED[dress](records(journal.read_bytes())))
    assert told(tmp_path / "log") == told(journal)


@pytest.mark.parametrize("dress", KEYED)
def test_every_dress_tells_guests_apart(tmp_path: Path, dress: str) -> None:
    entries = records((CASES / "node-two-sandboxes/kata.log").read_bytes())
    (tmp_path / "log").write_bytes(KEYED[dress](entries))
    (finding,) = found(tmp_path / "log")
    assert finding.code == "UP604"
    assert finding.sandbox in ("52029", entries[-1]["SOURCE"])


@pytest.mark.parametrize("journal", JOURNALS, ids=lambda path: path.parent.name)
def test_without_keys_nothing_is_certain_that_several_lines_make(
    tmp_path: Path, journal: Path
) -> None:
    (tmp_path / "log").write_bytes(no_keys(records(journal.read_bytes())))
    plain = told(tmp_path / "log")
    keyed = told(journal)
    assert {code for code, _ in plain} == {code for code, _ in keyed}
    assert {code for code, inferred in plain if not inferred} <= {
        code for code, inferred in keyed if not inferred
    }
