"""The terminal that the browser draws on, which can go away at any moment."""

from __future__ import annotations

from typing import Any, TextIO, cast

from textual.drivers.linux_driver import LinuxDriver


class Terminal(LinuxDriver):
    """textual's own, that can be written to and closed when there is no terminal any more."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self._file is not None:
            self._file = cast(Any, _Writable(self._file))


class _Writable:
    """A file without errors: textual's writer ends at the first one, and the app waits for it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.fileno = file.fileno

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError:
            pass

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError:
            pass
