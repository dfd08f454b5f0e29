"""An index read segment by segment tells what whole columns tell, in the memory of a segment."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissectors.constants import EEXIST, MessageType
from dissectors.messages import Request, cpu_request, mmio_request
from tests.support import HELLO, answer, ask, command, connect, run, write_capture
from tests.trace.conversations import recordings
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import BadRecord
from upcall_trace.capture.index import PackedColumns
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Begins, Chunk, Close, End, Header, Open, Record
from upcall_trace.trace import indexing, opening
from upcall_trace.trace.filters import parse
from upcall_trace.trace.opening import Capture, build_index, decode_source, load
from upcall_trace.trace.operations import Operations
from upcall_trace.trace.statistics import statistics_of

FILTERS = (
    "failed and latency > 5us", "op == add_cpu or not answered", "apic_id >= 1 and apic_index < 3",
    "conn == 2 or mmio_irq == 5 and t < 20us",
)  # fmt: skip


def decoded(path: Path) -> Capture:
    """A capture without the help of its index."""
    with CaptureReader(path) as reader:
        return decode_source(reader)


def check_pieces(path: Path) -> None:
    """Piece by piece, whole, and decoded: the same operations, filters and statistics."""
    known = decoded(path).operations
    capture = load(path)
    assert capture.indexed
    by_piece = list(capture.operations.pieces())
    assert list(chain.from_iterable(by_piece)) == list(known)
    at_random = [capture.operations.operation(row) for row in reversed(range(len(known)))]
    assert at_random[::-1] == list(known)
    for text in FILTERS:
        mask = parse(text).mask
        expected = mask(known).tolist()
        assert list(chain.from_iterable(mask(piece).tolist() for piece in by_piece)) == expected
        assert mask(load(path).operations).tolist() == expected
    assert list(load(path).operations) == list(known)
    assert statistics_of(capture.operations) == statistics_of(known)


@settings(max_examples=40)
@given(recordings(), st.sampled_from([60, 150, 900, 4 << 20]))
def test_pieces_of_an_index_of_any_records_are_what_was_decoded(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Record], segment: int
) -> None:
    path = write_capture(tmp_path_factory.mktemp("pieces") / "x.upcap", recorded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "DECODED_SIZE", -1)
        patch.setattr(indexing, "SEGMENT_BYTES", segment)
        assert build_index(path)
        check_pieces(path)


@pytest.mark.usefixtures("nasty_service")
def test_answers_of_other_services_that_come_a_segment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DECODED_SIZE", -1)
    monkeypatch.setattr(indexing, "SEGMENT_BYTES", 1)
    asked = mmio_request(MessageType.ADD_MMIO, 0xE0000000, 0x1000, 5)
    path = write_capture(tmp_path / "x.upcap", [
        *connect()[:3], ask(b"n", 5), ask(b"12345678", 10), *connect(2, 11), ask(asked, 12, 2),
        ask(cpu_request(MessageType.ADD_CPU, [1, 2, 3]), 13, 2),
        Chunk(20, 1, False, b"\xea\xff\xff\xff5678"), answer(asked, 21, 2, EEXIST),
    ])  # fmt: skip
    assert build_index(path)
    check_pieces(path)


def test_a_segment_that_cannot_be_unpacked_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DECODED_SIZE", -1)
    monkeypatch.setattr(indexing, "SEGMENT_BYTES", 900)
    path = write_capture(tmp_path / "x.upcap", _mixed(40))
    assert build_index(path)
    unpack, asked = PackedColumns.column, []

    def damaged(packed: PackedColumns, name: str) -> Any:
        asked.append(name)
        if name in ("ret", "extra") and len(asked) > 60:
            raise BadRecord("damaged")
        return unpack(packed, name)

    monkeypatch.setattr(PackedColumns, "column", damaged)
    check_pieces(path)


def _mixed(count: int) -> list[Record]:
    """Operations of two kinds, whose latencies are all different."""
    found: list[Record] = connect()
    for number in range(count):
        asked: Request
        if number % 2:
            asked = cpu_request(MessageType.ADD_CPU, [number % 7, 3])
        else:
            asked = mmio_request(MessageType.ADD_MMIO, 0xE0000000 + number, 0x1000, 5)
        found += [ask(asked, 1000 * number), answer(asked, 1000 * number + 3 * number + 1)]
    return [*found, End(1000 * count)]


@given(
    st.lists(
        st.integers(-5, 70_000) | st.integers(-(1 << 62), 1 << 62) | st.integers(1 << 32, 1 << 33),
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_quantiles_are_exact(latencies: list[int], piece: int) -> None:
    rows = np.zeros(len(latencies), [("x", "i8")])
    columns: dict[str, Any] = {
        name: rows["x"].astype(np.int64) for name in
        ("conn", "service", "msg_type", "ret", "anomalies", "extra")
    }  # fmt: skip
    columns |= {"latency_ns": np.array(latencies, np.int64), "answered": rows["x"] + 1}

    class Pieces(Operations):
        def pieces(self) -> Iterator[Operations]:
            for first in range(0, len(latencies), piece):
                chosen = slice(first, first + piece)
                yield Operations({name: each[chosen] for name, each in columns.items()}, 0)

    told = statistics_of(Pieces(columns, 0)).latency_ns
    if not latencies:
        assert told is None
        return
    ranked = sorted(latencies)
    places = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    ranks = {name: round((len(ranked) - 1) * (share / 100)) for name, share in places.items()}
    assert told == {name: ranked[rank] for name, rank in ranks.items()}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 MB of whole messages: the frames of some connections again and again."""
    path = tmp_path_factory.mktemp("long") / "x.upcap"
    body = b"".join(encode(record) for conn in range(1, 6) for record in _connection(conn, 4000))
    begin = write_capture(path, [], Header("test", arch="x86_64")).read_bytes()
    with path.open("wb") as file:
        file.write(begin[: begin.index(encode(End(0)))])
        while file.tell() < 200_000_000:
            file.write(body)
        file.write(encode(End(1 << 30)))
    assert build_index(path)
    return path


