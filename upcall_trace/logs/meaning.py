"""What a line of a log can say: the rows of one table, and how they are found in a line.

Each row has a text that is in every such line (`anchor`), by which wanted lines are found in a
whole log at once; a pattern for what is filled in; what the line means; since which release of Kata
it exists; and a line to show it with. Documentation and tests are made from the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

import re2

from ..codes import Code
from .lines import LogLine

_QUOTED: Final = 200
_BEFORE: Final = 40


class Speaker(Enum):
    """Whose words a line is. The value is what people call it."""

    CLIENT = "Dragonball's upcall client"
    CPUS = "Dragonball, vCPUs"
    DEVICES = "Dragonball, devices"
    RUNTIME = "Kata's runtime"
    AGENT = "Kata's agent in the guest"
    MANAGER = "guest kernel, device manager"
    KERNEL = "guest kernel"
    OTHER = "other VMMs"
    HOST = "the host"
    LOGGER = "what writes and copies logs"


@dataclass(frozen=True, slots=True, eq=False)
class Meaning:
    """One row. `codes` are those that the line can lead to; `upcall` when it is about upcall."""

    speaker: Speaker
    anchor: str
    """Texts with `|` between them, of which every such line has one."""
    words: str
    says: str
    example: str
    since: str = "3.0"
    codes: tuple[Code, ...] = ()
    pattern: re.Pattern[str] | None = None
    upcall: bool = True
    of_guest: bool = field(init=False)
    """Whether the guest's kernel says it."""
    lead: str = field(init=False)
    """What of the line stands before the place where it is found."""

    def __post_init__(self) -> None:
        guest = self.speaker is Speaker.MANAGER or self.speaker is Speaker.KERNEL
        object.__setattr__(self, "of_guest", guest)  # asked of every line
        found = self.pattern.search(self.example) if self.pattern is not None else None
        at = found.start() if found is not None else max(self.place(self.example), 0)
        object.__setattr__(self, "lead", self.example[:at])

    @property
    def anchors(self) -> list[str]:
        return self.anchor.split("|")

    def place(self, text: str) -> int:
        """Where its anchor is, -1 where it is not."""
        if "|" not in self.anchor:
            return text.find(self.anchor)
        places = [at for anchor in self.anchors if (at := text.find(anchor)) >= 0]
        return min(places, default=-1)


@dataclass(slots=True)
class Match:
    """A row that was found in a line, with what was filled in; `at` is where its words begin."""

    meaning: Meaning
    filled: re.Match[str] | None
    at: int

    def __getitem__(self, group: int) -> str:
        """What was filled in, empty where nothing was; 0 is all of the words."""
        if self.filled is None:
            return self.meaning.anchor if group == 0 else ""
        return self.filled[group] or ""


def quote(text: str, at: int = 0) -> str:
    """The part of a line that says it, a line's start where that is near."""
    begin = 0 if at <= _QUOTED - _BEFORE else at - _BEFORE
    lines = text[begin : begin + 4 * _QUOTED].splitlines()
    words = " ".join(filter(None, map(str.strip, lines)))
    words = f"… {words}" if begin else words
    return words if len(words) <= _QUOTED + 2 else f"{words[:_QUOTED]} …"


class Table:
    """Rows that are looked for together."""

    def __init__(self, rows: Iterable[Meaning]) -> None:
        self.rows: Sequence[Meaning] = tuple(rows)
        self._last: tuple[str, list[Match]] = ("", [])
        self._anchors = re2.Set.SearchSet()
        self._row_of: list[int] = []
        for number, row in enumerate(self.rows):
            for anchor in row.anchors:
                self._anchors.Add(re2.escape(anchor))
                self._row_of.append(number)
        self._anchors.Compile()

    def matches(self, text: str) -> list[Match]:
        """Every row that the text says, in the order of the table."""
        if text == self._last[0]:
            return self._last[1]
        found: list[Match] = []
        for number in sorted({self._row_of[n] for n in self._anchors.Match(text) or ()}):
            row = self.rows[number]
            if row.pattern is None:
                found.append(Match(row, None, row.place(text)))
            elif filled := row.pattern.search(text):
                found.append(Match(row, filled, filled.start()))
        self._last = (text, found)
        return found


class Understood(NamedTuple):
    """A line with the rows that are in it."""

    line: LogLine
    matches: Sequence[Match]
