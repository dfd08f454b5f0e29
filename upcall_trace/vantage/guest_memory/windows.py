"""Memory in windows: the pieces of a large address space that are looked at in one go.

Pure: what fills a window is in `processes` and `images`. An address is whatever its memory counts
in: the VMM's own addresses for a running one, guest-physical ones or offsets for an image.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

WINDOW_SIZE: Final = 4 << 20
OVERLAP: Final = 8 << 10
"""Bytes of a contiguous range that the next window shows again."""
REACH: Final = OVERLAP // 2
"""Nothing that belongs together is longer on either side of where it is found."""

Progress = Callable[[int], None]
"""Called with the number of bytes that were looked at."""


@dataclass(slots=True)
class Stretch:
    """Bytes that were read together; `offsets` and `addresses` say where each piece stood.

    What is found at `end` and beyond is left to the next window, which shows it whole.
    """

    raw: bytes | bytearray | memoryview
    offsets: list[int]
    addresses: list[int]
    end: int
    size: int = field(default=0)

    def __post_init__(self) -> None:
        self.size = self.size or len(self.raw)

    def around(self, offset: int, before: int, after: int) -> bytes | None:
        """The bytes from `before` ahead of an offset to `after` behind it, None across an edge."""
        place = bisect_right(self.offsets, offset) - 1
        edge = self.offsets[place + 1] if place + 1 < len(self.offsets) else self.size
        if offset - before < self.offsets[place] or offset + after > edge:
            return None
        return bytes(self.raw[offset - before : offset + after])

    def piece(self, offset: int) -> tuple[int, int]:
        """Begin and end, as offsets, of the piece that an offset is in."""
        place = bisect_right(self.offsets, offset) - 1
        edge = self.offsets[place + 1] if place + 1 < len(self.offsets) else self.size
        return self.offsets[place], edge

    def address(self, offset: int) -> int:
        """Where the byte at an offset stood."""
        place = bisect_right(self.offsets, offset) - 1
        return self.addresses[place] + offset - self.offsets[place]


def windows_of(pieces: Iterator[tuple[int, bytes]]) -> Iterator[Stretch]:
    """Windows over pieces that come in order, each with its address.

    A piece that goes on where the one before ended is shown with the end of that in front.
    """
    kept = b""
    kept_at = -1
    pending: tuple[int, bytes] | None = None
    for address, raw in pieces:
        if pending is not None:
            yield _window(pending, kept, kept_at, goes_on=pending[0] + len(pending[1]) == address)
            begin, before = pending
            together = kept + before if kept_at + len(kept) == begin else before
            kept = together[-OVERLAP:]
            kept_at = begin + len(before) - len(kept)
        pending = (address, raw)
    if pending is not None:
        yield _window(pending, kept, kept_at, goes_on=False)


def _window(piece: tuple[int, bytes], kept: bytes, kept_at: int, goes_on: bool) -> Stretch:
    address, raw = piece
    if kept_at + len(kept) == address and kept:
        address, raw = kept_at, kept + raw
    return Stretch(raw, [0], [address], len(raw) - REACH if goes_on else len(raw))
