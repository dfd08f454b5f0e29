"""A recording changed: operations left out, moved, written anew. Records in, records out; no IO.

A recording is taken apart into pieces, each a record or the part of one that belongs to an
operation. What is left is put together again and read once more: requests then have other numbers,
and it shows whether every reply still answers its own request. docs/diff-edit-minimise.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from dissectors.events import RequestReceived

from ..capture.records import LEFT_OUT, Chunk, End, Gap, GaveUp, Header, Mark, Record, Vmm
from ..compare.matchers import MARK, MatchRule
from ..compare.replies import request_values
from ..errors import WrongUsage
from ..trace.decoding import Session
from ..trace.operation_table import NoTable
from ..trace.script import Key, Script
from ..trace.scripting import read_script
from ..views.messages import request_text
from .fields import Setting, set_in_reply, set_in_request

EDITED_FROM: Final = "edited-from"
"""The note of a capture that was made by editing another one."""


@dataclass(frozen=True, slots=True)
class Move:
    """An operation goes right behind another one, or with `before` in front of it."""

    key: Key
    anchor: Key
    before: bool = False


@dataclass(frozen=True, slots=True)
class Edits:
    """What to change; every key means an operation of the recording as it was.

    `kept` are the only operations left, None for all. `answers` are bytes of new replies, None for
    silence. `without` are VMM records to leave out, counted from 0. The order of moves and of
    settings counts, nothing else's.
    """

    dropped: Collection[Key] = ()
    kept: Collection[Key] | None = None
    moves: Sequence[Move] = ()
    settings: Sequence[tuple[Key, Setting]] = ()
    matchers: Sequence[tuple[Key, tuple[MatchRule, ...]]] = ()
    answers: Mapping[Key, bytes | None] = field(default_factory=dict)
    without: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Edited:
    """The changed recording. `numbers` gives operations that are left their new numbers, and
    `remarks` tell what became of them without being asked for."""

    records: list[Record]
    numbers: dict[Key, Key]
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A record, or a part of the `origin`-th one, and the operation that it is of."""

    record: Record
    origin: int
    key: Key | None = None

    @property
    def asks(self) -> bool:
        return self.key is not None and isinstance(self.record, Chunk) and self.record.to_guest


def edit(header: Header, records: Sequence[Record], edits: Edits) -> Edited:
    """Do it all; raises WrongUsage when an operation is not there, or the result makes no sense."""
    script = read_script(header, records)
    records = [record for record in records if not isinstance(record, End)]
    for key in _named(edits):
        if key not in script.asked:
            raise WrongUsage(f"there is no operation {key[0]}.{key[1]}")
    pieces = list(_apart(header, records))
    pieces = _rewrite(pieces, script, edits)
    for move in edits.moves:
        pieces = _move(pieces, move)
    pieces = _leave_out(pieces, script, edits)
    traffic = _together(pieces)
    after = read_script(header, traffic)
    numbers = _numbers(pieces, header, traffic)
    _check_replies(pieces, after, numbers)
    changed = {key for key, setting in edits.settings if setting.of_request}
    remarks = list(_other_meanings(script, after, numbers, changed))
    marks = [
        Mark(0, *key, MARK, " ".join(map(str, rules)))
        for key, rules in edits.matchers
        if key in numbers
    ]
    left = [new for record in (*traffic, *marks) for new in _renumbered(record, numbers)]
    return Edited(left, numbers, remarks)


def _named(edits: Edits) -> Iterator[Key]:
    yield from edits.dropped
    yield from edits.kept or ()
    for move in edits.moves:
        yield from (move.key, move.anchor)
    yield from (key for key, _ in edits.settings)
    yield from (key for key, _ in edits.matchers)


