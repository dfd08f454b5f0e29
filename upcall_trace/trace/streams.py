"""A capture's records as streams: all of them, those of some connections, numbers made distinct."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from dissectors.constants import MESSAGE_SIZE

from ..capture.reader import CaptureReader
from ..capture.records import DAMAGED, End, Gap, Header, Mark, Open, Origin, Record, Vmm
from ..capture.runs import MessageRun
from ..sources import Source, open_source
from .operations import ANOMALY_BIT, Operations

if TYPE_CHECKING:
    from .filters import Mask

_PROGRESS_EVERY = 4096
_PIECES = sum(ANOMALY_BIT[name] for name in ("short-request", "split-request", "over-long-request"))


def in_bulk(source: Source) -> Iterator[tuple[int, Record | MessageRun]]:
    """The records of a source, whole messages as runs where it can give them."""
    reads = getattr(source, "runs", None)
    return source.records() if reads is None else reads(MESSAGE_SIZE)


def is_progress(count: int, item: Record | MessageRun) -> bool:
    """Whether it is time to tell of progress, at the `count`-th item of `in_bulk`."""
    return isinstance(item, MessageRun) or count % _PROGRESS_EVERY == 0


def all_records(source: Source) -> Iterator[Record]:
    """Every record of an open source but its end; what could not be read follows as gaps.

    So a capture that is made from a torn one does not claim to have everything.
    """
    return cast(Iterator[Record], _but_the_end(source, source.records()))


def all_in_bulk(source: Source) -> Iterator[Record | MessageRun]:
    """The same, whole messages as runs where the source can give them."""
    return _but_the_end(source, in_bulk(source))


def _but_the_end(
    source: Source, items: Iterator[tuple[int, Record | MessageRun]]
) -> Iterator[Record | MessageRun]:
    last_ns = 0
    for _, item in items:
        if not isinstance(item, End):
            last_ns = _time_of(item, last_ns)
            yield item
    has_told = isinstance(source, CaptureReader)  # of damage in the middle, where it stands
    for damage in source.damage:
        if damage.at_end or not has_told:
            yield Gap(last_ns, 0, False, damage.size, DAMAGED)


def _time_of(item: Record | MessageRun, last_ns: int) -> int:
    """When a record was made, or the last one of a run; `last_ns` for one without a time."""
    t_ns: int = item.t_ns[-1] if isinstance(item, MessageRun) else getattr(item, "t_ns", last_ns)
    return int(t_ns)


def distinct_connections(records: Iterable[Record]) -> list[Record]:
    """The records with a number of its own for each connection: one that is used again gets a new.

    Marks stay with the first one of a number.
    """
    kept = list(records)
    return cast(list[Record], list(_distinct(kept, lambda: kept)))


def distinct_records(path: Path, source: Source) -> Iterator[Record | MessageRun]:
    """The same of the records of an open source, in bulk and without holding them.

    `path` is where it is. The file is read a second time when a number is used again: only then it
    counts which there are.
    """

    def again() -> Iterator[Record | MessageRun]:
        with open_source(path) as other:
            yield from (item for _, item in in_bulk(other))

    return _distinct((item for _, item in in_bulk(source)), again)


def _distinct(
    items: Iterable[Record | MessageRun], again: Callable[[], Iterable[Record | MessageRun]]
) -> Iterator[Record | MessageRun]:
    """`again` gives all of the records once more."""
    highest: int | None = None
    seen: set[int] = set()
    renamed: dict[int, int] = {}
    for item in items:
        if isinstance(item, MessageRun):
            conns = np.unique(item.conn).tolist()
            seen.update(conns)
            yield _renumbered(item, {conn: renamed[conn] for conn in conns if conn in renamed})
            continue
        conn = getattr(item, "conn", None)
        if conn and not isinstance(item, (Mark, Header, Origin, End)):
            if conn in seen and isinstance(item, Open):
                if highest is None:
                    highest = max((_highest(each) for each in again()), default=0)
                highest += 1
                renamed[conn] = highest
            seen.add(conn)
            if conn in renamed:
                item = dataclasses.replace(item, conn=renamed[conn])
        yield item


def _highest(item: Record | MessageRun) -> int:
    if isinstance(item, MessageRun):
        return int(item.conn.max())
    return getattr(item, "conn", None) or 0


def _renumbered(run: MessageRun, renamed: dict[int, int]) -> MessageRun:
    if not renamed:
        return run
    conns = run.conn.copy()
    for old, new in renamed.items():
        conns[run.conn == old] = new
    return dataclasses.replace(run, conn=conns)


def keep_connections(records: Iterable[Record], conns: set[int]) -> Iterator[Record]:
    """The records of some connections, and those of none.

    Those are what the VMM did, marks without a connection, and gaps of which nobody knows whose
    bytes are missing.
    """
    for record in records:
        match record:
            case End():
                continue
            case Origin() | Vmm() | Mark(conn=None) | Gap(conn=0):
                yield record
            case _ if getattr(record, "conn", None) in conns:
                yield record


def with_dependencies(operations: Operations, mask: Mask) -> set[tuple[int, int]]:
    """(connection, request) of the operations in `mask` and of those they were executed over.

    The guest lays a request that arrives short over the one before (docs/protocol.md section 4).
    """
    conns = operations.column("conn").tolist()
    requests = operations.column("request").tolist()
    # How long another service's requests are is not known here; that one is not whole is.
    in_pieces = (operations.column("anomalies") & _PIECES) != 0
    other = ~operations.ours() & ~in_pieces
    whole = ((operations.column("size") >= MESSAGE_SIZE) | other).tolist()
    wanted: set[tuple[int, int]] = set()
    needs_earlier: set[int] = set()
    for row in range(len(conns) - 1, -1, -1):
        conn = conns[row]
        if mask[row] or conn in needs_earlier:
            wanted.add((conn, requests[row]))
            (needs_earlier.discard if whole[row] else needs_earlier.add)(conn)
    return wanted
