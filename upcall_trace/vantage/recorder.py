"""The recording side of live capture: chunks into memory at once, onto the disk a moment later.

Whoever moves bytes calls `chunk` before it sends them on, which only appends to a list, and
`settle` afterwards, which encodes. A thread writes what is encoded every `FLUSH_S`, so what was
forwarded longer ago than that survives a kill of this process. When the disk fails, the policy
decides: stop, or let the traffic pass and mark the gap.
"""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
from collections import deque
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from dissectors.constants import UPCALL_PORT

from .. import __version__
from ..capture.encoding import decode, encode, encode_chunk
from ..capture.frames import FRAME, MAGIC, unpack
from ..capture.records import Chunk, End, Gap, Header, Record
from ..errors import WrongUsage

FLUSH_S: Final = 0.02
_BATCH: Final = 32
BACKLOG_LIMIT: Final = 64 << 20
"""Encoded bytes that may wait for a slow disk before it counts as failed."""


_Received = tuple[int, int, bool, bytes]
_Way = tuple[int, bool]


class OnStoreError(StrEnum):
    """What to do when the capture cannot be written any more."""

    STOP = "stop"
    PASS = "pass"  # noqa: S105  # a policy, not a password


def live_header(
    source: str, arch: str | None, port: int = UPCALL_PORT, notes: dict[str, str] | None = None
) -> Header:
    """The header of a capture that begins now, on this machine."""
    return Header(
        source=source,
        tool=f"upcall-trace {__version__}",
        host=f"{platform.node()} {platform.system()} {platform.release()}",
        arch=arch,
        wall_ns=time.time_ns(),
        resolution_ns=max(1, round(time.get_clock_info("monotonic").resolution * 1e9)),
        port=port,
        notes=notes or {},
    )


class Recorder:
    """A capture that grows while traffic runs.

    Times are nanoseconds since `begin`, from a monotonic clock that was tied to the wall clock
    once. `failure` is None while all is well; with OnStoreError.STOP a failing disk sets `stop`,
    the event with which its owner ends the recording.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        on_error: OnStoreError,
        stop: threading.Event,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self._on_error = on_error
        self._stop = stop
        self.failure: OSError | None = None
        self._descriptor = _create(path, overwrite)
        self._begin_ns = time.monotonic_ns()
        if header.wall_ns is not None:  # of this moment, which is 0 on the capture's clock
            header = replace(header, wall_ns=time.time_ns())
        self._pending: deque[Record | _Received] = deque()
        self._encoded = bytearray()
        self._landmarks = b""
        self._overflow: dict[_Way, int] = {}
        self._missing: dict[_Way, int] = {}
        self._lock = threading.Lock()
        self._size = 0
        self._stopped = False
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_on, name="recorder", daemon=True)
        start = MAGIC + encode(header)
        try:
            os.write(self._descriptor, start)
        except OSError as error:
            os.close(self._descriptor)
            raise WrongUsage(f"{path} cannot be written: {error.strerror}") from None
        self._size = len(start)
        self._writer.start()

    def now(self) -> int:
        """Nanoseconds since the recording began."""
        return time.monotonic_ns() - self._begin_ns

    def chunk(self, conn: int, to_guest: bool, received: bytes) -> None:
        """Remember a receive, with the time of this call; cheap enough for the forwarding path."""
        t_ns = time.monotonic_ns() - self._begin_ns
        self._pending.append((t_ns, conn, to_guest, received))

    def record(self, record: Record) -> None:
        """Remember any other record."""
        self._pending.append(record)

    def settle(self) -> None:
        """Encode what is remembered, once it is worth it and unless another thread is at it.

        A reply may be on its way back already: what is encoded now holds up its forwarding.
        """
        if len(self._pending) >= _BATCH and self._lock.acquire(blocking=False):
            try:
                self._encode()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Write the rest and end the capture cleanly; its last records may be a gap's."""
        self._closing.set()
        self._writer.join()
        self._flush()  # gaps come behind what fills a batch, and End must be the last record
        self.record(End(self.now()))
        self._flush()
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.failure = self.failure or error
        os.close(self._descriptor)

    def _encode(self) -> None:
        """Move what is remembered into the batch that is written next; the lock is held."""
        pending, encoded = self._pending, self._encoded
        while pending:
            item = pending.popleft()
            if not isinstance(item, tuple):
                encoded += encode(item)
            elif len(encoded) < BACKLOG_LIMIT:
                encoded += encode_chunk(*item)
            else:
                _, conn, to_guest, received = item
                _add(self._overflow, (conn, to_guest), len(received))

    def _write_on(self) -> None:
        while not self._closing.wait(FLUSH_S):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            self._encode()
            batch, self._encoded = bytes(self._encoded), bytearray()
            overflow, self._overflow = self._overflow, {}
        if self._stopped:
            return
        # What an earlier write could not keep comes first, what this batch had no room for last.
        batch = self._landmarks + self._gaps(self._missing) + batch + self._gaps(overflow)
        if not batch:
            return
        self._landmarks, self._missing = b"", {}
        try:
            _write_all(self._descriptor, batch)
        except OSError as error:
            self._store_failed(error, batch)
        else:
            self._size += len(batch)

    @property
    def unwritten(self) -> int:
        """Bytes of traffic that crossed and are neither in the file nor told there as a gap."""
        return sum(self._missing.values())

    def _gaps(self, missing: dict[_Way, int]) -> bytes:
        """Records of what could not be kept before; they go ahead of what can be again."""
        why = (self.failure.strerror or str(self.failure)) if self.failure else "the disk is slow"
        now = self.now()
        return b"".join(
            encode(Gap(now, conn, to_guest, size, f"the capture could not be written: {why}"))
            for (conn, to_guest), size in missing.items()
        )

    def _store_failed(self, error: OSError, batch: bytes) -> None:
        """Keep the whole records of a batch that was written in part, and count the others."""
        self.failure = error
        if self._on_error is OnStoreError.STOP:
            self._stopped = True
            self._stop.set()
        written = os.lseek(self._descriptor, 0, os.SEEK_CUR) - self._size
        position = 0
        kept = 0
        while position < len(batch):
            length, _ = FRAME.unpack_from(batch, position)
            begin, position = position, position + FRAME.size + length
            if position <= written:
                kept = position
                continue
            record = decode(unpack(batch[begin + FRAME.size : position]))
            if isinstance(record, Chunk):
                _add(self._missing, (record.conn, record.to_guest), len(record.data))
            elif isinstance(record, Gap):
                _add(self._missing, (record.conn, record.to_guest), record.size)
            elif len(self._landmarks) < BACKLOG_LIMIT:
                self._landmarks += batch[begin:position]
        self._size += kept
        try:
            # A record that was half written must not stay: later ones would be lost behind it.
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
        except OSError:
            pass  # then readers find the next whole record by its checksum


def _add(counts: dict[_Way, int], way: _Way, size: int) -> None:
    counts[way] = counts.get(way, 0) + size


def _write_all(descriptor: int, encoded: bytes) -> None:
    view = memoryview(encoded)
    while view:
        view = view[os.write(descriptor, view) :]


def _create(path: Path, overwrite: bool) -> int:
    """A new capture file, locked for as long as it grows; raises WrongUsage."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size and not overwrite:
                raise WrongUsage(f"{path} exists; give another name, or --overwrite")
            os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    except BlockingIOError:
        raise WrongUsage(f"{path} is being recorded into by another process") from None
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror}") from None
    return descriptor
