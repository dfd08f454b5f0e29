"""The control socket: orders for the VMM's side, one JSON object a line, one line back."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..errors import Unreachable
from ..sockets.addresses import UnixAddress, check_reachable, connect_unix
from .orders import BadOrder

_LINE_LIMIT: Final = 1024
"""Bytes of an order; far less than it takes to nest JSON too deep for a small stack."""
_ANSWER_LIMIT: Final = 1 << 20


def serve_orders(stream: socket.socket, follow: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Take orders until the peer closes; `follow` raises BadOrder for what it refuses."""
    lines = stream.makefile("rb")
    while line := lines.readline(_LINE_LIMIT):
        whole = line.endswith(b"\n") or len(line) < _LINE_LIMIT
        answer = _obey(line, follow) if whole else _refusal("an order is a short line")
        stream.sendall(json.dumps(answer).encode() + b"\n")
        if not whole:
            return


def check_control(control: Path) -> None:
    """Raises Unreachable when nobody listens at the control socket."""
    try:
        check_reachable(UnixAddress(control))
    except Unreachable as error:
        raise Unreachable(f"the control socket cannot be used: {error}") from None


def give_order(control: Path, order: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Give one order to the control socket at `control`, and return the answer.

    Raises BadOrder when it is refused, and Unreachable when nobody answers in time.
    """
    try:
        with connect_unix(control, timeout_s) as stream:
            stream.sendall(json.dumps(order).encode() + b"\n")
            line = stream.makefile("rb").readline(_ANSWER_LIMIT)
        answer = json.loads(line)
    except OSError as error:
        timed_out = isinstance(error, (TimeoutError, BlockingIOError))
        why = "no answer in time" if timed_out else error.strerror or error
        raise Unreachable(f"the control socket {control} cannot be used: {why}") from None
    except (ValueError, RecursionError):
        raise Unreachable(f"the control socket {control} closed without an answer") from None
    if not isinstance(answer, dict) or answer.get("ok") is not True:
        why = answer.get("error", "no reason given") if isinstance(answer, dict) else answer
        raise BadOrder(str(why))
    return answer


def _obey(line: bytes, follow: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    try:
        return follow(json.loads(line))
    except BadOrder as error:
        return _refusal(str(error))
    except (ValueError, RecursionError):
        return _refusal("not a line of JSON")


def _refusal(why: str) -> dict[str, Any]:
    return {"ok": False, "error": why}
