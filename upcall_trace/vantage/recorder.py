"""The recording side of live capture: remembered at once, on the disk a moment later.

Theory of operation. There are two sides. The *path* is whoever moves bytes: the proxy's loop, a
packet socket, a replay. It must never wait, so all that it does is `chunk`, which notes the time
and the bytes, and `settle` once it has sent them on. The *store* is whoever writes: it may wait
for the disk as long as the disk takes, and decodes what it has written for the index.

Between the two is a carrier. `Recorder` carries over a queue to a thread of this process.
`ApartRecorder` carries over a pipe to a process of its own, which costs the path one write of a
microsecond or two and no turn of the interpreter. What is in the pipe survives a kill of this
process, and the other writes it out. When the store falls behind, what is remembered waits here,
up to `BACKLOG_LIMIT` bytes. Beyond that the traffic still passes, its bytes are counted for each
connection and direction, and the count becomes a gap as soon as there is room again.

So the crash window is what the path has not handed over, a few microseconds, and what the store
has not written, `FLUSH_S`. The counts always add up: bytes that crossed are in the file, in a gap
of the file, or in `RecordingAccount.untold`, which `record` says when it ends.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from dissectors.constants import UPCALL_PORT

from .. import __version__
from ..capture.records import Gap, Header, Record
from .capture_file import Item
from .store import CaptureStore, OnStoreError, RecordingAccount, Rotation

FLUSH_S: Final = 0.02
BACKLOG_LIMIT: Final = 64 << 20
"""Bytes of traffic that may wait for a slow disk before they are counted instead."""
STOP_S: Final = 1.5
"""How long the end of a recording waits for the disk."""

_DECODED_AT_ONCE: Final = 256
_QUIET_ROUNDS: Final = 25
_LOOK_S: Final = 0.25

_Way = tuple[int, bool]


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


def begun_now(header: Header) -> Header:
    """The header with the wall clock of this moment, which is 0 on the recording's clock."""
    return header if header.wall_ns is None else replace(header, wall_ns=time.time_ns())


def no_remark(_: str) -> None:
    """For whoever has nobody to tell."""


class Records(Protocol):
    """What whoever moves bytes needs of a recorder."""

    def now(self) -> int:
        """Nanoseconds since the recording began."""

    def chunk(self, conn: int, to_guest: bool, received: bytes) -> None:
        """Remember a receive, with the time of this call."""

    def record(self, record: Record) -> None:
        """Remember any other record."""

    def settle(self) -> None:
        """Hand over what is remembered, once it is worth it; call it after sending on."""

    def flush(self) -> bool:
        """Hand over all of it; call it when nothing moves, and soon again while it is true."""


class Recorder:
    """A capture that grows while traffic runs, written by a thread of its own.

    Times are nanoseconds since `begin`, from a monotonic clock that was tied to the wall clock
    once. With OnStoreError.STOP a failing disk sets `stop`, the event with which its owner ends
    the recording. `tell` hears, from that thread, what the user should know; `sync_s` is as in
    `CaptureStore`. Raises WrongUsage.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        on_error: OnStoreError,
        stop: threading.Event,
        overwrite: bool = False,
        rotation: Rotation | None = None,
        tell: Callable[[str], None] = no_remark,
        sync_s: float | None = None,
    ) -> None:
        self.path = path
        self._stop = stop
        self._begin_ns = time.monotonic_ns()
        self._pending: deque[Item] = deque()
        self._lock = threading.Lock()
        self._waiting = self._in_hand = 0
        self._counted: dict[_Way, int] = {}
        self._reopen = False
        self._store = CaptureStore(
            path, begun_now(header), on_error, self.now, tell, overwrite, rotation, sync_s
        )
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._asleep = False
        self._closed = False
        self._writer = threading.Thread(target=self._write_on, name="recorder", daemon=True)
        self._writer.start()

    def now(self) -> int:
        """Nanoseconds since the recording began."""
        return time.monotonic_ns() - self._begin_ns

    def chunk(self, conn: int, to_guest: bool, received: bytes) -> None:
        """Remember a receive, with the time of this call; cheap enough for the forwarding path."""
        t_ns = time.monotonic_ns() - self._begin_ns
        if self._waiting > BACKLOG_LIMIT:
            with self._lock:
                way = (conn, to_guest)
                self._counted[way] = self._counted.get(way, 0) + len(received)
            return
        self._waiting += len(received)
        self._pending.append((t_ns, conn, to_guest, received))
        if self._asleep:
            self._wake.set()

    def record(self, record: Record) -> None:
        """Remember any other record."""
        self._pending.append(record)
        if self._asleep:
            self._wake.set()

    def settle(self) -> None:
        """As `ApartRecorder.settle`; this one's thread takes what there is by itself."""

    def flush(self) -> bool:
        """As `ApartRecorder.flush`."""
        return False

    def reopen(self) -> None:
        """Go on in a new file, when the old one was renamed, or in the next of a ring."""
        self._reopen = True

    @property
    def failure(self) -> str:
        """Why the capture could not be written, empty while all is well."""
        return self._store.account.failure

    @property
    def unwritten(self) -> int:
        """Bytes of traffic that crossed and are neither in the file nor told there as a gap."""
        return self._store.account.untold

    @property
    def account(self) -> RecordingAccount:
        """What became of the recording so far."""
        return self._store.account

    def close(self) -> None:
        """Write the rest and end the capture cleanly, within STOP_S; its last may be gaps."""
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        self._wake.set()
        self._writer.join(STOP_S)
        if self._writer.is_alive():
            account = self._store.account
            account.failure = account.failure or "the disk does not answer"
            account.untold += self._left()

    def _left(self) -> int:
        return (
            self._in_hand
            + sum(len(i[3]) for i in self._pending if isinstance(i, tuple))
            + sum(self._counted.values())
        )

    def _write_on(self) -> None:
        quiet = 0
        while not self._closing.wait(FLUSH_S):
            quiet = 0 if self._pending or self._counted or self._reopen else quiet + 1
            self._flush()
            if quiet > _QUIET_ROUNDS:  # a node has many recorders, and most have nothing to do
                self._asleep = True
                if not self._pending:
                    self._wake.wait(_LOOK_S)
                self._asleep = False
                self._wake.clear()
        self._flush()
        self._store.close()
        if self._store.account.stopped:
            self._stop.set()

    def _flush(self) -> None:
        taken: list[Item] = []
        size = 0
        while self._pending:
            item = self._pending.popleft()
            if isinstance(item, tuple):
                size += len(item[3])
            taken.append(item)
        self._waiting, self._in_hand = 0, size
        with self._lock:
            counted, self._counted = self._counted, {}
        taken += gaps_of(counted, self.now())
        if self._reopen:
            self._reopen = False
            self._store.reopen()
        self._store.put(taken)
        self._in_hand = 0
        while not self._pending and self._store.catch_up(_DECODED_AT_ONCE):
            pass
        if self._store.account.stopped:
            self._stop.set()


def gaps_of(counted: dict[_Way, int], t_ns: int) -> list[Gap]:
    """The gaps for traffic that was only counted."""
    return [
        Gap(t_ns, conn, to_guest, size, "the capture could not be written: the disk is slow")
        for (conn, to_guest), size in counted.items()
    ]
