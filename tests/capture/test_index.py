"""The index only ever saves time: with it, without it or with a bad one, the answer is the same."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable
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
    command,
    connect,
    each_transcript,
    golden,
    limited,
    records_of,
    run,
    small_capture,
    write_capture,
)
from upcall_trace.capture.index import TAIL_SIZE, append_index, append_mark, read_index
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import (
    FRAME,
    Chunk,
    End,
    Header,
    Kind,
    Mark,
    Open,
    Record,
    Vmm,
    encode,
    frame,
    pack,
)
from upcall_trace.errors import ExitCode
from upcall_trace.trace.filters import FIELDS, parse
from upcall_trace.trace.opening import INDEX_VERSION, Capture, build_index, decode_source, load
from upcall_trace.trace.operations import COLUMN_TYPES, MAX_ROWS
from upcall_trace.views.json_objects import info_object, operation_object

Columns = dict[str, Any]
VERSIONS = Path(__file__).parent / "versions"


def told(capture: Capture) -> dict[str, Any]:
    """All that a capture says, in a form that compares."""
    return {
        "operations": [operation_object(operation) for operation in capture.operations],
        "info": info_object(capture),
        "marks": capture.marks,
        "vmm": capture.vmm,
        "connections": capture.connections,
        "slots": [np.flatnonzero(parse("apic_id >= 1").mask(capture.operations)).tolist()],
    }


def decoded(path: Path) -> Capture:
    """A capture without the help of its index."""
    with CaptureReader(path) as reader:
        return decode_source(reader)


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A capture with an index, and a bit of everything in it."""
    path = tmp_path / "x.upcap"
    everything = [
        *small_capture(),
        *records_of(golden("cpu_lifecycle"))[1][:-1],
        Vmm(9500, "vCPU 1 created \x1b"),
        Mark(77, 1, 0, "comment", "text \udcff"),
        Mark(78, None, None, "start"),
    ]
    write_capture(path, everything, Header("test", wall_ns=1 << 60))
    assert build_index(path)
    return path


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


@given(st.lists(records(), max_size=8))
def test_an_index_of_any_records_tells_what_decoding_tells(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Record]
) -> None:
    path = write_capture(tmp_path_factory.getbasetemp() / "any.upcap", recorded)
    without = load(path)
    if build_index(path):
        assert load(path).indexed
    assert told(load(path)) == told(without)


def test_an_index_reads_no_record_of_traffic(indexed: Path) -> None:
    expected = told(load(indexed))
    raw = bytearray(indexed.read_bytes())
    with CaptureReader(indexed) as reader:
        place = next(o for o, r in reader.records() if isinstance(r, Chunk) and len(r.data) > 100)
    raw[place + FRAME.size + 5] ^= 0xFF
    indexed.write_bytes(raw)
    capture = load(indexed)
    assert capture.indexed
    assert told(capture) == expected
    assert told(decoded(indexed)) != expected


@pytest.mark.parametrize("rows", [0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, 1 << 20, 1200000])
def test_columns_longer_than_a_block(tmp_path: Path, rows: int) -> None:
    """A block has 4 MiB, and some are filled to their last byte."""
    path = write_capture(tmp_path / "x.upcap", [])
    columns = {"long": np.arange(rows, dtype="<i8"), "short": np.full(rows, 7, "|u1")}
    append_index(path, 5, path.stat().st_size, {"some": columns}, {"key": "value"})
    with CaptureReader(path) as reader:
        index = read_index(reader, 5)
        assert index is not None
        assert index.summary == {"key": "value"}
        assert index.names("some") == ["long", "short"]
        for name, column in columns.items():
            assert np.array_equal(index.column("some", name), column)
            assert index.column("some", name).dtype == column.dtype


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


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0xFF
    path.write_bytes(raw)


def test_a_flipped_byte_anywhere_in_the_index_changes_no_answer(indexed: Path) -> None:
    whole = indexed.read_bytes()
    expected = told(load(indexed))
    begin = next(offset for offset, _, kind in parts(indexed) if kind is Kind.INDEX_ROWS)
    places = range(begin, len(whole), 7)
    for place in places:
        indexed.write_bytes(whole)
        flip(indexed, place)
        capture = load(indexed)
        assert told(capture) == expected
        assert capture.damage == []
        assert capture.complete


