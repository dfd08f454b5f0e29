"""`record` as a process of its own, for the terminal browser to watch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ...errors import ExitCode, UserError
from .output import talk

_PATIENCE_S: Final = 10.0
_LOOK_UP_S: Final = 0.02
_STOP_S: Final = 120.0
_SAID_LIMIT: Final = 1 << 16
_BEGUN: Final = "recording "


class RecorderFailed(UserError):
    """The recording could not be started; it ends with the code that `record` ended with."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.USAGE


class RecorderProcess:
    """A recording into `path`, as a context manager; `source` is what `record` is told of it.

    It is in a session of its own, so that neither Ctrl-C nor a terminal that goes away ends it.
    What it says goes to a file. Entering waits until it takes connections; raises RecorderFailed.
    """

    def __init__(self, source: Sequence[str], path: Path) -> None:
        self._path = path
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed on leaving
        arguments = ["record", *source, "-o", str(path)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "upcall_trace", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        until = time.monotonic() + _PATIENCE_S
        while not any(line.startswith(_BEGUN) for line in self._lines()):
            if self._process.poll() is not None or time.monotonic() > until:
                self._end()
                said = self._lines()
                self._said.close()
                last = said[-1] if said else "the recording did not start"
                raise RecorderFailed(last.removeprefix("upcall-trace: "), self._process.returncode)
            time.sleep(_LOOK_UP_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self._end()
        self._said.close()

    def leave(self, stop: bool) -> ExitCode:
        """Stop the recording or leave it running, and say so; the exit code for it."""
        if self._process.poll() is None and not stop:
            talk(f"still recording into {self._path}; kill {self._process.pid} ends it")
            self._process.returncode = 0  # it outlives us: nobody waits for it
            return ExitCode.EXPECTED
        self._end()
        for line in self._lines():
            talk(line)
        code = self._process.returncode
        return ExitCode(code) if code in set(ExitCode) else ExitCode.LOST

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _lines(self) -> list[str]:
        said = os.pread(self._said.fileno(), _SAID_LIMIT, 0)
        return said.decode("utf-8", "backslashreplace").splitlines()
