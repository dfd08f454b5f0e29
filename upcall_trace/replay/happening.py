"""What a replay tells while it runs: replies, requests not sent, connections that parted."""

from __future__ import annotations

from dataclasses import dataclass

from ..compare.replies import Got
from ..trace.script import Asked


@dataclass(frozen=True, slots=True)
class Answered:
    """One request is settled: what came for it."""

    asked: Asked
    got: Got


@dataclass(frozen=True, slots=True)
class NotSent:
    """One request could not be sent any more, and why."""

    asked: Asked
    why: str


@dataclass(frozen=True, slots=True)
class Parted:
    """A connection went otherwise than recorded, apart from its replies."""

    conn: int
    recorded: str
    got: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is no answer and still has to be told."""

    text: str


Happening = Answered | NotSent | Parted | Remark
