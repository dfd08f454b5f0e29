"""Stretches of a capture that hold whole messages and nothing else, parsed by columns.

Nearly all records of a long capture are CHUNKs of one whole message each. `parse_block` looks at
all frames of a block at once and tells which are such chunks; what is anything else, or is written
in any other way than this program writes it, is left to `encoding.decode`. Every checksum is
verified here as well. docs/capture-format.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .frames import FRAME, MAX_PAYLOAD, Kind
from .records import CONN_LIMIT, TIME_LIMIT, Chunk

SHORTEST: Final = 32
"""Messages that are a run at least: for fewer, looking at columns does not pay."""
_PAD: Final = bytes(16)
_TWO_PARTS: Final = 0x96
_ONE_PART: Final = 0x95
_FALSE, _TRUE = 0xC2, 0xC3
_BIN_8, _BIN_16 = 0xC4, 0xC5


def _by_first_byte() -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Of a msgpack integer that is not negative: its bytes, 0 for none; what to shift away."""
    sizes = np.zeros(256, np.int64)
    shifts = np.zeros(256, np.uint64)
    sizes[:0x80] = 1
    for first, size in ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
        sizes[first], shifts[first] = 1 + size, 64 - 8 * size
    return sizes, shifts


_SIZES, _SHIFTS = _by_first_byte()
_MASKS: Final = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)


@dataclass(frozen=True, slots=True)
class MessageRun:
    """Messages that follow each other, one CHUNK record each, as columns.

    `offset` is where each record's frame stands in its file. Of each message `size` bytes stand in
    the block from `begin` on, and zeros follow up to `whole`.
    """

    whole: int
    block: bytes
    offset: NDArray[np.int64]
    t_ns: NDArray[np.int64]
    conn: NDArray[np.int64]
    to_guest: NDArray[np.bool_]
    begin: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset)

    def part(self, first: int, end: int) -> MessageRun:
        """The messages from `first` up to `end`."""
        cut = slice(first, end)
        return MessageRun(
            self.whole, self.block, self.offset[cut], self.t_ns[cut], self.conn[cut],
            self.to_guest[cut], self.begin[cut], self.size[cut],
        )  # fmt: skip

    def shifted(self, conn: int, t_ns: int) -> MessageRun:
        """The same with other numbers and times."""
        return MessageRun(
            self.whole, self.block, self.offset, self.t_ns + t_ns, self.conn + conn,
            self.to_guest, self.begin, self.size,
        )  # fmt: skip

    def data(self, place: int) -> bytes:
        """The bytes of one message."""
        begin = int(self.begin[place])
        return self.block[begin : begin + int(self.size[place])].ljust(self.whole, b"\0")

    def record(self, place: int) -> tuple[int, Chunk]:
        """One message as its record, and where that stands."""
        chunk = Chunk(
            int(self.t_ns[place]), int(self.conn[place]), bool(self.to_guest[place]),
            self.data(place),
        )  # fmt: skip
        return int(self.offset[place]), chunk

    def records(self) -> Iterator[tuple[int, Chunk]]:
        """All of them."""
        for place in range(len(self)):
            yield self.record(place)

    def numbers(self, places: NDArray[Any], at: int, width: int) -> NDArray[np.uint64]:
        """The little-endian numbers of `width` bytes, at most 8, at `at` in these messages."""
        found: NDArray[np.uint64] = _words(self.block)[self.begin[places] + at]
        found &= _MASKS[np.clip(self.size[places] - at, 0, width)]
        return found

    def gathered(self, places: NDArray[Any], at: NDArray[Any]) -> NDArray[np.uint8]:
        """One byte of each of these messages, at `at` in it."""
        found: NDArray[np.uint8] = np.frombuffer(self.block, np.uint8)[self.begin[places] + at]
        found[at >= self.size[places]] = 0
        return found


def _words(block: bytes) -> NDArray[np.uint64]:
    """The 8 bytes from each place of a block on, as a number."""
    return np.ndarray((len(block) - 7,), "<u8", block, 0, (1,))


