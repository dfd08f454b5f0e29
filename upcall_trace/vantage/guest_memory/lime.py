"""LiME's format of memory images: each range of memory behind a head that says where it stood.

A head has 32 bytes: a magic number, the version, and the first and last physical address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import BinaryIO, Final, NamedTuple

MAGIC: Final = b"EMiL\x01\x00\x00\x00"
COMPRESSED: Final = b"EMiL\x02\x00\x00\x00"
"""How AVML begins what it has compressed range by range."""
_HEAD: Final = Struct("<8sQQ8x")
_MANY: Final = 1 << 16


class Range(NamedTuple):
    """`size` bytes of the file at `offset` that stood at the physical `address`."""

    offset: int
    size: int
    address: int


def ranges_of(file: BinaryIO) -> list[Range]:
    """The ranges of a plain file, as their heads tell; what is no head ends them."""
    found: list[Range] = []
    at = 0
    while len(found) < _MANY:
        file.seek(at)
        size_and_address = _read_head(file.read(_HEAD.size))
        if size_and_address is None:
            break
        size, address = size_and_address
        found.append(Range(at + _HEAD.size, size, address))
        at += _HEAD.size + size
    return found


def pieces_of(stream: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The memory in a file that is read from front to back, with its physical addresses."""
    left = address = 0
    kept = b""
    for _, raw in stream:
        raw = kept + raw
        kept = b""
        while raw:
            if left:
                piece, raw = raw[:left], raw[left:]
                yield address, piece
                left -= len(piece)
                address += len(piece)
            elif len(raw) < _HEAD.size:
                kept, raw = raw, b""
            else:
                head = _read_head(raw[: _HEAD.size])
                if head is None:
                    return
                left, address = head
                raw = raw[_HEAD.size :]


def _read_head(raw: bytes) -> tuple[int, int] | None:
    """How many bytes follow, and where they stood; None for what is no head."""
    if len(raw) < _HEAD.size:
        return None
    magic, first, last = _HEAD.unpack(raw)
    if magic != MAGIC or last < first or last >= 1 << 52:
        return None
    return last - first + 1, first
