"""Packet captures: one recording in every dialect, torn, cut short, and of the wrong kind."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import pytest
from pcapng import FileWriter  # type: ignore[import-untyped]  # ships no annotations
from pcapng import blocks as pcapng_blocks
from scapy.utils import EDecimal, RawPcapNgWriter

from tests.support import GOLDEN, PCAPS, decode, operations, records_of, run
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.reader import Damage
from upcall_trace.capture.records import Begins, Chunk, Close, Gap, How, Open, Record
from upcall_trace.errors import ExitCode, UnreadableInput, UserError
from upcall_trace.sources import open_source
from upcall_trace.sources.pcap import LINKTYPE_VSOCK, read
from upcall_trace.trace.opening import load

_LITTLE, _BIG = Struct("<4I"), Struct(">4I")
_FILE_HEADER = {"<": Struct("<IHHiIII"), ">": Struct(">IHHiIII")}
_MICROSECOND_MAGIC, _NANOSECOND_MAGIC = 0xA1B2C3D4, 0xA1B23C4D


class Packet(NamedTuple):
    """One captured packet; `size` is its length on the wire."""

    wall_ns: int
    raw: bytes
    size: int


def packets_of(path: Path) -> list[Packet]:
    """The packets of a recorded file, which is little-endian with nanoseconds."""
    raw = path.read_bytes()
    assert raw[:4] == _NANOSECOND_MAGIC.to_bytes(4, "little")
    found, position = [], 24
    while position < len(raw):
        sec, ns, captured, size = _LITTLE.unpack_from(raw, position)
        position += 16 + captured
        found.append(Packet(sec * 10**9 + ns, raw[position - captured : position], size))
    return found


FRAMING = packets_of(GOLDEN / "framing.vsockmon.pcap")


def pcap(packets: list[Packet], order: str = "<", nano: bool = True, link: int = 271) -> bytes:
    """A pcap file of one of the four dialects."""
    magic = _NANOSECOND_MAGIC if nano else _MICROSECOND_MAGIC
    unit = 1 if nano else 1000
    packed = Struct(f"{order}4I").pack
    return _FILE_HEADER[order].pack(magic, 2, 4, 0, 0, 262144, link) + b"".join(
        packed(p.wall_ns // 10**9, p.wall_ns % 10**9 // unit, len(p.raw), p.size) + p.raw
        for p in packets
    )


def write_pcapng(
    path: Path,
    packets: list[Packet],
    order: str = "<",
    resolution: int = 9,
    links: tuple[int, ...] = (LINKTYPE_VSOCK,),
) -> None:
    """By python-pcapng; of several interfaces each packet is in all of them."""
    header = pcapng_blocks.SectionHeader(endianness=order)
    for link in links:
        header.new_member(
            pcapng_blocks.InterfaceDescription,
            link_type=link,
            options={"if_tsresol": bytes([resolution])},
        )
    with path.open("wb") as file:
        writer = FileWriter(file, header)
        for packet in packets:
            ticks = packet.wall_ns // 10 ** (9 - resolution)
            for interface in range(len(links)):
                writer.write_block(
                    header.new_member(
                        pcapng_blocks.EnhancedPacket,
                        interface_id=interface,
                        timestamp_high=ticks >> 32,
                        timestamp_low=ticks & 0xFFFFFFFF,
                        packet_data=packet.raw,
                        captured_len=len(packet.raw),
                        packet_len=packet.size,
                    )
                )


def write_with_scapy(path: Path, packets: list[Packet]) -> None:
    """By scapy: microseconds, and no option that says so."""
    writer = RawPcapNgWriter(str(path))
    writer.linktype = LINKTYPE_VSOCK
    writer.write_header(None)
    for packet in packets:
        when = EDecimal(packet.wall_ns // 1000) / 1_000_000
        writer.write_packet(packet.raw, sec=when, wirelen=packet.size)  # type: ignore[arg-type]
    writer.close()


def to_microseconds(recorded: list[Record], begin_ns: int) -> list[Record]:
    """The same records as a clock that steps every microsecond gives them."""
    wall = [begin_ns + record.t_ns for record in recorded]  # type: ignore[union-attr]  # no marks
    begin_us = begin_ns // 1000
    return [
        type(record)(**{name: getattr(record, name) for name in record.__slots__}
                     | {"t_ns": (at // 1000 - begin_us) * 1000})
        for record, at in zip(recorded, wall, strict=True)
    ]  # fmt: skip


Writer = Callable[[Path, list[Packet]], object]

NANOSECONDS: dict[str, Writer] = {
    "little-endian": lambda path, p: path.write_bytes(pcap(p)),
    "big-endian": lambda path, p: path.write_bytes(pcap(p, ">")),
    "pcapng": write_pcapng,
    "pcapng, big-endian": lambda path, p: write_pcapng(path, p, ">"),
    "pcapng, another interface": lambda path, p: write_pcapng(path, p, links=(1, LINKTYPE_VSOCK)),
}
MICROSECONDS: dict[str, Writer] = {
    "little-endian": lambda path, p: path.write_bytes(pcap(p, nano=False)),
    "big-endian": lambda path, p: path.write_bytes(pcap(p, ">", nano=False)),
    "pcapng": lambda path, p: write_pcapng(path, p, resolution=6),
    "scapy": write_with_scapy,
}


@pytest.mark.parametrize("name", NANOSECONDS)
@pytest.mark.parametrize("path", PCAPS, ids=lambda path: path.stem)
def test_every_dialect_with_nanoseconds_gives_the_same_records(
    path: Path, name: str, tmp_path: Path
) -> None:
    header, recorded = records_of(path)
    written = tmp_path / "x"
    NANOSECONDS[name](written, packets_of(path))
    with open_source(written) as source:
        assert [record for _, record in source.records()] == recorded
        assert source.header == header
        assert (source.damage, source.complete, source.live) == ([], True, False)


@pytest.mark.parametrize("name", MICROSECONDS)
def test_every_dialect_with_microseconds_gives_the_same_records(name: str, tmp_path: Path) -> None:
    path = GOLDEN / "framing.vsockmon.pcap"
    header, recorded = records_of(path)
    written = tmp_path / "x"
    MICROSECONDS[name](written, FRAMING)
    found_header, found = records_of(written)
    assert header.wall_ns is not None
    assert found_header.resolution_ns == 4_000_000  # the guest ticks, whatever the file could say
    assert found_header.wall_ns == header.wall_ns // 1000 * 1000
    assert found == to_microseconds(recorded, header.wall_ns)


FINE_CLOCKS = {"aarch64_lifecycle", "cpu_lifecycle_6_12", "guest_oops_6_12"}
"""Recordings whose guest took the time of a packet finer than in ticks of 4 ms."""


@pytest.mark.parametrize("name", MICROSECONDS)
def test_the_step_of_a_fine_clock_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    packets = packets_of(GOLDEN / "cpu_lifecycle_6_12.vsockmon.pcap")
    MICROSECONDS[name](tmp_path / "x", packets)
    assert records_of(tmp_path / "x")[0].resolution_ns == 1000


@pytest.mark.parametrize("path", PCAPS, ids=lambda path: path.stem)
def test_what_a_recorded_packet_capture_says_about_itself(path: Path) -> None:
    packets = packets_of(path)
    header, recorded = records_of(path)
    assert header.source == "vsockmon"
    assert header.wall_ns == packets[0].wall_ns
    assert header.resolution_ns == (1 if path.stem.split(".")[0] in FINE_CLOCKS else 4_000_000)
    assert header.arch is None
    opened = [record for record in recorded if isinstance(record, Open)]
    assert [record.conn for record in opened] == list(range(1, len(opened) + 1))
    assert {record.port for record in opened} <= {219, 9999}


def test_a_connection_seen_from_inside_the_guest() -> None:
    _, recorded = records_of(GOLDEN / "guest_oops.vsockmon.pcap")
    kinds = [(type(record).__name__, getattr(record, "conn", None)) for record in recorded]
    assert kinds[:3] == [("Open", 1), ("Chunk", 1), ("Chunk", 1)]
    assert recorded[0] == Open(0, 1, Begins.SERVICE, 219, True)
    sent = [r for r in recorded if isinstance(r, Chunk) and r.conn == 1 and r.to_guest]
    assert [len(chunk.data) for chunk in sent] == [1, 1024, 1024]


def test_a_refused_connection_to_another_port() -> None:
    _, recorded = records_of(GOLDEN / "handshake.vsockmon.pcap")
    first = [record for record in recorded if getattr(record, "conn", 0) == 1]
    assert first[0] == Open(0, 1, Begins.OTHER, 9999, False)
    assert [type(record) for record in first] == [Open, Close]
    assert isinstance(first[1], Close)
    assert (first[1].by_guest, first[1].how) == (True, How.CLOSE)


@pytest.mark.parametrize("dialect", ["pcap", "pcapng"])
def test_another_link_type_is_named(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "x"
    if dialect == "pcap":
        path.write_bytes(pcap(FRAMING, link=1))
    else:
        write_pcapng(path, FRAMING, links=(1,))
    with pytest.raises(UnreadableInput, match=r"link type 1, not VSOCK \(271\)"):
        open_source(path)


@pytest.mark.parametrize("link", [0, 1, 113])
def test_another_link_type_is_named_without_any_packet(tmp_path: Path, link: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(pcap([], link=link))
    with pytest.raises(UnreadableInput, match=f"link type {link}, not VSOCK"):
        open_source(path)


@pytest.mark.parametrize("dialect", ["pcap", "pcapng"])
def test_a_capture_without_packets_is_empty_and_whole(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "x"
    if dialect == "pcap":
        path.write_bytes(pcap([]))
    else:
        write_pcapng(path, [])
    with open_source(path) as source:
        assert list(source.records()) == []
        assert source.header.wall_ns is None
        assert (source.damage, source.complete) == ([], True)


HANDSHAKE = packets_of(GOLDEN / "handshake.vsockmon.pcap")
SMALL = [packet for packet in HANDSHAKE if len(packet.raw) < 200][:12]


def small(path: Path, dialect: str) -> bytes:
    """A small file, and all of its bytes."""
    if dialect == "pcap":
        path.write_bytes(pcap(SMALL))
    else:
        write_pcapng(path, SMALL)
    return path.read_bytes()


def ends(raw: bytes, dialect: str) -> list[int]:
    """Where the file's header and each packet after it end."""
    if dialect == "pcap":
        found = [24]
        for packet in SMALL:
            found.append(found[-1] + 16 + len(packet.raw))
        return found
    found = [0]
    while found[-1] < len(raw):
        found.append(found[-1] + int.from_bytes(raw[found[-1] + 4 : found[-1] + 8], "little"))
    return found[2:]  # section and interface come first


