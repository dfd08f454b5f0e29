"""Images: raw, as ELF cores, sparse, packed, cut off, and what is none."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import struct
import sys
from pathlib import Path

import pytest

from tests.support import run
from tests.vantage.guest_memory.cutouts import held, image, packet, page
from tests.vantage.guest_memory.whole_guest import WholeGuest
from upcall_trace.errors import UnreadableInput
from upcall_trace.vantage.guest_memory.assembling import assemble
from upcall_trace.vantage.guest_memory.conversations import Assembled
from upcall_trace.vantage.guest_memory.images import Image
from upcall_trace.vantage.guest_memory.locating import locate

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RAW = page(held(), 0x10) + page(packet(held()[16:1040], 1024), 0)


def look(path: Path) -> Assembled:
    with Image(path) as memory:
        return assemble(locate(memory.windows(), memory.aligned), memory.read, memory.ranges)


def addresses(path: Path) -> list[int]:
    return [each.held.address for each in look(path).conversations]


def core(segments: list[tuple[int, int, bytes]], kind: int = 4) -> bytes:
    """An ELF core: guest-physical address, address in the process, bytes of each segment."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", kind, 62, 1, 0, 64, 0, 0, 64, 56,
        len(segments), 0, 0, 0,
    )  # fmt: skip
    at = 64 + 56 * len(segments)
    table = body = b""
    for physical, virtual, raw in segments:
        table += struct.pack("<IIQQQQQQ", 1, 6, at + len(body), virtual, physical, len(raw),
                             len(raw), 0)  # fmt: skip
        body += raw
    return head + table + body


def lime(ranges: list[tuple[int, bytes]]) -> bytes:
    """LiME's format: a head before each range, its last address included."""
    return b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, 1, at, at + len(raw) - 1) + raw for at, raw in ranges
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_a_dump_of_limes_has_guest_physical_addresses(pack: object, tmp_path: Path) -> None:
    path = tmp_path / "mem.lime"
    assert callable(pack)
    path.write_bytes(pack(lime([(0x1000, bytes(640 << 10)), (0x1_0000_0000, RAW), (0, RAW[:9])])))
    assert addresses(path) == [0x1_0000_0010]
    assert look(path).packets == 1


def test_a_dump_of_limes_is_followed_through_its_gaps_and_cut_anywhere(tmp_path: Path) -> None:
    request, reply = held()[16:1040], held()[1040:]
    guest = WholeGuest(request, reply, 3, 2).raw
    path = tmp_path / "mem.lime"
    raw = lime(
        [(0, bytes(guest[:0x5000])), (0x5000, bytes(guest[0x5000:])), (1 << 32, bytes(32 << 20))]
    )
    path.write_bytes(raw)
    (seen,) = look(path).conversations
    assert seen.held.address == 0x3000
    assert seen.unanswered is True
    assert seen.certain
    for cut in (8, 31, 33, 0x3000, 0x3C00, 0x5010, 0x8000, len(raw) - 1):
        path.write_bytes(raw[:cut])
        try:
            with Image(path) as memory:
                found = assemble(locate(memory.windows(), False), memory.read, memory.ranges)
                assert memory.missing or cut in (0x5010,)
                assert all(each.unanswered is not False for each in found.conversations)
        except UnreadableInput:
            assert cut < 33


def test_a_raw_image_counts_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(RAW)
    assert addresses(path) == [0x10]
    assert look(path).packets == 1


def test_a_core_of_a_guest_has_guest_physical_addresses(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(core([(0, 0, bytes(4096)), (0x1_0000_0000, 0, RAW)]))
    assert addresses(path) == [0x1_0000_0010]


def test_a_core_of_the_vmm_has_the_addresses_of_its_process(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(core([(0, 0x7F00_0000_0000, bytes(4096)), (0, 0x7F12_0000_0000, RAW)]))
    assert addresses(path) == [0x7F12_0000_0010]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd.compress])
