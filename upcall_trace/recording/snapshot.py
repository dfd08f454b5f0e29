"""Snapshots: the last minutes are kept in memory, and written when something says so.

What is kept is a ring of small files on a file system in memory. A snapshot is the ring as one
capture, made by a process of its own: `python -m upcall_trace.recording.snapshot RING CAPTURE`.
A recorder holds its ring by a lock. A ring that nobody holds was left by one that was killed: the
next recorder writes it as a snapshot, into the directory that it was kept for, and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ..capture.records import End
from ..capture.ring import SUFFIX, RingReader
from ..capture.writer import CaptureWriter
from ..errors import WrongUsage
from ..trace.opening import build_index
from ..vantage.store import Rotation

AFTER_S: Final = 60.0
"""How much of what comes after a reason to write is written too."""
_PARTS: Final = 6
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # a private directory is made in it
_WRITE_S: Final = 60.0
_MODULE: Final = "upcall_trace.recording.snapshot"
_PREFIX: Final = "upcall-trace-ring-"
_LOCK: Final = "kept-for"
"""Held by the recorder; what is in it is the directory for the snapshots."""
_PATH_LIMIT: Final = 4096


class Snapshots:
    """Keeps `span_s` seconds in `ring`, and writes snapshots into `directory`; WrongUsage."""

    def __init__(self, directory: Path, span_s: float, say: Callable[[str], None]) -> None:
        self.say = say
        self._signalled = False
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WrongUsage(f"{directory} cannot be made: {error.strerror}") from None
        place = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
        self.ring = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        self._held = _hold(self.ring, directory)
        self.rotation = Rotation(time_s=span_s / _PARTS, keep=_PARTS + 2)
        self._due_s: float | None = None
        self._lock = threading.Lock()
        self._writing: list[threading.Thread] = []

    def ask(self, why: str) -> None:
        """Write one, with the minute that follows; once, however often it is asked for."""
        with self._lock:
            if self._due_s is None:
                self._due_s = time.monotonic() + AFTER_S
                self.say(f"a snapshot is written in {AFTER_S:.0f} s: {why}")

    def heed(self, finding: dict[str, Any]) -> None:
        """Something was found."""
        self.ask(f"{finding.get('code')} {finding.get('name')}")

    def note_signal(self) -> None:
        """Called by a handler of a signal, which may interrupt anything."""
        self._signalled = True

    def look(self) -> None:
        """To be called now and then."""
        if not self._writing:
            self._begin(self._save_left)
        if self._signalled:
            self._signalled = False
            self.ask("a signal")
        with self._lock:
            if self._due_s is None or time.monotonic() < self._due_s:
                return
            self._due_s = None
        self._begin(self._write)

    def _begin(self, work: Callable[[], None]) -> None:
        self._writing.append(threading.Thread(target=work, name="snapshot", daemon=True))
        self._writing[-1].start()

    def close(self) -> None:
        """The recording has ended: write the one that was asked for, and let go of the ring."""
        for writing in self._writing:
            writing.join(_WRITE_S)
        if self._due_s is not None:
            self._write()
        shutil.rmtree(self.ring, ignore_errors=True)
        os.close(self._held)

    def _write(self) -> None:
        self._snapshot(self.ring, self._directory / f"snapshot-{_stamp(time.time())}.upcap")

    def _save_left(self) -> None:
        for ring, directory, lock in _left_behind(self.ring.parent):
            changed = [file.stat().st_mtime for file in ring.glob(f"*{SUFFIX}")]
            kept_in = directory if directory.is_dir() else self._directory
            path = kept_in / f"snapshot-{_stamp(max(changed, default=0))}-left.upcap"
            if not changed or self._snapshot(ring, path):
                shutil.rmtree(ring, ignore_errors=True)
            os.close(lock)

    def _snapshot(self, ring: Path, path: Path) -> bool:
        command = [sys.executable, "-m", _MODULE, str(ring), str(path)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, timeout=_WRITE_S, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                self.say(f"{path}: a snapshot of what was recorded")
                return True
        self.say(f"{path} could not be written")
        return False


def _stamp(wall_s: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall_s))


def _hold(ring: Path, directory: Path) -> int:
    """Lock a new ring for as long as this process is; nobody sees the lock before it is held."""
    fresh = ring / f".{_LOCK}"
    lock = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, os.fsencode(directory.resolve()))
    fresh.rename(ring / _LOCK)
    return lock


def _left_behind(place: Path) -> Iterator[tuple[Path, Path, int]]:
    """Rings of ours that nobody holds: the ring, the directory for its snapshot, its lock."""
    for ring in sorted(place.glob(f"{_PREFIX}*")):
        try:
            if ring.is_symlink() or ring.stat().st_uid != os.geteuid():
                continue
            lock = os.open(ring / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            yield ring, Path(os.fsdecode(os.read(lock, _PATH_LIMIT))), lock


def write_snapshot(ring: Path, path: Path) -> None:
    """The ring as it is now, as one capture that is there only once it is whole."""
    unfinished = path.with_name(f".{path.name}")
    with RingReader(ring) as reader, CaptureWriter(unfinished, reader.header) as writer:
        for _, record in reader.records():
            if not isinstance(record, End):
                writer.write(record)
    build_index(unfinished)
    unfinished.rename(path)


if __name__ == "__main__":
    write_snapshot(Path(sys.argv[1]), Path(sys.argv[2]))
