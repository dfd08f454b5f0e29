"""One capture file that grows: written at its known end only, and never into anything else.

The header is written into a file without a name and gets the name afterwards, so a capture is
never there without it. Before every write the file is looked at: it must be as long as we left
it and end as we left it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from ..capture.encoding import encode, encode_chunk
from ..capture.frames import MAGIC
from ..capture.index import tail
from ..capture.records import Chunk, End, Header, Record
from ..capture.segments import new_digest
from ..errors import UpcallError, WrongUsage

Item = tuple[int, int, bool, bytes] | Record
"""A record, or a chunk as the four values of one: an object for each costs the path too much."""
_STDOUT: Final = 1
_COMPARED: Final = 64
_UNREAD_LIMIT: Final = 1 << 15
"""Records that may wait for being decoded."""
_LAST_AT_ONCE: Final = 1 << 10
_LAST_S: Final = 0.7
"""How long the end of a recording may take to decode what still waits."""


class Indexing(Protocol):
    """What makes the index while the file is written; `trace.indexing.Indexer` is one."""

    broken: bool

    def feed(self, record: Record, offset: int) -> None:
        """A record that is in the file."""

    def due(self, offset: int) -> bool:
        """Whether a segment should end at `offset`."""

    def cut(self, end: int, offset: int, digest: bytes, ended: bool = False) -> bytes:
        """The frames of the segment up to `end`, which will stand at `offset`."""

    @property
    def last_at(self) -> int:
        """Where the last SEGMENT record stands."""

    @property
    def rows(self) -> int:
        """How many operations there are so far."""

    def results(self) -> list[tuple[str, str, int]]:
        """(operation, result, latency in ns or -1) of what was finished since the last call."""


class NotOurs(UpcallError, OSError):
    """The file is not what we left: cut short, overwritten or deleted."""


class GrowingCapture:
    """A capture at `path` that is locked for as long as it grows; raises WrongUsage.

    With `synced`, its name and header are on the disk before anything else is written.
    """

    streamed = False
    """Whether it goes to a pipe, where nothing can be looked at or taken back."""

    def __init__(
        self,
        path: Path,
        header: Header,
        overwrite: bool = False,
        *,
        indexing: Callable[[Header], Indexing],
        synced: bool = False,
    ) -> None:
        self.path = path
        self.header = header
        self._index = indexing(header)
        self._indexed = True
        start = MAGIC + encode(header)
        self.descriptor = self._begin(start, overwrite, synced)
        self.unsynced = not synced
        """Whether something was written that the disk may not have."""
        self.size = len(start)
        self._end = start[-_COMPARED:]
        self._digest = new_digest()
        self._unread: deque[tuple[Item | None, int, bytes]] = deque()
        self._read_to = 0
        self._unread.append((None, 0, start))

    def _begin(self, start: bytes, overwrite: bool, synced: bool) -> int:
        return _create(self.path, start, overwrite, synced)

    def append(self, frames: list[tuple[Item, bytes]]) -> tuple[int, OSError | None]:
        """Write whole frames; returns how many are in the file, and why not all of them.

        What was written in part is taken back. Raises NotOurs when the file was changed by
        somebody else.
        """
        self.check()
        encoded = b"".join([framed for _, framed in frames])
        failed: OSError | None = None
        try:
            self._write(encoded)
            written = len(encoded)
        except OSError as error:
            failed = error
            written = self._written_since()
        kept = position = 0
        for record, framed in frames:
            if position + len(framed) > written:
                break
            self._unread.append((record, self.size + position, framed))
            position += len(framed)
            kept += 1
        self._grown(encoded[:position])
        if failed is not None:
            self._cut_back()
        if len(self._unread) > _UNREAD_LIMIT:
            self.catch_up(len(self._unread) - _UNREAD_LIMIT)
        return kept, failed

    def catch_up(self, most: int) -> bool:
        """Decode so many of the records that were written, for the index; False without any.

        To write is urgent and to decode is not, so it is done when nothing waits.
        """
        unread = self._unread
        while unread and most > 0:
            record, offset, framed = unread.popleft()
            self._digest.update(framed)
            if record is not None:
                self._index.feed(as_record(record), offset)
            self._read_to = offset + len(framed)
            if self._index.due(self._read_to):
                self._segment(ended=False)
            most -= 1
        return bool(unread)

    def check(self) -> None:
        """Raises NotOurs unless the file ends where and how we left it."""
        try:
            status = os.fstat(self.descriptor)
            end = os.pread(self.descriptor, len(self._end) + 1, self.size - len(self._end))
        except OSError:
            return  # a disk that fails at reading; writing tells
        if status.st_nlink == 0:
            raise NotOurs(f"{self.path} was deleted")
        if status.st_size < self.size:
            raise NotOurs(f"{self.path} was cut short by somebody else")
        if end != self._end:
            raise NotOurs(f"{self.path} was written to by somebody else")

    def is_at_its_path(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            there, ours = self.path.stat(), os.fstat(self.descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def end(self, t_ns: int) -> None:
        """The END record and the rest of the index; raises OSError."""
        _, failed = self.append([(End(t_ns), encode(End(t_ns)))])
        if failed is not None:
            raise failed
        until = time.monotonic() + _LAST_S
        while self.catch_up(_LAST_AT_ONCE):
            if time.monotonic() > until:
                self._indexed = False  # to end soon is worth more than to be opened soon
                break
        else:
            self._segment(ended=True)
        self.sync()

    def sync(self) -> None:
        """Wait until the disk has everything; raises OSError."""
        os.fdatasync(self.descriptor)
        self.unsynced = False

    def close(self) -> None:
        """Let go of the file and its lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    @property
    def indexed(self) -> bool:
        """Whether there is an index so far."""
        return self._indexed and not self._index.broken

    def results(self) -> list[tuple[str, str, int]]:
        """(operation, result, latency in ns or -1) of what was finished since the last call."""
        return self._index.results()

    @property
    def operations(self) -> int:
        """How many operations are in it so far."""
        return self._index.rows

    def _segment(self, ended: bool) -> None:
        """Write what the index has of the records so far; without room the capture has none."""
        frames = self._index.cut(self._read_to, self.size, self._digest.digest(), ended)
        if not self.indexed:
            return  # there is none, but what was decoded is let go of
        self._digest = new_digest()
        if ended:
            frames += tail(self._index.last_at)
        try:
            self._write(frames)
        except OSError:
            self._cut_back()
            self._indexed = False  # the next segment would have nothing to refer to
        else:
            self._unread.append((None, self.size, frames))
            self._grown(frames)

    def _grown(self, written: bytes) -> None:
        self.size += len(written)
        self._end = (self._end + written[-_COMPARED:])[-_COMPARED:]

    def _write(self, encoded: bytes) -> None:
        view = memoryview(encoded)
        at = self.size
        self.unsynced = True
        while view:
            count = os.pwrite(self.descriptor, view, at)
            view = view[count:]
            at += count

    def _written_since(self) -> int:
        try:
            return max(0, os.fstat(self.descriptor).st_size - self.size)
        except OSError:
            return 0

    def _cut_back(self) -> None:
        try:
            # A record that was half written must not stay: later ones would be lost behind it.
            os.ftruncate(self.descriptor, self.size)
        except OSError:
            pass  # then readers find the next whole record by its checksum


