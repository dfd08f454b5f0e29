"""Segments: what a stretch of a capture's bytes must sum up to, and where its index rows are.

Together the segments of a capture tile it from its first byte on: each begins where the one
before it ends, so a stretch that was taken out is missed as one that was changed is.
docs/capture-format.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .frames import BadRecord, Kind

_BLOCK: Final = 1 << 20
_DIGEST_SIZE: Final = 16
_LIMIT: Final = 1 << 62
_LOST_LIMIT: Final = 1 << 63
"""More than a number of another kind can be: one gap can have 2^62 bytes, and gaps add up."""


@dataclass(frozen=True, slots=True)
class IndexSegment:
    """One SEGMENT record, which stands at `offset`.

    `begin` and `end` are of the bytes that `digest` sums up; `rows_at` is the offset of their
    INDEX_ROWS record. `first_row` and `rows` count operations, `lost` bytes of traffic. `previous`
    is the offset of the SEGMENT record before, None for the first one.
    """

    offset: int
    version: int
    begin: int
    end: int
    digest: bytes
    previous: int | None
    rows_at: int
    first_row: int
    rows: int
    first_ns: int | None
    last_ns: int
    lost: int
    ended: bool

    def values(self) -> list[Any]:
        """As they stand in the record."""
        return [
            int(Kind.SEGMENT), self.version, self.begin, self.end, self.digest, self.previous,
            self.rows_at, self.first_row, self.rows, self.first_ns, self.last_ns, self.lost,
            self.ended,
        ]  # fmt: skip


def parse_segment(values: list[Any], offset: int) -> IndexSegment:
    """The segment of a SEGMENT record's values; raises BadRecord."""
    if values[0] != Kind.SEGMENT or len(values) < 13:
        raise BadRecord("not a segment")
    (version, begin, end, digest, previous, rows_at, first_row, rows, first_ns, last_ns, lost,
     ended) = values[1:13]  # fmt: skip
    numbers = [version, begin, end, rows_at, first_row, rows, last_ns]
    numbers += [number for number in (previous, first_ns) if number is not None]
    if any(type(number) is not int or not -_LIMIT <= number < _LIMIT for number in numbers):
        raise BadRecord("a number of a segment is out of range")
    if type(lost) is not int or not 0 <= lost < _LOST_LIMIT:
        raise BadRecord("a segment that lost what cannot be")
    if type(digest) is not bytes or len(digest) != _DIGEST_SIZE or type(ended) is not bool:
        raise BadRecord("a segment without its digest")
    back = -1 if previous is None else previous
    if not (0 <= begin <= end <= rows_at < offset and back < rows_at and rows >= 0 <= first_row):
        raise BadRecord("a segment that stands nowhere")
    return IndexSegment(offset, version, begin, end, digest, previous, rows_at, first_row, rows,
                   first_ns, last_ns, lost, ended)  # fmt: skip


def digest_of(read: Callable[[int, int], bytes], begin: int, end: int) -> bytes:
    """The digest of the bytes from `begin` to `end`, which `read(offset, size)` gives."""
    digest = new_digest()
    position = begin
    while position < end:
        block = read(position, min(_BLOCK, end - position))
        if not block:
            break
        digest.update(block)
        position += len(block)
    summed: bytes = digest.digest()
    return summed


def new_digest() -> Any:
    """Takes bytes by `update`; 16 bytes of XXH3-128, which finds accidents and stops nobody."""
    import xxhash

    return xxhash.xxh3_128()
