"""Writing and reading a capture: whole, torn, damaged, hostile, and while it grows."""

from __future__ import annotations

import fcntl
import os
import random
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.messages import bare_request
from tests.capture.strategies import records
from tests.support import ask, connect, records_of, small_capture, write_capture
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import FRAME, MAGIC, BadRecord, Kind, frame, pack
from upcall_trace.capture.index import append_mark
from upcall_trace.capture.reader import CaptureReader, Damage, DamageTo, NotACapture
from upcall_trace.capture.records import (
    DAMAGED,
    Chunk,
    Close,
    End,
    Gap,
    Header,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.capture.writer import CaptureWriter

RECORDS: list[Record] = [
    *small_capture(),
    Vmm(9500, "vCPU 1 created"),
    Mark(77, 1, 0, "comment", "text"),
    Gap(9600, 2, True, 0, "left out on purpose"),
]
HEADER = Header("test", notes={"name": "small"})


def file_bytes(written: list[Record], header: Header = HEADER) -> tuple[bytes, list[int]]:
    """A capture's bytes, and where each frame of it ends, the header's first."""
    raw = MAGIC + encode(header)
    ends = [len(raw)]
    for record in written:
        raw += encode(record)
        ends.append(len(raw))
    return raw, ends


RAW, ENDS = file_bytes([*RECORDS, End(9600)])


def read(path: Path) -> tuple[list[Record], CaptureReader]:
    with CaptureReader(path) as reader:
        return list(reader), reader


def without_gaps(read_back: list[Record]) -> list[Record]:
    return [r for r in read_back if not (isinstance(r, Gap) and r.reason == DAMAGED)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    offsets = []
    with CaptureWriter(path, HEADER) as writer:
        for record in RECORDS:
            offsets.append(writer.write(record))
    assert path.read_bytes() == RAW
    assert offsets == ENDS[: len(RECORDS)]
    with CaptureReader(path) as reader:
        assert reader.header == HEADER
        assert list(reader.records()) == [*zip(ENDS, [*RECORDS, End(9600)], strict=False)]
        assert (reader.damage, reader.complete, reader.live) == ([], True, False)


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    damaged = bytearray(RAW)
    damaged[ENDS[3] + 12] ^= 1
    path.write_bytes(damaged)
    with CaptureReader(path) as reader:
        first, damage = list(reader), reader.damage
        assert list(reader) == first
        assert reader.damage == damage
        assert len(damage) == 1


def test_a_recording_that_broke_off_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"

    def break_off() -> None:
        with CaptureWriter(path, HEADER) as writer:
            writer.write(RECORDS[0])
            raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        break_off()
    read_back, reader = read(path)
    assert read_back == RECORDS[:1]
    assert (reader.complete, reader.damage) == (False, [])


def test_flushed_records_can_be_read_before_the_writer_closes(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    with CaptureWriter(path, HEADER) as writer:
        writer.write(RECORDS[0])
        writer.flush()
        assert read(path)[0] == RECORDS[:1]


def test_the_end_carries_the_latest_time(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [Open(50, 1), Open(20, 2)])
    assert read(path)[0][-1] == End(50)


def test_a_file_cut_at_every_byte_loses_its_last_record_at_most(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    for size in range(len(RAW)):
        path.write_bytes(RAW[:size])
        if size < ENDS[0]:
            with pytest.raises(NotACapture):
                CaptureReader(path)
            continue
        read_back, reader = read(path)
        whole = sum(end <= size for end in ENDS) - 1
        assert read_back == RECORDS[:whole]
        torn = size - ENDS[whole]
        assert reader.damage == ([Damage(ENDS[whole], torn, at_end=True)] if torn else [])
        assert not reader.complete


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_costs_its_own_record_and_no_other(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "x.upcap"
    everything = [*RECORDS, End(9600)]
    for position in range(len(RAW)):
        raw = bytearray(RAW)
        raw[position] ^= flip
        path.write_bytes(raw)
        if position < ENDS[0]:
            with pytest.raises(NotACapture):
                CaptureReader(path)
            continue
        read_back, reader = read(path)
        hit = next(number for number, end in enumerate(ENDS) if position < end) - 1
        assert without_gaps(read_back) == everything[:hit] + everything[hit + 1 :]
        last = hit == len(RECORDS)
        (damage,) = reader.damage
        assert damage == Damage(ENDS[hit], ENDS[hit + 1] - ENDS[hit], at_end=last)
        assert not reader.complete
        if not last:
            t_ns = getattr(everything[hit - 1], "t_ns", 9500) if hit else 1000
            assert read_back[hit] == Gap(t_ns, 0, False, damage.size, DAMAGED)


def test_damage_in_several_places_is_told_place_by_place(tmp_path: Path) -> None:
    raw = bytearray(RAW)
    for number in (2, 3, 7):
        raw[ENDS[number] + FRAME.size] ^= 0xFF
    path = tmp_path / "x.upcap"
    path.write_bytes(raw)
    read_back, reader = read(path)
    everything = [*RECORDS, End(9600)]
    assert without_gaps(read_back) == [r for n, r in enumerate(everything) if n not in (2, 3, 7)]
    assert reader.damage == [
        Damage(ENDS[2], ENDS[4] - ENDS[2], at_end=False),
        Damage(ENDS[7], ENDS[8] - ENDS[7], at_end=False),
    ]


def test_a_whole_frame_without_a_record_in_it_is_damage_of_its_size(tmp_path: Path) -> None:
    bad = frame(pack([int(Kind.CHUNK), 0, 1, True, "text"]))
    not_msgpack = frame(b"\xc1\xc1")
    unknown = frame(pack([200, "of a later version"]))
    for last in (False, True):
        raw = RAW[: ENDS[2]] + bad + not_msgpack + unknown + (b"" if last else RAW[ENDS[2] :])
        path = tmp_path / "x.upcap"
        path.write_bytes(raw)
        read_back, reader = read(path)
        assert reader.damage == [
            Damage(ENDS[2], len(bad), at_end=False),
            Damage(ENDS[2] + len(bad), len(not_msgpack), at_end=False),
        ]
        lost = [r.size for r in read_back if isinstance(r, Gap) and r.reason == DAMAGED]
        assert lost == [len(bad), len(not_msgpack)]


def test_a_checksum_that_ends_like_an_array_does_not_hide_the_next_record(tmp_path: Path) -> None:
    """0xdc begins a long array, and as a checksum's last byte it stands right before a payload."""
    following = next(
        record
        for number in range(100_000)
        if encode(record := Open(number % 16, number))[7] == 0xDC and number % 16 < 16
    )
    raw, ends = file_bytes([RECORDS[0], following, End(0)])
    damaged = bytearray(raw)
    damaged[ends[0] + FRAME.size] ^= 0xFF
    path = tmp_path / "x.upcap"
    path.write_bytes(damaged)
    assert without_gaps(read(path)[0]) == [following, End(0)]


@given(
    st.lists(records(), max_size=6),
    st.randoms(use_true_random=False),
    st.integers(0, 4),
    st.booleans(),
)
def test_whatever_happens_to_a_file_what_comes_back_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[Record],
    rng: random.Random,
    hits: int,
    cut: bool,
) -> None:
    written = without_gaps(written)
    raw, ends = file_bytes([*written, End(0)])
    damaged = bytearray(raw)
    for _ in range(hits):
        place = rng.randrange(ends[0], len(raw))
        damaged[place : place + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    if cut:
        del damaged[rng.randrange(ends[0], len(damaged) + 1) :]
    path = tmp_path_factory.getbasetemp() / "any.upcap"
    path.write_bytes(damaged)
    read_back, reader = read(path)
    left = iter([*written, End(0)])
    assert all(any(record == other for other in left) for record in without_gaps(read_back))
    gaps = sum(r.size for r in read_back if isinstance(r, Gap) and r.reason == DAMAGED)
    told = [d for d in reader.damage if not d.at_end and d.to is DamageTo.RECORDS]
    assert gaps == sum(damage.size for damage in told)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "does not begin like one"),
        (b"\x89UPCAP\n", "does not begin like one"),
        (b"\x89UPCAP\n\n" + RAW[8:], "does not begin like one"),
        (MAGIC, "cut off"),
        (MAGIC + bytes(8), "damaged"),
        (MAGIC + b"\xff" * 8, "cut off"),
        (MAGIC + frame(b"\xc1"), "header is damaged"),
        (MAGIC + encode(End(0)), "not a header"),
        (MAGIC + frame(pack([99])), "not a header"),
        (MAGIC + frame(pack([0, 1, "s", "t", "h", None, None, 0, 219, []])), "header is damaged"),
        (MAGIC + encode(Header("x", version=3)), "format version 3; this program knows 2"),
    ],
    ids=range(11),
)
def test_what_is_not_a_capture(tmp_path: Path, raw: bytes, why: str) -> None:
    path = tmp_path / "x.upcap"
    path.write_bytes(raw)
    with pytest.raises(NotACapture, match=why):
        CaptureReader(path)


def test_one_record_by_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    path.write_bytes(RAW)
    with CaptureReader(path) as reader:
        assert reader.record_at(ENDS[-2]) == [Kind.END, 9600]
        for offset in (-1, 0, ENDS[-2] + 1, len(RAW), 1 << 62):
            with pytest.raises(BadRecord):
                reader.record_at(offset)


def bounded(path: Path, seconds: float, megabytes: int) -> list[Record]:
    """Read all of a hostile file, within limits."""
    begin = time.process_time()
    tracemalloc.start()
    try:
        read_back, _ = read(path)
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < seconds
    return read_back


def test_lengths_beyond_the_file_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    for length in (1, 1 << 24, (1 << 24) + 1, 0xFFFFFFFF, 0):
        path.write_bytes(RAW[: ENDS[1]] + FRAME.pack(length, 0) * 2000)
        assert bounded(path, 5, 40) == RECORDS[:1]


def test_a_file_where_every_byte_could_begin_a_long_record(tmp_path: Path) -> None:
    """Each place costs the sum of all that follows it, unless somebody counts."""
    path = tmp_path / "x.upcap"
    size = 3 << 20
    lure = (FRAME.pack(2 << 20, 0) + b"\x95\x02") * (size // 10)
    path.write_bytes(RAW[: ENDS[1]] + lure)
    assert bounded(path, 10, 60) == RECORDS[:1]


def test_many_damaged_places_that_each_look_like_a_long_record(tmp_path: Path) -> None:
    """What is spent on finding the next record counts for the file, not for each place."""
    path = tmp_path / "x.upcap"
    lure = b"\0" + FRAME.pack(7 << 20, 0) + b"\x95\x02"
    path.write_bytes(RAW[: ENDS[1]] + (lure + encode(Open(1, 1))) * 25_000)
    bounded(path, 10, 200)


@pytest.mark.torture
def test_very_many_damaged_places(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    path.write_bytes(RAW[: ENDS[1]] + (b"\0" + encode(End(1))) * 500_000)
    assert len(bounded(path, 120, 400)) > 500_000


class Growing:
    """A capture that somebody holds the lock of, as a recorder does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, raw: bytes) -> None:
        self._file.write(raw)

    def let_go(self) -> None:
        self._file.close()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    growing = Growing(tmp_path / "x.upcap")
    yield growing
    growing.let_go()


def grown(reader: CaptureReader) -> list[Record]:
    return [record for _, record in reader.grow()]


@pytest.mark.parametrize("step", [1, 7, 64])
def test_a_growing_file_gives_each_record_once_it_is_whole(growing: Growing, step: int) -> None:
    growing.write(RAW[: ENDS[0]])
    with CaptureReader(growing.path) as reader:
        assert reader.live
        seen: list[Record] = []
        for begin in range(ENDS[0], len(RAW), step):
            growing.write(RAW[begin : begin + step])
            seen += grown(reader)
            whole = sum(end <= begin + step for end in ENDS) - 1
            assert seen == [*RECORDS, End(9600)][:whole]
            assert reader.damage == []
        assert reader.complete
        growing.let_go()
        assert grown(reader) == []
        assert not reader.live


def test_a_growing_file_that_is_read_from_the_middle_on(growing: Growing) -> None:
    growing.write(RAW[: ENDS[4]])
    with CaptureReader(growing.path) as reader:
        assert grown(reader) == RECORDS[:4]
        assert grown(reader) == []
        growing.write(RAW[ENDS[4] :])
        assert grown(reader) == [*RECORDS[4:], End(9600)]


def test_a_recorder_that_was_killed_leaves_a_torn_end(growing: Growing) -> None:
    growing.write(RAW[: ENDS[5] + 3])
    with CaptureReader(growing.path) as reader:
        assert grown(reader) == RECORDS[:5]
        assert reader.damage == []
        growing.let_go()
        assert grown(reader) == []
        assert reader.damage == [Damage(ENDS[5], 3, at_end=True)]
        assert not reader.complete


def test_damage_in_a_growing_file_is_told_once(growing: Growing) -> None:
    damaged = bytearray(RAW)
    damaged[ENDS[2] + FRAME.size] ^= 0xFF
    growing.write(bytes(damaged[: ENDS[5]]))
    with CaptureReader(growing.path) as reader:
        seen = grown(reader)
        for begin, end in pairwise(ENDS[5:]):
            growing.write(bytes(damaged[begin:end]))
            seen += grown(reader)
        assert [r for r in seen if isinstance(r, Gap) and r.reason == DAMAGED] == [
            Gap(1000, 0, False, ENDS[3] - ENDS[2], DAMAGED)
        ]
        assert len(reader.damage) == 1


def test_a_file_that_is_cut_back_under_the_reader(growing: Growing) -> None:
    growing.write(RAW[: ENDS[5]])
    with CaptureReader(growing.path) as reader:
        os.truncate(growing.path, ENDS[3])
        assert list(reader) == RECORDS[:3]


def test_marks_come_after_the_end_of_a_capture_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    path.write_bytes(RAW)
    marks = [Mark(number, 1, number, "comment", "x" * number) for number in range(3)]
    for mark in marks:
        append_mark(path, mark)
    read_back, reader = read(path)
    assert read_back == [*RECORDS, End(9600), *marks]
    assert (reader.complete, reader.damage) == (True, [])


def test_a_mark_behind_a_torn_end_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    path.write_bytes(RAW[: ENDS[7] + 9])
    append_mark(path, Mark(1, None, None, "later"))
    read_back, reader = read(path)
    assert without_gaps(read_back) == [*RECORDS[:7], Mark(1, None, None, "later")]
    assert reader.damage == [Damage(ENDS[7], 9, at_end=False)]
    assert not reader.complete


def test_a_mark_is_not_put_into_something_else(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a capture")
    with pytest.raises(NotACapture):
        append_mark(path, Mark(1, None, None, "later"))
    assert path.read_text() == "not a capture"


def test_damage_behind_the_end_is_told_and_loses_no_traffic(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap"
    path.write_bytes(RAW + b"garbage" * 9)
    read_back, reader = read(path)
    assert read_back == [*RECORDS, End(9600)]
    assert reader.damage == [Damage(len(RAW), 63, at_end=True, to=DamageTo.INDEX)]
    assert not reader.complete


def test_a_long_capture_is_read_across_all_block_borders(tmp_path: Path) -> None:
    rng = random.Random(219)
    written: list[Record] = connect()
    for number in range(3000):
        written.append(
            ask(bare_request(3).encode()[:20] + rng.randbytes(rng.randrange(3000)), number)
        )
    written += [Chunk(4000, 1, False, rng.randbytes(65536)) for _ in range(20)]
    written.append(Close(5000, 1, by_guest=True))
    path = write_capture(tmp_path / "x.upcap", written)
    assert path.stat().st_size > 4 << 20
    assert records_of(path)[1] == [*written, End(5000)]
