"""Keeping records on a disk that may fail: what cannot be kept is counted to the byte, and told.

A store owns the file, or the ring of files, that a recording goes into. It is fed by one thread
or process, which may wait for the disk; whoever moves bytes never does.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from ..capture.records import Carry, Chunk, Close, Gap, Header, How, Open, Record
from ..capture.unpacking import STDOUT
from ..errors import UserError, WrongUsage
from ..trace.indexing import Indexer
from .capture_file import (
    GrowingCapture,
    Item,
    NotOurs,
    StreamedCapture,
    as_frame,
    as_record,
    size_of,
)

KEPT_WAITING: Final = 1 << 17
"""Records other than traffic that may wait for a full disk."""
_BESIDE: Final = 1000
_LOOKED_S: Final = 0.25

_Way = tuple[int, bool]


class OnStoreError(StrEnum):
    """What to do when the capture cannot be written any more."""

    STOP = "stop"
    PASS = "pass"  # noqa: S105  # a policy, not a password


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a ring goes on in its next file, and how many it keeps; None is never, and all."""

    size: int | None = None
    time_s: float | None = None
    count: int | None = None
    keep: int | None = None


BOUNDS_S: Final = (0.0001, 0.001, 0.01, 0.05, 0.25, 1.0, 10.0)


@dataclass(slots=True)
class RecordingAccount:
    """What became of a recording so far. `told` bytes are gaps in the file, `untold` are not."""

    file: str = ""
    """The last of its files."""
    files: int = 0
    size: int = 0
    connections: int = 0
    operations: int = 0
    messages: int = 0
    traffic: int = 0
    results: dict[str, int] = field(default_factory=dict)
    """Operations so far, by `op result`."""
    latencies: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    """How many replies came within each of BOUNDS_S, and how many later."""
    latency_ns: int = 0
    told: int = 0
    untold: int = 0
    failure: str = ""
    stopped: bool = False
    indexed: bool = True
    written_ns: int = 0
    """When the disk last took everything, on the recording's clock."""

    @property
    def lost(self) -> int:
        """Bytes of traffic that crossed and were not recorded."""
        return self.told + self.untold


