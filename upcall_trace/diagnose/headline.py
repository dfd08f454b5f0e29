"""One headline over all findings: what failed first, whose fault it is, and what followed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from ..codes import LATE_REPLY, OTHER_VMM, RESET_WHILE_BUSY, UNANSWERED, Severity, Side
from .finding import Finding

_NAMED: Final = 4
_SYMPTOMS: Final = frozenset({LATE_REPLY, UNANSWERED, RESET_WHILE_BUSY})
_FAULTS: Final = {
    Side.VMM: "on the VMM's side",
    Side.RUNTIME: "on the runtime's side",
    Side.GUEST: "on the guest's side",
    Side.CLIENT: "on the client's side",
    Side.OPERATOR: "in how it is set up",
    Side.UNKNOWN: "whose fault it is, this does not tell",
}


def fault(side: Side) -> str:
    """Whose fault it is, in words."""
    return _FAULTS[side]


def by_guest(findings: Iterable[Finding]) -> list[tuple[str | None, list[Finding]]]:
    """The findings of each guest, the worst first."""
    guests: dict[str | None, list[Finding]] = {}
    for finding in findings:
        guests.setdefault(finding.sandbox, []).append(finding)
    return sorted(guests.items(), key=lambda each: _badness(each[1]), reverse=True)


def _badness(findings: Sequence[Finding]) -> tuple[int, bool, int]:
    worst = max(finding.severity for finding in findings)
    certain = any(f.severity == worst and not f.inferred for f in findings)
    return worst, certain, len(failures(findings))


def failures(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Errors and worse, alternatives of one failure together."""
    bad = [finding for finding in findings if finding.severity >= Severity.ERROR]
    return [list(same) for _, same in groupby(bad, key=_failure)]


def _failure(finding: Finding) -> object:
    return finding.group if finding.group is not None else id(finding)


def first_failure(findings: Sequence[Finding]) -> list[Finding] | None:
    """What failed first: by time where all have one, else in their order.

    Where nothing is an error, a warning is a failure: a resize that never ends is one. Alternatives
    of one failure come together.
    """
    bad = [f for f in findings if f.severity >= Severity.ERROR]
    bad = bad or [f for f in findings if f.severity >= Severity.WARNING]
    if not bad:
        return None
    first = bad[0]
    if all(finding.time_ns is not None for finding in bad):
        first = min(bad, key=lambda finding: finding.time_ns or 0)
    if first.code in _SYMPTOMS:  # what caused it stands at the same place
        place = (first.conn, first.request)
        causes = (f for f in bad if (f.conn, f.request) == place and f.code not in _SYMPTOMS)
        first = next(causes, first) if first.request is not None else first
    if first.group is None:
        return [first]
    return [f for f in bad if f.group == first.group and f.sandbox == first.sandbox]


def headline(findings: Sequence[Finding]) -> str | None:
    """The headline of everything that was found; None where nothing failed."""
    guests = by_guest(findings)
    if not guests:
        return None
    sandbox, theirs = guests[0]
    first = first_failure(theirs)
    if first is None:
        return None
    lead = first[0]
    codes = " or ".join(dict.fromkeys(f.code for f in first))
    possibly = "possibly " if any(f.inferred for f in first) else ""
    when = "" if lead.time_ns is None else f" at {clock(lead.time_ns)}"
    whose = "" if sandbox is None else f" Guest {short(sandbox)}."
    followed = [
        f for f in theirs
        if f not in first and f.severity >= Severity.WARNING and f.code != OTHER_VMM
    ]  # fmt: skip
    names = list(dict.fromkeys(f"{f.code} {f.name}" for f in followed if f.code != lead.code))
    then = ""
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        then = f" Then: {', '.join(names[:_NAMED])}{more}."
    others = sum(first_failure(found) is not None for _, found in guests[1:])
    rest = f" {others} more guest{'s have' if others > 1 else ' has'} findings." if others else ""
    what = lead.what if lead.what.endswith(".") else f"{lead.what}."
    return (
        f"First failure{when}: {what} {possibly[:1].upper()}{possibly[1:]}{codes} {lead.name}, "
        f"{fault(lead.side)}.{whose}{then}{rest}"
    )


def short(sandbox: str) -> str:
    """A sandbox id as people write it: enough of it to be the only one."""
    return sandbox if len(sandbox) <= 20 else sandbox[:12]


def clock(time_ns: int) -> str:
    """A wall-clock time in RFC 3339, in UTC, to the millisecond."""
    return rfc3339(time_ns)[:23] + "Z"


def rfc3339(time_ns: int) -> str:
    """A wall-clock time in RFC 3339, in UTC, to the microsecond."""
    try:
        moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.fromtimestamp(0, UTC)
    micro = time_ns % 1_000_000_000 // 1000
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{micro:06d}Z"
