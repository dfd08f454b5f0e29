"""What is found while a recording runs: another process diagnoses it as it grows.

`on_finding` runs a command for each finding. The diagnosis has a process of its own, so it costs
whoever moves bytes nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_COMMAND_S: Final = 60.0
_END_S: Final = 0.5


class FindingsFollower:
    """Follows the capture, or the ring, at `path`; `hear` gets each finding as an object."""

    def __init__(self, path: Path, hear: Callable[[dict[str, Any]], None]) -> None:
        self._hear = hear
        self._process = subprocess.Popen(
            [sys.executable, "-m", "upcall_trace", "diagnose", "--follow", "--json", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._run, name="findings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The recording has ended: hear what is left, for a moment."""
        self._thread.join(_END_S)
        if self._process.poll() is None:
            self._process.terminate()
        self._thread.join(_END_S)

    def _run(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict) and "code" in found:
                    self._hear(found)
        self._process.wait()


def run_command(command: str, finding: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Run a command for a finding: its JSON on standard input, the main of it in the environment.

    It is divided into words as a shell does, and no shell runs it.
    """
    environment = {
        **os.environ,
        "UPCALL_CODE": str(finding.get("code")),
        "UPCALL_NAME": str(finding.get("name")),
        "UPCALL_SEVERITY": str(finding.get("severity")),
        "UPCALL_CONN": str(finding.get("conn")),
        "UPCALL_REQUEST": str(finding.get("request")),
    }
    try:
        done = subprocess.run(
            shlex.split(command), input=json.dumps(finding).encode() + b"\n", env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=_COMMAND_S, check=False,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        tell(f"{command}: {error}")
        return
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        tell(f"{command} ended with {done.returncode}" + (f": {said[-1]}" if said else ""))