def _apart(header: Header, records: Iterable[Record]) -> Iterator[_Piece]:
    session = Session(header, NoTable())
    unanswered: dict[int, list[int]] = {}
    for origin, record in enumerate(records):
        match record:
            case Chunk(conn=conn, to_guest=True):
                begin = 0
                for event in session.feed(record):
                    if isinstance(event, RequestReceived):
                        unanswered.setdefault(conn, []).append(event.number)
                        yield from _part(record, origin, begin, event.position, None)
                        begin = event.position + event.size
                        yield from _part(
                            record, origin, event.position, begin, (conn, event.number)
                        )
                yield from _part(record, origin, begin, len(record.data), None)
            case Chunk(conn=conn):
                begin = 0
                for number, size in session.awaited(conn, len(record.data)):
                    key = (conn, number) if number >= 0 else None
                    yield from _part(record, origin, begin, begin + size, key)
                    if begin + size <= len(record.data) and number in unanswered.get(conn, ()):
                        unanswered[conn].remove(number)
                    begin += size
                yield from _part(record, origin, begin, len(record.data), None)
                session.feed(record)
            case GaveUp(conn=conn) if unanswered.get(conn):
                session.feed(record)
                yield _Piece(record, origin, (conn, unanswered[conn][0]))
            case _:
                session.feed(record)
                yield _Piece(record, origin)


def _part(chunk: Chunk, origin: int, begin: int, end: int, key: Key | None) -> Iterator[_Piece]:
    if chunk.data[begin:end]:
        yield _Piece(replace(chunk, data=chunk.data[begin:end]), origin, key)


def _rewrite(pieces: Sequence[_Piece], script: Script, edits: Edits) -> list[_Piece]:
    """The same pieces with other bytes in them."""
    requests: dict[Key, bytes] = {}
    replies: dict[Key, bytes | None] = {
        key: raw for key, raw in edits.answers.items() if raw != script.asked[key].reply_raw
    }
    for at, setting in edits.settings:
        asked = script.asked[at]
        where = f"{at[0]}.{at[1]}"
        if setting.of_request:
            asked = replace(asked, raw=requests.get(at, asked.raw))
            requests[at] = set_in_request(where, asked, setting, script.header.arch)
        else:
            asked = replace(asked, reply_raw=replies.get(at, asked.reply_raw) or b"")
            replies[at] = set_in_reply(where, asked, setting)
    done: list[_Piece] = []
    answered: set[Key] = set()
    for piece in pieces:
        key, record = piece.key, piece.record
        if key is None or not isinstance(record, Chunk):
            done.append(piece)
        elif piece.asks:
            raw = requests.get(key, record.data)[: len(record.data)]
            done.append(replace(piece, record=replace(record, data=raw)))
            if key in replies and not script.asked[key].reply_raw:
                raw = replies[key] or b""
                done += _part(replace(record, to_guest=False, data=raw), -1, 0, len(raw), key)
        elif key not in replies:
            done.append(piece)
        elif key not in answered:  # the whole reply comes where its first piece came
            answered.add(key)
            raw = replies[key] or b""
            done += _part(replace(record, data=raw), -1, 0, len(raw), key)
    return done


def _move(pieces: list[_Piece], move: Move) -> list[_Piece]:
    """The pieces of an operation elsewhere; what follows there comes so much later."""
    if move.key == move.anchor:
        raise WrongUsage(f"{move.key[0]}.{move.key[1]} cannot be moved to itself")
    moved = [piece for piece in pieces if piece.key == move.key]
    rest = [piece for piece in pieces if piece.key != move.key]
    places = [place for place, piece in enumerate(rest) if piece.key == move.anchor]
    at = places[0] if move.before else places[-1] + 1
    beside = rest[places[0] if move.before else places[-1]]
    begin, first, last = _time(beside), _time(moved[0]), _time(moved[-1])
    put = [
        replace(
            piece,
            record=_at(piece.record, begin + _time(piece) - first, move.anchor[0]),
            origin=-1,
        )
        for piece in moved
    ]
    later = [
        replace(piece, record=_at(piece.record, _time(piece) + last - first)) for piece in rest[at:]
    ]
    return [*rest[:at], *put, *later]


def _time(piece: _Piece) -> int:
    t_ns: int = getattr(piece.record, "t_ns", 0)
    return t_ns


def _at(record: Record, t_ns: int, conn: int | None = None) -> Record:
    if isinstance(record, Chunk | GaveUp) and conn is not None:
        return replace(record, t_ns=t_ns, conn=conn)
    return record if isinstance(record, Header | Mark) else replace(record, t_ns=t_ns)


