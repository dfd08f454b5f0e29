"""How many CPUs and devices the guest has, reply by reply, as far as a recording tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ..capture.records import Header, Record
from .engine import Diagnosis
from .finding import Cause
from .ledger import Cpu, CpusOnline, Ledger, Mmio, Pci
from .situation import Situation

COUNTED: Final = ("CPUs added", "virtio-mmio devices", "PCI devices")


def counts_over_time(
    header: Header, records: Iterable[Record]
) -> Iterator[tuple[int, dict[str, int]]]:
    """(time since the first record, count of each of `COUNTED`) whenever one changed.

    What was there before the recording is not counted, but for aarch64, whose replies say how many
    CPUs are online.
    """
    diagnosis = Diagnosis(header)
    diagnosis.witness = counting = _Counting()
    last: dict[str, int] = {}
    first_ns: int | None = None
    for record in records:
        diagnosis.feed(record)
        t_ns: int | None = getattr(record, "t_ns", None)
        if first_ns is None:
            first_ns = t_ns
        if counting.changed and t_ns is not None:
            counting.changed = False
            counts = counting.counts()
            if counts != last:
                last = counts
                yield t_ns - (first_ns or 0), counts


class _Counting:
    """A witness of the diagnosis that keeps a ledger."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self.changed = False

    def asked(self, at: Situation) -> None:
        pass

    def judged(self, at: Situation, causes: list[Cause]) -> None:
        self._ledger.take(at, causes)
        self.changed = True

    def lost(self, at: Situation) -> None:
        self._ledger.take(at, (), answer_lost=True)
        self.changed = True

    def counts(self) -> dict[str, int]:
        present = self._ledger.present
        counted = self._ledger.entries.get(CpusOnline())
        online = counted.thing.count if counted and isinstance(counted.thing, CpusOnline) else None
        cpus = present[Cpu] if online is None else online
        return dict(zip(COUNTED, (cpus, present[Mmio], present[Pci]), strict=True))
