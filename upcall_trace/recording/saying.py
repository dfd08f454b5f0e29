"""What a recording says while it runs: remarks as lines of text or of JSON, from its own thread.

Whoever moves bytes says something and goes on; that nobody reads it holds nobody up.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

_WAITING: Final = 1000
_LAST_S: Final = 0.5


class Sayer:
    """Gives remarks to `print_line`, in order; with `as_json` each as an object of its own."""

    def __init__(self, print_line: Callable[[str], None], as_json: bool) -> None:
        self._print_line = print_line
        self._as_json = as_json
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def say(self, text: str, event: str = "remark", **values: object) -> None:
        """A sentence for people; programs get the event and its values beside it."""
        if self._as_json:
            now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            text = json.dumps({"v": 1, "time": now, "event": event, "message": text, **values})
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="saying", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            pass  # nobody reads, and the next ones are as good as this one

    def close(self) -> None:
        """Wait a moment for what is still to be printed."""
        if self._thread is not None:
            try:
                self._lines.put(None, timeout=_LAST_S)
            except queue.Full:
                return
            self._thread.join(_LAST_S)
            self._thread = None

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._print_line(line)
