"""The processes that a lab consists of, started so that none of them outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

from ..errors import Unreachable

_END_S: Final = 2.0
_IF_WE_LIVE: Final = '[ "$PPID" = "$0" ] && exec "$@"'
"""For a shell that is asked for by the process `$0`. It looks after it has asked for the signal:
whoever is killed before that leaves a child that nobody would tell."""


def dies_with_this_thread(by: signal.Signals) -> list[str]:
    """The beginning of a command that gets a signal when the thread that starts it is gone.

    Not done by a function between fork and exec: other threads of this process may hold locks.
    """
    told = ["setpriv", "--pdeathsig", by.name.removeprefix("SIG"), "--"]
    return [*told, "sh", "-c", _IF_WE_LIVE, str(os.getpid())]


class Parts:
    """Running programs by name; each says what it has to say into a log in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> dict[str, int]:
        """The process of each."""
        return {name: process.pid for name, process in self._running.items()}

    def start(self, name: str, command: list[str]) -> None:
        """Start a program that ends when this thread does; raises Unreachable."""
        try:
            with self._log(name).open("ab") as log:
                self._running[name] = subprocess.Popen(
                    [*dies_with_this_thread(signal.SIGKILL), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise Unreachable(f"{error.filename} cannot be started: {error.strerror}") from None

    def ended(self) -> str | None:
        """Which one ended by itself, how, and what it said last."""
        for name, process in self._running.items():
            code = process.poll()
            if code is None:
                continue
            if code < 0:
                return f"{name} was killed by {signal.Signals(-code).name}"
            said = self._log(name).read_text("utf-8", "replace").strip()
            reason = f" and said: {said.splitlines()[-1]}" if said else ""
            return f"{name} ended with {code}{reason}"
        return None

    def stop(self) -> None:
        """End all of them at once: nothing in them is worth a slow end."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait(_END_S)
        self._running.clear()

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"
