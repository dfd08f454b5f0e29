"""Frames of a `.upcap` file: what every record is wrapped in, and the bounds of its payload.

A file is MAGIC and then frames: length (u32), CRC-32 of the payload seeded with that length (u32),
payload. A payload is one msgpack array that begins with the record's kind. Everything is bounded
before it is unpacked. docs/capture-format.md.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Any, Final
from zlib import crc32

import msgpack

from ..errors import UpcallError

MAGIC: Final = b"\x89UPCAP\r\n"
FORMAT_VERSION: Final = 2
MAX_PAYLOAD: Final = 5 << 20
FRAME: Final = Struct("<II")
MAX_NOTES: Final = 256

_LIMITS: Final[dict[str, Any]] = {
    "max_array_len": 4096,
    "max_map_len": MAX_NOTES,
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
    ORIGIN = 12
    SEEN = 13
    CARRY = 14
    SEGMENT = 15


class BadRecord(UpcallError, ValueError):
    """A payload that passed its checksum and still is not a record of the kind it claims."""


# A text from outside may hold lone surrogates; it comes back as it went in.
_packer = msgpack.Packer(use_bin_type=True, unicode_errors="surrogatepass")


def frame(payload: bytes) -> bytes:
    """`payload` with its length and checksum in front."""
    return FRAME.pack(len(payload), crc32(payload, len(payload))) + payload


def pack(values: list[Any]) -> bytes:
    """One msgpack payload. Not for two threads at once: the packer is shared."""
    packed: bytes = _packer.pack(values)
    return packed


def unpack(payload: bytes) -> list[Any]:
    """The values of a payload whose checksum was right; raises BadRecord."""
    try:
        values = msgpack.unpackb(payload, **_LIMITS)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadRecord(f"not a bounded msgpack array: {error}") from None
    if not isinstance(values, list) or not values or not isinstance(values[0], int):
        raise BadRecord("not an array that begins with a kind")
    return values
