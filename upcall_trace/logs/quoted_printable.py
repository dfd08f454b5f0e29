"""Lines of a mail that was saved as it was sent, in quoted-printable (RFC 2045, 6.7).

There `=` is written `=3D`, and a long line is broken with `=` at its end.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterable, Iterator
from typing import Final

_SAMPLE: Final = 64 << 10
_WIDEST: Final = 78
_ENTRY: Final = 64 << 10
_HEADER: Final = re.compile(
    rb"^Content-Transfer-Encoding:[ \t]{0,8}quoted-printable", re.IGNORECASE | re.MULTILINE
)
_ENCODED: Final = re.compile(rb"=3D|^[^\r\n]{71,75}=\r?\n[^\r\n]", re.MULTILINE)
"""What is in such a text, and hardly in another: `=`, or a line that is broken at its width."""
_PLAIN: Final = re.compile(rb"=(?![0-9A-F]{2}|[ \t]{0,4}\r?\n|\Z)")
"""What is not in such a text."""


def is_quoted_printable(start: bytes) -> bool:
    """Whether a log that begins so is in it: its head says so, or every `=` in it and its width."""
    start = start[:_SAMPLE]
    if _HEADER.search(start):
        return True
    if not _ENCODED.search(start) or _PLAIN.search(start[: start.rfind(b"=") + 3]):
        return False
    return max(map(len, start.splitlines())) <= _WIDEST


def unquoted(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Whole lines with their newlines, and of how many of the given ones each was made.

    The given lines have no newlines.
    """
    kept: list[bytes] = []
    size = 0
    for line in lines:
        bare = line.rstrip(b"\r\t ")
        kept.append(bare)
        size += len(bare)
        if not bare.endswith(b"=") or size > _ENTRY:
            yield _decoded(kept), len(kept)
            kept, size = [], 0
    if kept:
        yield _decoded(kept), len(kept)


def _decoded(lines: list[bytes]) -> bytes:
    # What is written as a byte may be a newline, of which a line has one.
    return a2b_qp(b"\n".join(lines)).replace(b"\n", b" ") + b"\n"
