"""The first reading of a capture: operations for the screen, at once or as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from ...capture.reader import CaptureReader
from ...capture.records import Header, Mark, Vmm
from ...errors import UnreadableInput
from ...sources import Source, open_source
from ...trace.bulk import feed
from ...trace.decoding import Connection, Session
from ...trace.opening import Capture, has_index, load_indexed
from ...trace.streams import in_bulk

_TELL_EVERY_S: Final = 0.2
_LOOK_UP: Final = 256
_GLANCE_BYTES: Final = 1 << 20
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Grown:
    """Rows from `first` on, new or changed, and what else is known of the capture by now."""

    first: int
    columns: Mapping[str, NDArray[Any]]
    header: Header
    first_ns: int
    last_ns: int
    connections: list[Connection]
    marks: list[Mark]
    vmm: list[Vmm]
    read: int
    """Bytes of the file that have been read."""
    live: bool
    ended: bool
    trouble: str = ""
    """What is missing, in a sentence; empty for a whole capture."""
    glance: bool = False
    """Only the beginning of a capture, the whole of which is told of next."""


class Gone(UnreadableInput):
    """A capture that is not there any more, or not the same, while it was followed."""


def read(
    path: Path, tell: Callable[[Capture | Grown], None], cancelled: Callable[[], bool]
) -> None:
    """Read the capture at `path` and go on as it grows; `tell` is called with what there is.

    Of a capture with an index the beginning is told of, and then the whole. Raises
    UnreadableInput, and Gone when the file is deleted, replaced or cut short meanwhile.
    """
    _glance(path, tell)
    whole = load_indexed(path)
    if whole is not None:
        tell(whole)
        return
    with open_source(path) as source:
        session = Session(source.header)
        told = _Telling(source, session, tell)
        for count, step in enumerate(_steps(path, source, told)):
            if step is not None:
                offset, record = step
                session.feed(record, offset)
                if count % _LOOK_UP:
                    continue
                told.now_and_then(offset)
            if cancelled():
                return
        session.finish()
        told.say(ended=True)


def _glance(path: Path, tell: Callable[[Capture | Grown], None]) -> None:
    """Tell of the beginning of a large capture: finding out what is in all of it takes long."""
    with open_source(path) as source:
        if not has_index(source):
            return
        session = Session(source.header)
        for offset, item in in_bulk(source):
            if offset > _GLANCE_BYTES:
                break
            feed(session, item, offset)
        _Telling(source, session, tell).say(ended=False, glance=True)


def _steps(path: Path, source: Source, told: _Telling) -> Iterator[tuple[int, Any] | None]:
    """Every record, and None while waiting for more."""
    yield from source.records()
    if not isinstance(source, CaptureReader):
        return
    live = source.live
    identity = _identity(path) if live and source.is_one_file else None
    while live:
        live = source.live
        if identity is not None:
            _check(path, identity, source.next_offset)
        yield from source.grow()
        live |= source.live
        told.now_and_then(source.next_offset)
        yield None
        time.sleep(_POLL_S)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check(path: Path, identity: tuple[int, int], read: int) -> None:
    """Raises Gone when the file is not what was opened."""
    kept = "what was read of it stays on the screen"
    try:
        status: os.stat_result = path.stat()
    except OSError:
        raise Gone(f"{path} was deleted; {kept}") from None
    if (status.st_dev, status.st_ino) != identity:
        raise Gone(f"{path} was replaced by another file; {kept}")
    if status.st_size < read:
        raise Gone(f"{path} was cut short; {kept}")


class _Telling:
    """Tells now and then what a session has so far, without saying anything twice."""

    def __init__(
        self, source: Source, session: Session, tell: Callable[[Capture | Grown], None]
    ) -> None:
        self._source = source
        self._session = session
        self._tell = tell
        self._rows = 0
        self._last_s = 0.0
        self._read = 0
        self._seen: tuple[object, ...] = ()

    def now_and_then(self, offset: int) -> None:
        """Say what is new, unless the last time was only just now."""
        self._read = offset
        now = time.monotonic()
        if now - self._last_s < _TELL_EVERY_S:
            return
        seen = (self._read, getattr(self._source, "live", False))
        if seen != self._seen:
            self._seen = seen
            self.say(ended=False)
        self._last_s = time.monotonic()

    def say(self, ended: bool, glance: bool = False) -> None:
        """Say what is new."""
        session, source = self._session, self._source
        changed = min(session.finished_rows, default=self._rows)
        session.finished_rows.clear()
        # A request that comes in pieces changes the row of its first one.
        first = max(min(changed, self._rows - 1), 0)
        self._tell(
            Grown(
                first,
                session.table.columns(first),
                source.header,
                session.first_ns or 0,
                session.last_ns,
                list(session.connections.values()),
                list(session.marks),
                list(session.vmm),
                self._read,
                getattr(source, "live", False) and not ended,
                ended,
                _trouble(source, session) if ended else "",
                glance,
            )
        )
        self._rows = len(session.table)


def _trouble(source: Source, session: Session) -> str:
    at_end = sum(damage.size for damage in source.damage if damage.at_end)
    if at_end:
        return f"the end is torn: {at_end} bytes cannot be read"
    if source.damage or session.lost:
        return "something is missing in the middle"
    if isinstance(source, CaptureReader) and not source.complete:
        return "not closed cleanly: its last moments may be missing"
    return ""
