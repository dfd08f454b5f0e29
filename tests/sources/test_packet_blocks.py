"""Packets read a block at a time are the packets that a library reads, and mean the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.vsockmon import VirtioOp, encode_packet
from tests.sources.test_pcap import Packet, packets_of, pcap, small, write_pcapng
from tests.support import PCAPS, run
from tests.trace.conversations import Recording, recordings
from tests.trace.short_runs import short_runs
from upcall_trace.capture.reader import Damage
from upcall_trace.capture.records import Chunk, Close, Gap, How, Open, Record
from upcall_trace.capture.runs import MessageRun
from upcall_trace.errors import ExitCode, UserError
from upcall_trace.sources import open_source, packet_blocks, packet_runs
from upcall_trace.sources.packet_blocks import BlockFile
from upcall_trace.sources.packets import CapturedPacket, PacketFile
from upcall_trace.sources.pcap import LINKTYPE_VSOCK, PcapSource
from upcall_trace.sources.pcap_permissive import open_packets
from upcall_trace.sources.pcap_scapy import ScapyFile
from upcall_trace.sources.vsock_records import NOT_CAPTURED

SMALL = 3000
"""Bytes of a block, so that small files have many and packets end between them."""


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    with short_runs(packet_runs) as patch:
        patch.setattr(packet_blocks, "_BLOCK", SMALL)
        yield


def never(path: Path) -> PacketFile:
    raise AssertionError(f"{path.name} is of the usual form")


def read_all(file: PacketFile) -> tuple[list[CapturedPacket], list[int], int]:
    packets = [*file.packets()]
    told = packets, file.linktypes, file.read_to
    file.close()
    return told


def told(source: PcapSource, bulk: bool) -> tuple[list[Record], list[Damage], bool]:
    """The records, what is damaged, and whether the file is complete."""
    found: list[Record] = []
    with source:
        for _, item in source.runs(1024) if bulk else source.records():
            found += [r for _, r in item.records()] if isinstance(item, MessageRun) else [item]
    return found, source.damage, source.complete


@pytest.mark.parametrize("path", PCAPS, ids=lambda path: path.stem)
def test_golden_captures(path: Path) -> None:
    assert read_all(BlockFile(path, never)) == read_all(ScapyFile(path))
    assert told(PcapSource(path, BlockFile(path, never)), bulk=True) == told(
        PcapSource(path, ScapyFile(path)), bulk=False
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [True, False])
def test_every_kind_of_pcap(tmp_path: Path, order: str, nano: bool) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap(packets_of(PCAPS[0]), order, nano))
    file = BlockFile(path, never)
    assert file.resolution_ns == (1 if nano else 1000)
    assert read_all(file) == read_all(ScapyFile(path)) == read_all(open_packets(path))


@pytest.mark.parametrize("resolution", [3, 6, 9])
@pytest.mark.parametrize("links", [(LINKTYPE_VSOCK,), (1, LINKTYPE_VSOCK, 113)])
def test_pcapng_with_one_and_several_interfaces(
    tmp_path: Path, resolution: int, links: tuple[int, ...]
) -> None:
    path = tmp_path / "x.pcapng"
    write_pcapng(path, packets_of(PCAPS[0]), resolution=resolution, links=links)
    file = BlockFile(path, never)
    packets, linktypes, read_to = read_all(file)
    assert (packets, linktypes) == read_all(ScapyFile(path))[:2]
    assert read_to == path.stat().st_size
    assert file.resolution_ns == 10 ** (9 - resolution)


def test_a_big_endian_pcapng_is_left_to_a_library(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    write_pcapng(path, packets_of(PCAPS[0]), order=">")
    assert read_all(BlockFile(path, ScapyFile)) == read_all(ScapyFile(path))


def test_what_is_unusual_in_the_middle_is_left_to_a_library(tmp_path: Path) -> None:
    """Another section: the packets before it are not given twice."""
    one, two = tmp_path / "1", tmp_path / "2"
    packets = packets_of(PCAPS[0])
    write_pcapng(one, packets[:20])
    write_pcapng(two, packets[20:], order=">")
    both = tmp_path / "x.pcapng"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert read_all(BlockFile(both, ScapyFile))[0] == read_all(ScapyFile(both))[0]


@pytest.mark.parametrize("dialect", ["pcap", "pcapng"])
@pytest.mark.parametrize("library", [ScapyFile, open_packets], ids=["scapy", "permissive"])
def test_whatever_is_damaged(tmp_path: Path, dialect: str, library: type[ScapyFile]) -> None:
    """Where a library can open the file at all, the same is read of it as by the library."""
    path = tmp_path / "x"
    raw, rng, opened = small(path, dialect), random.Random(271), 0
    for _ in range(150):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2))):
            damaged[rng.randrange(24, len(damaged))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        path.write_bytes(damaged[: rng.randrange(24, len(damaged))] if opened % 3 else damaged)
        try:
            expected = told(PcapSource(path, library(path)), bulk=False)
        except UserError:
            continue
        opened += 1
        found = told(PcapSource(path, BlockFile(path, library)), bulk=True)
        if dialect == "pcap" or found[0] != expected[0]:
            assert found == expected
    assert opened > 50


HOST, GUEST = (2, 1030), (3, 219)


class Wire:
    """Packets of connections as both ends send them, with the credit that they tell."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []
        self.taken: dict[tuple[int, bool], int] = {}

    def put(self, t_ns: int, conn: int, to_guest: bool, op: VirtioOp, raw: bytes = b"") -> None:
        host, guest = (2, HOST[1] + conn), GUEST
        src, dst = (host, guest) if to_guest else (guest, host)
        fwd_cnt = self.taken.get((conn, not to_guest), 0)
        packet = encode_packet(src, dst, op, raw, fwd_cnt=fwd_cnt, flags=3)
        self.packets.append(Packet(10**18 + t_ns, packet, len(packet)))
        self.taken[conn, to_guest] = self.taken.get((conn, to_guest), 0) + len(raw)

    def open(self, t_ns: int, conn: int) -> None:
        self.taken[conn, True] = self.taken[conn, False] = 0
        self.put(t_ns, conn, True, VirtioOp.REQUEST)
        self.put(t_ns, conn, False, VirtioOp.RESPONSE)


