"""Lines as pieces of text, each with the name of what it is; what that looks like is the theme's.

Everything that comes out of a capture goes through `render.safe` before it becomes a piece.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dissectors.constants import CALLER_TIMEOUT_NS

from ...codes import Severity


class Styled(NamedTuple):
    """Some text of one kind, as `looks` names them; empty for plain text."""

    text: str
    kind: str = ""


Line = list[Styled]

SIGNS: Final[dict[int, str]] = {
    0: " ",
    Severity.NOTE: "·",
    Severity.WARNING: "!",
    Severity.ERROR: "✗",
    Severity.FATAL: "‼",
}
"""A severity in one column, for screens without colour."""
SEVERITY_LOOKS: Final[dict[int, str]] = {
    0: "",
    **{severity: severity.word for severity in Severity},
}


class Deadline(NamedTuple):
    """A time limit that answers are held against; docs/protocol.md sections 4 and 5."""

    limit_ns: int
    sign: str
    look: str
    meaning: str


DEADLINES: Final = (
    Deadline(10_000_000_000, ">10s", "stuck", "as long as the guest waits for a vCPU to start"),
    Deadline(CALLER_TIMEOUT_NS, ">250ms", "late", "the runtime has given up waiting"),
    Deadline(50_000_000, ">50ms", "slow", "slow: a fifth of what the runtime waits"),
)
"""The longest first."""


def deadline(latency_ns: int) -> Deadline | None:
    """The longest limit that an answer has passed, None for a quick one."""
    return next((each for each in DEADLINES if latency_ns > each.limit_ns), None)


def width(line: Line) -> int:
    """Columns of a line of our own, which has no wide characters."""
    return sum(len(piece.text) for piece in line)


def cut(text: str, room: int) -> str:
    """`text` in at most `room` columns, with a sign where it was cut."""
    if len(text) <= room:
        return text
    return text[: room - 1] + "…" if room > 1 else text[:room]