def _connection(conn: int, count: int) -> Iterator[Record]:
    yield Open(0, conn, Begins.SERVICE, 219, True)
    yield Chunk(1, conn, True, b"d")
    yield Chunk(2, conn, False, HELLO)
    asked = mmio_request(MessageType.ADD_MMIO, 0xE0000000, 0x1000, 5)
    for number in range(count):
        ret = 0 if number % 100 else EEXIST
        yield ask(asked, 1000 * number, conn)
        yield answer(asked, 1000 * number + number % 997, conn, ret)
    yield Close(1000 * count, conn, True)


# What `wait4` tells counts what the process was forked from.
_MEASURED = """
import atexit, sys
status = open(sys.argv[1], "w")
atexit.register(lambda: status.write(open("/proc/self/status").read()))
from upcall_trace.cli import main
sys.exit(main(sys.argv[2:]))
"""


def peak_mib(status: Path, *arguments: str | Path) -> float:
    """The most memory that a command has."""
    subprocess.run(
        [*command()[:1], "-c", _MEASURED, status, *arguments], check=True,
        stdout=subprocess.DEVNULL, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    most = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert most is not None
    return int(most[1]) / 1024


@pytest.mark.parametrize(
    "arguments",
    [("info",), ("show", "--filter", "latency > 1s or apic_id == 77"),
     ("show", "--sort", "latency", "--limit", "3"), ("show", "--tail", "2", "--filter", "failed")],
    ids=" ".join,
)  # fmt: skip
def test_a_capture_of_any_length_is_counted_and_searched_in_little_memory(
    arguments: tuple[str, ...], long: Path, tmp_path: Path
) -> None:
    status = tmp_path / "status"
    little = peak_mib(status, *arguments, write_capture(tmp_path / "x.upcap", _mixed(40)))
    assert peak_mib(status, *arguments, long) < little + 24


def test_what_is_shown_of_a_long_capture_is_what_it_holds(
    long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run("show", long, "--filter", "failed and latency > 500ns", "--tail", "3").out
    slow = run("show", long, "--sort", "latency", "--limit", "4").out
    slowest = run("show", long, "--sort", "latency", "--tail", "4", "--limit", "2").out
    operations = load(long).operations
    rows = np.flatnonzero(parse("failed and latency > 500ns").mask(operations))[-3:]
    by_latency = np.argsort(-operations.column("latency_ns"), kind="stable")
    for text, expected in ((one, rows), (slow, by_latency[:4]), (slowest, by_latency[-4:][:2])):
        shown = [f"{int(op.conn)}.{op.request}" for op in map(operations.operation, expected)]
        assert shown
        assert re.findall(r"^ *(\d+\.\d+)", text, re.M) == shown
