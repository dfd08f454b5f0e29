"""Every kind of record there and back, and payloads that nobody should have written."""

from __future__ import annotations

import tracemalloc
from typing import Any
from zlib import crc32

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.capture.strategies import headers, received, records
from tests.support import TRANSCRIPTS, records_of
from upcall_trace.capture.encoding import decode, encode
from upcall_trace.capture.frames import FRAME, MAX_PAYLOAD, BadRecord, Kind, unpack
from upcall_trace.capture.records import (
    MAX_CHUNK,
    TIME_LIMIT,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Origin,
    Record,
    Vmm,
)


def payload(framed: bytes) -> bytes:
    """What is in a frame, after a check of length and checksum."""
    length, checksum = FRAME.unpack_from(framed)
    inner = framed[FRAME.size :]
    assert length == len(inner)
    assert checksum == crc32(inner, length)
    return inner


def there_and_back(record: Record) -> Record | None:
    return decode(unpack(payload(encode(record))))


@pytest.mark.parametrize(
    "record",
    [
        Header("proxy"),
        Header("proxy", "upcall-trace 1", "host", "aarch64", 1 << 60, 4_000_000, 300, {"a": "b"}),
        Open(5, 1),
        Open(-5, 0xFFFFFFFF, Begins.SERVICE, 219, True, (1, 0, 0)),
        Open(5, 1, Begins.OTHER, 0, False),
        Open(5, 1, Begins.MIDDLE),
        Chunk(5, 1, True, b"CONNECT 219\n"),
        Chunk(5, 1, False, b""),
        Close(5, 1, by_guest=True),
        Close(5, 1, by_guest=False, how=How.HALF),
        Close(5, 1, by_guest=True, how=How.RESET),
        GaveUp(5, 1, 2_000_000_000),
        Vmm(5, "vCPU 1 created"),
        Vmm(5, "vCPU 1 created", 3),
        Gap(5, 0, False, 1 << 40, "the disk was full"),
        Gap(5, 2, True, 0, ""),
        Mark(1 << 60, None, None, "start"),
        Mark(1 << 60, 1, 2, "comment", "text"),
        End(TIME_LIMIT - 1),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_of_each_kind(record: Record) -> None:
    assert there_and_back(record) == record


@given(records() | headers())
@example(Vmm(0, "\ud800"))
@example(Mark(0, None, None, "\udcff", "\x1b[31m"))
def test_any_record_comes_back_as_it_went_in(record: Record) -> None:
    assert there_and_back(record) == record


@given(received())
@example(bytes(MAX_CHUNK))
@example(b"\xff" * MAX_CHUNK)
@example((b"\xff" + bytes(15)) * (MAX_CHUNK // 16))
@example(b"\xff" + bytes(11))
@example(b"\xff" + bytes(12) + b"\xff")
@example(bytes(12) + b"\xff")
def test_any_chunk_of_up_to_64_kib_comes_back_as_it_went_in(raw: bytes) -> None:
    assert there_and_back(Chunk(1, 1, True, raw)) == Chunk(1, 1, True, raw)


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (bytes(1024), 18),
        (bytes(MAX_CHUNK), 20),
        (b"\1" * 1024, 1040),
        (b"\1" + bytes(11) + b"\1", 28),
        (b"\1" + bytes(12) + b"\1", 20),
    ],
)
def test_zeros_are_counted_from_twelve_in_a_row_on(raw: bytes, size: int) -> None:
    assert len(encode(Chunk(1, 1, True, raw))) == size


def test_a_chunk_of_many_short_runs_is_not_larger_than_its_bytes() -> None:
    raw = (b"\xff" * 4 + bytes(12)) * 4096
    assert len(encode(Chunk(1, 1, True, raw))) < len(raw) + 32


def test_recorded_traffic_costs_64_bytes_a_message_on_average_and_comes_back_as_it_was() -> None:
    traffic = [
        record
        for path in TRANSCRIPTS
        for record in records_of(path)[1]
        if isinstance(record, Chunk)
    ]
    encoded = [encode(chunk) for chunk in traffic]
    assert [decode(unpack(payload(framed))) for framed in encoded] == traffic
    messages = sum(len(chunk.data) for chunk in traffic) // 1024
    assert messages > 200
    assert sum(map(len, encoded)) <= 64 * messages


def test_an_unknown_kind_is_no_record() -> None:
    assert decode([99, "what", 3]) is None
    assert decode([-1]) is None
    assert decode([int(Kind.INDEX), 1, 2, {}, {}]) is None


@pytest.mark.parametrize(
    "record",
    [Header("x"), Origin(5, 1, "proxy", "x"), Open(5, 1), Close(5, 1, True), GaveUp(5, 1, 2),
     Vmm(5, "x"),
     Gap(5, 0, False, 1, "x"), Mark(1, None, None, "x"), End(1)],
    ids=lambda record: type(record).__name__,
)  # fmt: skip
def test_values_that_a_later_version_adds_are_ignored(record: Record) -> None:
    values = unpack(payload(encode(record)))
    assert decode([*values, "new", {"and": ["more"]}]) == record


# What unpacks and is still not a record.
MALFORMED: list[list[Any]] = [
    *([kind] for kind in [*range(9), 12, 13, 14]),
    [0, 1, "s", "t", "h", None, None, 0, 219, []],
    [0, 1, "s", "t", "h", None, None, 0, 219, {"a": 1}],
    [0, 1, "s", "t", "h", None, None, 0, 219, {b"a": "b"}],
    [0, "1", "s", "t", "h", None, None, 0, 219, {}],
    [0, 1, "s", "t", "h", 5, None, 0, 219, {}],
    [0, 1, "s", "t", "h", None, 1.5, 0, 219, {}],
    [1, 0, 1, "sideways", None, None, None],
    [1, 0, 1, [], None, None, None],
    [1, 0, 1, "line", "219", None, None],
    [1, 0, 1, "line", None, None, {}],
    [1, 0, 1, "line", None, None, [1, 2]],
    [1, 0, 1, "line", None, None, "abc"],
    [1, 0, -1, "line", None, None, None],
    [1, 0, 1 << 32, "line", None, None, None],
    [1, 1 << 62, 1, "line", None, None, None],
    [2, 0, 1, True, "text"],
    [2, 0, 1, True, None],
    [2, 0, 1, True, 5],
    [2, 0, 1, True, b"", -1],
    [2, 0, 1, True, b"", MAX_CHUNK + 1],
    [2, 0, 1, True, b"", 1 << 62],
    [2, 0, 1, True, b"", 1.5],
    [2, 0, 1, True, b"", "1"],
    [2, 0, 1, True, b"", [1]],
    [2, 0, 1, True, b"", 9, b"", MAX_CHUNK],
    [2, 0, 1, True, b"", 9, b"", -9],
    [2, 0, 1, True, b"", 9, "text"],
    [2, True, 1, True, b""],
    [2, 0, None, True, b""],
    [2, -(1 << 63), 1, True, b""],
    [2, (1 << 64) - 1, 1, True, b""],
    [3, 0, 1, True, "gently"],
    [3, 0, 1, True, {}],
    [4, 0, 1, None],
    [5, 0, 17, 0],
    [5, 0, b"bytes", 0],
    [6, 0, 1, True, -1, "x"],
    [6, 0, 1, True, 1 << 63, "x"],
    [6, 0, 1, True, 1, 1],
    [7, 0, None, None, None, ""],
    [7, 0, "1", None, "x", ""],
    [7, 0, None, 1.0, "x", ""],
    [8, None],
    [8, [0]],
]


@pytest.mark.parametrize("values", MALFORMED, ids=repr)
def test_wrong_values_are_a_bad_record_and_nothing_worse(values: list[Any]) -> None:
    with pytest.raises(BadRecord):
        decode(unpack(msgpack.packb(values)))


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats()
    | st.text(max_size=5) | st.binary(max_size=5) | st.sampled_from(["line", "half", "middle"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=2) | st.binary(max_size=2), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.integers(0, 12), st.lists(_ANY, max_size=10))
def test_any_values_are_a_record_or_a_bad_record(kind: int, values: list[Any]) -> None:
    try:
        record = decode(unpack(msgpack.packb([kind, *values])))
    except BadRecord:
        return
    if record is not None:
        assert there_and_back(record) == record


@given(st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_a_bad_record(raw: bytes) -> None:
    try:
        assert unpack(raw)
    except BadRecord:
        pass


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x90",
        b"\x91",
        b"\x91\xc0",
        b"\x91\xa1x",
        b"\x80",
        b"\x01",
        b"\x92\x08\x00\x00",
        b"\x92\x05\xc1",
        b"\x92\x05\xa1\xff",
        b"\x92\x05\xc7\x01\x05\x00",
        b"\x91" * 100_000,
        b"\x92\x02" * 100_000,
        b"\x92\x05" + b"\x81\xa1a" * 100_000,
        b"\xdd\xff\xff\xff\xff\x02",
        b"\x92\x02\xdd\xff\xff\xff\xff",
        b"\x92\x02\xdf\xff\xff\xff\xff",
        b"\x92\x02\xc6\xff\xff\xff\xff",
        b"\x92\x02\xdb\xff\xff\xff\xff",
        b"\xdc\x10\x01\x05" + b"\x00" * 4096,
        b"\x92\x05\xde\x01\x01" + b"".join(b"\xcd" + n.to_bytes(2, "big") * 2 for n in range(257)),
        b"\x92\x05\x82\xa1a\x01" + b"\x01\x01",
    ],
    ids=lambda raw: f"{raw[:8].hex()}-{len(raw)}",
)
def test_a_payload_that_would_unpack_to_something_unbounded_is_refused(raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRecord):
            unpack(raw)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_header_has_no_more_notes_than_can_be_read_again() -> None:
    notes = {f"note {number}": "x" for number in range(1000)}
    read = there_and_back(Header("x", notes=notes))
    assert isinstance(read, Header)
    assert read.notes == dict(list(notes.items())[:256])


def test_the_largest_payload_is_larger_than_any_record_of_traffic() -> None:
    assert len(encode(Chunk(0, 1, True, b"\xff" * MAX_CHUNK))) < MAX_PAYLOAD