def on_the_wire(recorded: list[Record]) -> list[Packet]:
    wire = Wire()
    for record in recorded:
        match record:
            case Open():
                wire.open(record.t_ns, record.conn)
            case Chunk() if not record.data.startswith((b"CONNECT", b"OK")):
                wire.put(record.t_ns, record.conn, record.to_guest, VirtioOp.RW, record.data)
                if record.t_ns % 3 == 0:
                    wire.put(record.t_ns, record.conn, not record.to_guest, VirtioOp.CREDIT_UPDATE)
            case Close(how=How.CLOSE | How.RESET):
                op = VirtioOp.RST if record.how is How.RESET else VirtioOp.SHUTDOWN
                wire.put(record.t_ns, record.conn, not record.by_guest, op)
    return wire.packets


@given(
    recordings(),
    st.lists(st.integers(0, 60), max_size=3),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 1100)), max_size=2),
    st.integers(0, 6),
)
def test_any_packets_as_runs_and_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    recorded: Recording,
    dropped: list[int],
    cut: list[tuple[int, int]],
    begun: int,
) -> None:
    packets = on_the_wire(recorded)[begun:]
    for place, size in cut:
        if place < len(packets):
            packets[place] = packets[place]._replace(raw=packets[place].raw[:size])
    packets = [packet for place, packet in enumerate(packets) if place not in dropped]
    path = tmp_path_factory.mktemp("packets") / "x.pcap"
    path.write_bytes(pcap(packets))
    found = told(PcapSource(path, BlockFile(path, never)), bulk=True)
    assert found == told(PcapSource(path, ScapyFile(path)), bulk=False)


# What is lost on the way is told.


def payloads(packets: list[Packet]) -> list[int]:
    """Which of them carry bytes of upcall."""
    head = Struct("<QQIIH")
    return [
        place
        for place, packet in enumerate(packets)
        if head.unpack_from(packet.raw)[4] == 4 and 219 in head.unpack_from(packet.raw)[2:4]
    ]


def gaps(path: Path) -> list[Gap]:
    with open_source(path) as source:
        return [record for _, record in source.records() if isinstance(record, Gap)]


@pytest.mark.parametrize("path", PCAPS, ids=lambda path: path.stem)
def test_nothing_is_lost_where_nothing_is_lost(tmp_path: Path, path: Path) -> None:
    """Nor is it where the capture begins in the middle, which is told by other means."""
    assert gaps(path) == []
    packets = packets_of(path)
    part = tmp_path / "x.pcap"
    for begun in range(1, len(packets), 5):
        part.write_bytes(pcap(packets[begun:]))
        assert gaps(part) == [], begun


@pytest.mark.parametrize("name", ["cpu_lifecycle", "cpu_lookup_5_10", "guest_oops_5_10", "framing"])
def test_a_lost_packet_is_a_gap(tmp_path: Path, name: str) -> None:
    """Of its size and direction, wherever in these recordings it was."""
    packets = packets_of(next(path for path in PCAPS if path.name == f"{name}.vsockmon.pcap"))
    path = tmp_path / "x.pcap"
    places = payloads(packets)
    for place in places:
        path.write_bytes(pcap([packet for each, packet in enumerate(packets) if each != place]))
        size = len(packets[place].raw) - 76
        to_guest = Struct("<Q").unpack_from(packets[place].raw)[0] == 2
        told = [(gap.to_guest, gap.size, gap.reason) for gap in gaps(path)]
        assert told == [(to_guest, size, NOT_CAPTURED)], place


def test_the_request_after_a_lost_one_gets_its_own_reply(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    packets = packets_of(next(p for p in PCAPS if p.name == "cpu_lifecycle.vsockmon.pcap"))
    whole = tmp_path / "whole.pcap"
    whole.write_bytes(pcap(packets))
    place = payloads(packets)[4]
    path.write_bytes(pcap([packet for each, packet in enumerate(packets) if each != place]))
    outcome = run("show", path)
    assert outcome.code == ExitCode.LOST
    kept = [line.split()[1:] for line in run("show", whole).out.splitlines()]
    shown = [line.split()[1:] for line in outcome.out.splitlines()]
    assert len([line for line in shown if line in kept]) >= len(kept) - 1
    assert run("info", path).code == ExitCode.LOST


def test_a_connection_that_counts_beyond_four_gigabytes(tmp_path: Path) -> None:
    """The counts are of 32 bits."""
    wire = Wire()
    wire.open(0, 1)
    start = (1 << 32) - 1500
    wire.taken[1, True] = wire.taken[1, False] = start
    for number in range(4):
        wire.put(number + 1, 1, True, VirtioOp.RW, bytes(1024))
        wire.put(number + 1, 1, False, VirtioOp.RW, bytes(1024))
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap(wire.packets[4:]))
    assert gaps(path) == []
    path.write_bytes(pcap([*wire.packets[4:7], *wire.packets[8:]]))
    assert [gap.size for gap in gaps(path)] == [1024]
