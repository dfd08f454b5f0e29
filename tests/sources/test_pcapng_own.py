"""A pcapng of this program's, read by columns and block by block: the same, whatever is in it."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.vsockmon import VirtioOp, encode_packet
from tests.support import TRANSCRIPTS, records_of
from tests.trace.conversations import Recording, recordings
from tests.trace.short_runs import short_runs
from upcall_trace.capture.reader import Damage
from upcall_trace.capture.records import CUT_OFF, Chunk, Gap, Header, Record
from upcall_trace.capture.runs import MessageRun
from upcall_trace.errors import UserError
from upcall_trace.exports.pcapng import write_packets
from upcall_trace.sources import packet_runs, plain_packets
from upcall_trace.sources.pcap import read
from upcall_trace.sources.pcapng_own import OwnPcapngSource

Told = tuple[list[Record], list[Damage], bool]
_HEAD = Struct("<IIIIIII")


@pytest.fixture(autouse=True)
def small_pieces() -> Iterator[None]:
    with short_runs(packet_runs) as patch:
        patch.setattr(plain_packets, "_READ", 3000)
        yield


def written(path: Path, header: Header, records: Sequence[Record], remarks: Any = None) -> Path:
    out = io.BytesIO()
    write_packets(header, records, out, remarks or {})
    path.write_bytes(out.getvalue())
    return path


def told(path: Path, bulk: bool) -> Told:
    source = read(path)
    assert isinstance(source, OwnPcapngSource)
    found: list[Record] = []
    with source:
        for _, item in source.runs(1024) if bulk else source.records():
            found += [r for _, r in item.records()] if isinstance(item, MessageRun) else [item]
    return found, source.damage, source.complete


def blocks(raw: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of each block."""
    at = 0
    while at < len(raw):
        size = int.from_bytes(raw[at + 4 : at + 8], "little")
        yield at, at + size
        at += size


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_golden_recordings(tmp_path: Path, path: Path) -> None:
    header, records = records_of(path)
    file = written(tmp_path / "x.pcapng", header, records, {(1, 0): ["a comment"]})
    assert told(file, bulk=True) == told(file, bulk=False)
    assert told(file, bulk=True)[0] == records


@given(recordings(), st.lists(st.tuples(st.integers(1, 3), st.integers(0, 20)), max_size=4))
def test_any_recording(
    tmp_path_factory: pytest.TempPathFactory,
    recorded: Recording,
    remarked: list[tuple[int, int]],
) -> None:
    remarks = {key: ["a comment"] for key in remarked}
    path = tmp_path_factory.mktemp("own") / "x.pcapng"
    file = written(path, Header("test", wall_ns=10**18), recorded, remarks)
    assert told(file, bulk=True) == told(file, bulk=False)


def test_whatever_is_damaged(tmp_path: Path) -> None:
    header, records = records_of(next(p for p in TRANSCRIPTS if p.stem == "mmio_lifecycle"))
    path = written(tmp_path / "x.pcapng", header, records)
    raw, rng, opened = path.read_bytes(), random.Random(272), 0
    places = list(blocks(raw))
    for number in range(400):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 5))):
            begin, end = rng.choice(places)
            # Headers, lengths and addresses more often than the zeros of a message.
            at = rng.choice(
                (begin + rng.randrange(min(104, end - begin)), end - 1 - rng.randrange(4))
            )
            damaged[at] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        path.write_bytes(damaged[: rng.randrange(len(damaged))] if number % 3 == 0 else damaged)
        try:
            source = read(path)
        except UserError:
            continue
        with source:
            if not isinstance(source, OwnPcapngSource):
                continue  # its name is damaged
        opened += 1
        assert told(path, bulk=True) == told(path, bulk=False), number
    assert opened > 200


def test_packets_of_others_and_another_section_in_between(tmp_path: Path) -> None:
    header, records = records_of(TRANSCRIPTS[0])
    path = written(tmp_path / "x.pcapng", header, records)
    raw = path.read_bytes()
    places = list(blocks(raw))
    stranger = encode_packet((2, 99), (3, 219), VirtioOp.RW, bytes(1024))
    size = 32 + len(stranger)
    block = _HEAD.pack(6, size, 0, 0, 5, len(stranger), len(stranger)) + stranger
    block += size.to_bytes(4, "little")
    middle = places[len(places) // 2][0]
    for added in (block * 3, raw[: places[1][1]], raw):
        path.write_bytes(raw[:middle] + added + raw[middle:])
        assert told(path, bulk=True) == told(path, bulk=False)
        path.write_bytes(raw + added)
        assert told(path, bulk=True) == told(path, bulk=False)


def test_what_a_size_limit_cut_off_is_a_gap(tmp_path: Path) -> None:
    """As in a packet capture of others."""
    header, records = records_of(next(p for p in TRANSCRIPTS if p.stem == "mmio_lifecycle"))
    path = written(tmp_path / "x.pcapng", header, records)
    raw, made = path.read_bytes(), bytearray()
    for begin, end in blocks(raw):
        kind, size, interface, high, low, captured, original = _HEAD.unpack_from(raw, begin)
        if kind == 6 and captured == 76 + 1024 and size == 32 + captured:
            packet = raw[begin + 28 : begin + 28 + 76 + 200]
            size = 32 + len(packet)
            made += _HEAD.pack(kind, size, interface, high, low, len(packet), original) + packet
            made += size.to_bytes(4, "little")
        else:
            made += raw[begin:end]
    path.write_bytes(made)
    found, damage, complete = told(path, bulk=True)
    assert (found, damage, complete) == told(path, bulk=False)
    cut = [each for each in found if isinstance(each, Gap)]
    assert len(cut) == sum(isinstance(each, Chunk) and len(each.data) == 1024 for each in records)
    assert {(each.size, each.reason) for each in cut} == {(824, CUT_OFF)}
