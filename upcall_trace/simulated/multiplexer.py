"""One connection to a simulated socket: the CONNECT line, the service byte, then requests.

`Link` knows how far a connection has come and how much may be read next; what stands behind the
socket, `Behind`, says what is answered. A machine and a recording are two of the latter. Bytes and
times go in and out, no socket. docs/guest.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from dissectors.constants import SERVICE_BYTE_LIMIT_NS
from dissectors.hvsock import line_end, parse_connect


@dataclass(frozen=True, slots=True)
class Step:
    """What a link does next, not before `at_ns`: send these bytes, or with None close."""

    at_ns: int
    sent: bytes | None


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A CONNECT line gets this OK line; without `service` no service byte is waited for."""

    ok: bytes
    service: bool = True


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A CONNECT line gets neither OK nor a close, for so long or with None for ever."""

    limit_ns: int | None


class Behind(Protocol):
    """Who answers one connection. Steps that end with a close end the connection."""

    @property
    def line_size(self) -> int:
        """Bytes that a read may take while the CONNECT line is not whole."""

    @property
    def request_size(self) -> int:
        """Bytes that a read may take of a request."""

    @property
    def silent(self) -> bool:
        """True when nobody reads any more and the connection stays open."""

    def accept(self, port: int | None) -> Acceptance | NoAnswer | None:
        """What a CONNECT line to this port gets, None for a bad line; None closes."""

    def greet(self, service: int, now_ns: int) -> list[Step]:
        """What comes of the service byte."""

    def answer(self, piece: bytes, now_ns: int) -> list[Step]:
        """What comes of one receive."""


class _LinkPhase(Enum):
    LINE = auto()
    UNANSWERED = auto()
    SERVICE = auto()
    REQUESTS = auto()
    CLOSED = auto()


class Link:
    """One connection.

    Give it no more than `read_size` bytes at a time, as its thread in the guest would read;
    `deadline_ns` is when it closes if nothing comes.
    """

    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._phase = _LinkPhase.LINE
        self._line = b""
        self.deadline_ns: int | None = None

    @property
    def read_size(self) -> int:
        """Bytes that the next read may take; 0 when nobody reads any more."""
        match self._phase:
            case _LinkPhase.LINE:
                return self._behind.line_size
            case _LinkPhase.SERVICE:
                return 1
            case _LinkPhase.UNANSWERED if self.deadline_ns is not None:
                return self._behind.line_size
            case _LinkPhase.REQUESTS if not self._behind.silent:
                return self._behind.request_size
        return 0

    @property
    def silent(self) -> bool:
        """True when the guest's thread is gone: the connection stays open and says nothing."""
        if self._phase is _LinkPhase.UNANSWERED:
            return self.deadline_ns is None
        return self._phase is not _LinkPhase.CLOSED and self._behind.silent

    def receive(self, received: bytes, now_ns: int) -> list[Step]:
        """What comes of a read, or with `b""` of the client's end of file."""
        if self._phase is _LinkPhase.CLOSED:
            return []
        if not received:
            return self._done([Step(now_ns, None)])
        match self._phase:
            case _LinkPhase.LINE:
                return self._done(self._connect(received, now_ns))
            case _LinkPhase.UNANSWERED:
                return []
            case _LinkPhase.SERVICE:
                self.deadline_ns = None
                self._phase = _LinkPhase.REQUESTS
                return self._done(self._behind.greet(received[0], now_ns))
        return [] if self._behind.silent else self._done(self._behind.answer(received, now_ns))

    def expire(self, now_ns: int) -> list[Step]:
        """The deadline has passed."""
        self.deadline_ns = None
        return self._done([Step(now_ns, None)])

    def _done(self, steps: list[Step]) -> list[Step]:
        if steps and steps[-1].sent is None:
            self._phase = _LinkPhase.CLOSED
        return steps

    def _connect(self, received: bytes, now_ns: int) -> list[Step]:
        self._line += received
        end = line_end(self._line)
        if end == 0:
            return []
        accepted = self._behind.accept(parse_connect(self._line[:end]) if end > 0 else None)
        if accepted is None:
            return [Step(now_ns, None)]
        if isinstance(accepted, NoAnswer):
            self._phase = _LinkPhase.UNANSWERED
            if accepted.limit_ns is not None:
                self.deadline_ns = now_ns + accepted.limit_ns
            return []
        self._phase = _LinkPhase.SERVICE if accepted.service else _LinkPhase.REQUESTS
        if accepted.service:
            self.deadline_ns = now_ns + SERVICE_BYTE_LIMIT_NS
        return [Step(now_ns, accepted.ok)]
