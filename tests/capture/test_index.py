"""The records decide: with an index, without it or with one that lies, the answer is the same."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.strategies import records
from tests.support import (
    ADD_MEM,
    HELLO,
    ask,
    connect,
    each_transcript,
    golden,
    limited,
    records_of,
    run,
    small_capture,
    write_capture,
)
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import FRAME, Kind, frame, pack
from upcall_trace.capture.index import TAIL_SIZE, append_mark, encode_columns, read_index, tail
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import (
    Chunk,
    Close,
    End,
    Gap,
    Header,
    Mark,
    Open,
    Origin,
    Record,
    Vmm,
)
from upcall_trace.capture.segments import IndexSegment, digest_of, parse_segment
from upcall_trace.errors import ExitCode
from upcall_trace.trace import indexing, opening
from upcall_trace.trace.filters import parse
from upcall_trace.trace.indexing import INDEX_VERSION
from upcall_trace.trace.opening import Capture, build_index, decode_source, load
from upcall_trace.trace.operation_table import COLUMN_TYPES
from upcall_trace.views.json_objects import info_object, operation_object

VERSIONS = Path(__file__).parent / "versions"


def told(capture: Capture) -> dict[str, Any]:
    """All that a capture says, in a form that compares."""
    return {
        "operations": [operation_object(operation) for operation in capture.operations],
        "info": info_object(capture),
        "marks": capture.marks,
        "vmm": capture.vmm,
        "connections": capture.connections,
        "origins": capture.origins,
        "slots": [np.flatnonzero(parse("apic_id >= 1").mask(capture.operations)).tolist()],
    }


def decoded(path: Path) -> Capture:
    """A capture without the help of its index."""
    with CaptureReader(path) as reader:
        return decode_source(reader)


@pytest.fixture
def by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every capture were too large to be decoded each time."""
    monkeypatch.setattr(opening, "DECODED_SIZE", -1)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment for every few records, so that replies come in a later one than requests."""
    monkeypatch.setattr(indexing, "SEGMENT_BYTES", 150)


EVERYTHING: list[Record] = [
    *small_capture(),
    *records_of(golden("cpu_lifecycle"))[1][:-1],
    Vmm(9500, "vCPU 1 created \x1b"),
    Mark(77, 1, 0, "comment", "text \udcff"),
    Mark(78, None, None, "start"),
    Origin(9600, 1, "proxy", "/run/vm.sock", "5a5a"),
]


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A capture with an index, and a bit of everything in it."""
    path = tmp_path / "x.upcap"
    write_capture(path, EVERYTHING, Header("test", wall_ns=1 << 60))
    assert build_index(path)
    return path


@pytest.mark.usefixtures("by_index")
@each_transcript
def test_an_index_tells_what_decoding_tells(tmp_path: Path, golden: Path) -> None:
    header, recorded = records_of(golden)
    path = write_capture(tmp_path / "x.upcap", recorded, header)
    without = load(path)
    assert not without.indexed
    assert build_index(path)
    with_index = load(path)
    assert with_index.indexed
    assert told(with_index) == told(without) == told(decoded(path))


@pytest.mark.usefixtures("by_index", "short_segments")
@each_transcript
def test_many_segments_tell_the_same_as_one(tmp_path: Path, golden: Path) -> None:
    header, recorded = records_of(golden)
    path = write_capture(tmp_path / "x.upcap", recorded, header)
    expected = told(load(path))
    assert build_index(path)
    with CaptureReader(path) as reader:
        index = read_index(reader, INDEX_VERSION)
    assert index is not None
    assert len(index.segments) > 3
    assert told(load(path)) == expected


@given(st.lists(records(), max_size=8), st.sampled_from([1, 60, 4 << 20]))
def test_an_index_of_any_records_tells_what_decoding_tells(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Record], segment: int
) -> None:
    path = write_capture(tmp_path_factory.getbasetemp() / "any.upcap", recorded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "DECODED_SIZE", -1)
        patch.setattr(indexing, "SEGMENT_BYTES", segment)
        without = load(path)
        if build_index(path):
            assert load(path).indexed
        assert told(load(path)) == told(without)


