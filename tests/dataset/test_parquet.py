"""Columns made at once are the rows made one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from upcall_trace.dataset.parquet import operation_batches
from upcall_trace.dataset.schema import codes_by_request, operation_rows
from upcall_trace.diagnose.whole_capture import WholeCapture

ROOT = Path(__file__).parent.parent
RECORDINGS = sorted([*ROOT.glob("golden/*.jsonl"), *ROOT.parent.glob("captures/*.upcap")])


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_every_recording_has_the_same_rows_both_ways(path: Path) -> None:
    whole = WholeCapture(path)
    codes = codes_by_request(whole.findings)
    expected = list(operation_rows(whole.operations, codes, whole.opened.started))

    batches = operation_batches(whole.operations, codes, whole.opened.started)
    assert [row for batch in batches for row in batch.to_pylist()] == expected
