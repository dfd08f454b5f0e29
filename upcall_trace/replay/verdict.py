"""What a replay amounts to: for every request and connection whether it went as recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..compare.matchers import Matchers
from ..compare.replies import Difference, Got, differences
from ..errors import ExitCode
from ..trace.script import Asked
from .happening import Answered, Happening, NotSent, Parted


@dataclass(frozen=True, slots=True)
class Divergence:
    """One request that was answered otherwise than recorded; `got` is None when it was not sent.

    Without `differences` it was not sent at all, and `why` tells the reason.
    """

    asked: Asked
    got: Got | None
    differences: tuple[Difference, ...] = ()
    why: str = ""


@dataclass(slots=True)
class Verdict:
    """Fills while a replay runs; `ended` says why it stopped before its end, if it did."""

    asked: int = 0
    same: int = 0
    divergences: list[Divergence] = field(default_factory=list)
    not_sent: list[Divergence] = field(default_factory=list)
    parted: list[Parted] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    connections: int = 0
    ended: str = ""
    interrupted: bool = False

    @property
    def first(self) -> Divergence | Parted | None:
        """What went otherwise first; connections count when no request did."""
        if self.divergences:
            return self.divergences[0]
        return self.parted[0] if self.parted else None

    @property
    def exit_code(self) -> ExitCode:
        """What a command that replays ends with."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.divergences or self.parted or self.not_sent or self.ended:
            return ExitCode.DIFFERENT
        return ExitCode.EXPECTED if self.asked or self.connections else ExitCode.NOTHING_RUN

    @property
    def word(self) -> str:
        """What it comes to: `as recorded`, `different`, `interrupted` or `nothing run`."""
        return {
            ExitCode.EXPECTED: "as recorded",
            ExitCode.INTERRUPTED: "interrupted",
            ExitCode.NOTHING_RUN: "nothing run",
        }.get(self.exit_code, "different")

    def fields(self) -> Counter[str]:
        """How many replies differ in each field."""
        return Counter(d.field for divergence in self.divergences for d in divergence.differences)


def judge(
    happenings: Iterable[Happening],
    verdict: Verdict,
    matchers: Matchers,
    whole_bytes: bool = False,
) -> Iterator[Happening]:
    """Pass what happens on, and keep account of it in `verdict`."""
    for happening in happenings:
        match happening:
            case Answered(asked=asked, got=got):
                verdict.asked += 1
                found = differences(asked, got, matchers, whole_bytes, deadlines=True)
                if found:
                    verdict.divergences.append(Divergence(asked, got, found))
                else:
                    verdict.same += 1
            case NotSent(asked=asked, why=why):
                verdict.not_sent.append(Divergence(asked, None, why=why))
            case Parted():
                verdict.parted.append(happening)
            case _:
                verdict.remarks.append(happening.text)
        yield happening
