"""Operations on the terminal, with the remarks that a capture holds beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from ...capture.records import COMMENT, Mark
from ...trace.operations import Operation
from ...views.json_objects import operation_object
from ...views.text import WIDTH, operation_text, safe
from .output import out, out_json

_REMARK = "        # "


def comments(marks: Iterable[Mark]) -> dict[tuple[int, int], list[str]]:
    """What the marks say of each operation, by (connection, request)."""
    remarks: dict[tuple[int, int], list[str]] = {}
    for mark in marks:
        if mark.conn is not None and mark.request is not None:
            text = mark.text if mark.name == COMMENT else f"{mark.name} {mark.text}".rstrip()
            remarks.setdefault((mark.conn, mark.request), []).append(safe(text))
    return remarks


def show_comments(remarks: dict[tuple[int, int], list[str]], operation: Operation) -> None:
    """The remarks on an operation, below its line."""
    for text in remarks.get((operation.conn, operation.request), ()):
        for line in textwrap.wrap(safe(text), WIDTH - len(_REMARK)):
            out(_REMARK + line)


def show_operation(operation: Operation, as_json: bool = False, codes: Sequence[str] = ()) -> None:
    """One operation as a line of text or JSON."""
    if as_json:
        out_json(operation_object(operation, codes))
    else:
        colour = "red" if operation.failed else "yellow" if operation.anomalies else None
        out(operation_text(operation), colour)
