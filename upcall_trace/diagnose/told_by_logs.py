"""What was read of logs, without what reads them: who diagnoses a capture alone needs no more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from .finding import Finding

if TYPE_CHECKING:
    from .log_guests import LoggedGuest


class Option(Enum):
    """How a log was given. The value is what the user wrote."""

    CONSOLE = "--console"
    VMM_LOG = "--vmm-log"
    FOUND = ""


@dataclass(slots=True)
class LogInput:
    """What was read of one log. Times are nanoseconds since 1970, None where it has none."""

    file: str
    option: Option
    kind: str = "log"
    lines: int = 0
    understood: int = 0
    sandboxes: dict[str, None] = field(default_factory=dict)
    """Those that were named, in the order in which they came."""
    unnamed: int = 0
    """Understood lines that do not say whose they are."""
    vmms: list[str] = field(default_factory=list)
    from_ns: int | None = None
    to_ns: int | None = None
    torn: bool = False
    seems: str = ""
    """What it is instead, where nothing in it concerns upcall."""
    unknown: int = 0
    """Lines about upcall in words that are not known."""
    first_unknown: int | None = None
    """The first of them."""
    mentioned: int = 0
    """Sentences that quote a line about upcall."""
    first_mentioned: int | None = None
    """The first of them."""
    lost: int = 0
    """Places at which lines are missing, as the log itself says."""
    first_lost: int | None = None
    """The line that says the first of them."""
    of_guest: int = 0
    of_vmm: int = 0
    of_others: int = 0
    dressed: bool = False

    @property
    def says_nothing(self) -> bool:
        """Whether no line of it concerns upcall, or a VM."""
        return not (self.understood or self.of_others or self.unknown or self.mentioned)


@dataclass(slots=True)
class Logs:
    """What was read of all logs: each input, and each guest that they tell of."""

    inputs: list[LogInput] = field(default_factory=list)
    guests: list[LoggedGuest] = field(default_factory=list)

    def findings(self, without: Iterable[LoggedGuest] = ()) -> list[Finding]:
        """What the logs tell alone, guest by guest."""
        from .log_story import of_guest  # where no log is given, nothing of it is loaded

        left = [guest for guest in self.guests if guest not in list(without)]
        found = [f for n, guest in enumerate(left) for f in of_guest(guest, n + 1)]
        return [f for f in found if not _is_told_by_another(f, found)]

    def vmm_findings(self) -> list[Finding]:
        """What the VMM's lines alone tell, of every guest."""
        return [
            replace(finding, sandbox=guest.sandbox)
            for guest in self.guests
            for finding in guest.vmm.finish()
        ]

    @property
    def torn(self) -> bool:
        """Whether an archive ended early."""
        return any(told.torn for told in self.inputs)

    @property
    def concerns_upcall(self) -> bool:
        """Whether something of it is about upcall, or says that a guest died."""
        return any(guest.concerns_upcall for guest in self.guests)

    @property
    def unknown(self) -> int:
        """Lines about upcall in words that are not known."""
        return sum(told.unknown for told in self.inputs)

    @property
    def lost(self) -> int:
        """Places at which lines are missing."""
        return sum(told.lost for told in self.inputs)

    @property
    def consoles(self) -> list[LoggedGuest]:
        """Guests of which there is a console."""
        return [guest for guest in self.guests if guest.console.operations]

    def __bool__(self) -> bool:
        return bool(self.inputs)


def _is_told_by_another(finding: Finding, found: Sequence[Finding]) -> bool:
    """Whether a line without a name is a guest's error once more, as containerd prints it."""
    if finding.sandbox is not None or not any(e.source == "vmm-log" for e in finding.evidence):
        return False
    named = {f.sandbox for f in found if f.sandbox is not None and f.code == finding.code}
    return len(named) == 1


@dataclass(frozen=True, slots=True)
class Span:
    """A time that lines have to be in; None is open. Lines without a time are in it."""

    since_ns: int | None = None
    until_ns: int | None = None

    def __contains__(self, time_ns: object) -> bool:
        if not isinstance(time_ns, int):
            return True
        return (self.since_ns is None or time_ns >= self.since_ns) and (
            self.until_ns is None or time_ns <= self.until_ns
        )
