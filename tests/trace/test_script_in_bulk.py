"""A script that is read by runs of messages is the one that is read record by record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import each_recording, records_of, write_capture
from tests.trace.conversations import recordings
from tests.trace.short_runs import short_runs
from upcall_trace.capture.records import Header, Record
from upcall_trace.sources import open_source
from upcall_trace.trace import bulk
from upcall_trace.trace.decoding import Session
from upcall_trace.trace.operation_table import NoTable
from upcall_trace.trace.script import Script
from upcall_trace.trace.scripting import Scripter, read_script
from upcall_trace.trace.streams import distinct_connections, distinct_records


@pytest.fixture(autouse=True)
def shortest() -> Iterator[None]:
    with short_runs(bulk) as patch:
        patch.setattr(bulk, "_CAREFUL", 1)
        yield


def in_bulk(path: Path, keep_splits: bool = False, steps: bool = True) -> Script:
    """The script as `diff` and `replay` read it."""
    with open_source(path) as source:
        session = Session(source.header, NoTable())
        scripter = Scripter(session, keep_splits, steps=steps)
        for item in distinct_records(path, source):
            scripter.feed(item)
    return scripter.finish()


def one_by_one(path: Path, keep_splits: bool = False) -> Script:
    with open_source(path) as source:
        records = distinct_connections(record for _, record in source.records())
        return read_script(source.header, records, keep_splits)


@given(recordings(), st.sampled_from([None, "x86_64", "aarch64"]), st.booleans())
def test_any_recording(
    tmp_path_factory: pytest.TempPathFactory,
    recorded: list[Record],
    arch: str | None,
    keep_splits: bool,
) -> None:
    header = Header("test", arch=arch)
    path = write_capture(tmp_path_factory.mktemp("script") / "x.upcap", recorded, header)
    told = in_bulk(path, keep_splits)
    wanted = one_by_one(path, keep_splits)
    assert told == wanted
    assert list(told.asked) == list(wanted.asked)


@given(recordings())
def test_without_steps_the_rest_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Record]
) -> None:
    path = write_capture(tmp_path_factory.mktemp("script") / "x.upcap", recorded)
    told = in_bulk(path, steps=False)
    assert told.asked == one_by_one(path).asked
    assert replace(told, steps=[]) == replace(one_by_one(path), steps=[])


@each_recording
def test_golden_recordings(tmp_path: Path, golden: Path) -> None:
    header, recorded = records_of(golden)
    path = write_capture(tmp_path / "x.upcap", recorded, header)
    assert in_bulk(path) == one_by_one(path)
