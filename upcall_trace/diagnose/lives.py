"""How connections to the upcall port follow each other: refusals in a row, ends that last.

One connection's end means little by itself. What comes after it tells: Dragonball connects anew
after a refusal, but not after an idle connection was closed; a listener that was there and is gone
belonged to a guest that is gone, or boots anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..trace.decoding import Connection
from .situation import ConnectionSituation

_LOOP_INTERVAL_NS: Final = 1_000_000_000
"""Dragonball tries again after 10 ms; on a busy host that can become much more."""
LOOP_LENGTH: Final = 3
"""Refusals that make a row a loop: those before it are told one by one."""


class Lives:
    """Tell it of every connection to the upcall port, as it comes to something and as it ends."""

    def __init__(self) -> None:
        self._refusals = 0
        self._refused_ns: int | None = None
        self._last_refused: ConnectionSituation | None = None
        self._worked: int | None = None
        """The last connection on which the guest said that it is ready."""
        self._broke: int | None = None
        """The last one of these that the guest's side ended."""
        self._idle: list[ConnectionSituation] = []

    def opened(self) -> None:
        """Somebody connects: then an end that nobody noticed was noticed after all."""
        self._idle.clear()

    def accepted(self, at: ConnectionSituation) -> ConnectionSituation | None:
        """OK came; returns the row of refusals that it ends."""
        at.refusals, row = self._refusals, self._row()
        return row

    def ready(self, connection: Connection) -> None:
        """The guest's CONNECT message came."""
        self._worked = connection.number

    def refused(self, at: ConnectionSituation, now_ns: int) -> None:
        """A connection was closed without OK, and nothing else came back."""
        at.interval_ns = None if self._refused_ns is None else now_ns - self._refused_ns
        in_row = at.interval_ns is not None and at.interval_ns < _LOOP_INTERVAL_NS
        self._refusals = self._refusals + 1 if in_row else 1
        self._refused_ns = now_ns
        at.refusals = self._refusals
        self._last_refused = at

    def ended(self, at: ConnectionSituation) -> None:
        """A connection that had been accepted is over."""
        connection = at.connection
        if connection.closed_by_guest and connection.hello:
            self._broke = connection.number
            if not at.unanswered:
                self._idle.append(at)

    def finish(self) -> tuple[ConnectionSituation | None, Iterator[ConnectionSituation]]:
        """The recording is over: the row of refusals that it ends in, and lost idle channels."""
        row = self._row()
        if row is not None:
            row.at_end = True
        return row, iter(self._idle)

    @property
    def worked(self) -> int | None:
        """The last connection on which the guest was ready."""
        return self._worked

    @property
    def broke(self) -> int | None:
        """The last such connection that the guest's side ended."""
        return self._broke

    def _row(self) -> ConnectionSituation | None:
        row, self._last_refused = self._last_refused, None
        self._refusals, self._refused_ns = 0, None
        return row
