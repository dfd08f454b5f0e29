"""Reading a capture: every record that is whole, and an account of what is not.

A torn tail or a damaged stretch never stops the reader: it goes on at the next frame whose
checksum is right, and `CaptureReader.damage` tells what was passed over.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from ..errors import UpcallError
from .records import (
    DAMAGED,
    FORMAT_VERSION,
    FRAME,
    MAGIC,
    MAX_PAYLOAD,
    BadRecord,
    End,
    Gap,
    Header,
    Mark,
    Record,
    decode,
    unpack,
)

_BLOCK = 1 << 20
_FIRST_SEARCH = 4096
_OVERLAP = 16
_RESYNC_BUDGET = 256 << 20
"""Bytes of a file that are summed at most while looking for the next whole record: a hostile one
could otherwise make every one of its bytes look like the start of a long record."""
_PAYLOAD_START = re.compile(rb"[\x91-\x9f][\x00-\x1f]|\xdc(?=..[\x00-\x1f])", re.DOTALL)


class NotACapture(UpcallError, ValueError):
    """The file is not a capture, or of a version that this reader does not know."""


@dataclass(frozen=True, slots=True)
class Damage:
    """`size` bytes from `offset` on that hold no whole record."""

    offset: int
    size: int
    at_end: bool


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
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.live = is_being_written(self._descriptor)
            self.size = os.fstat(self._descriptor).st_size
            self.header, self.first_offset = self._read_header()
        except BaseException:
            self.close()
            raise
        self.damage: list[Damage] = []
        self.complete = False
        self.next_offset = self.first_offset
        self._resync_budget = _RESYNC_BUDGET

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
                block, block_begin, at = self._read(position, _BLOCK), position, 0
                if len(block) < header_size:
                    break  # cut back since we looked
            length, checksum = unpack_frame(block, at)
            if 0 < length <= MAX_PAYLOAD and position + header_size + length <= self.size:
                end = at + header_size + length
                if end > len(block):
                    block = self._read(position, max(_BLOCK, header_size + length))
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

        Where damage was passed over, a `Gap` of no connection stands in its place.
        """
        if offset is None:
            self.damage, self.complete = [], False
        last_ns: int | None = None
        told = len(self.damage)
        for position, values in self.payloads(offset):
            try:
                record = decode(values)
            except BadRecord:
                self._note_damage(position, self.next_offset)
                continue
            if record is None or isinstance(record, Header):
                continue
            t_ns = None if isinstance(record, Mark) else record.t_ns
            if told < len(self.damage):
                yield from self._gaps(told, (t_ns or 0) if last_ns is None else last_ns)
                told = len(self.damage)
            if type(record) is End:
                self.complete = True
            if t_ns is not None:
                last_ns = t_ns
            yield position, record
        yield from self._gaps(told, last_ns or 0)

    def _gaps(self, told: int, t_ns: int) -> Iterator[tuple[int, Gap]]:
        for damage in self.damage[told:]:
            if not damage.at_end:
                yield damage.offset, Gap(t_ns, 0, False, damage.size, DAMAGED)

    def __iter__(self) -> Iterator[Record]:
        for _, record in self.records():
            yield record

    def record_at(self, offset: int) -> list[Any]:
        """The values of the one record at `offset`; raises BadRecord when none is there."""
        start = self._read(offset, FRAME.size) if 0 <= offset < self.size else b""
        if len(start) == FRAME.size:
            length, checksum = FRAME.unpack(start)
            if 0 < length <= MAX_PAYLOAD:
                payload = self._read(offset + FRAME.size, length)
                if len(payload) == length and crc32(payload, length) == checksum:
                    return unpack(payload)
        raise BadRecord(f"no record at offset {offset}")

    def grow(self) -> Iterator[tuple[int, Record]]:
        """What was appended since the last record that was read; for a file that grows.

        A recorder lets go of its lock after its last write, so the lock is looked at first.
        """
        self.live = is_being_written(self._descriptor)
        self.size = os.fstat(self._descriptor).st_size
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

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def _read_header(self) -> tuple[Header, int]:
        start = self._read(0, len(MAGIC) + FRAME.size)
        if start[: len(MAGIC)] != MAGIC:
            raise NotACapture("it does not begin like one")
        if len(start) < len(MAGIC) + FRAME.size:
            raise NotACapture("its header is cut off")
        length, checksum = FRAME.unpack_from(start, len(MAGIC))
        payload = self._read(len(start), min(length, MAX_PAYLOAD))
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
            block = self._read(begin, size + _OVERLAP)
            if not block:
                break
            for found in _PAYLOAD_START.finditer(block, FRAME.size):
                candidate = begin + found.start() - FRAME.size
                length, checksum = FRAME.unpack_from(block, found.start() - FRAME.size)
                if not 0 < length <= MAX_PAYLOAD or candidate + FRAME.size + length > self.size:
                    continue
                payload = self._read(candidate + FRAME.size, length)
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
        if not self.complete:
            self.damage.append(Damage(begin, end - begin, at_end))