class StreamedCapture(GrowingCapture):
    """The same on standard output, which other programs read while it grows.

    A reader that is slow is waited for, as a slow disk is; one that has gone is a disk that fails.
    """

    streamed = True

    def check(self) -> None:
        """Nobody else can have changed it."""

    def is_at_its_path(self) -> bool:
        """It has no other place."""
        return True

    def sync(self) -> None:
        """Nothing of it is kept here."""
        self.unsynced = False

    def _begin(self, start: bytes, overwrite: bool, synced: bool) -> int:
        descriptor = os.dup(_STDOUT)
        try:
            _write_all(descriptor, start)
        except OSError as error:
            os.close(descriptor)
            raise WrongUsage(f"standard output cannot be written: {error.strerror}") from None
        return descriptor

    def _write(self, encoded: bytes) -> None:
        _write_all(self.descriptor, encoded)

    def _written_since(self) -> int:
        return 0  # a reader that went has none of it

    def _cut_back(self) -> None:
        pass


def _write_all(descriptor: int, encoded: bytes) -> None:
    view = memoryview(encoded)
    while view:
        view = view[os.write(descriptor, view) :]


def _create(path: Path, start: bytes, overwrite: bool, synced: bool) -> int:
    """A new file that begins with `start`, locked; raises WrongUsage."""
    try:
        _check_free(path, overwrite)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(descriptor, start) != len(start):
                raise OSError("there is no room for its header")
            if synced:
                os.fsync(descriptor)
            _name(Path(name), path.resolve(), replace=path.exists())
            if synced:
                _sync_folder(path.resolve().parent)
        except BaseException:
            os.close(descriptor)
            Path(name).unlink(missing_ok=True)
            raise
    except BlockingIOError:
        raise WrongUsage(f"{path} is being recorded into by another process") from None
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror or error}") from None
    return descriptor


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(unnamed: Path, path: Path, replace: bool) -> None:
    """Give a new file its name; one that turned up meanwhile is kept, where there are links."""
    if not replace:
        try:
            os.link(unnamed, path)
        except FileExistsError:
            raise
        except OSError:
            pass  # a file system without links
        else:
            unnamed.unlink()
            return
    unnamed.rename(path)


def _check_free(path: Path, overwrite: bool) -> None:
    """Raises WrongUsage when there is something that may not be replaced; OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise WrongUsage(f"{path} cannot be written: it is there and is not a file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if status.st_size and not overwrite:
            raise WrongUsage(f"{path} exists; give another name, or --overwrite")
    finally:
        os.close(descriptor)


def as_record(item: Item) -> Record:
    """The record that an item stands for."""
    return Chunk(*item) if isinstance(item, tuple) else item


def as_frame(item: Item) -> bytes:
    """Its frame."""
    return encode_chunk(*item) if isinstance(item, tuple) else encode(item)


def size_of(item: Item) -> int:
    """Bytes of traffic that an item holds."""
    if isinstance(item, tuple):
        return len(item[3])
    return len(item.data) if isinstance(item, Chunk) else 0
