"""A recorder whose store is in a process of its own: the path pays for one write to a pipe.

How it works is told in `recorder`. The other process is a fork of this one. It keeps nothing of
it but the pipe, the capture and a way back, over which it says what it has taken, so that what it
had not is still here when it dies: recording then goes on in this process, in another file.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import select
import signal
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from ..capture.encoding import decode, encode
from ..capture.frames import FRAME, unpack
from ..capture.records import Close, Gap, Header, How, Open, Record
from . import recorder as carrying
from .capture_file import Item, size_of
from .recorder import begun_now, gaps_of, no_remark
from .store import CaptureStore, OnStoreError, RecordingAccount, Rotation

_ITEM: Final = struct.Struct("<IBQI")
"""Length of what follows, kind, and for traffic its time and connection."""
_FROM_GUEST, _TO_GUEST, _RECORD, _REOPEN, _CLOSE = range(5)
_PIPE_SIZES: Final = (16 << 20, 1 << 20)
_READ_SIZE: Final = 1 << 20
_BATCH_S: Final = 0.005
_BATCH_SIZE: Final = 256 << 10
_TAKEN_AT_ONCE: Final = 4 << 20
_SAY_S: Final = 0.05
_PUSH_S: Final = 0.005
_IDLE_S: Final = 0.1
_QUIET_ROUNDS: Final = 20
_WORTH_IT: Final = 8
_NOT_OURS: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1,
)  # fmt: skip
_NICE: Final = 10
_WRITTEN_AT_ONCE: Final = 512
_DECODED_AT_ONCE: Final = 64
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
            path, begun_now(header), on_error, self.now, tell, overwrite, rotation
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
        self._pid = os.fork()
        if self._pid == 0:
            _WriterProcess(self._store, read_end, back_write).serve()
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

    def flush(self) -> None:
        """Hand over all of it; call it when nothing moves."""
        out = self._out
        if not out:
            return
        blob = b"".join([_packed(item) for item in out])
        out.clear()
        if self._behind or self._alone:
            self._fall_behind(blob)
            return
        try:
            written = os.write(self._pipe, blob)
        except OSError:
            written = 0  # the pipe is full, or nobody is at its other end
        if written:
            self._sent.append(blob[:written])
        if written < len(blob):
            self._fall_behind(blob[written:])

    def _fall_behind(self, blob: bytes) -> None:
        with self._lock:
            self._behind.append(blob)
            self._behind_size += len(blob)
        os.eventfd_write(self._wake, 1)

    def reopen(self) -> None:
        """Go on in a new file, when the old one was renamed, or in the next of a ring."""
        self._fall_behind(_ITEM.pack(0, _REOPEN, 0, 0))

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
        self._fall_behind(b"".join(map(_packed, self._gaps())) + _ITEM.pack(0, _CLOSE, 0, 0))
        self._over.wait(carrying.STOP_S)
        if not self._over.is_set():
            self.account.failure = self.account.failure or "the disk does not answer"
            self.account.untold += sum(map(size_of, _Items().feed(self._not_taken())[0]))
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
            self._fall_behind(b"".join(map(_packed, self._gaps())))
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
        self._alone = True
        account = self.account
        self._store.take_over(account, self._open, "the process that wrote the capture died")
        self._tell("the process that wrote the capture died; this one writes it from now on")
        with self._lock:
            waiting = self._not_taken()
            self._sent.clear()
            self._behind.clear()
            self._behind_size = 0
        items = _Items()
        closing = False
        while not closing:
            records, commands = items.feed(waiting)
            if _REOPEN in commands:
                self._store.reopen()
            self._store.put(records)
            self.account = self._store.account
            if self.account.stopped:
                self._stop.set()
            closing = _CLOSE in commands
            if not closing:
                select.select([self._wake], [], [], carrying.FLUSH_S)
                time.sleep(carrying.FLUSH_S)
            with self._lock:
                waiting = b"".join(self._behind)
                self._behind.clear()
                self._behind_size = 0
        self.account = self._store.close()
        self._over.set()


def _packed(item: Item) -> bytes:
    if isinstance(item, tuple):
        t_ns, conn, to_guest, received = item
        return _ITEM.pack(len(received), to_guest, t_ns, conn) + received
    framed = encode(item)
    return _ITEM.pack(len(framed), _RECORD, 0, 0) + framed


class _Items:
    """Takes what came through the pipe, and gives records and commands of what is whole."""

    def __init__(self) -> None:
        self._begun = b""
        self.taken = 0

    def feed(self, received: bytes) -> tuple[list[Item], list[int]]:
        """What is whole now."""
        data = self._begun + received if self._begun else received
        records: list[Item] = []
        commands: list[int] = []
        position, size = 0, len(data)
        while position + _ITEM.size <= size:
            length, kind, t_ns, conn = _ITEM.unpack_from(data, position)
            begin = position + _ITEM.size
            if begin + length > size:
                break
            position = begin + length
            if kind <= _TO_GUEST:
                records.append((t_ns, conn, kind == _TO_GUEST, data[begin:position]))
            elif kind == _RECORD:
                record = decode(unpack(data[begin + FRAME.size : position]))
                assert record is not None
                records.append(record)
            else:
                commands.append(kind)
        self._begun = data[position:]
        self.taken += position
        return records, commands


class _WriterProcess:
    """The other process. It ends when it is told to, or when nobody can write to it any more."""

    def __init__(self, store: CaptureStore, pipe: int, back: int) -> None:
        self._store = store
        self._pipe = pipe
        self._back = back
        self._items = _Items()
        self._said: list[str] = []
        self._told_s = 0.0
        self._quiet = 0

    def serve(self) -> NoReturn:
        """Never returns: what the other process had on its stack is not ours."""
        try:
            self._leave_the_rest()
            self._store.hear_with(self._said.append)
            while self._round():
                pass
        finally:
            os._exit(0)

    def _leave_the_rest(self) -> None:
        for number in _NOT_OURS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        ours = {self._pipe, self._back, self._store.file.descriptor}
        for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if descriptor not in ours:
                try:
                    os.close(descriptor)
                except OSError:
                    pass  # the one by which they were listed
        while os.open(os.devnull, os.O_RDWR) < 2:
            pass
        try:
            os.nice(_NICE)  # whoever moves bytes goes first; what waits is in the pipe
        except OSError:
            pass  # not ours to ask for

    def _round(self) -> bool:
        """Take what has come and write it; False when that was the last.

        While there is traffic it is looked for now and then and not waited for: to be waited for
        costs the side that writes to the pipe a wake-up each time.
        """
        if self._quiet >= _QUIET_ROUNDS:
            select.select([self._pipe], [], [], _IDLE_S)
        elif _size_in(self._pipe) < _BATCH_SIZE:
            until = time.monotonic() + _BATCH_S  # more at once costs less
            while self._store.catch_up(_DECODED_AT_ONCE) and time.monotonic() < until:
                pass
            time.sleep(max(0.0, until - time.monotonic()))
        records, commands, ended = self._take()
        self._quiet = 0 if records or self._store.catch_up(0) else self._quiet + 1
        if _REOPEN in commands:
            self._store.reopen()
        for begin in range(0, max(1, len(records)), _WRITTEN_AT_ONCE):
            self._store.put(records[begin : begin + _WRITTEN_AT_ONCE])
        closing = _CLOSE in commands
        if closing:
            self._store.close()
        self._say(closing)
        return not closing and not ended

    def _take(self) -> tuple[list[Item], list[int], bool]:
        records: list[Item] = []
        commands: list[int] = []
        taken = 0
        while taken < _TAKEN_AT_ONCE:
            try:
                received = os.read(self._pipe, _READ_SIZE)
            except BlockingIOError:
                break
            if not received:
                return records, commands, True
            taken += len(received)
            more, told = self._items.feed(received)
            records += more
            commands += told
        return records, commands, False

    def _say(self, over: bool) -> None:
        now_s = time.monotonic()
        if not over and not self._said and now_s - self._told_s < _SAY_S:
            return
        self._told_s = now_s
        account = dataclasses.asdict(self._store.account)
        told = {"taken": self._items.taken, "account": account, "said": self._said, "over": over}
        try:
            os.write(self._back, json.dumps(told).encode() + b"\n")
        except OSError:
            pass  # nobody is left who wants to know
        self._said.clear()


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def _size_in(pipe: int) -> int:
    waiting = fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(waiting, "little")
