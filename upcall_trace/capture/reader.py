"""Reading a capture: every record that is whole, and an account of what is not.

A torn tail or a damaged stretch never stops the reader: it goes on at the next frame whose
checksum is right, and `CaptureReader.damage` tells what was passed over. Where the file says what
a stretch of it must sum up to, that is looked at too: whole records can be missing.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from zlib import crc32

from ..errors import UpcallError
from .allowance import Allowance
from .encoding import decode
from .frames import FORMAT_VERSION, FRAME, MAGIC, MAX_PAYLOAD, BadRecord, Kind, unpack
from .records import DAMAGED, Begins, Carry, Chunk, End, Gap, Header, Mark, Open, Record
from .segments import IndexSegment, digest_of, parse_segment

if TYPE_CHECKING:  # numpy, which few commands need, takes a moment to import
    from .runs import MessageRun

_BLOCK = 1 << 20
_FIRST_SEARCH = 4096
_CAREFUL = 256
"""Records that are read one by one where a block does not begin with whole ones."""
_OVERLAP = 16
_RESYNC_BUDGET = 256 << 20
"""Bytes of a file that are summed at most while looking for the next whole record: a hostile one
could otherwise make every one of its bytes look like the start of a long record."""
_SUMMED_LIMIT = 4
"""How often a file is summed up at most, whatever its segments say."""
_PAYLOAD_START = re.compile(rb"[\x91-\x9f][\x00-\x1f]|\xdc(?=..[\x00-\x1f])", re.DOTALL)


class NotACapture(UpcallError, ValueError):
    """The file is not a capture, or of a version that this reader does not know."""


class DamageTo(StrEnum):
    """What a damaged stretch should have held."""

    RECORDS = "records"
    INDEX = "index"
    DIGEST = "digest"
    """Every frame in it is whole, and yet it is not what was recorded."""


@dataclass(frozen=True, slots=True)
class Damage:
    """`size` bytes from `offset` on that hold no whole record, or not those that were written."""

    offset: int
    size: int
    at_end: bool
    to: DamageTo = DamageTo.RECORDS


def is_being_written(file_descriptor: int) -> bool:
    """True while a recorder holds its lock on the capture."""
    try:
        fcntl.flock(file_descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks: treat it as at rest
    fcntl.flock(file_descriptor, fcntl.LOCK_UN)
    return False


class CaptureReader:
    """The capture at `path`, as a context manager and an iterable of its records.

    `header` is read at once; `damage` and `complete` are known once all records were read. The
    file is read with pread and never mapped: a recorder may cut it back under the reader.
    Raises OSError, and NotACapture when the beginning is not a capture's.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self.path = path
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self.damage: list[Damage] = []
        self.next_offset = self.first_offset
        self._ended = False
        self._covered = 0
        self._summed = 0
        self._damage_checked = 0
        self._resync_budget = _RESYNC_BUDGET

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._refresh()
        self.header, self.first_offset = self._read_header()

    def _refresh(self) -> None:
        # A recorder lets go of its lock after its last write, so the lock is looked at first.
        self.live = self.is_live()
        self.size = self.size_now()

    def is_live(self) -> bool:
        """Whether a recorder has the file open."""
        return is_being_written(self._descriptor)

    def size_now(self) -> int:
        """How long the file is by now."""
        return os.fstat(self._descriptor).st_size

    @property
    def is_one_file(self) -> bool:
        """Whether there is one file to append to, or to copy."""
        return True

    @property
    def complete(self) -> bool:
        """Whether the recording was closed cleanly and everything read of it was whole."""
        return self._ended and not self.damage

    def payloads(self, offset: int | None = None) -> Iterator[tuple[int, list[Any]]]:
        """(offset, values) of every whole record from `offset` on, of any kind.

        While the file is being written a partial record at its end is not damage: it is read
        by the next call, which starts at `next_offset`.
        """
        position = self.first_offset if offset is None else offset
        header_size = FRAME.size
        unpack_frame = FRAME.unpack_from
        block = b""
        block_begin = position
        while position + header_size <= self.size:
            at = position - block_begin
            if at + header_size > len(block):
                block, block_begin, at = self.read(position, _BLOCK), position, 0
                if len(block) < header_size:
                    break  # cut back since we looked
            length, checksum = unpack_frame(block, at)
            if 0 < length <= MAX_PAYLOAD and position + header_size + length <= self.size:
                end = at + header_size + length
                if end > len(block):
                    block = self.read(position, max(_BLOCK, header_size + length))
                    block_begin, at, end = position, 0, header_size + length
                payload = block[at + header_size : end]
                if len(payload) == length and crc32(payload, length) == checksum:
                    begin, position = position, position + header_size + length
                    self.next_offset = position
                    try:
                        values = unpack(payload)
                    except BadRecord:
                        self._note_damage(begin, position)
                    else:
                        yield begin, values
                    continue
            elif self.live and length <= MAX_PAYLOAD:
                break  # its end is still to be written
            position = self._skip_damage(position)
        if position < self.size and not self.live:
            self._note_damage(position, self.size, at_end=True)
            position = self.size
        self.next_offset = position

    def records(self, offset: int | None = None) -> Iterator[tuple[int, Record]]:
        """(offset, record) of every record of traffic; unknown kinds are skipped.

        Where damage was passed over, a `Gap` of no connection stands in its place. Read from the
        beginning on, what the file says of its own stretches is checked as well.
        """
        return cast(Iterator[tuple[int, Record]], self._walk(offset, self.payloads(offset)))

    def runs(
        self, whole: int, offset: int | None = None
    ) -> Iterator[tuple[int, Record | MessageRun]]:
        """The same, with stretches of chunks of `whole` bytes as a run each."""
        return self._walk(offset, self._payloads_and_runs(whole, offset))

    def _payloads_and_runs(
        self, whole: int, offset: int | None
    ) -> Iterator[tuple[int, list[Any] | MessageRun]]:
        from .runs import SHORTEST, Block

        position = self.first_offset if offset is None else offset
        while True:
            size = min(_BLOCK, self.size - position)
            block = Block(self.read(position, size), position, whole) if size > 0 else None
            if block is None or block.frames < SHORTEST:
                # Something is damaged, torn, or long: one by one, at least so far.
                left = _CAREFUL
                for item in islice(self.payloads(position), _CAREFUL):
                    yield item
                    left -= 1
                if left:
                    return
                position = self.next_offset
                continue
            for begin, end, found in block.items():
                self.next_offset = end
                if not isinstance(found, bytes):
                    yield begin, found
                    continue
                try:
                    values = unpack(found)
                except BadRecord:
                    self._note_damage(begin, end)
                else:
                    yield begin, values
            position = self.next_offset = block.end

    def _walk(
        self, offset: int | None, items: Iterator[tuple[int, list[Any] | MessageRun]]
    ) -> Iterator[tuple[int, Record | MessageRun]]:
        if offset is None:
            self.damage.clear()
            self._ended, self._covered = False, 0
            self._summed = self._damage_checked = 0
        checked = offset is None or self._covered > 0
        last_ns: int | None = None
        allowance = Allowance()
        told = len(self.damage)
        for position, values in items:
            if type(values) is not list:
                run = cast("MessageRun", values)
                if told < len(self.damage):
                    yield from self._gaps(told, int(run.t_ns[0]) if last_ns is None else last_ns)
                    told = len(self.damage)
                last_ns = int(run.t_ns[-1])
                if allowance.has_room(run.whole * len(run), position):
                    allowance.take(run.whole * len(run), position)
                    yield position, self._placed_run(position, run)
                    continue
                for begin, chunk in run.records():
                    allowance.take(run.whole, begin)
                    yield begin, cast(Record, self._placed(begin, chunk))
                continue
            try:
                record = decode(values)
            except BadRecord:
                self._note_damage(position, self.next_offset)
                continue
            if record is None:
                if checked and values[0] == Kind.SEGMENT:
                    self._check_segment(position, values)
                continue
            if isinstance(record, Header):
                for begun in self._begins(position, record):
                    yield position, begun
                continue
            t_ns = None if isinstance(record, Mark) else record.t_ns
            if told < len(self.damage):
                yield from self._gaps(told, (t_ns or 0) if last_ns is None else last_ns)
                told = len(self.damage)
            if type(record) is End:
                self._ended = True
            if t_ns is not None:
                last_ns = t_ns
            if type(record) is Chunk:
                allowance.take(len(record.data), position)
            placed = self._placed(position, record)
            if placed is not None:
                yield position, placed
        yield from self._gaps(told, last_ns or 0)

    def _begins(self, position: int, header: Header) -> list[Record]:
        """What is to be said where a header stands behind other records."""
        return []

    def _placed(self, position: int, record: Record) -> Record | None:
        """The record as who reads it is to see it, None for nothing."""
        return self._as_open(record) if type(record) is Carry else record

    def _placed_run(self, position: int, run: MessageRun) -> MessageRun:
        """The same of a run that begins there."""
        return run

    @staticmethod
    def _as_open(carry: Carry) -> Open:
        """What a connection that began in an earlier part looks like to who reads only this one."""
        return Open(carry.t_ns, carry.conn, Begins.MIDDLE, carry.port, carry.accepted, carry.peer,
                    carry.source)  # fmt: skip

    def _gaps(self, told: int, t_ns: int) -> Iterator[tuple[int, Gap]]:
        for damage in self.damage[told:]:
            if not damage.at_end and damage.to is DamageTo.RECORDS:
                yield damage.offset, Gap(t_ns, 0, False, damage.size, DAMAGED)

    def __iter__(self) -> Iterator[Record]:
        for _, record in self.records():
            yield record

    def record_at(self, offset: int) -> list[Any]:
        """The values of the one record at `offset`; raises BadRecord when none is there."""
        start = self.read(offset, FRAME.size) if 0 <= offset < self.size else b""
        if len(start) == FRAME.size:
            length, checksum = FRAME.unpack(start)
            if 0 < length <= MAX_PAYLOAD:
                payload = self.read(offset + FRAME.size, length)
                if len(payload) == length and crc32(payload, length) == checksum:
                    return unpack(payload)
        raise BadRecord(f"no record at offset {offset}")

    def is_as_recorded(self, segment: IndexSegment) -> bool:
        """Whether the bytes that a segment stands for are still those that were written."""
        return digest_of(self.read, segment.begin, segment.end) == segment.digest

    def _local(self, position: int) -> tuple[Callable[[int, int], bytes], int]:
        """How the file that `position` is in is read, and where that is in it."""
        return self.read, position

    def _check_segment(self, position: int, values: list[Any]) -> None:
        read, at = self._local(position)
        try:
            segment = parse_segment(values, at)
        except BadRecord:
            self._note_damage(position, self.next_offset)
            return
        expected = 0 if segment.previous is None else self._covered
        self._summed += segment.end - segment.begin
        sound = (
            segment.begin == expected
            and self._summed <= _SUMMED_LIMIT * self.size
            and digest_of(read, segment.begin, segment.end) == segment.digest
        )
        # Where damage was told since the last one, the sum says nothing new.
        if not sound and len(self.damage) == self._damage_checked:
            size = segment.end - segment.begin
            begin = segment.begin + position - at
            self.damage.append(Damage(begin, size, False, DamageTo.DIGEST))
        self._damage_checked = len(self.damage)
        self._covered = segment.end

    def grow(self) -> Iterator[tuple[int, Record]]:
        """What was appended since the last record that was read; for a file that grows."""
        self._refresh()
        yield from self.records(self.next_offset)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        # Columns are read from it for as long as somebody holds them.
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file as they are, fewer at its end."""
        return os.pread(self._descriptor, size, offset)

    def _read_header(self) -> tuple[Header, int]:
        start = self.read(0, len(MAGIC) + FRAME.size)
        if start[: len(MAGIC)] != MAGIC:
            raise NotACapture("it does not begin like one")
        if len(start) < len(MAGIC) + FRAME.size:
            raise NotACapture("its header is cut off")
        length, checksum = FRAME.unpack_from(start, len(MAGIC))
        payload = self.read(len(start), min(length, MAX_PAYLOAD))
        if len(payload) != length or crc32(payload, length) != checksum:
            raise NotACapture("its header is damaged or cut off")
        try:
            header = decode(unpack(payload))
        except BadRecord as error:
            raise NotACapture(f"its header is damaged: {error}") from None
        if not isinstance(header, Header):
            raise NotACapture("its first record is not a header")
        if header.version > FORMAT_VERSION:
            raise NotACapture(
                f"it has format version {header.version}; this program knows {FORMAT_VERSION}"
            )
        return header, len(start) + length

    def _skip_damage(self, position: int) -> int:
        """The offset of the next whole record after `position`, or the end of the file."""
        begin = position + 1
        size = _FIRST_SEARCH  # the next record is usually near
        while begin < self.size and self._resync_budget > 0:
            block = self.read(begin, size + _OVERLAP)
            if not block:
                break
            for found in _PAYLOAD_START.finditer(block, FRAME.size):
                candidate = begin + found.start() - FRAME.size
                length, checksum = FRAME.unpack_from(block, found.start() - FRAME.size)
                if not 0 < length <= MAX_PAYLOAD or candidate + FRAME.size + length > self.size:
                    continue
                payload = self.read(candidate + FRAME.size, length)
                if crc32(payload, length) == checksum:
                    self._note_damage(position, candidate)
                    return candidate
                self._resync_budget -= length
                if self._resync_budget <= 0:
                    break
            begin, size = begin + size, _BLOCK
        self._note_damage(position, self.size, at_end=True)
        return self.size

    def _note_damage(self, begin: int, end: int, at_end: bool = False) -> None:
        # Behind the End record there are only the index and marks, and no traffic to lose.
        to = DamageTo.INDEX if self._ended else DamageTo.RECORDS
        self.damage.append(Damage(begin, end - begin, at_end, to))
