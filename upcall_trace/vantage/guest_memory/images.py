"""Images of a guest's memory: raw ones, ELF cores, LiME's, and all of them compressed.

A hole of a sparse file is skipped. Compressed images are read once, from front to back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import IO, BinaryIO, Final, Self

from ...capture.unpacking import Torn, packing, read_block
from ...errors import UnreadableInput
from . import lime
from .processes import LEAST_MAPPING
from .windows import WINDOW_SIZE, Stretch, windows_of

_ELF: Final = b"\x7fELF\x02\x01"
_ELF_HEAD: Final = Struct("<16xHHIQQQIHHHHHH")
_PROGRAM: Final = Struct("<IIQQQQQQ")
_CORE: Final = 4
_CORE_KIND: Final = _CORE.to_bytes(2, "little")
_LOAD: Final = 1
_WRITABLE: Final = 2
_MANY_SEGMENTS: Final = 0xFFFF
_SEGMENT_LIMIT: Final = 1 << 16
_HEAD_SIZE: Final = 1 << 20
_LEAST_WHOLE: Final = 16 << 20
"""No guest has less memory."""
_PIECE: Final = 1 << 20
_FOREIGN: Final = (
    (b"KDUMP   ", "a kdump-compressed dump", "dump again without compression"),
    (b"DISKDUMP", "a compressed disk dump", "dump again as ELF"),
    (b"QFI\xfb", "a qcow2 disk image", "give the guest's memory, not its disk"),
    (lime.COMPRESSED, "a compressed dump of AVML", "convert it to LiME's format with avml-convert"),
    (b"\x89UPCAP", "a capture", "upcall-trace show reads it"),
)


@dataclass(frozen=True, slots=True)
class Segment:
    """`size` bytes of the file at `offset` that stood at `address`."""

    offset: int
    size: int
    address: int


class Image:
    """A file with a guest's memory; a context manager. Raises UnreadableInput.

    `missing` counts bytes that the file says it has, and does not: it was cut off.
    """

    aligned = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.missing = 0
        try:
            self._file: BinaryIO = _open(path)
            head = self._file.read(_HEAD_SIZE)
            self._packed = packing(head)
            self.size = path.stat().st_size
        except OSError as error:
            raise UnreadableInput(f"{path}: {error.strerror or error}") from None
        try:
            self._head = self._unpacked_head() if self._packed else head
            self._refuse_others()
            # A guest's memory may begin with any page, such as one of a program.
            self.is_core = self._head.startswith(_ELF) and self._head[16:18] == _CORE_KIND
            self._is_lime = self._head.startswith(lime.MAGIC)
            self._segments = self._find_segments()
        except UnreadableInput:
            self.close()
            raise

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Begin and end of the guest's memory; none where pointers cannot be followed.

        Packed images are read in order. Pages that were cut out of a memory, or what is left of
        one that was cut off, are not where pointers lead.
        """
        whole = sum(segment.size for segment in self._segments)
        if self._packed or self.missing or whole < _LEAST_WHOLE:
            return []
        return [(each.address, each.address + each.size) for each in self._segments]

    def windows(self) -> Iterator[Stretch]:
        """All of it; raises UnreadableInput when it cannot be read on."""
        try:
            pieces = self._stream() if self._packed else self._extents()
            if self._packed and self._is_lime:
                pieces = lime.pieces_of(pieces)
            yield from windows_of(pieces)
        except OSError as error:
            raise UnreadableInput(f"{self.path}: {error.strerror or error}") from None

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address; none of a compressed image, which is read only in order."""
        if self._packed or address < 0:
            return b""
        for segment in self._segments:
            within = address - segment.address
            if 0 <= within < segment.size:
                try:
                    wanted = min(size, segment.size - within)
                    return os.pread(self._file.fileno(), wanted, segment.offset + within)
                except (OSError, OverflowError):
                    return b""
        return b""

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_others(self) -> None:
        if not self._head:
            raise UnreadableInput(f"{self.path} is empty, or nothing of it could be unpacked")
        for magic, what, way in _FOREIGN:
            if self._head.startswith(magic):
                raise UnreadableInput(f"{self.path} is {what}, which is not read here: {way}")

    def _find_segments(self) -> list[Segment]:
        if not self.is_core and not (self._is_lime and not self._packed):
            return [Segment(0, self.size, 0)]
        segments = (
            _segments_of(self._head)
            if self.is_core
            else [Segment(*each) for each in lime.ranges_of(self._file)]
        )
        if not segments:
            kind = "an ELF file" if self.is_core else "a dump of LiME's"
            raise UnreadableInput(f"{self.path} is {kind} without memory in it")
        if self._packed:
            return segments
        there: list[Segment] = []
        for segment in segments:
            size = max(0, min(segment.size, self.size - segment.offset))
            self.missing += segment.size - size
            if size:
                there.append(Segment(segment.offset, size, segment.address))
        return there

    def _unpacked_head(self) -> bytes:
        head = b""
        # What comes before the damage is still worth looking through.
        with suppress(Torn), self._unpacking() as unpacked:
            while len(head) < _HEAD_SIZE and (raw := read_block(unpacked, _HEAD_SIZE)):
                head += raw
        return head

    def _unpacking(self) -> AbstractContextManager[IO[bytes]]:
        assert self._packed is not None
        self._file.seek(0)
        return self._packed(self._file)

    def _extents(self) -> Iterator[tuple[int, bytes]]:
        """The parts of a plain file that are no holes, each with its address."""
        descriptor = self._file.fileno()
        for segment in self._segments:
            begin, edge = segment.offset, segment.offset + segment.size
            while begin < edge:
                begin, end = _next_data(descriptor, begin, edge)
                while begin < end:
                    raw = os.pread(descriptor, min(WINDOW_SIZE, end - begin), begin)
                    if not raw:
                        return
                    yield segment.address + begin - segment.offset, raw
                    begin += len(raw)

    def _stream(self) -> Iterator[tuple[int, bytes]]:
        """A compressed file from front to back; its addresses are those of what comes out."""
        at = 0
        segments = sorted(self._segments, key=lambda segment: segment.offset)
        with self._unpacking() as unpacked:
            while raw := self._next_piece(unpacked):
                if self.is_core:
                    yield from _cut(at, raw, segments)
                else:
                    yield at, raw
                at += len(raw)

    def _next_piece(self, unpacked: IO[bytes]) -> bytes:
        """The next MiB or so of what is packed, as far as it can be unpacked."""
        piece = bytearray()
        try:
            while len(piece) < _PIECE and (raw := read_block(unpacked, _PIECE)):
                piece += raw
        except Torn:
            if not piece:
                self.missing += 1  # how much, nobody knows
        return bytes(piece)


def _cut(at: int, raw: bytes, segments: list[Segment]) -> Iterator[tuple[int, bytes]]:
    for segment in segments:
        begin = max(at, segment.offset)
        end = min(at + len(raw), segment.offset + segment.size)
        if begin < end:
            yield segment.address + begin - segment.offset, raw[begin - at : end - at]


def _open(path: Path) -> BinaryIO:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UnreadableInput(f"{path} is a directory; give the file with the guest's memory in it")
    if not stat.S_ISREG(mode):
        raise UnreadableInput(f"{path} is no file")
    return path.open("rb")


def _next_data(descriptor: int, begin: int, edge: int) -> tuple[int, int]:
    """Where the next bytes of a sparse file are, up to `edge`."""
    try:
        begin = os.lseek(descriptor, begin, os.SEEK_DATA)
    except OSError:  # nothing but a hole from here on
        return edge, edge
    if begin >= edge:
        return edge, edge
    return begin, min(edge, os.lseek(descriptor, begin, os.SEEK_HOLE))


def _segments_of(head: bytes) -> list[Segment]:
    """The memory in an ELF core.

    Dumps of a guest have guest-physical addresses; a core of the VMM's process has none, and then
    the large writable parts of it are taken, as of the process itself.
    """
    try:
        kind, _, _, _, table, sections, _, _, entry, count, _, _, _ = _ELF_HEAD.unpack_from(head)
        if count == _MANY_SEGMENTS:
            count = int.from_bytes(head[sections + 44 : sections + 48], "little")
        programs = [
            _PROGRAM.unpack_from(head, table + place * entry)
            for place in range(min(count, _SEGMENT_LIMIT))
        ]
    except (StructError, OverflowError):
        return []
    loads = [each for each in programs if each[0] == _LOAD and each[5]]
    if kind != _CORE or not loads:
        return []
    if any(each[4] for each in loads):
        return [Segment(offset, size, at) for _, _, offset, _, at, size, _, _ in loads]
    large = [each for each in loads if each[1] & _WRITABLE and each[5] >= LEAST_MAPPING]
    return [Segment(offset, size, at) for _, _, offset, at, _, size, _, _ in large or loads]
