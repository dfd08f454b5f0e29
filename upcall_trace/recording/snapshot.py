"""Snapshots: the last minutes are kept in memory, and written when something says so.

What is kept is a ring of small files on a file system in memory. A snapshot is the ring as one
capture, made by a process of its own: `python -m upcall_trace.recording.snapshot RING CAPTURE`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..capture.records import End
from ..capture.ring import RingReader
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
        place = _MEMORY if _MEMORY.is_dir() else None
        self.ring = Path(tempfile.mkdtemp(prefix="upcall-trace-", dir=place))
        self.rotation = Rotation(time_s=span_s / _PARTS, keep=_PARTS + 2)
        self._due_s: float | None = None
        self._lock = threading.Lock()
        self._writing: threading.Thread | None = None

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
        if self._signalled:
            self._signalled = False
            self.ask("a signal")
        with self._lock:
            if self._due_s is None or time.monotonic() < self._due_s:
                return
            self._due_s = None
        self._writing = threading.Thread(target=self._write, name="snapshot", daemon=True)
        self._writing.start()

    def close(self) -> None:
        """The recording has ended: write the one that was asked for, and let go of the ring."""
        if self._writing is not None:
            self._writing.join(_WRITE_S)
        if self._due_s is not None:
            self._write()
        shutil.rmtree(self.ring, ignore_errors=True)

    def _write(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._directory / f"snapshot-{stamp}.upcap"
        command = [sys.executable, "-m", _MODULE, str(self.ring), str(path)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, timeout=_WRITE_S, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                self.say(f"{path}: a snapshot of what was recorded")
                return
        self.say(f"{path} could not be written")


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