def _leave_out(pieces: Iterable[_Piece], script: Script, edits: Edits) -> list[_Piece]:
    """Without dropped operations, what was left out of the recording before, and connections
    that have no operation any more."""
    gone = set(edits.dropped)
    if edits.kept is not None:
        gone |= set(script.asked) - set(edits.kept)
    left = [piece for piece in pieces if piece.key not in gone or piece.key is None]
    used = {piece.record.conn for piece in left if piece.key and isinstance(piece.record, Chunk)}
    had = {conn for conn, _ in script.asked}
    over = had - used
    if edits.kept is not None:
        over |= {conn for p in left if (conn := getattr(p.record, "conn", None))} - used
    actions = count()

    def stays(piece: _Piece) -> bool:
        match piece.record:
            case Vmm():  # the VMM did it, whatever became of the connection
                return next(actions) not in edits.without
            case Gap(reason=reason) if reason == LEFT_OUT:
                return False
            case Mark(request=int()):
                return True
        return getattr(piece.record, "conn", None) not in over

    return [piece for piece in left if stays(piece)]


def _together(pieces: Iterable[_Piece]) -> list[Record]:
    """Records again; neighbours that were one send or receive are one."""
    records: list[Record] = []
    origin = -1
    for piece in pieces:
        record = piece.record
        last = records[-1] if records else None
        if isinstance(record, Chunk) and isinstance(last, Chunk) and piece.origin == origin >= 0:
            records[-1] = replace(last, data=last.data + record.data)
        else:
            records.append(record)
        origin = piece.origin
    return records


def _numbers(pieces: Iterable[_Piece], header: Header, records: Sequence[Record]) -> dict[Key, Key]:
    """Old number -> new number of every operation that is left."""
    old = [piece.key for piece in pieces if piece.asks]
    new = [piece.key for piece in _apart(header, records) if piece.asks]
    if len(old) != len(new):
        raise WrongUsage("what is left cannot be read any more: a connection's beginning is gone")
    return {was: now for was, now in zip(old, new, strict=True) if was and now}


def _check_replies(pieces: Iterable[_Piece], after: Script, numbers: Mapping[Key, Key]) -> None:
    replies: dict[Key, bytes] = {}
    for piece in pieces:
        key = piece.key
        if key and key in numbers and not piece.asks and isinstance(piece.record, Chunk):
            replies[key] = replies.get(key, b"") + piece.record.data
    for old, new in numbers.items():
        if after.asked[new].reply_raw != replies.get(old, b"") and after.asked[new].reply_raw:
            raise WrongUsage(
                f"{old[0]}.{old[1]} would be taken to be answered by another one's reply: "
                f"nothing that is answered can follow on its connection"
            )


def _other_meanings(
    before: Script, after: Script, numbers: Mapping[Key, Key], changed: Collection[Key]
) -> Iterator[str]:
    for old, new in numbers.items():
        was, now = before.asked[old].message, after.asked[new].message
        if old not in changed and request_values(was) != request_values(now):
            yield (
                f"{old[0]}.{old[1]} is executed over other bytes than before: it was "
                f"{request_text(was)}, and is {request_text(now)} now"
            )


def _renumbered(record: Record, numbers: Mapping[Key, Key]) -> Iterator[Record]:
    """Marks go with their operations."""
    if isinstance(record, Mark) and record.conn is not None and record.request is not None:
        new = numbers.get((record.conn, record.request))
        if new is not None:
            yield replace(record, conn=new[0], request=new[1])
    else:
        yield record


def in_order(script: Script, first: Key, last: Key) -> list[Key]:
    """The operations from one to another, in the order in which they were sent.

    Raises WrongUsage when one of them is not there, or the last one comes first.
    """
    for key in (first, last):
        if key not in script.asked:
            raise WrongUsage(f"there is no operation {key[0]}.{key[1]}")
    begin, end = script.asked[first].place, script.asked[last].place
    if begin > end:
        raise WrongUsage(
            f"{first[0]}.{first[1]} was sent after {last[0]}.{last[1]}: name the first one first"
        )
    return [key for key, asked in script.asked.items() if begin <= asked.place <= end]
