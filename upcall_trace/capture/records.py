"""The records of a `.upcap` file: what each holds, and how it is written and read.

A file is MAGIC and then frames: length (u32), CRC-32 of the payload seeded with that length (u32),
payload. A payload is one msgpack array that begins with the record's kind. Unknown kinds are
skipped by readers. Everything is bounded before it is unpacked. docs/capture-format.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from itertools import islice
from struct import Struct
from typing import Any, Final
from zlib import crc32

import msgpack

from ..errors import UpcallError

MAGIC: Final = b"\x89UPCAP\r\n"
FORMAT_VERSION: Final = 1
MAX_PAYLOAD: Final = 5 << 20
MAX_CHUNK: Final = 64 << 10
"""A longer send is recorded in pieces of this size, a multiple of the guest's receive size."""
FRAME: Final = Struct("<II")

_MAX_PARTS: Final = 64
_INT_LIMIT: Final = 1 << 63
TIME_LIMIT: Final = 1 << 62
"""Times stay within 146 years of 0, so that the difference of two fits in 64 bits."""
_MAX_NOTES: Final = 256
CONN_LIMIT: Final = 1 << 32
_ZERO_RUN: Final = re.compile(rb"\0{12,}")
_LIMITS: Final[dict[str, Any]] = {
    "max_array_len": 4096,
    "max_map_len": _MAX_NOTES,
    "max_str_len": MAX_PAYLOAD,
    "max_bin_len": MAX_PAYLOAD,
    "max_ext_len": 0,
    "strict_map_key": True,
    "use_list": True,
    "unicode_errors": "surrogatepass",
}


class Kind(IntEnum):
    """The first element of a payload. Numbers are never reused."""

    HEADER = 0
    OPEN = 1
    CHUNK = 2
    CLOSE = 3
    GAVE_UP = 4
    VMM = 5
    GAP = 6
    MARK = 7
    END = 8
    INDEX_ROWS = 9
    INDEX = 10
    TAIL = 11


class Begins(StrEnum):
    """What the recorded bytes of a connection begin with."""

    LINE = "line"
    SERVICE = "service"
    MIDDLE = "middle"
    OTHER = "other"


class How(StrEnum):
    """How a side ended a connection, or its half of it."""

    CLOSE = "close"
    HALF = "half"
    RESET = "reset"


class BadRecord(UpcallError, ValueError):
    """A payload that passed its checksum and still is not a record of the kind it claims."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first record: where, when, with what and of which guest this was recorded.

    `wall_ns` is the wall clock at `t_ns` 0, in nanoseconds since 1970, None when unknown;
    `resolution_ns` is the step of the clock behind `t_ns`, 0 when unknown. `notes` are the
    user's, or what a foreign format said about itself.
    """

    source: str
    tool: str = ""
    host: str = ""
    arch: str | None = None
    wall_ns: int | None = None
    resolution_ns: int = 0
    port: int = 219
    notes: dict[str, str] = field(default_factory=dict)
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Open:
    """A connection begins. `port` is what the guest's listener has, None until a line tells.

    `accepted` is known where no OK line crosses, inside the guest. `peer` is (pid, uid, gid).
    """

    t_ns: int
    conn: int
    begins: Begins = Begins.LINE
    port: int | None = None
    accepted: bool | None = None
    peer: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One receive, as it came."""

    t_ns: int
    conn: int
    to_guest: bool
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Close:
    """One side ended the connection."""

    t_ns: int
    conn: int
    by_guest: bool
    how: How = How.CLOSE


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The client waited `after_ns` for bytes that did not come, and stopped waiting."""

    t_ns: int
    conn: int
    after_ns: int


@dataclass(frozen=True, slots=True)
class Vmm:
    """The VMM's side did something that the guest cannot see on this channel."""

    t_ns: int
    action: str
    conn: int = 0


LEFT_OUT: Final = "left out on purpose"
DAMAGED: Final = "the file is damaged here"
CUT_OFF: Final = "cut off by the capture's packet size limit"
"""With this reason the missing bytes end the send that was recorded before."""


@dataclass(frozen=True, slots=True)
class Gap:
    """`size` bytes are not in the file.

    `conn` is 0 when it is not known of which connections: then `size` counts bytes of the file.
    `reason` is free text; with LEFT_OUT nothing was lost.
    """

    t_ns: int
    conn: int
    to_guest: bool
    size: int
    reason: str


