"""A connection in words: how it begins, what became of it, how it ends.

Shared by the terminal browser and the report.
"""

from __future__ import annotations

from typing import Final

from ..capture.records import Begins, How
from ..trace.decoding import Connection
from .frames import ending_text
from .text import safe, seconds

_BEGAN: Final = {
    Begins.LINE: "opens",
    Begins.SERVICE: "opens, inside the guest",
    Begins.MIDDLE: "first seen in the middle",
    Begins.OTHER: "opens, not upcall",
}


def opening_text(connection: Connection) -> str:
    """How a connection begins, in a few words."""
    text = _BEGAN[connection.begins]
    if connection.port is not None:
        text += f", port {connection.port}"
    if connection.peer is not None:
        text += f", by pid {connection.peer[0]}"
    return text + f": {state_text(connection)}"


def connection_facts(connection: Connection, first_ns: int) -> list[str]:
    """All that is known of a connection, a line each; `first_ns` is the capture's first moment."""
    facts = [opening_text(connection)]
    facts += [f"line: {safe(connection.line)}"] if connection.line else []
    facts += [f"answer: {safe(connection.answer)}"] if connection.answer else []
    if connection.service is not None:
        facts.append(f"service byte: {connection.service:#04x}")
    if connection.closed_ns is not None:
        facts.append(f"{end_text(connection)} at {seconds(connection.closed_ns - first_ns)} s")
    return [*facts, f"{connection.requests} requests, {connection.replies} replies"]


def state_text(connection: Connection) -> str:
    """What became of a connection, in a word or two."""
    if connection.begins is Begins.OTHER:
        return "not upcall"
    if connection.hello:
        return "ready" if connection.closed_ns is None else "was ready"
    if connection.hello is False:
        return "bad CONNECT message"
    if connection.accepted is False or (
        connection.accepted is None and connection.closed_ns is not None and not connection.requests
    ):
        return "refused"
    if connection.requests:
        return "in use"
    return "no CONNECT message" if connection.accepted else "waiting for OK"


def end_text(connection: Connection) -> str:
    """Who ended a connection, and how."""
    how = connection.how or How.CLOSE
    return ending_text(how, connection.closed_by_guest, connection.reason)
