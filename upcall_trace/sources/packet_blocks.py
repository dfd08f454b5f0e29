"""Packet captures of the usual form, read a large block at a time.

A pcap file is a chain of packets, a pcapng file one of blocks. As long as each is what nearly every
capturing program writes, it takes one look. From the first one on that is anything else, a library
reads the file: what is passed over, and what counts as torn, is for it to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from .packets import NANOSECONDS, PACKET_LIMIT, WALL_LIMIT, CapturedPacket, NotPackets, PacketFile

_BLOCK: Final = 4 << 20
_MAGICS: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}  # fmt: skip
_SECTION: Final = b"\x0a\x0d\x0d\x0a"
_LITTLE: Final = b"\x4d\x3c\x2b\x1a"
_HEAD: Final = Struct("<II")
_ENHANCED: Final = Struct("<IIIIIII")
_U16: Final = Struct("<HH")
_U32: Final = Struct("<I")
_U64: Final = Struct("<II")
_INTERFACE, _ENHANCED_PACKET, _STATISTICS = 1, 6, 5
_PASSED_OVER: Final = frozenset({4, 0x0A, 0x0BAD, 0x40000BAD})
"""Blocks that tell nothing of packets: names, secrets, and a program's own."""
_RESOLUTION, _DROPPED, _DROPPED_BY_SYSTEM = 9, 5, 7
_FEWEST_DIGITS, _MOST_DIGITS = 3, 9


class PacketPlace(NamedTuple):
    """A packet of a block: its file's offset, and where in the block its bytes are."""

    offset: int
    linktype: int
    wall_ns: int
    begin: int
    end: int
    original_size: int


@dataclass(frozen=True, slots=True)
class PacketBatch:
    """A block of the file and the packets that are whole in it."""

    block: bytes
    places: list[PacketPlace]


class _Unusual(Exception):
    """Here something else begins than what is read here."""


