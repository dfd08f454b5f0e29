"""What became of requests to services of other packages: refused, or never answered.

The kernel model and the rules know the device manager only. Of other services the result is known,
and that a negative one is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dissectors.constants import errno_name
from dissectors.events import ReplyReceived, RequestReceived

from .. import codes
from ..views.text import fields_text
from .finding import Finding, Told
from .rules.registry import rules

_NEXT: Final = "Look at what the guest's side of this service has logged."


class OtherServices:
    """The requests that wait for an answer, by connection and number."""

    def __init__(self, wall_ns: int | None) -> None:
        self._wall_ns = wall_ns
        self._open: dict[int, dict[int, tuple[str, int]]] = {}

    def asked(self, conn: int, event: RequestReceived, now_ns: int) -> None:
        """A request was sent."""
        message = event.message
        op = f"{message.op} {fields_text(message.fields())}".strip()
        self._open.setdefault(conn, {})[event.number] = op, now_ns

    def answered(self, conn: int, event: ReplyReceived) -> Iterator[Finding]:
        """A reply came; a refusal is an error."""
        if event.number is None or event.number not in self._open.get(conn, {}):
            return
        op, sent_ns = self._open[conn].pop(event.number)
        ret = event.message.ret
        if ret >= 0:
            return
        name = errno_name(ret)
        told = Told(
            what=f"The guest answered {op} with {ret}{f' ({name})' if name else ''}.",
            why="What this result means is known to the service alone.",
            so="The guest did not do what it was asked.",
            next=_NEXT,
        )
        yield self._finding(codes.UNEXPLAINED_RESULT, told, conn, event.number, sent_ns)

    def over(self, conn: int) -> Iterator[Finding]:
        """The connection ended, or the recording did."""
        for number, (op, sent_ns) in self._open.pop(conn, {}).items():
            told = Told(
                what=f"No reply to {op} came.",
                why="The connection or the recording ended first.",
                so="Whether the guest did what it was asked is not known.",
                next=_NEXT,
            )
            yield self._finding(codes.UNANSWERED, told, conn, number, sent_ns)

    def _finding(
        self, code: codes.Code, told: Told, conn: int, request: int, sent_ns: int
    ) -> Finding:
        time_ns = None if self._wall_ns is None else self._wall_ns + sent_ns
        return rules()[code].finding(told, conn, request, False, time_ns)