@pytest.mark.usefixtures("by_index")
@pytest.mark.parametrize("sizes", [[1 << 62], [(1 << 63) - 1] * 3], ids=["one", "their-sum"])
def test_gaps_of_any_size_have_an_index(sizes: list[int], tmp_path: Path) -> None:
    gaps = [Gap(9500, 1, True, size, "lost") for size in sizes]
    path = write_capture(tmp_path / "x.upcap", [*small_capture(), *gaps])
    without = load(path)
    assert build_index(path)
    capture = load(path)
    assert capture.indexed
    assert not capture.damage
    assert told(capture) == told(without)


def test_a_small_capture_is_decoded_whatever_its_index_says(indexed: Path) -> None:
    assert not load(indexed).indexed


@pytest.mark.usefixtures("by_index")
def test_an_index_is_used_only_with_the_records_that_it_was_made_of(indexed: Path) -> None:
    with CaptureReader(indexed) as reader:
        place = next(o for o, r in reader.records() if isinstance(r, Chunk) and len(r.data) > 100)
    flip(indexed, place + FRAME.size + 5)
    capture = load(indexed)
    assert not capture.indexed
    assert capture.complete is False
    assert capture.damage


def test_a_large_capture_that_nobody_verified_is_not_called_complete(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DECODED_SIZE", -1)
    monkeypatch.setattr(opening, "CHECKED_SIZE", -1)
    assert run("info", "--json", indexed).objects[0]["complete"] is None
    assert "not verified" in run("info", indexed).out
    assert run("info", "--verify", "--json", indexed).objects[0]["complete"] is True
    assert run("info", "--verify", indexed).out.startswith("file         complete,")


def test_a_capture_that_is_not_whole_gets_no_index(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert not build_index(path)
    assert path.read_bytes() == whole[:-3]
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert not build_index(path)
    assert path.read_bytes() == damaged


def test_an_index_that_does_not_fit_on_the_disk_leaves_the_capture_as_it_was(
    tmp_path: Path,
) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    before = path.read_bytes()
    script = "import sys; from upcall_trace.trace.opening import *; build_index(Path(sys.argv[1]))"
    ended = subprocess.run(
        limited([sys.executable, "-c", script, str(path)], "RLIMIT_FSIZE", len(before) + 400),
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert b"File too large" in ended.stderr
    assert path.read_bytes() == before


def parts(path: Path) -> list[tuple[int, int, Kind]]:
    """(offset, size, kind) of every frame."""
    with CaptureReader(path) as reader:
        found = [(offset, Kind(values[0])) for offset, values in reader.payloads()]
    ends = [offset for offset, _ in found[1:]] + [path.stat().st_size]
    return [(offset, end - offset, kind) for (offset, kind), end in zip(found, ends, strict=True)]


def index_begin(path: Path) -> int:
    return next(offset for offset, _, kind in parts(path) if kind is Kind.INDEX_ROWS)


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0xFF
    path.write_bytes(raw)


def answers(capture: Capture) -> dict[str, Any]:
    """What is told of the traffic, which no damage behind it may change."""
    known = told(capture)
    return {**known, "info": {**known["info"], "complete": ..., "damage": ...}}


@pytest.mark.parametrize("size", [-1, 16 << 20], ids=["by index", "decoded"])
def test_a_flipped_byte_anywhere_in_the_index_changes_no_answer_and_is_told(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(opening, "DECODED_SIZE", size)
    whole = indexed.read_bytes()
    expected = answers(load(indexed))
    for place in range(index_begin(indexed), len(whole), 7):
        indexed.write_bytes(whole)
        flip(indexed, place)
        capture = load(indexed)
        assert answers(capture) == expected
        assert capture.damage, place
        assert capture.complete is False
        assert capture.lost_bytes == 0


def test_an_index_cut_anywhere_changes_no_answer(indexed: Path) -> None:
    whole = indexed.read_bytes()
    expected = answers(load(indexed))
    begins = [offset for offset, _, _ in parts(indexed)]
    for size in range(index_begin(indexed), len(whole), 11):
        indexed.write_bytes(whole[:size])
        capture = load(indexed)
        assert answers(capture) == expected
        assert bool(capture.damage) is (size not in begins)


@pytest.mark.usefixtures("by_index")
def test_a_missing_tail_or_an_older_version_costs_only_the_short_cut(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(load(indexed))
    monkeypatch.setattr(opening, "INDEX_VERSION", INDEX_VERSION + 1)
    stale = load(indexed)
    monkeypatch.setattr(opening, "INDEX_VERSION", INDEX_VERSION)
    assert not stale.indexed
    assert told(stale) == expected
    indexed.write_bytes(indexed.read_bytes()[:-TAIL_SIZE])
    assert not load(indexed).indexed
    assert told(load(indexed)) == expected


@pytest.mark.usefixtures("by_index")
def test_marks_made_later_are_seen_through_the_index(indexed: Path) -> None:
    before = load(indexed)
    marks = [Mark(100 + n, 1, n, "comment", "later") for n in range(3)]
    for mark in marks:
        append_mark(indexed, mark)
    after = load(indexed)
    assert after.indexed
    assert after.marks == [*before.marks, *marks]
    assert told(after) == told(decoded(indexed))


def test_a_torn_mark_behind_the_index_changes_no_answer_and_is_told(indexed: Path) -> None:
    expected = answers(load(indexed))
    with indexed.open("ab") as file:
        file.write(encode(Mark(1, 1, 1, "later"))[:-2])
    assert answers(load(indexed)) == expected
    assert load(indexed).damage


@pytest.mark.usefixtures("by_index")
def test_records_behind_the_index_are_not_overlooked(indexed: Path) -> None:
    end = indexed.read_bytes()[-TAIL_SIZE:]
    with indexed.open("ab") as file:
        file.write(encode(Open(1, 99)) + encode(End(1)) + end)
    capture = load(indexed)
    assert not capture.indexed
    assert 99 in {connection.number for connection in capture.connections}


@pytest.mark.usefixtures("by_index")
def test_a_second_index_takes_the_place_of_the_first(indexed: Path) -> None:
    with indexed.open("ab") as file:
        file.write(encode(Open(1, 99)) + encode(End(1)))
    assert build_index(indexed)
    capture = load(indexed)
    assert capture.indexed
    assert told(capture) == told(decoded(indexed))
    assert 99 in {connection.number for connection in capture.connections}


@pytest.mark.usefixtures("short_segments")
def test_a_record_taken_out_of_the_middle_is_missed(tmp_path: Path) -> None:
    """Each frame that is left is whole: only the sum over the segment tells."""
    path = write_capture(tmp_path / "x.upcap", EVERYTHING)
    assert build_index(path)
    whole = path.read_bytes()
    with CaptureReader(path) as reader:
        frames = [o for o, r in reader.records() if isinstance(r, (Chunk, Close))]
    for begin in frames[:: len(frames) // 9]:
        length, _ = FRAME.unpack_from(whole, begin)
        path.write_bytes(whole[:begin] + whole[begin + FRAME.size + length :])
        outcome = run("info", "--json", path)
        assert outcome.code == ExitCode.LOST
        assert outcome.objects[0]["complete"] is False
        assert "changed since it was recorded" in outcome.err


Columns = dict[str, Any]


def relying(path: Path, change: Callable[[Columns, dict[str, Any]], Any]) -> None:
    """The index rewritten by somebody who means harm: every frame and digest of it is right."""
    with CaptureReader(path) as reader:
        index = read_index(reader, INDEX_VERSION)
        assert index is not None
        (segment,) = index.segments
        names = [*COLUMN_TYPES, "changed", "changed_rows", "marks", "vmm", "origins", "connections"]
        columns = {name: next(index.parts(name)).copy() for name in names}
    whole = path.read_bytes()
    fields = {name: getattr(segment, name) for name in IndexSegment.__slots__}
    change(columns, fields)
    framed = encode_columns(fields["version"], columns)
    fields["offset"] = segment.rows_at + len(framed)
    head = whole[: segment.rows_at] + framed
    path.write_bytes(head + frame(pack(IndexSegment(**fields).values())) + tail(fields["offset"]))


def as_column(values: Any) -> Any:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


LIES: dict[str, Callable[[Columns, dict[str, Any]], Any]] = {
    "results": lambda columns, _: columns["ret"].fill(-17),
    "times": lambda columns, _: np.add(columns["t_ns"], 1000, out=columns["t_ns"]),
    "places": lambda columns, _: columns["offset"].fill(0),
    "everything answered": lambda columns, _: columns["answered"].fill(1),
    "other types": lambda columns, _: columns["msg_type"].fill(6),
    "anomalies": lambda columns, _: columns["anomalies"].fill(0xFF),
    "no connections": lambda columns, _: columns.update(connections=as_column([])),
    "a remark": lambda columns, _: columns.update(marks=as_column([])),
    "rows that changed": lambda columns, _: columns.update(
        changed=np.array([0], "<u8"), changed_rows=np.zeros(118, np.uint8)
    ),
    "bytes lost": lambda _, fields: fields.update(lost=5),
    "the duration": lambda _, fields: fields.update(last_ns=1 << 40),
    "fewer rows": lambda columns, fields: (
        fields.update(rows=1), columns.update({n: columns[n][:1] for n in COLUMN_TYPES}),
    ),
    "the first moment": lambda _, fields: fields.update(first_ns=-5),
}  # fmt: skip


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_an_index_that_lies_changes_no_answer(indexed: Path, change: Any) -> None:
    expected = told(load(indexed))
    listed = run("show", "--json", indexed)
    relying(indexed, change)
    assert told(load(indexed)) == expected
    assert run("show", "--json", indexed) == listed
    assert run("info", indexed).code == 0
    verified = run("info", "--verify", indexed)
    assert verified.code == ExitCode.LOST
    assert "its index says something else than its records" in verified.err


NONSENSE: dict[str, Callable[[Columns, dict[str, Any]], Any]] = {
    "a column is missing": lambda columns, _: columns.pop("ret"),
    "a column is short": lambda columns, _: columns.update(ret=columns["ret"][1:]),
    "another type": lambda columns, _: columns.update(ret=columns["ret"].astype("<u4")),
    "an unknown type": lambda columns, _: columns.update(ret=columns["ret"].astype("<f8")),
    "more rows": lambda _, fields: fields.update(rows=1 << 30),
    "too many rows": lambda _, fields: fields.update(rows=1 << 60),
    "not JSON": lambda columns, _: columns.update(connections=np.zeros(5, np.uint8)),
    "JSON of a text": lambda columns, _: columns.update(connections=as_column("text")),
    "an empty object": lambda columns, _: columns.update(connections=as_column([{}])),
    "a number for a text": lambda columns, _: columns.update(
        vmm=as_column([{"t_ns": 1, "action": 5, "conn": 0}])
    ),
    "rows that never were": lambda columns, _: columns.update(
        changed=np.array([99], "<u8"), changed_rows=np.zeros(118, np.uint8)
    ),
    "an older version": lambda _, fields: fields.update(version=1),
    "no end": lambda _, fields: fields.update(ended=False),
    "another digest": lambda _, fields: fields.update(digest=bytes(16)),
    "a beginning later": lambda _, fields: fields.update(begin=10),
    "a segment before that is none": lambda _, fields: fields.update(previous=8),
}


@pytest.mark.usefixtures("by_index")
@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_an_index_that_makes_no_sense_is_passed_over(indexed: Path, change: Any) -> None:
    expected = answers(load(indexed))
    relying(indexed, change)
    assert answers(load(indexed)) == expected


NO_SEGMENT: list[list[Any]] = [
    [15],
    [15] + [None] * 12,
    [15, float("inf")] + [0] * 11,
    [15, 2, 0, 1 << 63, b"", None, 0, 0, 0, 0, 0, 0, True],
    [15, 2, 5, 1, bytes(16), None, 0, 0, 0, 0, 0, 0, True],
    [15, 2, 0, 1, bytes(16), None, 9, 0, -1, 0, 0, 0, True],
    [15, 2, 0, 1, bytes(16), 99, 9, 0, 1, 0, 0, 0, True],
]


@pytest.mark.parametrize("values", NO_SEGMENT, ids=range(len(NO_SEGMENT)))
def test_a_segment_that_stands_nowhere_is_damage(indexed: Path, values: list[Any]) -> None:
    expected = answers(load(indexed))
    whole = indexed.read_bytes()
    framed = frame(msgpack.packb(values))
    indexed.write_bytes(whole[:-TAIL_SIZE] + framed + tail(len(whole) - TAIL_SIZE))
    assert answers(load(indexed)) == expected
    assert load(indexed).complete is False


def test_segments_that_sum_up_the_file_again_and_again_cost_no_time(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [Vmm(1, "x" * (4 << 20))])
    whole = path.read_bytes()
    again = IndexSegment(0, 2, 0, len(whole), bytes(16), None, len(whole), 0, 0, 0, 0, 0, True)
    path.write_bytes(whole + frame(pack(again.values())) * 20_000)
    assert load(path).complete is False


def test_a_small_file_cannot_stand_for_very_many_operations(tmp_path: Path) -> None:
    zeros = encode(Chunk(5, 1, True, bytes(65536)))
    path = write_capture(tmp_path / "x.upcap", connect())
    path.write_bytes(path.read_bytes() + zeros * 20_000)
    outcome = run("info", path)
    assert outcome.code == ExitCode.UNREADABLE
    assert "more traffic than a file of its size can" in outcome.err


def test_a_capture_of_format_version_1_reads_for_ever() -> None:
    """v1.upcap and what it says were made once and are never made anew."""
    _reads_as_it_was_written("v1")


def test_a_capture_of_format_version_2_reads_for_ever() -> None:
    """It has several segments, and is never made anew either."""
    _reads_as_it_was_written("v2")
    with CaptureReader(VERSIONS / "v2.upcap") as reader:
        kinds = [values[0] for _, values in reader.payloads()]
    assert set(kinds) == set(Kind) - {Kind.INDEX, Kind.HEADER}
    assert kinds.count(Kind.SEGMENT) == 3


def _reads_as_it_was_written(name: str) -> None:
    path = VERSIONS / f"{name}.upcap"
    expected = json.loads((VERSIONS / f"{name}.json").read_text())
    with CaptureReader(path) as reader:
        found = {"header": plain(reader.header), "records": [plain(record) for record in reader]}
        assert (reader.complete, reader.damage) == (True, [])
    capture = load(path)
    assert told(capture) == told(decoded(path))
    found["info"] = info_object(capture)
    found["operations"] = [operation_object(operation) for operation in capture.operations]
    assert found.keys() == expected.keys()
    for part, values in expected.items():
        assert holds(found[part], values), part


def plain(record: Record) -> dict[str, Any]:
    """A record as JSON has it; bytes as hexadecimal without zeros at the end, and their number."""
    values = {
        name: [value.rstrip(b"\0").hex(), len(value)] if isinstance(value, bytes) else value
        for name, value in dataclasses.asdict(record).items()
    }
    return json.loads(json.dumps({"kind": type(record).__name__, **values}))  # type: ignore[no-any-return]


def holds(found: Any, expected: Any) -> bool:
    """Whether it is the same, but for keys that were added since."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(holds, found, expected))
    if isinstance(expected, dict):
        return all(key in found and holds(found[key], expected[key]) for key in expected)
    return bool(found == expected)


def test_segments_tile_the_file_and_each_sums_up_its_bytes(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", EVERYTHING)
    size = path.stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "SEGMENT_BYTES", 300)
        assert build_index(path)
    with CaptureReader(path) as reader:
        segments = [
            parse_segment(values, offset)
            for offset, values in reader.payloads()
            if values[0] == Kind.SEGMENT
        ]
        assert [s.digest for s in segments] == [
            digest_of(reader.read, s.begin, s.end) for s in segments
        ]
    assert [s.begin for s in segments] == [0, *(s.end for s in segments[:-1])]
    assert segments[-1].end == size
    assert [s.first_row for s in segments] == [0, *accumulate(s.rows for s in segments[:-1])]
    assert [s.ended for s in segments] == [False] * (len(segments) - 1) + [True]


@pytest.mark.usefixtures("by_index")
def test_one_byte_of_service_and_nothing_else(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [*connect()[:4], Chunk(1, 1, False, HELLO[:5])])
    assert build_index(path)
    assert told(load(path)) == told(decoded(path))
    write_capture(path, [])
    assert build_index(path)
    assert len(load(path).operations) == 0
    assert load(path).indexed
    write_capture(path, [ask(ADD_MEM, 5)])
    assert build_index(path)
    assert told(load(path)) == told(decoded(path))
