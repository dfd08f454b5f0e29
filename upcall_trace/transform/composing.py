"""Captures made from captures: filtered, merged, split, recovered. Records go in and come out."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Sequence

from dissectors.constants import MESSAGE_SIZE
from dissectors.events import Event, RequestReceived

from ..capture.reader import CaptureReader
from ..capture.records import (
    DAMAGED,
    LEFT_OUT,
    TIME_LIMIT,
    Chunk,
    End,
    Gap,
    Header,
    Mark,
    Open,
    Record,
    Vmm,
)
from ..sources import Source
from ..trace.decoding import Session
from ..trace.filters import Mask
from ..trace.operations import ANOMALY_BIT, OTHER_SERVICE, Operations

_PIECES = sum(ANOMALY_BIT[name] for name in ("short-request", "split-request", "over-long-request"))


def all_records(source: Source) -> Iterator[Record]:
    """Every record of an open source but its end; what could not be read follows as gaps.

    So a capture that is made from a torn one does not claim to have everything.
    """
    last_ns = 0
    for _, record in source.records():
        if not isinstance(record, End):
            last_ns = getattr(record, "t_ns", last_ns)
            yield record
    has_told = isinstance(source, CaptureReader)  # of damage in the middle, where it stands
    for damage in source.damage:
        if damage.at_end or not has_told:
            yield Gap(last_ns, 0, False, damage.size, DAMAGED)


def distinct_connections(records: Iterable[Record]) -> list[Record]:
    """The records with a number of its own for each connection: one that is used again gets a new.

    Marks stay with the first one of a number.
    """
    kept = list(records)
    highest = max((getattr(record, "conn", None) or 0 for record in kept), default=0)
    seen: set[int] = set()
    renamed: dict[int, int] = {}
    for place, record in enumerate(kept):
        conn = getattr(record, "conn", None)
        if not conn or isinstance(record, (Mark, Header, End)):
            continue
        if isinstance(record, Open) and conn in seen:
            highest += 1
            renamed[conn] = highest
        seen.add(conn)
        if conn in renamed:
            kept[place] = dataclasses.replace(record, conn=renamed[conn])
    return kept


def keep_connections(records: Iterable[Record], conns: set[int]) -> Iterator[Record]:
    """The records of some connections, and those of none.

    Those are what the VMM did, marks without a connection, and gaps of which nobody knows whose
    bytes are missing.
    """
    for record in records:
        match record:
            case End():
                continue
            case Vmm() | Mark(conn=None) | Gap(conn=0):
                yield record
            case _ if getattr(record, "conn", None) in conns:
                yield record


def merge(sources: Sequence[tuple[Header, Iterable[Record]]]) -> tuple[Header, Iterator[Record]]:
    """One capture of several: times aligned by their wall clocks, connections renumbered.

    A capture that does not know its wall clock begins where the earliest one does.
    """
    walls = [header.wall_ns for header, _ in sources if header.wall_ns is not None]
    begin_ns = min(walls, default=None)
    arches = {header.arch for header, _ in sources} - {None}
    header = dataclasses.replace(
        sources[0][0],
        source="merge",
        arch=arches.pop() if len(arches) == 1 else None,
        wall_ns=begin_ns,
        resolution_ns=max(header.resolution_ns for header, _ in sources),
        notes={key: text for header, _ in reversed(sources) for key, text in header.notes.items()},
    )
    renumber = _Renumber()
    streams = []
    for place, (own, records) in enumerate(sources):
        shift = 0 if own.wall_ns is None or begin_ns is None else own.wall_ns - begin_ns
        streams.append(_shifted(records, place, shift))
    merged = heapq.merge(*streams, key=lambda item: item[0])
    return header, (renumber(place, record) for _, place, record in merged)


class _Renumber:
    """Gives each capture's connections numbers of their own, in the order they are opened."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}
        self._count = 0

    def __call__(self, place: int, record: Record) -> Record:
        conn = getattr(record, "conn", None)
        if not conn or isinstance(record, (Header, End)):
            return record
        key = (place, conn)
        if isinstance(record, Vmm):
            return dataclasses.replace(record, conn=self._numbers.get(key, 0))
        if key not in self._numbers or isinstance(record, Open):
            self._count += 1
            self._numbers[key] = self._count
        return dataclasses.replace(record, conn=self._numbers[key])


