"""Findings about random traffic, held against what the kernel model says really happened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.diagnose.random_traffic import (
    Part,
    Traffic,
    beginning_late,
    cut_short,
    damaged,
    ending_early,
    traffic,
    whole,
    with_gap,
    without_connection,
)
from upcall_trace.capture.records import Open
from upcall_trace.diagnose.engine import Diagnosis
from upcall_trace.diagnose.finding import Cause, Ref
from upcall_trace.diagnose.situation import Situation

_OTHERS = frozenset({"UP511", "UP512", "UP599", "UP603"})


LACKING: Final[dict[str, Callable[[Traffic, Random], Part]]] = {
    "nothing": whole,
    "its end": ending_early,
    "its beginning": beginning_late,
    "one receive": with_gap,
    "some records": damaged,
    "the ends of requests": cut_short,
    "one connection": without_connection,
}
"""What a recording may lack, in a few words."""
_FROM_THE_MIDDLE: Final = frozenset({"its beginning", "some records"})
"""Only a patient client's traffic can be understood then: replies carry no number, so with several
requests open nobody can tell which of them a reply is for."""
_STEPS: Final = 40


def is_cause(code: str) -> bool:
    """True for the codes that the kernel model gives as well."""
    return "UP201" <= code <= "UP504" or code in _OTHERS


class _Notes:
    """Notes which requests the diagnosis sees, by its own numbers."""

    def __init__(self) -> None:
        self.seen: list[Ref] = []

    def asked(self, at: Situation) -> None:
        self.seen.append(at.ref)

    def judged(self, at: Situation, causes: list[Cause]) -> None:
        pass

    def lost(self, at: Situation) -> None:
        pass


Codes = dict[Ref, set[str]]


def _codes() -> Codes:
    return defaultdict(set)


@dataclass(slots=True)
class Compared:
    """Causes by request, under the numbers that the whole recording gives them.

    A request that only the diagnosis believes in has a negative number.
    """

    made: Traffic
    certain: Codes = field(default_factory=_codes)
    inferred: Codes = field(default_factory=_codes)
    premature: Codes = field(default_factory=_codes)
    """Certain ones, found with a world before anything could show that a connection is missing."""

    def found(self, ref: Ref) -> set[str]:
        """Every cause that was found for a request."""
        return self.certain[ref] | self.inferred[ref] | self.premature[ref]

    def true(self, ref: Ref) -> set[str]:
        """What the model says of it."""
        return set(self.made.causes(ref)) if ref in self.made.truth else set()

    def wrong(self, certain: Codes) -> Codes:
        """Those of them that are not true."""
        wrong = {ref: codes - self.true(ref) for ref, codes in certain.items()}
        return {ref: codes for ref, codes in wrong.items() if codes}

    def different(self) -> Codes:
        """Codes of settled requests that only one side has."""
        different = {ref: self.found(ref) ^ self.true(ref) for ref in self.made.settled}
        return {ref: codes for ref, codes in different.items() if codes}

    def missed(self) -> dict[Ref, str]:
        """Decisive causes of settled requests that were not found at all."""
        decisive = {ref: self.made.causes(ref)[0] for ref in self.made.settled if self.true(ref)}
        return {ref: code for ref, code in decisive.items() if code not in self.found(ref)}


def compared(lacking: str, seed: int, with_world: bool) -> Compared | None:
    """Random traffic with that lack, diagnosed and compared; None where the lack cannot be."""
    rng = Random(seed)
    made = traffic(rng, rng.randint(1, _STEPS), patient=lacking in _FROM_THE_MIDDLE)
    if lacking == "one connection" and len(made.connections) < 2:
        return None
    part = LACKING[lacking](made, rng)
    diagnosis = Diagnosis(made.header, made.world if with_world else None)
    diagnosis.witness = notes = _Notes()
    names: dict[Ref, Ref] = {}
    compared = Compared(made)
    missing = set(made.connections) - {r.conn for r, _ in part if isinstance(r, Open)}
    unnoticed = min(missing, default=0) if with_world and lacking == "one connection" else 0
    for record, asked in [*part, (None, ())]:
        notes.seen.clear()
        findings = diagnosis.finish() if record is None else diagnosis.feed(record)
        names.update(zip(notes.seen, asked, strict=False))
        if unnoticed and record is not None and getattr(record, "conn", 0) > unnoticed:
            unnoticed = 0
        certain = compared.premature if unnoticed else compared.certain
        for finding in findings:
            if finding.conn and finding.request is not None and is_cause(finding.code):
                seen = Ref(finding.conn, finding.request)
                ref = names.get(seen, Ref(seen.conn, -1 - seen.request))
                (compared.inferred if finding.inferred else certain)[ref].add(finding.code)
    return compared
