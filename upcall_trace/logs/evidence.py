"""What a finding rests on: a request of a capture, or a line of a log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a finding rests on: a request of the capture, or a line of a log.

    `source` is `request`, `connection`, `console` or `vmm-log`; `line` counts from 1 in `file`,
    which is None where the input has no name.
    """

    source: str
    text: str
    conn: int | None = None
    request: int | None = None
    line: int | None = None
    file: str | None = None