def records_of_first(count: int, path: Path) -> list[Record]:
    """What the small file's first packets amount to."""
    path.write_bytes(pcap(SMALL[:count]))
    return records_of(path)[1]


@pytest.mark.parametrize("dialect", ["pcap", "pcapng"])
def test_a_file_cut_at_every_byte_loses_its_last_packet_at_most(
    tmp_path: Path, dialect: str
) -> None:
    path = tmp_path / "x"
    whole = small(path, dialect)
    borders = ends(whole, dialect)
    assert (borders[-1], len(borders)) == (len(whole), len(SMALL) + 1)
    expected = [records_of_first(count, path) for count in range(len(SMALL) + 1)]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            with open_source(path) as source:
                found = [record for _, record in source.records()]
        except UnreadableInput:
            assert size < borders[0]
            continue
        if size < borders[0]:  # a pcapng file may stop before it names an interface
            assert found == []
            continue
        count = sum(border <= size for border in borders) - 1
        torn = size - borders[count]
        assert source.damage == ([Damage(borders[count], torn, at_end=True)] if torn else [])
        assert source.complete is not bool(torn)
        assert found == expected[count]


@pytest.mark.parametrize(
    "hurt",
    [
        pytest.param(lambda block: block[:-4] + b"\0\0\0\0", id="other length at its end"),
        pytest.param(lambda block: block[:4] + b"\x08\0\0\0" + block[8:], id="too short"),
        pytest.param(lambda block: block[:4] + b"\xff\xff\xff\x7f" + block[8:], id="too long"),
    ],
)
@pytest.mark.parametrize("place", [3, -2])
def test_a_damaged_block_in_the_middle_ends_what_can_be_read(
    tmp_path: Path, place: int, hurt: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x"
    whole = small(path, "pcapng")
    borders = ends(whole, "pcapng")
    begin, end = (
        borders[place - 1 if place < 0 else place],
        borders[place if place < 0 else place + 1],
    )
    path.write_bytes(whole[:begin] + hurt(whole[begin:end]) + whole[end:])
    with open_source(path) as source:
        found = [record for _, record in source.records()]
    assert source.damage == [Damage(begin, len(whole) - begin, at_end=True)]
    assert not source.complete
    assert found == records_of_first(borders.index(begin), path)


def test_a_packet_too_short_for_its_own_headers_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x"
    stub = Packet(SMALL[4].wall_ns, SMALL[4].raw[:40], 40)
    path.write_bytes(pcap([*SMALL[:4], stub, *SMALL[4:]]))
    with open_source(path) as source:
        found = [record for _, record in source.records()]
    offset = ends(path.read_bytes(), "pcap")[4]
    assert source.damage == [Damage(offset, 40, at_end=False)]
    assert source.complete
    assert found == records_of_first(len(SMALL), path)


def test_packets_that_were_cut_short_leave_gaps_of_what_is_missing(tmp_path: Path) -> None:
    """A packet size limit of 200 leaves 124 bytes of payload behind 76 of headers."""
    path = tmp_path / "x"
    path.write_bytes(pcap([Packet(p.wall_ns, p.raw[:200], p.size) for p in FRAMING]))
    _, whole = records_of(GOLDEN / "framing.vsockmon.pcap")
    _, cut = records_of(path)
    expected: list[Record] = []
    for record in whole:
        if isinstance(record, Chunk) and len(record.data) > 124:
            expected.append(Chunk(record.t_ns, record.conn, record.to_guest, record.data[:124]))
            reason = "cut off by the capture's packet size limit"
            missing = len(record.data) - 124
            expected.append(Gap(record.t_ns, record.conn, record.to_guest, missing, reason))
        else:
            expected.append(record)
    assert cut == expected
    session = decode(cut)
    assert session.lost == sum(record.size for record in expected if isinstance(record, Gap))


def test_packets_whose_headers_alone_were_kept_leave_gaps_only(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(pcap([Packet(p.wall_ns, p.raw[:76], p.size) for p in FRAMING]))
    _, cut = records_of(path)
    assert not any(isinstance(record, Chunk) for record in cut)
    _, whole = records_of(GOLDEN / "framing.vsockmon.pcap")
    missing = sum(record.size for record in cut if isinstance(record, Gap))
    assert missing == sum(len(record.data) for record in whole if isinstance(record, Chunk))


def test_a_capture_that_began_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "x"
    packets = packets_of(GOLDEN / "mmio_lifecycle.vsockmon.pcap")
    path.write_bytes(pcap(packets[20:]))
    _, recorded = records_of(path)
    assert isinstance(recorded[0], Open)
    assert recorded[0].begins is Begins.MIDDLE
    found = operations(decode(recorded))
    all_of_it = operations(decode(records_of(GOLDEN / "mmio_lifecycle.vsockmon.pcap")[1]))
    assert 0 < len(found) < len(all_of_it)
    tail = all_of_it[-len(found) :]
    assert [(op.op, op.fields, op.ret) for op in found] == [
        (op.op, op.fields, op.ret) for op in tail
    ]


def test_a_time_beyond_what_a_capture_holds_is_the_latest_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_pcapng(path, [Packet((1 << 62) * 1000, SMALL[0].raw, 76)], resolution=0)
    header, recorded = records_of(path)
    assert header.wall_ns == (1 << 62) - 1
    assert all(encode(record) for record in recorded)
    assert encode(header)


def test_a_file_that_cannot_be_a_packet_capture_is_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for start in (b"\xd4\xc3\xb2\xa1", b"\x0a\x0d\x0d\x0a" + bytes(24)):
        path.write_bytes(start)
        with pytest.raises(UnreadableInput, match="is not a whole packet capture"):
            read(path)


def fuzz(path: Path, raw: bytes, rng: random.Random, rounds: int) -> int:
    """Damage a file in `rounds` ways; returns how many still opened."""
    opened = 0
    for _ in range(rounds):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 4))):
            near = rng.random() < 0.7
            place = rng.randrange(min(300, len(damaged)) if near else len(damaged))
            damaged[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            with open_source(path) as source:
                recorded = [record for _, record in source.records()]
                encode(source.header)
        except UserError:
            continue
        opened += 1
        decode(recorded)
        for record in recorded:
            encode(record)
    return opened


def import_damaged(folder: Path, rounds: int, seed: int) -> Counter[int]:
    """Import damaged recordings; every exit code is one of the documented ones, with its reason."""
    rng, codes = random.Random(seed), Counter[int]()
    path, written = folder / "damaged", folder / "x.upcap"
    for number in range(rounds):
        damaged = bytearray(rng.choice(PCAPS).read_bytes())
        for _ in range(rng.choice((1, 1, 4, 16))):
            near = rng.random() < 0.3
            damaged[rng.randrange(60 if near else len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        outcome = run("import", path, "-o", written, "--overwrite")
        codes[outcome.code] += 1
        where = (seed, number, outcome)
        assert outcome.code in (ExitCode.EXPECTED, ExitCode.LOST, ExitCode.UNREADABLE), where
        if outcome.code == ExitCode.UNREADABLE:
            assert outcome.err.count("\n") == 1, where
            continue
        reasons = [line for line in outcome.err.splitlines() if " operations" not in line]
        assert bool(reasons) == (outcome.code == ExitCode.LOST), where
        assert run("info", written).code in (ExitCode.EXPECTED, ExitCode.LOST), where
    return codes


def test_damaged_recordings_end_with_the_documented_codes(tmp_path: Path) -> None:
    assert import_damaged(tmp_path, 30, 219).keys() == {0, 3, 5}


@pytest.mark.torture
def test_a_thousand_damaged_recordings_end_with_the_documented_codes(tmp_path: Path) -> None:
    codes = import_damaged(tmp_path, 1000, 18)
    print(codes)  # noqa: T201
    assert codes.keys() == {0, 3, 5}


@pytest.mark.parametrize("dialect", ["pcap", "pcapng"])
def test_whatever_is_damaged_nothing_is_raised(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "x"
    raw = small(path, dialect)
    assert fuzz(path, raw, random.Random(219), 800) > 100


@pytest.mark.torture
@pytest.mark.parametrize("dialect", ["pcap", "pcapng"])
def test_whatever_is_damaged_nothing_is_raised_at_length(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "x"
    raw = small(path, dialect)
    assert fuzz(path, raw, random.Random(), 50_000) > 1000


# What a packet size limit leaves.


def cut_at(source: Path, target: Path, kept: int) -> Path:
    """The same capture, as if its packets had been limited to so many bytes."""
    packets = [packet._replace(raw=packet.raw[:kept]) for packet in packets_of(source)]
    target.write_bytes(pcap(packets))
    return target


ONE_REQUEST_A_PACKET = [path for path in PCAPS if not path.stem.startswith("framing")]


@pytest.mark.parametrize("path", ONE_REQUEST_A_PACKET, ids=lambda path: path.stem)
def test_cut_behind_all_that_they_mean_messages_tell_the_same(path: Path, tmp_path: Path) -> None:
    whole = load(path)
    for kept in (76 + 44, 200, 1099):
        cut = load(cut_at(path, tmp_path / f"{kept}.pcap", kept))
        assert cut.gaps > 0
        for one, other in zip(whole.operations, cut.operations, strict=True):
            assert (one.op, one.fields, one.ret, one.latency_ns, one.reply) == (
                other.op, other.fields, other.ret, other.latency_ns, other.reply
            )  # fmt: skip
            assert set(other.anomalies) <= set(one.anomalies)


@pytest.mark.parametrize("path", ONE_REQUEST_A_PACKET, ids=lambda path: path.stem)
def test_what_is_cut_off_is_not_made_up(path: Path, tmp_path: Path) -> None:
    whole = load(path)
    for kept in (76 + 16, 76 + 23, 76 + 24, 76 + 30):
        cut = load(cut_at(path, tmp_path / f"{kept}.pcap", kept))
        for one, other in zip(whole.operations, cut.operations, strict=True):
            assert other.op == one.op
            assert other.fields in (one.fields, {})
            assert other.ret == (one.ret if kept >= 76 + 24 else None)


def test_a_cut_reply_is_shown_with_its_own_bytes_and_the_rest_as_missing(tmp_path: Path) -> None:
    golden = next(path for path in PCAPS if path.stem.startswith("mmio_lifecycle.v"))
    path = cut_at(golden, tmp_path / "x.pcap", 120)
    outcome = run("show", "--frames", "--json", path)
    assert outcome.code == ExitCode.LOST
    frames = [json.loads(line) for line in outcome.out.splitlines()]
    (reply,) = [f for f in frames if f["text"].startswith("reply to request 2:")]
    assert "ret -17" in reply["text"]
    assert len(bytes.fromhex(reply["bytes"])) == 44
    assert frames[frames.index(reply) + 1]["text"] == "980 bytes are not in the recording"
