"""A finding: one code at one place, told in four sentences, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..codes import Code, Severity, Side
from ..logs.evidence import Evidence


class Ref(NamedTuple):
    """A request by its connection and number; connection 0 stands for a guest's console."""

    conn: int
    request: int

    def __str__(self) -> str:
        if self.conn == 0:
            return f"operation {self.request} of the console"
        return f"request {self.conn}.{self.request}"


class Cause(NamedTuple):
    """A code, and whether it is one of several or rests on earlier requests."""

    code: Code
    inferred: bool = False


def sure(*told: Code) -> list[Cause]:
    """Causes that are all certain."""
    return [Cause(code) for code in told]


def maybe(*told: Code) -> list[Cause]:
    """Causes of which each is possible, the likeliest first."""
    return [Cause(code, inferred=True) for code in told]


@dataclass(slots=True)
class Told:
    """The four sentences of a finding, and what it rests on besides its own request.

    `side` is None where the code's own is right.
    """

    what: str
    why: str
    so: str
    next: str
    evidence: tuple[Evidence, ...] = ()
    side: Side | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One code where it was seen.

    `request` is None for what concerns a whole connection, `conn` for what concerns the capture.
    `inferred` is true when it is one of several possible causes, or not seen directly. Findings of
    one `group` are alternatives: one of them is true, and they count as one failure; None stands
    alone. `time_ns` is the wall clock in nanoseconds since 1970, None where that is not known.
    """

    code: Code
    name: str
    severity: Severity
    conn: int | None
    request: int | None
    inferred: bool
    what: str
    why: str
    so: str
    next: str
    evidence: tuple[Evidence, ...] = ()
    side: Side = Side.UNKNOWN
    time_ns: int | None = None
    group: int | None = None
    sandbox: str | None = None
    """Whose it is: a sandbox id, or what else the lines tell their guest by."""
