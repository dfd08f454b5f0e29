"""Operations on the terminal, with the remarks that a capture holds beside them."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

from ...capture.records import Header
from ...trace.operations import Operation
from ...views.json_objects import operation_object
from ...views.text import WIDTH, duration, meant_anomalies, operation_text, safe
from .output import out, out_json

_REMARK = "        # "
_NARROWEST, _WIDEST = 60, 160


def show_comments(remarks: dict[tuple[int, int], list[str]], operation: Operation) -> None:
    """The remarks on an operation, below its line."""
    for text in remarks.get((operation.conn, operation.request), ()):
        for line in textwrap.wrap(safe(text), WIDTH - len(_REMARK)):
            out(_REMARK + line)


class Lines:
    """How operations are shown on this terminal: as wide as it is, with times of one kind."""

    def __init__(self, header: Header, first_ns: int, absolute: bool) -> None:
        self._begin_ns = None
        if absolute and header.wall_ns is not None:
            self._begin_ns = header.wall_ns + first_ns
        self.width = _terminal_width()

    def text(self, operation: Operation) -> str:
        """One operation."""
        return operation_text(operation, self.width, self._when(operation))

    def show_waiting(self, operation: Operation, waited_ns: int) -> None:
        """One operation that waits for its answer."""
        line = self.text(operation).split("\n")[0].replace("no answer", "waits")
        out(f"{line}, for {duration(waited_ns)} now"[: self.width], "yellow")

    def _when(self, operation: Operation) -> str | None:
        if self._begin_ns is None:
            return None
        at = datetime.fromtimestamp((self._begin_ns + operation.t_ns) / 1e9, UTC)
        return at.strftime("%H:%M:%S.%f")


def _terminal_width() -> int:
    """Of the terminal itself, whatever COLUMNS says; elsewhere lines are as ever."""
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return WIDTH
    return min(max(width, _NARROWEST), _WIDEST) if width else WIDTH


def show_operation(
    operation: Operation,
    as_json: bool = False,
    codes: Sequence[str] = (),
    lines: Lines | None = None,
    shown_as: str | None = None,
) -> None:
    """One operation as a line of text or JSON; where there are several files, with its file."""
    if as_json:
        told = operation_object(operation, codes)
        out_json(told if shown_as is None else told | {"file": shown_as})
    else:
        doubtful = meant_anomalies(operation)
        colour = "red" if operation.failed else "yellow" if doubtful else None
        out(lines.text(operation) if lines else operation_text(operation), colour)
