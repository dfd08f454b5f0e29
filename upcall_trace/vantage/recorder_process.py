"""The process that writes a capture: what comes through the pipe, and what it says back.

Why there is one is told in `recorder`, the side that writes to the pipe is `apart`.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from ..capture.encoding import decode, encode
from ..capture.frames import FRAME, unpack
from .capture_file import Item
from .store import CaptureStore

_ITEM: Final = struct.Struct("<IBQI")
"""Length of what follows, kind, and for traffic its time and connection."""
_FROM_GUEST, _TO_GUEST, _RECORD, REOPEN, CLOSE = range(5)
_READ_SIZE: Final = 1 << 20
_BATCH_S: Final = 0.005
_BATCH_SIZE: Final = 256 << 10
_MUCH: Final = 512 << 10
"""Half of what the smallest pipe holds: what does not fit is lost with a killed recorder."""
_TAKEN_AT_ONCE: Final = 4 << 20
_SAY_S: Final = 0.05
_IDLE_S: Final = 0.1
_QUIET_ROUNDS: Final = 20
_NOT_OURS: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1,
)  # fmt: skip
_NICER: Final = 10
LATE_NS: Final = 40_000_000
"""Less than half of what may be lost when all of this is killed at once."""
_WRITTEN_AT_ONCE: Final = 512
_DECODED_AT_ONCE: Final = 64


def packed(item: Item) -> bytes:
    """A record as it goes through the pipe."""
    if isinstance(item, tuple):
        t_ns, conn, to_guest, received = item
        return _ITEM.pack(len(received), to_guest, t_ns, conn) + received
    framed = encode(item)
    return _ITEM.pack(len(framed), _RECORD, 0, 0) + framed


def command(kind: int) -> bytes:
    """REOPEN or CLOSE, as it goes through the pipe."""
    return _ITEM.pack(0, kind, 0, 0)


def hurry(pid: int) -> None:
    """Let the writer run before others; it is its own to step back again."""
    try:
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        pass  # it has gone, or it never stepped back


class Items:
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


class WriterProcess:
    """The other process. It ends when it is told to, or when nobody can write to it any more."""

    def __init__(
        self,
        store: CaptureStore,
        now: Callable[[], int],
        pipe: int,
        back: int,
        written: memoryview,
    ) -> None:
        self._store = store
        self._now = now
        self._written = written
        self._pipe = pipe
        self._back = back
        self._items = Items()
        self._said: list[str] = []
        self._told_s = 0.0
        self._quiet = 0
        self._steps_back = True

    def serve(self) -> NoReturn:
        """Never returns: what the other process had on its stack is not ours."""
        try:
            self._leave_the_rest()
            self._store.hear_with(self._said.append)
            while self._round():
                pass
        except Exception as error:
            # The other process goes on alone in a file of its own, and tells why.
            self._said.append(f"the process that writes failed: {type(error).__name__}: {error}")
            self._say(over=False)
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
        begun = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, begun - _NICER)
            self._pace(late=False)
        except OSError:  # who could not hurry when it matters does not step back either
            self._steps_back = False
            os.setpriority(os.PRIO_PROCESS, 0, begun)

    def _pace(self, late: bool) -> None:
        """Whoever moves bytes goes first, unless what waits in the pipe becomes old there.

        First, not just more often: a writer with any weight makes a reply wait for 2 ms now and
        then.
        """
        if not self._steps_back:
            return
        wanted = os.SCHED_OTHER if late else os.SCHED_IDLE
        if os.sched_getscheduler(0) != wanted:  # the other process may have changed it
            os.sched_setscheduler(0, wanted, os.sched_param(0))

    def _round(self) -> bool:
        """Take what has come and write it; False when that was the last.

        While there is traffic it is looked for now and then and not waited for: to be waited for
        costs the side that writes to the pipe a wake-up each time.
        """
        waiting = _size_in(self._pipe)
        if self._quiet >= _QUIET_ROUNDS:
            select.select([self._pipe], [], [], _IDLE_S)
        elif waiting < _BATCH_SIZE:
            until = time.monotonic() + _BATCH_S  # more at once costs less
            while self._store.catch_up(_DECODED_AT_ONCE) and time.monotonic() < until:
                pass
            time.sleep(max(0.0, until - time.monotonic()))
        begun_ns = time.monotonic_ns()
        records, commands, ended = self._take()
        self._quiet = 0 if records or self._store.catch_up(0) else self._quiet + 1
        if REOPEN in commands:
            self._store.reopen()
        self._pace(bool(commands) or waiting >= _MUCH or self._age(records) > LATE_NS)
        for begin in range(0, max(1, len(records)), _WRITTEN_AT_ONCE):
            self._store.put(records[begin : begin + _WRITTEN_AT_ONCE])
        self._written[0] = begun_ns
        closing = CLOSE in commands
        if closing:
            self._store.close()
        self._say(closing)
        return not closing and not ended

    def _age(self, records: list[Item]) -> int:
        """For how long the first traffic of `records` waited, in nanoseconds."""
        return next((self._now() - item[0] for item in records if isinstance(item, tuple)), 0)

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


def _size_in(pipe: int) -> int:
    waiting = fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(waiting, "little")
