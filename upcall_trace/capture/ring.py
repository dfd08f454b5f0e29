"""A directory of captures, read as one: the parts of a recording, or several recordings.

Its files stand one behind the other, as if they were one long file: an offset is one in that. The
connections of a later recording get numbers behind those of the one before, and its times count
from the first one's beginning, as far as the wall clocks tell.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .frames import MAGIC
from .reader import CaptureReader, NotACapture
from .records import TIME_LIMIT, Carry, End, Gap, Header, Mark, Origin, Record, Vmm

if TYPE_CHECKING:
    from .runs import MessageRun

SUFFIX: Final = ".upcap"
_FARTHEST: Final = TIME_LIMIT // 2
"""Headers may claim any wall clock: times stay numbers of 64 bits."""
_BESIDE: Final = "marks"
"""The source of a capture that only holds marks about another file."""


@dataclass(slots=True)
class _Part:
    """One file: `base` is where its bytes behind the magic stand in the whole."""

    path: Path
    reader: CaptureReader
    base: int
    size: int
    conn_shift: int = 0
    time_shift: int = 0
    follows: bool = False
    """Whether the part before it is the one before it in the same recording."""

    @property
    def end(self) -> int:
        return self.base + self.size - len(MAGIC)


class RingReader(CaptureReader):
    """The captures in the directory `path` in their order; they may grow and become more.

    Raises OSError, and NotACapture when there is none, or one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._parts: list[_Part] = []
        self._known: set[str] = set()
        self._highest = 0
        self._last_read: _Part | None = None
        super().__init__(path)

    def _open(self) -> None:
        for reader in self._found():
            self._add(reader)
        if not self._parts:
            raise NotACapture("it is a directory without captures")
        self._look()
        self.header = self._parts[0].reader.header
        self.first_offset = self._parts[0].reader.first_offset

    @property
    def is_one_file(self) -> bool:
        """False: there is no one file to append to or to copy."""
        return False

    def _found(self) -> list[CaptureReader]:
        """Captures that are not known yet, in their order."""
        found = []
        for path in sorted(self.path.glob(f"*{SUFFIX}")):
            if path.name in self._known or path.name.startswith("."):
                continue
            try:
                reader = CaptureReader(path)
            except FileNotFoundError:
                continue  # a ring lets go of its oldest
            except NotACapture as error:
                raise NotACapture(f"{path.name} in it: {error}") from None
            self._known.add(path.name)
            if reader.header.source != _BESIDE:
                found.append(reader)
        return sorted(found, key=lambda each: (each.header.wall_ns or 0, each.header.part))

    def _add(self, reader: CaptureReader) -> None:
        before = self._parts[-1] if self._parts else None
        part = _Part(reader.path, reader, before.end if before else len(MAGIC), reader.size)
        if before is not None:
            ours, theirs = reader.header, before.reader.header
            same = bool(ours.recording) and ours.recording == theirs.recording
            part.follows = same and ours.part == theirs.part + 1
            if same:
                part.time_shift = before.time_shift
            elif ours.wall_ns is not None and self._parts[0].reader.header.wall_ns is not None:
                shift = ours.wall_ns - self._parts[0].reader.header.wall_ns
                part.time_shift = max(-_FARTHEST, min(shift, _FARTHEST))
        self._parts.append(part)

    def _look(self) -> None:
        """How far the parts go now, and whether the last one still grows."""
        last = self._parts[-1]
        self.live = last.reader.is_live()
        last.size = last.reader.size_now()
        self.size = last.end

    def _refresh(self) -> None:
        self._look()
        for reader in self._found():
            self._add(reader)
            self._look()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the whole, across its files."""
        found = []
        while size > 0 and offset < self.size:
            part = self._part_at(offset)
            local = offset - part.base + len(MAGIC)
            piece = part.reader.read(local, min(size, part.end - offset))
            if not piece:
                break
            found.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(found)

    def _part_at(self, offset: int) -> _Part:
        part = self._last_read
        if part is None or not part.base <= offset < part.end:
            place = bisect_right(self._parts, offset, key=lambda part: part.base)
            part = self._last_read = self._parts[max(0, place - 1)]
        return part

    def _local(self, position: int) -> tuple[Callable[[int, int], bytes], int]:
        part = self._part_at(position)
        return part.reader.read, position - part.base + len(MAGIC)

    def _begins(self, position: int, header: Header) -> list[Record]:
        part = self._part_at(position)
        self._ended, self._covered = False, 0
        before = self._parts[self._parts.index(part) - 1].reader.header
        if before.recording == header.recording and header.recording:
            part.conn_shift = self._parts[self._parts.index(part) - 1].conn_shift
            if part.follows:
                return []
            missing = f"{header.part - before.part - 1} parts of the recording are not there"
            return [Gap(part.time_shift, 0, False, 0, missing)]
        part.conn_shift = self._highest
        return []

    def _placed(self, position: int, record: Record) -> Record | None:
        part = self._part_at(position)
        if isinstance(record, Carry):
            if part.follows:
                return None
            record = self._as_open(record)
        if isinstance(record, End) and part is not self._parts[-1]:
            return None
        if part.conn_shift or part.time_shift:
            record = _shifted(record, part.conn_shift, part.time_shift)
        conn = getattr(record, "conn", None)
        if conn is not None:
            self._highest = max(self._highest, conn)
        return record

    def _placed_run(self, position: int, run: MessageRun) -> MessageRun:
        part = self._part_at(position)
        if part.conn_shift or part.time_shift:
            run = run.shifted(part.conn_shift, part.time_shift)
        self._highest = max(self._highest, int(run.conn.max()))
        return run

    def record_at(self, offset: int) -> list[Any]:
        """As in one file."""
        part = self._part_at(offset)
        return part.reader.record_at(offset - part.base + len(MAGIC))

    def close(self) -> None:
        """Let go of all files."""
        for part in self._parts:
            part.reader.close()


def _shifted(record: Record, conn_shift: int, time_shift: int) -> Record:
    if isinstance(record, Header):
        return record
    if isinstance(record, Mark):
        conn = None if record.conn is None else record.conn + conn_shift
        return dataclasses.replace(record, conn=conn)
    record = dataclasses.replace(record, t_ns=record.t_ns + time_shift)
    if isinstance(record, (Origin, End)) or (isinstance(record, (Vmm, Gap)) and not record.conn):
        return record
    return dataclasses.replace(record, conn=record.conn + conn_shift)
