"""Whose a line is: which guest of a node it belongs to, as its marks tell.

A shim serves one sandbox, so a process number stands for the sandbox that the same process named in
another line. Where a line has no mark it is of the guest `None`, which may be several.
"""

from __future__ import annotations

from typing import Final

from .lines import LogLine

_KEPT: Final = 100_000


class Guests:
    """Remembers which process is which sandbox's."""

    def __init__(self) -> None:
        self._sandboxes: dict[tuple[str | None, str], str] = {}
        self._pids: dict[str, str] = {}
        self.renamed: list[tuple[str, str]] = []
        """(pid, sandbox) of processes that were known by their number alone until now."""

    def of(self, line: LogLine) -> str | None:
        """The sandbox id, the process number, or the pod or container that a line names."""
        if line.sandbox is not None:
            if line.pid is not None and len(self._sandboxes) < _KEPT:
                before = self._sandboxes.setdefault((line.host, line.pid), line.sandbox)
                if before == line.pid:
                    self._sandboxes[line.host, line.pid] = line.sandbox
                    self.renamed.append((line.pid, line.sandbox))
                self._pids.setdefault(line.pid, line.sandbox)
            return line.sandbox
        if line.pid is not None:
            if len(self._sandboxes) < _KEPT:
                return self._sandboxes.setdefault((line.host, line.pid), line.pid)
            return self._sandboxes.get((line.host, line.pid), line.pid)
        return line.pod

    def of_process(self, pid: str) -> str | None:
        """The sandbox of a process that another line is about."""
        return self._pids.get(pid)