def test_an_index_cut_anywhere_changes_no_answer(indexed: Path) -> None:
    whole = indexed.read_bytes()
    expected = told(load(indexed))
    begin = next(offset for offset, _, kind in parts(indexed) if kind is Kind.INDEX_ROWS)
    for size in range(begin, len(whole), 11):
        indexed.write_bytes(whole[:size])
        capture = load(indexed)
        assert not capture.indexed
        assert told(capture) == expected
        assert capture.damage == []


def test_a_missing_tail_or_an_older_version_costs_only_the_short_cut(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(load(indexed))
    monkeypatch.setattr("upcall_trace.trace.opening.INDEX_VERSION", INDEX_VERSION + 1)
    stale = load(indexed)
    monkeypatch.undo()
    assert not stale.indexed
    assert told(stale) == expected
    indexed.write_bytes(indexed.read_bytes()[:-TAIL_SIZE])
    assert not load(indexed).indexed
    assert told(load(indexed)) == expected


def test_marks_made_later_are_seen_through_the_index(indexed: Path) -> None:
    before = load(indexed)
    marks = [Mark(100 + n, 1, n, "comment", "later") for n in range(3)]
    for mark in marks:
        append_mark(indexed, mark)
    after = load(indexed)
    assert after.indexed
    assert after.marks == [*before.marks, *marks]
    assert told(after) == told(decoded(indexed))


def test_a_torn_mark_behind_the_index_changes_no_answer(indexed: Path) -> None:
    expected = told(load(indexed))
    with indexed.open("ab") as file:
        file.write(encode(Mark(1, 1, 1, "later"))[:-2])
    assert told(load(indexed)) == expected


def test_records_behind_the_index_are_not_overlooked(indexed: Path) -> None:
    tail = indexed.read_bytes()[-TAIL_SIZE:]
    with indexed.open("ab") as file:
        file.write(encode(Open(1, 99)) + encode(End(1)) + tail)
    capture = load(indexed)
    assert not capture.indexed
    assert 99 in {connection.number for connection in capture.connections}


def test_a_second_index_takes_the_place_of_the_first(indexed: Path) -> None:
    with indexed.open("ab") as file:
        file.write(encode(Open(1, 99)) + encode(End(1)))
    assert build_index(indexed)
    capture = load(indexed)
    assert capture.indexed
    assert told(capture) == told(decoded(indexed))
    assert 99 in {connection.number for connection in capture.connections}


def test_a_column_that_turns_out_damaged_later_is_decoded_instead(indexed: Path) -> None:
    expected = told(load(indexed))
    rows = [offset for offset, _, kind in parts(indexed) if kind is Kind.INDEX_ROWS]
    for place, name in enumerate(COLUMN_TYPES):
        whole = indexed.read_bytes()
        flip(indexed, rows[place] + FRAME.size + 8)
        capture = load(indexed)
        assert capture.indexed, name
        assert told(capture) == expected
        indexed.write_bytes(whole)


Change = Callable[[dict[str, Any]], Any]


def rewritten(path: Path, change: Change) -> None:
    """The index rewritten by somebody who means harm: every frame of it is whole."""
    whole = path.read_bytes()
    found = parts(path)
    at, size, _ = next(part for part in found if part[2] is Kind.INDEX)
    values = msgpack.unpackb(whole[at + FRAME.size : at + size], strict_map_key=False)
    index = dict(zip(("kind", "version", "covers", "summary", "tables"), values, strict=True))
    change(index)
    path.write_bytes(
        whole[:at]
        + frame(msgpack.packb(list(index.values())))
        + frame(pack([int(Kind.TAIL), at.to_bytes(8, "little")]))
    )


def set_column(name: str, value: Any, table: str = "operations") -> Change:
    return lambda index: index["tables"][table].update({name: value})


NASTY: dict[str, Change] = {
    "no tables": lambda index: index.update(tables={}),
    "tables are a list": lambda index: index.update(tables=[]),
    "a table is a list": lambda index: index["tables"].update(operations=[]),
    "a table is missing": lambda index: index["tables"].pop("others"),
    "summary is a list": lambda index: index.update(summary=[]),
    "summary is empty": lambda index: index.update(summary={}),
    "summary is large": lambda index: index.update(summary={str(n): n for n in range(65)}),
    "a time is text": lambda index: index["summary"].update(first_ns="x"),
    "a time is infinite": lambda index: index["summary"].update(first_ns=float("inf")),
    "a time is too large": lambda index: index["summary"].update(first_ns=(1 << 64) - 1),
    "version is infinite": lambda index: index.update(version=float("inf")),
    "covers is infinite": lambda index: index.update(covers=float("inf")),
    "covers is too large": lambda index: index.update(covers=1 << 40),
    "covers is negative": lambda index: index.update(covers=-1),
    "a column is missing": lambda index: index["tables"]["operations"].pop("ret"),
    "a column too many": set_column("rot", ["<u4", 14, [0]]),
    "a column is no list": set_column("ret", 5),
    "a column is short": lambda index: index["tables"]["operations"]["ret"].pop(),
    "another type": set_column("ret", ["<u4", 14, [0]]),
    "an unknown type": set_column("ret", ["<f8", 14, [0]]),
    "a type that is a list": set_column("ret", [["<i4"], 14, [0]]),
    "an object type": set_column("ret", ["|O", 14, [0]]),
    "other length": set_column("ret", ["<i4", 3, [0]]),
    "negative length": set_column("ret", ["<i4", -1, []]),
    "a length that is text": set_column("ret", ["<i4", "14", [0]]),
    "a huge length": set_column("ret", ["<i4", 1 << 60, [0]]),
    "an infinite offset": set_column("ret", ["<i4", 14, [float("inf")]]),
    "no offsets": set_column("ret", ["<i4", 14, None]),
    "huge connections": set_column("connections", ["|u1", 1 << 30, [0]], "others"),
    "connections missing": lambda index: index["tables"]["others"].pop("connections"),
}


@pytest.mark.parametrize("change", NASTY.values(), ids=NASTY)
def test_an_index_that_makes_no_sense_is_passed_over(indexed: Path, change: Change) -> None:
    expected = told(load(indexed))
    rewritten(indexed, change)
    capture = load(indexed)
    assert not capture.indexed
    assert told(capture) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connections", "not JSON"),
        ("connections", {"a": 1}),
        ("connections", ["text"]),
        ("connections", [{}]),
        ("connections", "[" * 100_000),
        ("connections", {"payload": "many"}),
        ("connections", {"payload": 10**30}),
        ("connections", {"payload": True}),
        ("connections", {"number": None}),
        ("connections", {"line": 5}),
        ("connections", {"line": "\u2028"}),
        ("connections", {"begins": "sideways"}),
        ("connections", {"how": []}),
        ("connections", {"peer": 5}),
        ("connections", {"peer": ["a"]}),
        ("marks", [{"name": "x"}]),
        ("marks", [{"wall_ns": 1, "conn": "1", "request": 1, "name": "x", "text": ""}]),
        ("vmm", [{"t_ns": 1, "action": 5, "conn": 0}]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_lists_of_an_index_that_make_no_sense_are_passed_over(
    indexed: Path, name: str, value: Any
) -> None:
    expected = told(load(indexed))
    if isinstance(value, dict) and name == "connections" and "a" not in value:
        (connection, *_) = load(indexed).connections
        plain = json.loads(json.dumps(dataclasses.asdict(connection), default=bytes.decode))
        value = [plain | value]
    text = value if isinstance(value, str) else json.dumps(value)
    nonsense: Columns = {name: np.frombuffer(text.encode(), np.uint8)}
    reindex(indexed, None, **nonsense)
    capture = load(indexed)
    assert not capture.indexed
    assert told(capture) == expected


def reindex(path: Path, columns: Columns | None = None, **others: Any) -> None:
    """The index of a capture made anew, with other columns than it should have."""
    capture = load(path)
    if columns is None:
        columns = {name: capture.operations.column(name) for name in capture.operations.names()}
    nothing = np.frombuffer(b"[]", np.uint8)
    lists = {"connections": nothing, "marks": nothing, "vmm": nothing, **others}
    summary = {"duration_ns": 1, "gaps": 0, "first_ns": 0}
    begin = next(offset for offset, _, kind in parts(path) if kind is Kind.INDEX_ROWS)
    path.write_bytes(path.read_bytes()[:begin])
    append_index(path, INDEX_VERSION, begin, {"operations": columns, "others": lists}, summary)


@pytest.mark.parametrize("name", COLUMN_TYPES)
def test_an_index_full_of_nonsense_lies_but_breaks_nothing(indexed: Path, name: str) -> None:
    """Nobody can check every number of an index; a wrong one must not stop anything."""
    capture = load(indexed)
    columns = {key: capture.operations.column(key).copy() for key in capture.operations.names()}
    rng = random.Random(219)
    size = columns[name].nbytes
    columns[name] = np.frombuffer(rng.randbytes(size), columns[name].dtype)
    columns["layout"] = np.arange(len(columns["layout"]), dtype=np.uint8) % 8
    reindex(indexed, columns)
    lying = load(indexed)
    assert lying.indexed
    assert len(told(lying)["operations"]) == len(columns["conn"])
    for field in FIELDS.values():
        value = {"op": "add_cpu", "errno": "EPERM", "duration": "1ms"}.get(field.kind, "1")
        assert len(parse(f"{field.name} == {value}").mask(lying.operations)) == len(columns["conn"])


def test_a_column_that_contradicts_the_records_is_the_inputs_fault(
    indexed: Path, tmp_path: Path
) -> None:
    expected = told(load(indexed))["operations"]
    reindex(indexed, {name: np.zeros(3, dtype) for name, dtype in COLUMN_TYPES.items()})
    rewritten(indexed, lambda index: index["tables"]["operations"]["ret"].__setitem__(2, [0]))
    ended = run("show", indexed)
    assert ended.code == ExitCode.UNREADABLE
    assert ended.err == f"upcall-trace: {indexed}: its index is damaged; recover it\n"
    good = tmp_path / "good.upcap"
    assert run("recover", indexed, "-o", good).code == ExitCode.EXPECTED
    assert told(load(good))["operations"] == expected


@pytest.mark.parametrize(
    "rows", [1 << 32, MAX_ROWS * 2, pytest.param(MAX_ROWS, marks=pytest.mark.torture)]
)
def test_a_small_index_cannot_claim_to_be_a_large_one(indexed: Path, rows: int) -> None:
    """Blocks may be named again and again, and zeros pack well: what they unpack to is limited."""
    reindex(indexed, spare=np.zeros(4 << 20, np.uint8))
    block = next(offset for offset, _, kind in reversed(parts(indexed)) if kind is Kind.INDEX_ROWS)
    rewritten(
        indexed,
        lambda index: index["tables"]["operations"].update(
            {
                name: [dtype, rows, [block] * (rows * np.dtype(dtype).itemsize >> 22)]
                for name, dtype in COLUMN_TYPES.items()
            }
        ),
    )

    ended = subprocess.run(
        limited(command("info", "--json", indexed), "RLIMIT_AS", 3 << 30),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["requests"] == (rows if rows == MAX_ROWS else 14)


def test_a_column_of_any_length_cannot_claim_to_be_a_large_one(indexed: Path) -> None:
    """The bytes of variable length are not as many as there are operations."""
    reindex(indexed, spare=np.zeros(4 << 20, np.uint8))
    block = next(o for o, _, kind in reversed(parts(indexed)) if kind is Kind.INDEX_ROWS)
    rewritten(indexed, set_column("extra", ["|u1", 4 << 30, [block] * 1024]))
    ended = subprocess.run(
        limited(command("show", "--filter", "apic_id == 0", indexed), "RLIMIT_AS", 3 << 30),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_column_too_large_to_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    before = path.read_bytes()
    huge = np.broadcast_to(np.zeros(1, np.uint8), (257 << 20,))
    with pytest.raises(ValueError, match="a column has more than"):
        append_index(path, 1, len(before), {"operations": {"extra": huge}}, {})
    assert path.read_bytes() == before


def test_a_capture_of_format_version_1_reads_for_ever() -> None:
    """v1.upcap and what it says were made once and are never made anew."""
    path = VERSIONS / "v1.upcap"
    expected = json.loads((VERSIONS / "v1.json").read_text())
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