class Block:
    """The frames at the beginning of a block of a file, as far as they are whole.

    `end` is where the first one begins that is not, or that is longer than the block.
    """

    def __init__(self, read: bytes, offset: int, whole: int) -> None:
        starts, end = _frames(read)
        self.frames = len(starts)
        self.end = offset + end
        self._offset = offset
        self._read = read
        self._starts = [*starts, end]
        self._plain, self._run = _parse(read, self._starts, offset, whole)

    def items(self) -> Iterator[tuple[int, int, bytes | MessageRun]]:
        """(offset, end, payload or run) of everything in it, in order."""
        plain, starts, offset = self._plain, self._starts, self._offset
        changes = (np.flatnonzero(plain[1:] != plain[:-1]) + 1).tolist()
        for first, last in pairwise([0, *changes, len(plain)]):
            if plain[first] and last - first >= SHORTEST:
                yield offset + starts[first], offset + starts[last], self._run.part(first, last)
                continue
            for place in range(first, last):
                begin, end = starts[place], starts[place + 1]
                yield offset + begin, offset + end, self._read[begin + FRAME.size : end]


def _frames(block: bytes) -> tuple[list[int], int]:
    """Where whole frames begin, one behind the other from 0 on, and where the last one ends."""
    starts: list[int] = []
    unpack, header = FRAME.unpack_from, FRAME.size
    at, end = 0, len(block)
    while at + header <= end:
        length, checksum = unpack(block, at)
        stop = at + header + length
        if not 0 < length <= MAX_PAYLOAD or stop > end:
            break
        if crc32(block[at + header : stop], length) != checksum:
            break
        starts.append(at)
        at = stop
    return starts, at


def _parse(
    read: bytes, starts: list[int], offset: int, whole: int
) -> tuple[NDArray[np.bool_], MessageRun]:
    """Which of the frames are whole messages as this program writes them, and all as a run."""
    block = read + _PAD + bytes(whole)
    raw = np.frombuffer(block, np.uint8)
    words = _words(block)
    last = len(read)
    ends = np.array(starts, np.int64)
    begins, ends = ends[:-1], ends[1:]
    at = begins + FRAME.size
    parts = raw[at]
    plain = (raw[at + 1] == Kind.CHUNK) & ((parts == _TWO_PARTS) | (parts == _ONE_PART))

    def number(at: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The integers that stand there, and their bytes, which are 0 where there are none."""
        first = raw[at]
        size = _SIZES[first]
        value = words[at + 1].byteswap() >> _SHIFTS[first]
        return np.where(size == 1, first, value), size

    at = at + 2
    t_ns, size = number(at)
    plain &= (size > 0) & (t_ns < TIME_LIMIT)
    at = at + size
    conn, size = number(at)
    plain &= (size > 0) & (conn < CONN_LIMIT)
    at = at + size
    way = raw[at]
    plain &= (way == _FALSE) | (way == _TRUE)
    kind = raw[at + 1]
    long = kind == _BIN_16
    plain &= long | (kind == _BIN_8)
    size = raw[at + 2].astype(np.int64)
    size = np.where(long, size << 8 | raw[at + 3], size)
    begin = at + np.where(long, 4, 3)
    at = np.minimum(begin + size, last)
    plain &= (size == 0) | (raw[np.maximum(at - 1, 0)] != 0)
    zeros, width = number(at)
    two = parts == _TWO_PARTS
    plain &= ~two | (width > 0)
    zeros = np.where(two, zeros, 0)
    plain &= at + np.where(two, width, 0) == ends
    plain &= (zeros <= whole) & (size + zeros.astype(np.int64) == whole)
    begin = np.minimum(begin, last)
    return plain, MessageRun(
        whole, block, begins + offset, t_ns.astype(np.int64), conn.astype(np.int64),
        way == _TRUE, begin, size,
    )  # fmt: skip