COMMENT: Final = "comment"
"""The name of a mark that is only a remark; every other name is a user's own."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark or comment, added while recording or later.

    `wall_ns` is when it was made, 0 when that is not known. It is about an operation, a
    connection, or with neither about the capture.
    """

    wall_ns: int
    conn: int | None
    request: int | None
    name: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The recording was closed cleanly at `t_ns`."""

    t_ns: int


Record = Header | Open | Chunk | Close | GaveUp | Vmm | Gap | Mark | End

# A text from outside may hold lone surrogates; it comes back as it went in.
_packer = msgpack.Packer(use_bin_type=True, unicode_errors="surrogatepass")


def frame(payload: bytes) -> bytes:
    """`payload` with its length and checksum in front."""
    return FRAME.pack(len(payload), crc32(payload, len(payload))) + payload


def pack(values: list[Any]) -> bytes:
    """One msgpack payload. Not for two threads at once: the packer is shared."""
    packed: bytes = _packer.pack(values)
    return packed


def encode_chunk(t_ns: int, conn: int, to_guest: bool, received: bytes) -> bytes:
    """The frame of a `Chunk`, with its runs of zeros counted instead of stored."""
    parts: list[Any] = [int(Kind.CHUNK), t_ns, conn, to_guest]
    position = 0
    for run in _ZERO_RUN.finditer(received):
        begin, end = run.span()
        parts += (received[position:begin], end - begin)
        position = end
        if len(parts) > _MAX_PARTS:
            payload = pack([int(Kind.CHUNK), t_ns, conn, to_guest, received])
            return FRAME.pack(len(payload), crc32(payload, len(payload))) + payload
    if position < len(received) or not received:
        parts.append(received[position:])
    payload = pack(parts)
    return FRAME.pack(len(payload), crc32(payload, len(payload))) + payload


def encode(record: Record) -> bytes:
    """The frame of any record."""
    match record:
        case Chunk():
            return encode_chunk(record.t_ns, record.conn, record.to_guest, record.data)
        case Header():
            values: list[Any] = [
                Kind.HEADER, record.version, record.source, record.tool, record.host, record.arch,
                record.wall_ns, record.resolution_ns, record.port,
                dict(islice(record.notes.items(), _MAX_NOTES)),
            ]  # fmt: skip
        case Open():
            values = [Kind.OPEN, record.t_ns, record.conn, str(record.begins), record.port,
                      record.accepted, record.peer]  # fmt: skip
        case Close():
            values = [Kind.CLOSE, record.t_ns, record.conn, record.by_guest, str(record.how)]
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


def checked(record: Record) -> Record:
    """The record as a file would give it back; raises BadRecord for one that no file can hold."""
    try:
        found = decode(unpack(encode(record)[FRAME.size :]))
    except (AttributeError, TypeError, ValueError, OverflowError, UnboundLocalError) as error:
        raise BadRecord(f"no record: {error}") from None
    if found is None:
        raise BadRecord(f"no record but of type {type(record).__name__}")
    return found


def unpack(payload: bytes) -> list[Any]:
    """The values of a payload whose checksum was right; raises BadRecord."""
    try:
        values = msgpack.unpackb(payload, **_LIMITS)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadRecord(f"not a bounded msgpack array: {error}") from None
    if not isinstance(values, list) or not values or not isinstance(values[0], int):
        raise BadRecord("not an array that begins with a kind")
    return values


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
    parts: list[bytes] = []
    size = 0
    for part in values[4:]:
        if isinstance(part, int):
            size += part
            if part < 0 or size > MAX_CHUNK:
                raise ValueError("a run of zeros is too long")
            parts.append(bytes(part))
        else:
            size += len(_bytes(part))
            parts.append(part)
    return Chunk(_time(t_ns), _conn(conn), bool(to_guest), b"".join(parts))


def _header(values: list[Any]) -> Header:
    version, source, tool, host, arch, wall_ns, resolution_ns, port, notes = values[1:10]
    if type(notes) is not dict:
        raise TypeError("the notes are missing")
    return Header(
        source=_str(source),
        tool=_str(tool),
        host=_str(host),
        arch=None if arch is None else _str(arch),
        wall_ns=None if wall_ns is None else _int(wall_ns),
        resolution_ns=_int(resolution_ns),
        port=_int(port),
        notes={_str(key): _str(value) for key, value in notes.items()},
        version=_int(version),
    )


def _open(values: list[Any]) -> Open:
    t_ns, conn, begins, port, accepted, peer = values[1:7]
    if peer is not None and type(peer) is not list:
        raise TypeError("the peer is not a list")
    return Open(
        _time(t_ns),
        _conn(conn),
        Begins(begins),
        None if port is None else _int(port),
        None if accepted is None else bool(accepted),
        None if peer is None else (_int(peer[0]), _int(peer[1]), _int(peer[2])),
    )


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
    Kind.OPEN: _open,
    Kind.CHUNK: _chunk,
    Kind.CLOSE: lambda v: Close(_time(v[1]), _conn(v[2]), bool(v[3]), How(v[4])),
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
