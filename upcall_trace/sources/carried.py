"""Records inside the comments of a pcapng file that this program wrote.

A comment that begins with `CARRIED` is one record of the capture, in base64; where that is longer
than a comment may be, those that begin with `CONTINUED` follow. A packet whose comments carry one
was made from it. `DERIVED` marks a packet that is no record itself. docs/formats.md.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable
from typing import Final

import msgpack

from ..capture.encoding import decode, encode
from ..capture.frames import FRAME, MAX_PAYLOAD, BadRecord, unpack
from ..capture.records import Record

PROGRAM: Final = "upcall-trace"
"""How the name of the writing program begins in the section's header."""
CARRIED: Final = "upcall-trace record: "
CONTINUED: Final = "upcall-trace record goes on: "
CONNECTION: Final = "upcall-trace connection: "
"""With the number that the connection has in the capture; on its first packet."""
DERIVED: Final = "upcall-trace: made from a record"
_LONGEST: Final = MAX_PAYLOAD * 4 // 3 + 64
COMMENT_LIMIT: Final = 65_535
"""Bytes of a comment: pcapng counts them with 16 bits."""
_PIECE: Final = COMMENT_LIMIT - len(CONTINUED)


def carry(record: Record) -> list[str]:
    """The comments that hold `record`, to be kept in their order."""
    text = b64encode(encode(record)[FRAME.size :]).decode("ascii")
    begins = [CARRIED, *[CONTINUED] * (len(text) // _PIECE)]
    return [begin + text[n * _PIECE : (n + 1) * _PIECE] for n, begin in enumerate(begins)]


def carried(comments: Iterable[str]) -> list[Record]:
    """The records in `comments`; one that is damaged is left out."""
    whole: list[list[str]] = []
    for text in comments:
        if text.startswith(CARRIED):
            whole.append([text.removeprefix(CARRIED)])
        elif text.startswith(CONTINUED) and whole:
            whole[-1].append(text.removeprefix(CONTINUED))
    found = []
    for pieces in whole:
        if sum(map(len, pieces)) < _LONGEST:
            try:
                record = decode(unpack(b64decode("".join(pieces), validate=True)))
            except (NotBase64, BadRecord, ValueError, msgpack.UnpackException):
                continue
            if record is not None:
                found.append(record)
    return found


def connection_of(comments: Iterable[str]) -> int | None:
    """The number of the connection that begins here, when a comment tells it."""
    for text in comments:
        number = text.removeprefix(CONNECTION)
        if number != text and number.isdecimal() and len(number) < 11:
            return int(number)
    return None