class BlockFile:
    """A `PacketFile` that also gives its packets in batches.

    `careful` opens the file with a library; it is called when something unusual is met.
    """

    def __init__(self, path: Path, careful: Callable[[Path], PacketFile]) -> None:
        self._path = path
        self._open_careful = careful
        self._careful: PacketFile | None = None
        self._begun = False
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size
        self._linktypes: list[int] = []
        self._ticks: list[int] = []
        self._dropped = 0
        self._read_to = 0
        start = self._read(0, 24)
        self._pcap = _MAGICS.get(start[:4]) if len(start) == 24 else None
        if self._pcap is not None:
            order, self._step_ns = self._pcap
            self._packet = Struct(order + "IIII")
            self._linktypes = [Struct(order + "I").unpack_from(start, 20)[0]]
        little = start[:4] == _SECTION and start[8:12] == _LITTLE
        self._usual_begin = self._pcap is not None or little
        if not self._usual_begin:
            try:
                self._careful = careful(path)
            except NotPackets:
                self.close()
                raise

    @property
    def linktypes(self) -> list[int]:
        return self._careful.linktypes if self._careful else self._linktypes

    @property
    def resolution_ns(self) -> int:
        if self._careful:
            return self._careful.resolution_ns
        if self._pcap is not None:
            return self._step_ns
        return max(1, NANOSECONDS // max(self._ticks, default=NANOSECONDS))

    @property
    def read_to(self) -> int:
        return self._careful.read_to if self._careful else self._read_to

    @property
    def dropped(self) -> int:
        return self._careful.dropped if self._careful else self._dropped

    def packets(self) -> Iterator[CapturedPacket]:
        for found in self.batches():
            if not isinstance(found, PacketBatch):
                yield found
                continue
            for at in found.places:
                raw = found.block[at.begin : at.end]
                yield CapturedPacket(at.offset, at.linktype, at.wall_ns, raw, at.original_size)

    def batches(self) -> Iterator[PacketBatch | CapturedPacket]:
        """All packets from the beginning: in batches, and singly from where a library reads."""
        if self._begun and self._careful is not None:
            self._careful.close()
            self._careful = None if self._usual_begin else self._open_careful(self._path)
        self._begun = True
        count = 0
        if self._careful is None:
            for batch in self._usual():
                count += len(batch.places)
                if batch.places:
                    yield batch
        if self._careful is not None:
            yield from islice(self._careful.packets(), count, None)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._careful is not None:
            self._careful.close()

    def _usual(self) -> Iterator[PacketBatch]:
        """Batches up to the end, or to what is unusual."""
        take = self._take_pcap if self._pcap is not None else self._take_pcapng
        if self._pcap is None:
            self._linktypes, self._ticks, self._dropped = [], [], 0
        position = 24 if self._pcap is not None else 0
        size = _BLOCK
        while position < self._size:
            block = self._read(position, size)
            places: list[PacketPlace] = []
            unusual = False
            try:
                taken = take(block, position, places)
                self._read_to = position + taken
            except _Unusual:
                taken, unusual = 0, True
            yield PacketBatch(block, places)
            if unusual:
                self._give_up()
                return
            if not taken:
                if position + len(block) >= self._size:
                    return  # torn
                if size > _BLOCK:
                    self._give_up()
                    return
                size = 4 * _BLOCK
                continue
            position, size = position + taken, _BLOCK
        self._read_to = position

    def _take_pcap(self, block: bytes, position: int, places: list[PacketPlace]) -> int:
        """How many bytes of the block are whole packets."""
        unpack, header = self._packet.unpack_from, self._packet.size
        linktype, step_ns = self._linktypes[0], self._step_ns
        at, end = 0, len(block)
        while at + header <= end:
            seconds, parts, size, original = unpack(block, at)
            if size > PACKET_LIMIT:
                self._read_to = position + at
                raise _Unusual
            begin = at + header
            stop = begin + size
            if stop > end:
                break
            wall_ns = seconds * NANOSECONDS + parts * step_ns
            places.append(PacketPlace(position + at, linktype, wall_ns, begin, stop, original))
            at = stop
        return at

    def _take_pcapng(self, block: bytes, position: int, places: list[PacketPlace]) -> int:
        at, end = 0, len(block)
        while at + 12 <= end:
            self._read_to = position + at
            kind, total = _HEAD.unpack_from(block, at)
            stop = at + total
            if total < 12 or total % 4 or total > _BLOCK:
                raise _Unusual
            if stop > end:
                break
            if _U32.unpack_from(block, stop - 4)[0] != total:
                raise _Unusual
            if kind == _ENHANCED_PACKET:
                places.append(self._enhanced(block, at, stop, position))
            elif kind == _INTERFACE:
                self._interface(block, at, stop)
            elif kind == _STATISTICS:
                self._statistics(block, at, stop)
            elif kind not in _PASSED_OVER and (position or at or block[:4] != _SECTION):
                raise _Unusual
            at = stop
        return at

    def _enhanced(self, block: bytes, at: int, stop: int, position: int) -> PacketPlace:
        if stop - at < 32:
            raise _Unusual
        _, _, interface, high, low, size, original = _ENHANCED.unpack_from(block, at)
        begin = at + 28
        if interface >= len(self._linktypes) or size > PACKET_LIMIT or begin + size > stop - 4:
            raise _Unusual
        wall_ns = min((high << 32 | low) * NANOSECONDS // self._ticks[interface], WALL_LIMIT)
        linktype = self._linktypes[interface]
        return PacketPlace(position + at, linktype, wall_ns, begin, begin + size, original)

    def _interface(self, block: bytes, at: int, stop: int) -> None:
        digits = 6
        for code, value in _options(block, at + 16, stop - 4):
            if code == _RESOLUTION:
                digits = value[0] if len(value) == 1 else 0
        if not _FEWEST_DIGITS <= digits <= _MOST_DIGITS:
            raise _Unusual
        self._linktypes.append(_U16.unpack_from(block, at + 8)[0])
        self._ticks.append(10**digits)

    def _statistics(self, block: bytes, at: int, stop: int) -> None:
        for code, value in _options(block, at + 20, stop - 4):
            if code in (_DROPPED, _DROPPED_BY_SYSTEM):
                if len(value) != 8:
                    raise _Unusual
                low, high = _U64.unpack(value)
                self._dropped += high << 32 | low

    def _give_up(self) -> None:
        """From here on a library reads; where none can, the file is torn here."""
        try:
            self._careful = self._open_careful(self._path)
        except NotPackets:
            pass

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


def _options(block: bytes, at: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The options of a pcapng block, each once; anything else is unusual."""
    known: set[int] = set()
    while at + 4 <= stop:
        code, size = _U16.unpack_from(block, at)
        if code == 0:
            return
        at += 4
        if at + size > stop or (code in known and code != 1):
            raise _Unusual
        known.add(code)
        yield code, block[at : at + size]
        at += size + -size % 4
    if at != stop:
        raise _Unusual
