"""The remarks that a capture holds on its operations."""

from __future__ import annotations

from collections.abc import Iterable

from ..capture.records import COMMENT, Mark
from .text import safe


def remarks_on(marks: Iterable[Mark]) -> dict[tuple[int, int], list[str]]:
    """What the marks say of each operation, by (connection, request)."""
    remarks: dict[tuple[int, int], list[str]] = {}
    for mark in marks:
        if mark.conn is not None and mark.request is not None:
            text = mark.text if mark.name == COMMENT else f"{mark.name} {mark.text}".rstrip()
            remarks.setdefault((mark.conn, mark.request), []).append(safe(text))
    return remarks
