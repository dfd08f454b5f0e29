"""Records as frames: how each is written and read.

Readers skip kinds that they do not know, and ignore values behind those that they do.
docs/capture-format.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any, Final
from zlib import crc32

from .frames import FRAME, MAX_NOTES, BadRecord, Kind, frame, pack, unpack
from .records import (
    CONN_LIMIT,
    MAX_CHUNK,
    TIME_LIMIT,
    Begins,
    Carry,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Origin,
    Record,
    Vmm,
)

_MAX_PARTS: Final = 64
_INT_LIMIT: Final = 1 << 63
_COUNTED: Final = 12
_ZEROS: Final = bytes(_COUNTED)
_REST_SIZE: Final = 960
_REST: Final = bytes(_REST_SIZE)
"""What nearly every message of 1024 bytes ends with."""
_ZERO_RUN: Final = re.compile(rb"\0{12,}")


def encode_chunk(
    t_ns: int, conn: int, to_guest: bool, received: bytes, uncertainty_ns: int = 0
) -> bytes:
    """The frame of a `Chunk`, with its runs of zeros counted instead of stored."""
    head: list[Any] = [int(Kind.CHUNK), t_ns, conn, to_guest]
    if uncertainty_ns:
        head = [int(Kind.SEEN), t_ns, uncertainty_ns, conn, to_guest]
    payload = pack(head + _parts(received))
    return FRAME.pack(len(payload), crc32(payload, len(payload))) + payload


def literal_of(block: bytes, begin: int, end: int) -> bytes:
    """What stands there in a block, without the zeros at its end."""
    # To look for the last byte from the end takes longer than all the rest of this.
    usual = end - _REST_SIZE if block.endswith(_REST, begin, end) else end
    return block[begin:usual].rstrip(b"\0")


def _parts(received: bytes) -> list[Any]:
    literal = literal_of(received, 0, len(received))
    zeros = len(received) - len(literal)
    if zeros >= _COUNTED and literal and _ZEROS not in literal:  # nearly every message
        return [literal, zeros]
    parts: list[Any] = []
    position = 0
    for run in _ZERO_RUN.finditer(received):
        begin, end = run.span()
        parts += (received[position:begin], end - begin)
        position = end
        if len(parts) > _MAX_PARTS:
            return [received]
    if position < len(received) or not received:
        parts.append(received[position:])
    return parts


def encode(record: Record) -> bytes:
    """The frame of any record."""
    match record:
        case Chunk():
            return encode_chunk(
                record.t_ns, record.conn, record.to_guest, record.data, record.uncertainty_ns
            )
        case Header():
            values: list[Any] = [
                Kind.HEADER, record.version, record.source, record.tool, record.host, record.arch,
                record.wall_ns, record.resolution_ns, record.port,
                _notes(record.notes), record.recording, record.part,
                record.sandbox,
            ]  # fmt: skip
        case Origin():
            values = [Kind.ORIGIN, record.t_ns, record.number, record.kind, record.name,
                      record.sandbox, _notes(record.notes)]  # fmt: skip
        case Open():
            values = [Kind.OPEN, record.t_ns, record.conn, str(record.begins), record.port,
                      record.accepted, record.peer, record.source]  # fmt: skip
        case Carry():
            values = [Kind.CARRY, record.t_ns, record.conn, str(record.begins), record.port,
                      record.accepted, record.peer, record.source]  # fmt: skip
        case Close():
            values = [Kind.CLOSE, record.t_ns, record.conn, record.by_guest, str(record.how),
                      record.reason]  # fmt: skip
        case GaveUp():
            values = [Kind.GAVE_UP, record.t_ns, record.conn, record.after_ns]
        case Vmm():
            values = [Kind.VMM, record.t_ns, record.action, record.conn]
        case Gap():
            values = [Kind.GAP, record.t_ns, record.conn, record.to_guest, record.size,
                      record.reason]  # fmt: skip
        case Mark():
            values = [Kind.MARK, record.wall_ns, record.conn, record.request, record.name,
                      record.text]  # fmt: skip
        case End():
            values = [Kind.END, record.t_ns]
    values[0] = int(values[0])
    return frame(pack(values))


def _notes(notes: dict[str, str]) -> dict[str, str]:
    return dict(islice(notes.items(), MAX_NOTES))


def checked(record: Record) -> Record:
    """The record as a file would give it back; raises BadRecord for one that no file can hold."""
    try:
        found = decode(unpack(encode(record)[FRAME.size :]))
    except (AttributeError, TypeError, ValueError, OverflowError, UnboundLocalError) as error:
        raise BadRecord(f"no record: {error}") from None
    if found is None:
        raise BadRecord(f"no record but of type {type(record).__name__}")
    return found


def decode(values: list[Any]) -> Record | None:
    """The record of unpacked values; None for a kind that is unknown or not a record of traffic.

    Values beyond those of this version are ignored. Raises BadRecord.
    """
    decoder = _DECODERS.get(values[0])
    if decoder is None:
        return None
    try:
        return decoder(values)
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        raise BadRecord(f"kind {values[0]}: {error}") from None


def _chunk(values: list[Any]) -> Chunk:
    t_ns, conn, to_guest, first = values[1:5]
    if len(values) == 5:
        return Chunk(_time(t_ns), _conn(conn), bool(to_guest), _bytes(first))
    if len(values) == 6:  # one literal and its zeros: nearly every message
        zeros = values[5]
        if not 0 <= zeros <= MAX_CHUNK:
            raise ValueError("a run of zeros is too long")
        return Chunk(_time(t_ns), _conn(conn), bool(to_guest), _bytes(first) + bytes(zeros))
    return Chunk(_time(t_ns), _conn(conn), bool(to_guest), _joined(values[4:]))


def _seen(values: list[Any]) -> Chunk:
    t_ns, uncertainty_ns, conn, to_guest = values[1:5]
    joined = _joined(values[5:])
    return Chunk(_time(t_ns), _conn(conn), bool(to_guest), joined, _size(uncertainty_ns))


def _joined(values: list[Any]) -> bytes:
    parts: list[bytes] = []
    size = 0
    for part in values:
        if isinstance(part, int):
            size += part
            if part < 0 or size > MAX_CHUNK:
                raise ValueError("a run of zeros is too long")
            parts.append(bytes(part))
        else:
            size += len(_bytes(part))
            parts.append(part)
    return b"".join(parts)


def _header(values: list[Any]) -> Header:
    version, source, tool, host, arch, wall_ns, resolution_ns, port, notes = values[1:10]
    # Version 1 ends with the notes.
    recording, part, sandbox = values[10:13] if len(values) >= 13 else ("", 0, None)
    return Header(
        source=_str(source),
        tool=_str(tool),
        host=_str(host),
        arch=None if arch is None else _str(arch),
        wall_ns=None if wall_ns is None else _int(wall_ns),
        resolution_ns=_int(resolution_ns),
        port=_int(port),
        notes=_read_notes(notes),
        recording=_str(recording),
        part=_size(part),
        sandbox=None if sandbox is None else _str(sandbox),
        version=_int(version),
    )


def _read_notes(notes: object) -> dict[str, str]:
    if type(notes) is not dict:
        raise TypeError("the notes are missing")
    return {_str(key): _str(value) for key, value in notes.items()}


def _origin(values: list[Any]) -> Origin:
    t_ns, number, kind, name, sandbox, notes = values[1:7]
    sandbox = None if sandbox is None else _str(sandbox)
    named = _read_notes(notes)
    return Origin(_time(t_ns), _size(number), _str(kind), _str(name), sandbox, named)


def _open(values: list[Any]) -> Open:
    return Open(*_opened(values))


def _carry(values: list[Any]) -> Carry:
    return Carry(*_opened(values))


def _opened(values: list[Any]) -> tuple[Any, ...]:
    t_ns, conn, begins, port, accepted, peer = values[1:7]
    if peer is not None and type(peer) is not list:
        raise TypeError("the peer is not a list")
    return (
        _time(t_ns),
        _conn(conn),
        Begins(begins),
        None if port is None else _int(port),
        None if accepted is None else bool(accepted),
        None if peer is None else (_int(peer[0]), _int(peer[1]), _int(peer[2])),
        _size(values[7]) if len(values) > 7 else 0,
    )


def _close(values: list[Any]) -> Close:
    t_ns, conn, by_guest, how = values[1:5]
    reason = _str(values[5]) if len(values) > 5 else ""
    return Close(_time(t_ns), _conn(conn), bool(by_guest), How(how), reason)


def _mark(values: list[Any]) -> Mark:
    wall_ns, conn, request, name, text = values[1:6]
    return Mark(
        _int(wall_ns),
        None if conn is None else _conn(conn),
        None if request is None else _int(request),
        _str(name),
        _str(text),
    )


_DECODERS: Final[dict[int, Callable[[list[Any]], Record]]] = {
    Kind.HEADER: _header,
    Kind.ORIGIN: _origin,
    Kind.OPEN: _open,
    Kind.CARRY: _carry,
    Kind.CHUNK: _chunk,
    Kind.SEEN: _seen,
    Kind.CLOSE: _close,
    Kind.GAVE_UP: lambda v: GaveUp(_time(v[1]), _conn(v[2]), _int(v[3])),
    Kind.VMM: lambda v: Vmm(_time(v[1]), _str(v[2]), _conn(v[3])),
    Kind.GAP: lambda v: Gap(_time(v[1]), _conn(v[2]), bool(v[3]), _size(v[4]), _str(v[5])),
    Kind.MARK: _mark,
    Kind.END: lambda v: End(_time(v[1])),
}


def _int(value: object) -> int:
    if type(value) is not int:
        raise TypeError("a number is missing")
    if not -_INT_LIMIT <= value < _INT_LIMIT:
        raise ValueError("a number is out of range")
    return value


def _time(value: object) -> int:
    if type(value) is not int:
        raise TypeError("a time is missing")
    if not -TIME_LIMIT <= value < TIME_LIMIT:
        raise ValueError("a time is out of range")
    return value


def _size(value: object) -> int:
    size = _int(value)
    if size < 0:
        raise ValueError("a size is negative")
    return size


def _conn(value: object) -> int:
    if type(value) is not int:
        raise TypeError("a connection's number is missing")
    if not 0 <= value < CONN_LIMIT:
        raise ValueError("a connection's number is out of range")
    return value


def _str(value: object) -> str:
    if type(value) is not str:
        raise TypeError("a text is missing")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise TypeError("bytes are missing")
    return value
