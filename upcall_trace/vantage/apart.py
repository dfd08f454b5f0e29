"""A recorder whose store is in a process of its own: the path pays for one write to a pipe.

How it works is told in `recorder`. The other process is a fork of this one. It keeps nothing of
it but the pipe, the capture and a way back, over which it says what it has taken, so that what it
had not is still here when it dies: recording then goes on in this process, in another file.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..capture.records import Close, Gap, Header, How, Open, Record
from . import recorder as carrying
from .capture_file import Item, size_of
from .recorder import begun_now, gaps_of, no_remark
from .recorder_process import CLOSE, LATE_NS, REOPEN, Items, WriterProcess, command, hurry, packed
from .store import CaptureStore, OnStoreError, RecordingAccount, Rotation

_PIPE_SIZES: Final = (64 << 20, 16 << 20, 1 << 20)
"""The first that this user may have. What is in the pipe is written also when this process is
killed, and what waits in its memory is not."""
_PUSH_S: Final = 0.005
_IDLE_S: Final = 0.1
_HURRY_S: Final = 0.05
_WORTH_IT: Final = 8
_KILL_S: Final = 0.2


class ApartRecorder:
    """As `Recorder`, for one thread that moves bytes; made before other threads are."""

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
        self.account = RecordingAccount()
        self._stop = stop
        self._tell = tell
        self._begin_ns = time.monotonic_ns()
        self._out: list[Item] = []
        self._behind: deque[bytes] = deque()
        self._behind_size = 0
        self._sent: deque[bytes] = deque()
        self._sent_from = self._taken_to = 0
        self._open: dict[int, Open] = {}
        self._alone = False
        self._counted: dict[tuple[int, bool], int] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._closed = False
        self._store = CaptureStore(
            path, begun_now(header), on_error, self.now, tell, overwrite, rotation, sync_s
        )
        read_end, self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for size in _PIPE_SIZES:
            try:
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, size)
            except OSError:
                continue  # more than this user may have
            break
        self._back, back_write = os.pipe2(os.O_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # When the other process last took from the pipe what it has written by now.
        self._written = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._flushed_ns = self._waiting_ns = 0
        self._pid = os.fork()
        if self._pid == 0:
            WriterProcess(self._store, self.now, read_end, back_write, self._written).serve()
        os.close(read_end)
        os.close(back_write)
        self._store.file.close()
        self._helper = threading.Thread(target=self._help, name="recorder", daemon=True)
        self._helper.start()

    def now(self) -> int:
        """Nanoseconds since the recording began."""
        return time.monotonic_ns() - self._begin_ns

    def chunk(self, conn: int, to_guest: bool, received: bytes) -> None:
        """Remember a receive, with the time of this call; cheap enough for the forwarding path."""
        t_ns = time.monotonic_ns() - self._begin_ns
        if self._behind_size > carrying.BACKLOG_LIMIT:
            way = (conn, to_guest)
            self._counted[way] = self._counted.get(way, 0) + len(received)
            return
        self._out.append((t_ns, conn, to_guest, received))

    def record(self, record: Record) -> None:
        """Remember any other record."""
        if isinstance(record, Open):
            self._open[record.conn] = record
        elif isinstance(record, Close) and record.how is not How.HALF:
            self._open.pop(record.conn, None)
        self._out.append(record)

    def settle(self) -> None:
        """Hand over what is remembered, once it is worth it; call it after sending on."""
        if len(self._out) >= _WORTH_IT:
            self.flush()

    def flush(self) -> bool:
        """Hand over all of it; call it when nothing moves, and soon again while it is true."""
        now_ns = time.monotonic_ns()
        waits = self._keep_pace(now_ns)
        out = self._out
        if not out:
            return waits
        blob = b"".join([packed(item) for item in out])
        out.clear()
        self._flushed_ns = now_ns
        if not waits:
            self._waiting_ns = now_ns
        written = 0
        with self._lock:  # whoever goes on alone must not look between the write and its note
            if not (self._behind or self._alone):
                try:
                    written = os.write(self._pipe, blob)
                except OSError:
                    pass  # the pipe is full, or nobody is at its other end
                if written:
                    self._sent.append(blob[:written])
        if written < len(blob):
            self._fall_behind(blob[written:])
        return True

    def _keep_pace(self, now_ns: int) -> bool:
        """Whether something waits there; a process that is late with it may not even notice."""
        taken_ns = self._written[0]
        if taken_ns >= self._flushed_ns or self._alone:
            return False
        if now_ns - max(taken_ns, self._waiting_ns) > LATE_NS:
            hurry(self._pid)
            self._waiting_ns = now_ns
        return True

    def _fall_behind(self, blob: bytes) -> None:
        with self._lock:
            self._behind.append(blob)
            self._behind_size += len(blob)
        os.eventfd_write(self._wake, 1)
        hurry(self._pid)  # what waits here is lost with this process

    def _command(self, kind: int, first: bytes = b"") -> None:
        self._flushed_ns = time.monotonic_ns()
        self._fall_behind(first + command(kind))

    def reopen(self) -> None:
        """Go on in a new file, when the old one was renamed, or in the next of a ring."""
        self._command(REOPEN)

    @property
    def is_behind(self) -> bool:
        """Whether something waits here, because the pipe is full."""
        return bool(self._behind)

    def resident(self) -> tuple[int, int]:
        """KiB of memory of this process and of the one that writes."""
        own, other = (_resident(pid) for pid in (os.getpid(), self._pid))
        return own, other

    @property
    def failure(self) -> str:
        """Why the capture could not be written, empty while all is well."""
        return self.account.failure

    @property
    def unwritten(self) -> int:
        """Bytes of traffic that crossed and are neither in the file nor told there as a gap."""
        return self.account.untold

    def close(self) -> None:
        """Have the rest written and the capture ended, within STOP_S; its last may be gaps."""
        if self._closed:
            return
        self._closed = True
        self.flush()
        self._command(CLOSE, b"".join(map(packed, self._gaps())))
        until = time.monotonic() + carrying.STOP_S
        while not self._over.wait(_HURRY_S) and time.monotonic() < until:
            hurry(self._pid)
        if not self._over.is_set():
            self.account.failure = self.account.failure or "the disk does not answer"
            self.account.untold += sum(map(size_of, Items().feed(self._not_taken())[0]))
            self._over.set()
            self._kill()

    def _kill(self) -> None:
        """A process that waits for a disk may not even die; nobody waits for that."""
        try:
            os.kill(self._pid, signal.SIGKILL)
            until = time.monotonic() + _KILL_S
            while time.monotonic() < until and os.waitpid(self._pid, os.WNOHANG)[0] == 0:
                time.sleep(_PUSH_S)
        except OSError:
            pass  # it is gone

    def _gaps(self) -> list[Gap]:
        counted, self._counted = self._counted, {}
        return gaps_of(counted, self.now())

    def _not_taken(self) -> bytes:
        """What the other process has not said that it has."""
        sent = b"".join(self._sent)[max(0, self._taken_to - self._sent_from) :]
        return sent + b"".join(self._behind)

    # In a thread of its own: what comes back, and what the pipe had no room for.

    def _help(self) -> None:
        poll = select.poll()
        poll.register(self._back, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        said = b""
        while not self._over.is_set():
            ready = dict(poll.poll((_PUSH_S if self._behind else _IDLE_S) * 1000))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._back in ready:
                told = os.read(self._back, 1 << 16)
                if not told:
                    break
                *lines, said = (said + told).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
            self._push()
        if not self._over.is_set():
            self._go_on_alone()
        for descriptor in (self._pipe, self._back, self._wake):
            os.close(descriptor)

    def _hear(self, told: dict[str, Any]) -> None:
        self._taken_to = told["taken"]
        self.account = RecordingAccount(**told["account"])
        while self._sent and self._sent_from + len(self._sent[0]) <= self._taken_to:
            self._sent_from += len(self._sent.popleft())
        for remark in told["said"]:
            self._tell(remark)
        if self.account.stopped:
            self._stop.set()
        if told["over"]:
            os.waitpid(self._pid, 0)
            self._over.set()

    def _push(self) -> None:
        if self._counted and self._behind_size < carrying.BACKLOG_LIMIT // 2:
            self._fall_behind(b"".join(map(packed, self._gaps())))
        while self._behind:
            blob = self._behind[0]
            try:
                written = os.write(self._pipe, blob)
            except OSError:
                return
            self._sent.append(blob[:written])
            with self._lock:
                self._behind_size -= written
                if written < len(blob):
                    self._behind[0] = blob[written:]
                else:
                    self._behind.popleft()

    def _go_on_alone(self) -> None:
        """The other process died: what it had not taken is kept here, in another file."""
        account = self.account
        self._store.take_over(account, self._open, "the process that wrote the capture died")
        self._tell("the process that wrote the capture died; this one writes it from now on")
        with self._lock:
            self._alone = True
            waiting = self._not_taken()
            self._sent.clear()
            self._behind.clear()
            self._behind_size = 0
        items = Items()
        closing = False
        while not closing:
            records, commands = items.feed(waiting)
            if REOPEN in commands:
                self._store.reopen()
            self._store.put(records)
            self.account = self._store.account
            if self.account.stopped:
                self._stop.set()
            closing = CLOSE in commands
            if not closing:
                select.select([self._wake], [], [], carrying.FLUSH_S)
                time.sleep(carrying.FLUSH_S)
            with self._lock:
                waiting = b"".join(self._behind)
                self._behind.clear()
                self._behind_size = 0
        self.account = self._store.close()
        self._over.set()


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
