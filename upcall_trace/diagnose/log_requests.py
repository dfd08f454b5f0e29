"""How far a guest's channel is, and what is asked over it, as a VMM's log shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count

from ..logs.evidence import Evidence
from ..logs.lines import LogLine
from ..logs.meaning import quote


class ChannelPhase(Enum):
    """How far the channel is, as far as the log tells."""

    UNKNOWN = auto()
    STARTING = auto()
    RESTORED = auto()
    READY = auto()
    RECONNECTING = auto()
    GAVE_UP = auto()
    ENDED = auto()


@dataclass(slots=True)
class OpenRequest:
    """A request that the log shows to be sent; `line` is None when that was before it began."""

    kind: str
    line: LogLine | None
    id: str = ""
    timed_out: LogLine | None = None
    number: int = field(default_factory=count().__next__)
    """Tells it from every other one."""

    @property
    def is_cpu(self) -> bool:
        return self.kind.startswith("cpu")

    @property
    def is_waited_for(self) -> bool:
        """Whether the runtime waits for the answer, so that its end is seen."""
        return self.kind in ("cpu", "cpu-add", "cpu-del", "disk-add", "disk-del", "unknown")

    @property
    def lines(self) -> list[LogLine]:
        return [line for line in (self.line, self.timed_out) if line is not None]


def evidence_of(line: LogLine, at: int = 0) -> Evidence:
    """A line as evidence: the part of it that says it, and which line of the file that is."""
    number = line.number + (line.text.count("\n", 0, at) if line.spans else 0)
    return Evidence("vmm-log", quote(line.text, at), line=number, file=line.file)


def between(first: LogLine | None, last: LogLine) -> int | None:
    if first is None or first.wall_ns is None or last.wall_ns is None:
        return None
    return last.wall_ns - first.wall_ns