class CaptureStore:
    """Files that a recording goes into; `now` is its clock, `tell` hears remarks for the user.

    A `path` that is a directory becomes a ring of files, as `rotation` says. What was written is
    put on the disk every `sync_s` seconds, 0 for each time and None for the end only. Raises
    WrongUsage.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        on_error: OnStoreError,
        now: Callable[[], int],
        tell: Callable[[str], None],
        overwrite: bool = False,
        rotation: Rotation | None = None,
        sync_s: float | None = None,
    ) -> None:
        self.account = RecordingAccount()
        self._sync_s = sync_s
        self._synced_s = time.monotonic()
        self._on_error = on_error
        self._now = now
        self._tell = tell
        self._ring = path if rotation is not None else None
        self._rotation = rotation or Rotation()
        self._path = path
        header = dataclasses.replace(header, recording=header.recording or secrets.token_hex(8))
        self._header = dataclasses.replace(header, part=1) if self._ring else header
        self._stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime((header.wall_ns or 0) / 1e9))
        self._overwrite = overwrite
        self._open: dict[int, Open] = {}
        self._waiting: deque[Record] = deque()
        self._missing: dict[_Way, int] = {}
        self._messages_before = self._operations_before = 0
        self._looked_s = 0.0
        self._moved = False
        self._file = self._first()
        self._began_ns = now()

    @property
    def file(self) -> GrowingCapture:
        """The file that is written now."""
        return self._file

    def hear_with(self, tell: Callable[[str], None]) -> None:
        """Tell somebody else from now on."""
        self._tell = tell

    def take_over(self, account: RecordingAccount, opened: dict[int, Open], why: str) -> None:
        """Go on where another process stopped, in a new file."""
        self.account = account
        self._open = opened
        self._move(why)

    def put(self, items: Iterable[Item]) -> None:
        """Keep these, behind what an earlier failure left over."""
        fresh = list(items)
        for record in fresh:
            self._note(record)
        if self.account.stopped:
            self._pass_by(fresh)
            return
        gaps = self._gaps()
        batch: list[Item] = [*self._waiting, *gaps, *fresh]
        if batch:
            self._waiting.clear()
            self._missing.clear()
            self._append(batch)
        else:
            self._look()
        self._sync()
        self.account.untold = sum(self._missing.values())
        if not self._missing and not self._waiting:
            self.account.written_ns = self._now()
        if self._is_due():
            self.rotate()

    def _sync(self) -> None:
        if self._sync_s is None or not self._file.unsynced:
            return
        if time.monotonic() - self._synced_s < self._sync_s:
            return
        try:
            self._file.sync()
        except OSError as error:
            self._failed(error)
        self._synced_s = time.monotonic()

    def catch_up(self, most: int) -> bool:
        """Decode so many of the records that were written; False when there are no more."""
        more = self._file.catch_up(most)
        self._count()
        self.account.operations = self._operations_before + self._file.operations
        return more

    def _count(self) -> None:
        """What came of the operations that were decoded since the last time."""
        account = self.account
        for op, came, latency_ns in self._file.results():
            account.results[f"{op} {came}"] = account.results.get(f"{op} {came}", 0) + 1
            if latency_ns >= 0:
                account.latencies[bisect_left(BOUNDS_S, latency_ns / 1e9)] += 1
                account.latency_ns += latency_ns

    def rotate(self) -> None:
        """Go on in the next file of the ring; without a ring, in a new one at the path.

        The latter only when the path does not lead to our file any more, as after a rename.
        """
        if self._ring is None and self._file.is_at_its_path():
            return
        before = self._file
        try:
            before.end(self._now())
        except OSError as error:
            self._failed(error)
        self._next(self._part_path() if self._ring else self._path)
        before.close()
        self._forget_old()

    def reopen(self) -> None:
        """What SIGHUP asks for: a new file, after the old one was renamed or in the ring."""
        if self._ring is None and self._file.is_at_its_path():
            self._tell(f"{self._file.path} was not renamed: recording goes on in it")
        self.rotate()

    def close(self) -> RecordingAccount:
        """End the recording cleanly; what could not be kept is in the account."""
        self.put(())
        if not self.account.stopped:
            try:
                self._file.end(self._now())
            except OSError as error:
                self._failed(error)
        self.account.operations = self._operations_before + self._file.operations
        self.account.indexed = self._file.indexed
        self.account.size = self._file.size
        self._file.close()
        return self.account

    def _pass_by(self, fresh: list[Item]) -> None:
        self.account.untold += sum(map(size_of, fresh))
        for record in fresh:
            if isinstance(record, Gap) and record.conn:
                self.account.told -= record.size
                self.account.untold += record.size

    def _note(self, record: Item) -> None:
        if isinstance(record, (tuple, Chunk)):
            self.account.messages += 1
            self.account.traffic += size_of(record)
        elif isinstance(record, Open):
            self.account.connections += 1
            self._open[record.conn] = record
        elif isinstance(record, Close) and record.how is not How.HALF:
            self._open.pop(record.conn, None)
        elif isinstance(record, Gap) and record.conn:
            self.account.told += record.size

    def _append(self, batch: list[Item]) -> None:
        frames = [(item, as_frame(item)) for item in batch]
        try:
            kept, failed = self._file.append(frames)
        except NotOurs as error:
            kept, failed = 0, error
            if self._move(str(error)):
                kept, failed = self._file.append(frames)
        if failed is not None:
            self._failed(failed)
        for record in map(as_record, batch[kept:]):
            if isinstance(record, Chunk):
                self._miss(record.conn, record.to_guest, len(record.data))
            elif isinstance(record, Gap) and record.conn:
                self.account.told -= record.size
                self._miss(record.conn, record.to_guest, record.size)
            elif len(self._waiting) < KEPT_WAITING:
                self._waiting.append(record)
        self._look()

    def _miss(self, conn: int, to_guest: bool, size: int) -> None:
        self._missing[conn, to_guest] = self._missing.get((conn, to_guest), 0) + size

    def _gaps(self) -> list[Gap]:
        why = self.account.failure or "the disk is slow"
        now = self._now()
        gaps = [
            Gap(now, conn, to_guest, size, f"the capture could not be written: {why}")
            for (conn, to_guest), size in self._missing.items()
        ]
        self.account.told += sum(gap.size for gap in gaps)
        return gaps

    def _failed(self, error: OSError) -> None:
        why = error.strerror or str(error)
        if self.account.failure != why:
            self.account.failure = why
            self._tell(f"{self._file.path} cannot be written: {why}")
        if self._on_error is OnStoreError.STOP:
            self.account.stopped = True

    def _look(self) -> None:
        """Notice now and then that the path leads elsewhere, or that the file was changed."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOKED_S:
            return
        self._looked_s = now_s
        try:
            self._file.check()
        except NotOurs as error:
            self._move(str(error))
            return
        moved = not self._file.is_at_its_path()
        if moved and not self._moved:
            self._tell(
                f"{self._file.path} was renamed or replaced; recording goes on in the file "
                "that had this name"
            )
        self._moved = moved

    def _move(self, why: str) -> bool:
        """Go on in a new file, because the old one is not ours any more; False without one."""
        if self._file.streamed:
            self._failed(OSError(why))
            return False
        for number in range(1, _BESIDE):
            beside = self._path.with_name(f"{self._path.stem}.{number}{self._path.suffix}")
            path = self._part_path() if self._ring else beside
            if not path.exists():
                break
        before = self._file
        try:
            self._next(path)
        except UserError as error:
            self._failed(OSError(str(error)))
            return False
        self._tell(f"{why}: recording goes on in {path}")
        self.account.failure = why
        before.close()
        return True

    def _next(self, path: Path) -> None:
        self._header = dataclasses.replace(self._header, part=self._header.part + 1)
        self._operations_before += self._file.operations
        if self._ring:
            path = self._part_path()
        self._file = GrowingCapture(
            path, self._header, indexing=Indexer, synced=self._sync_s is not None
        )
        self.account.file, self.account.files = str(path), self.account.files + 1
        self._began_ns = self._now()
        self._messages_before = self.account.messages
        self._moved = False
        now = self._now()
        carried: list[Record] = [
            Carry(now, o.conn, o.begins, o.port, o.accepted, o.peer, o.source)
            for o in self._open.values()
        ]
        kept, _ = self._file.append([(record, as_frame(record)) for record in carried])
        self._waiting.extend(carried[kept:])

    def _first(self) -> GrowingCapture:
        if self._ring is not None:
            try:
                self._ring.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WrongUsage(f"{self._ring} cannot be made: {error.strerror}") from None
        path = self._part_path() if self._ring else self._path
        kind = StreamedCapture if path == STDOUT else GrowingCapture
        file = kind(
            path, self._header, self._overwrite, indexing=Indexer, synced=self._sync_s is not None
        )
        self.account.file, self.account.files = str(path), self.account.files + 1
        return file

    def _part_path(self) -> Path:
        assert self._ring is not None
        return self._ring / f"{self._stamp}-{self._header.part:06d}.upcap"

    def _is_due(self) -> bool:
        rule = self._rotation
        return (
            self._ring is not None
            and not self.account.stopped
            and (
                (rule.size is not None and self._file.size >= rule.size)
                or (rule.time_s is not None and self._now() - self._began_ns >= rule.time_s * 1e9)
                or (
                    rule.count is not None
                    and self.account.messages - self._messages_before >= rule.count
                )
            )
        )

    def _forget_old(self) -> None:
        if self._ring is None or self._rotation.keep is None:
            return
        parts = sorted(self._ring.glob("*Z-*.upcap"))
        for old in parts[: max(0, len(parts) - self._rotation.keep)]:
            old.unlink(missing_ok=True)
