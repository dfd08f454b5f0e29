"""Decoding by columns gives what decoding one by one gives, whatever is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, mmio_request, pci_request
from tests.support import HELLO, each_recording, records_of, write_capture
from tests.trace.conversations import recordings
from tests.trace.short_runs import short_runs
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Begins, Chunk, Header, Open, Record
from upcall_trace.capture.runs import MessageRun
from upcall_trace.trace import bulk
from upcall_trace.trace.bulk import take_run
from upcall_trace.trace.decoding import Session
from upcall_trace.trace.indexing import Indexer
from upcall_trace.trace.streams import in_bulk


@pytest.fixture(autouse=True)
def shortest() -> Iterator[None]:
    with short_runs(bulk) as patch:
        patch.setattr(bulk, "_CAREFUL", 1)
        yield


def one_by_one(path: Path) -> Session:
    with CaptureReader(path) as reader:
        session = Session(reader.header)
        for offset, record in reader.records():
            session.feed(record, offset)
    return session


def by_columns(path: Path) -> tuple[Session, int]:
    """The session, and how many messages went by columns."""
    with CaptureReader(path) as reader:
        session = Session(reader.header)
        counted = 0
        for offset, item in in_bulk(reader):
            if isinstance(item, MessageRun):
                take_run(session, item)
                counted += len(item)
            else:
                session.feed(item, offset)
    return session, counted


def told(session: Session) -> dict[str, Any]:
    """Everything that a session knows, what observers keep for later included."""
    columns = {name: column.tolist() for name, column in session.table.columns().items()}
    watches = {
        conn: (
            vars(watch.observer), watch.open_rows, watch.short, watch.last_ret, watch.file_gaps
        )
        for conn, watch in session.watched.items()
    }  # fmt: skip
    return {
        "columns": columns,
        "watches": watches,
        "connections": [*session.connections.values()],
        "times": (session.first_ns, session.last_ns),
        "lost": session.lost,
        "marks": session.marks,
        "vmm": session.vmm,
        "finished": sorted(session.finished_rows),
        "unfinished": sorted(session.unfinished_rows()),
    }


@given(recordings(), st.sampled_from([None, "x86_64", "aarch64"]))
def test_any_recording(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Record], arch: str | None
) -> None:
    path = write_capture(
        tmp_path_factory.mktemp("bulk") / "x.upcap", recorded, Header("test", arch=arch)
    )
    session, _ = by_columns(path)
    assert told(session) == told(one_by_one(path))


@given(recordings(), st.lists(st.integers(0, 1 << 20), max_size=3), st.booleans())
def test_any_damage(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Record], at: list[int], cut: bool
) -> None:
    """The same records at the same places, the same damage, and the same said of the end."""
    path = write_capture(tmp_path_factory.mktemp("bulk") / "x.upcap", recorded)
    raw = bytearray(path.read_bytes())
    with CaptureReader(path) as reader:
        begin = reader.first_offset
    for place in at:
        raw[begin + place % (len(raw) - begin)] ^= 0x41
    path.write_bytes(raw[: -(at[0] % 50 + 1)] if cut and at else raw)
    with CaptureReader(path) as plain, CaptureReader(path) as reader:
        expected = [*plain.records()]
        found: list[tuple[int, Record]] = []
        for offset, item in reader.runs(1024):
            found += item.records() if isinstance(item, MessageRun) else [(offset, item)]
        assert found == expected
        assert (reader.damage, reader.complete) == (plain.damage, plain.complete)
        assert reader.next_offset == plain.next_offset


@given(recordings(), st.integers(60, 900))
def test_an_index_of_runs_has_the_segments_of_one_of_records(
    recorded: list[Record], size: int
) -> None:
    """Where a segment ends does not hang on how the messages came."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("upcall_trace.trace.indexing.SEGMENT_BYTES", size)
        header = Header("test")
        singly, together = Indexer(header), Indexer(header)
        ends: list[tuple[int, bytes]] = []
        offset = 100
        for record in recorded:
            if singly.due(offset):
                ends.append((offset, singly.cut(offset, 1 << 30, bytes(16))))
            singly.feed(record, offset)
            offset += 40
        ends.append((offset, singly.cut(offset, 1 << 30, bytes(16), ended=True)))
        found: list[tuple[int, bytes]] = []
        offset = 100
        for item in _pieces(recorded, offset):
            for part in together.parts(item) if isinstance(item, MessageRun) else [item]:
                if together.due(offset):
                    found.append((offset, together.cut(offset, 1 << 30, bytes(16))))
                if isinstance(part, MessageRun):
                    together.take(part)
                    offset += 40 * len(part)
                else:
                    together.feed(part, offset)
                    offset += 40
        found.append((offset, together.cut(offset, 1 << 30, bytes(16), ended=True)))
        assert found == ends


def _pieces(recorded: list[Record], offset: int) -> Iterator[Record | MessageRun]:
    """The records with whole messages as runs, each record at 40 bytes behind the last."""
    gathered: list[Chunk] = []

    def run() -> MessageRun:
        kept = [chunk.data.rstrip(b"\0") for chunk in gathered]
        sizes = np.array([len(raw) for raw in kept], np.int64)
        first = offset - 40 * len(gathered)
        return MessageRun(
            1024, b"".join(kept) + bytes(2048), first + 40 * np.arange(len(gathered)),
            np.array([c.t_ns for c in gathered]), np.array([c.conn for c in gathered]),
            np.array([c.to_guest for c in gathered]), np.cumsum(sizes) - sizes, sizes,
        )  # fmt: skip

    for record in recorded:
        whole = isinstance(record, Chunk) and len(record.data) == 1024
        if isinstance(record, Chunk) and whole and not record.uncertainty_ns:
            gathered.append(record)
        else:
            if gathered:
                yield run()
                gathered.clear()
            yield record
        offset += 40
    if gathered:
        yield run()


@each_recording
def test_golden_recordings(tmp_path: Path, golden: Path) -> None:
    header, recorded = records_of(golden)
    path = write_capture(tmp_path / "x.upcap", recorded, header)
    assert told(by_columns(path)[0]) == told(one_by_one(path))


def exchanges(count: int) -> Iterator[Record]:
    """Two connections, each with requests and replies in turn."""
    yield from (Open(0, conn, Begins.SERVICE, 219, True) for conn in (1, 2))
    for conn in (1, 2):
        yield from (Chunk(1, conn, True, b"d"), Chunk(2, conn, False, HELLO))
    for number in range(count):
        conn = 1 + number % 3 % 2
        request = (
            mmio_request(MessageType.ADD_MMIO, number << 12, 0x1000, 5),
            cpu_request(MessageType.ADD_CPU, [number % 256, 3]),
            pci_request(MessageType.DEL_PCI, number % 2, number % 32),
        )[number % 3]
        yield Chunk(10 + number, conn, True, request.encode())
        yield Chunk(11 + number, conn, False, request.reply(-22 if number % 5 == 0 else 0).encode())


def test_a_long_recording_goes_by_columns(tmp_path: Path) -> None:
    """Blocks end between a request and its reply, and most messages come in runs."""
    path = write_capture(tmp_path / "x.upcap", exchanges(40_000))
    session, counted = by_columns(path)
    assert counted > 79_000
    assert told(session) == told(one_by_one(path))
