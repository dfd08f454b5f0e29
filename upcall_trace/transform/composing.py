"""Captures made from captures: filtered, merged, split, recovered. Records go in and come out."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Sequence

from dissectors.events import Event, RequestReceived

from ..capture.records import (
    LEFT_OUT,
    TIME_LIMIT,
    Chunk,
    End,
    Gap,
    Header,
    Mark,
    Open,
    Origin,
    Record,
    Vmm,
)
from ..kernel.noted_world import WORLD
from ..trace.decoding import Session
from ..trace.streams import keep_connections

_ORIGIN_BITS = 32


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
        notes=_merged_notes([header for header, _ in sources]),
    )
    renumber = _Renumber()
    streams = []
    for place, (own, records) in enumerate(sources):
        shift = 0 if own.wall_ns is None or begin_ns is None else own.wall_ns - begin_ns
        streams.append(_shifted(records, place, shift))
    merged = heapq.merge(*streams, key=lambda item: item[0])
    return header, (renumber(place, record) for _, place, record in merged)


def _merged_notes(headers: Sequence[Header]) -> dict[str, str]:
    """All notes, the first one of each key; of guests that booted otherwise no world is kept."""
    notes = {key: text for header in reversed(headers) for key, text in header.notes.items()}
    if len({header.notes.get(WORLD) for header in headers}) > 1:
        notes.pop(WORLD, None)
    return notes


class _Renumber:
    """Gives each capture's connections numbers of their own, in the order they are opened."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}
        self._count = 0

    def __call__(self, place: int, record: Record) -> Record:
        # Each capture has origins of its own; those of the first keep their numbers.
        if isinstance(record, Origin):
            return dataclasses.replace(record, number=record.number + (place << _ORIGIN_BITS))
        if isinstance(record, Open) and record.source:
            record = dataclasses.replace(record, source=record.source + (place << _ORIGIN_BITS))
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
