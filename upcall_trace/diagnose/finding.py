"""A finding: one code at one place, told in four sentences, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..codes import Code, Severity
from ..logs.evidence import Evidence


class Ref(NamedTuple):
    """A request by its connection and number; connection 0 stands for a guest's console."""

    conn: int
    request: int

    def __str__(self) -> str:
        if self.conn == 0:
            return f"operation {self.request} of the console"
        return f"request {self.conn}.{self.request}"


@dataclass(frozen=True, slots=True)
class Told:
    """The four sentences of a finding, and what it rests on besides its own request."""

    what: str
    why: str
    so: str
    next: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One code where it was seen.

    `request` is None for what concerns a whole connection, `conn` for what concerns the capture.
    `inferred` is true when it is one of several possible causes, or not seen directly.
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