def _shifted(
    records: Iterable[Record], place: int, shift: int
) -> Iterator[tuple[int, int, Record]]:
    """(time, place, record) with times moved; marks, which have none, stay where they stand."""
    now = shift
    for record in records:
        if isinstance(record, (End, Header)):
            continue
        if not isinstance(record, Mark):
            t_ns = min(max(record.t_ns + shift, -TIME_LIMIT), TIME_LIMIT - 1)
            record = dataclasses.replace(record, t_ns=t_ns)
            # heapq.merge needs order; a clock that steps back keeps the file's order.
            now = max(now, record.t_ns)
        yield now, place, record


def with_dependencies(operations: Operations, mask: Mask) -> set[tuple[int, int]]:
    """(connection, request) of the operations in `mask` and of those they were executed over.

    The guest lays a request that arrives short over the one before (docs/protocol.md section 4).
    """
    conns = operations.column("conn").tolist()
    requests = operations.column("request").tolist()
    # How long another service's requests are is not known here; that one is not whole is.
    in_pieces = (operations.column("anomalies") & _PIECES) != 0
    other = (operations.column("layout") == OTHER_SERVICE) & ~in_pieces
    whole = ((operations.column("size") >= MESSAGE_SIZE) | other).tolist()
    wanted: set[tuple[int, int]] = set()
    needs_earlier: set[int] = set()
    for row in range(len(conns) - 1, -1, -1):
        conn = conns[row]
        if mask[row] or conn in needs_earlier:
            wanted.add((conn, requests[row]))
            (needs_earlier.discard if whole[row] else needs_earlier.add)(conn)
    return wanted


def keep_operations(
    header: Header, records: Iterable[Record], wanted: set[tuple[int, int]]
) -> Iterator[Record]:
    """The records of the operations in `wanted`, given as (connection, request).

    Connections keep their numbers, their handshake and their end; one without a wanted
    operation goes altogether. Requests keep their numbers too: what is left out between them
    becomes a `Gap` that says so.
    """
    session = Session(header)
    conns = {conn for conn, _ in wanted}
    for record in records:
        if not isinstance(record, Chunk) or record.conn not in conns:
            session.feed(record)
            yield from keep_connections([record], conns)
        elif record.to_guest:
            yield from _pieces(record, _requests(record, session.feed(record), wanted))
        else:
            awaited = session.awaited(record.conn, len(record.data))
            replies = _replies(record, awaited, wanted)
            session.feed(record)
            yield from _pieces(record, replies)


_Piece = tuple[bool, bytes]


def _requests(
    chunk: Chunk, events: Sequence[Event], wanted: set[tuple[int, int]]
) -> Iterator[_Piece]:
    position = 0
    for event in events:
        if isinstance(event, RequestReceived):
            yield True, chunk.data[position : event.position]
            position = event.position + event.size
            yield (chunk.conn, event.number) in wanted, chunk.data[event.position : position]
    yield True, chunk.data[position:]


def _replies(
    chunk: Chunk, awaited: Sequence[tuple[int, int]], wanted: set[tuple[int, int]]
) -> Iterator[_Piece]:
    position = 0
    for number, size in awaited:
        yield (chunk.conn, number) in wanted, chunk.data[position : position + size]
        position += size
    yield True, chunk.data[position:]


def _pieces(chunk: Chunk, pieces: Iterable[_Piece]) -> Iterator[Record]:
    """The kept pieces of a chunk, neighbours joined again, and a gap for each that is not."""
    kept = b""
    for keep, piece in pieces:
        if keep:
            kept += piece
        elif piece:
            if kept:
                yield dataclasses.replace(chunk, data=kept)
                kept = b""
            yield Gap(chunk.t_ns, chunk.conn, chunk.to_guest, len(piece), LEFT_OUT)
    if kept:
        yield dataclasses.replace(chunk, data=kept)