@pytest.mark.parametrize("what", ["raw", "core"])
def test_packed_images_are_the_same(pack: object, what: str, tmp_path: Path) -> None:
    raw = RAW if what == "raw" else core([(0x5000, 0, RAW)])
    path = tmp_path / "packed"
    assert callable(pack)
    path.write_bytes(pack(bytes(4096) + raw if what == "raw" else raw))
    assert addresses(path) == [0x1010 if what == "raw" else 0x5010]


def test_holes_of_a_sparse_file_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 30)
        file.seek(5 << 30)
        file.write(RAW)
    assert path.stat().st_blocks * 512 < 1 << 20
    assembled = look(path)
    assert [each.held.address for each in assembled.conversations] == [(5 << 30) + 0x10]
    assert assembled.looked_at < 1 << 20


def test_what_is_cut_off_is_looked_at_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(core([(0, 0, RAW), (1 << 20, 0, RAW)])[: -len(RAW) - 3000])
    with Image(path) as memory:
        assert [*locate(memory.windows(), memory.aligned).objects] == [0x20]
        assert memory.missing == len(RAW) + 3000
    random_bytes = random.Random(1).randbytes(1 << 20)
    packed = gzip.compress(RAW + random_bytes)
    path.write_bytes(packed[: len(packed) // 2])
    with Image(path) as memory:
        assert [*locate(memory.windows(), memory.aligned).objects] == [0x20]
        assert memory.missing


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"", "is empty"),
        (b"KDUMP   " + bytes(4096), "dump again without compression"),
        (b"EMiL\x02\0\0\0" + bytes(4096), "avml-convert"),
        (b"EMiL\x01\0\0\0" + b"\xff" * 24, "LiME's without memory"),
        (b"QFI\xfb" + bytes(4096), "qcow2"),
        (b"\x89UPCAP\r\n", "upcall-trace show reads it"),
        (core([]), "without memory"),
        (core([(0, 0, RAW)])[:70], "without memory"),
        (b"\x1f\x8b\x08\x00broken", "nothing of it could be unpacked"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(
    start: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "no-image"
    path.write_bytes(start)
    with pytest.raises(UnreadableInput, match=sentence):
        Image(path)


def test_a_directory_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="give the file with the guest's memory"):
        Image(tmp_path)
    with pytest.raises(UnreadableInput, match="No such file"):
        Image(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableInput, match="is no file"):
        Image(tmp_path / "pipe")


def test_hostile_cores_are_bounded(tmp_path: Path) -> None:
    """Any bytes behind the ELF magic end in an image or in a sentence."""
    chance = random.Random(3)
    good = core([(0, 0, RAW), (1 << 40, 0, RAW)])
    path = tmp_path / "core"
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            raw[chance.randrange(16, 180)] = chance.randrange(256)
        path.write_bytes(raw)
        try:
            look(path)
        except UnreadableInput:
            pass  # a sentence will do


def test_an_image_that_is_not_aligned_as_its_guest_was(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"\x03" * 13 + image("kata_6_12").read_bytes())
    assert [each.held.address - 13 for each in look(path).conversations] == [0, 0x11000, 0x12000]


@pytest.mark.parametrize("kernel", ["kata_5_10", "kata_6_1", "kata_6_12", "lab"])
def test_of_a_part_that_may_be_taken_for_the_whole_nothing_is_called_freed(
    kernel: str, tmp_path: Path
) -> None:
    """One file of a split image, or pages behind heads of their own: pointers lead elsewhere."""
    path = tmp_path / "part"
    path.write_bytes(bytes(16 << 20) + image(kernel).read_bytes() + bytes(16 << 20))
    told = json.loads(run("peek", "--json", path).out)["connections"]
    path.write_bytes(image(kernel).read_bytes())
    before = json.loads(run("peek", "--json", path).out)["connections"]
    freed = [each["state"] for each in before].count("freed")
    assert [each["state"] for each in told].count("freed") <= freed
    assert [each["request"] for each in told] == [each["request"] for each in before]


def test_memory_that_begins_with_a_page_of_a_program_is_no_core(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(core([(0, 0, bytes(2000))], kind=3).ljust(4096, b"\0") + RAW)
    assert addresses(path) == [0x1010]
