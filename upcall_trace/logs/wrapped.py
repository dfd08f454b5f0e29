"""Lines that a terminal or a mail program broke at its width, put together again.

Such a log has no line longer than a width, and what goes on has none of the dress that its lines
begin with: no time, no bracket of a console, no brace. Where neither is so, nothing is joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

_SAMPLE: Final = 256 << 10
_NARROW: Final = 40
_WIDE: Final = 400
_USUAL: Final = 80
"""A width of which one line is enough."""
_ENTRY: Final = 64 << 10
_DRESSES: Final = tuple(
    re.compile(dress)
    for dress in (
        rb"\[ {0,12}\d{1,9}\.\d",
        rb"\[?\d{4}-\d\d-\d\d[T ]\d\d:",
        rb"[A-Z][a-z]{2} [ \d]\d \d\d:",
        rb"\{\"",
        rb"(?:time|level|ts)=",
        rb"<\d{1,3}>",
        rb"[IWEF]\d{4} \d\d:",
    )
)


class Wrapping(NamedTuple):
    """How lines are broken: at which width, at `words` or anywhere, and how entries begin."""

    width: int
    words: bool
    dress: re.Pattern[bytes]

    def goes_on(self, line: bytes, following: bytes) -> bool:
        """Whether `following` is the rest of `line`."""
        if not following or self.dress.match(following):
            return False
        if not self.words:
            return _columns(line) == self.width
        word = following.split(b" ", 1)[0]
        return not line.endswith(b" ") and _columns(line) + 1 + _columns(word) > self.width


def wrapping_of(start: bytes) -> Wrapping | None:
    """How the lines of a log are broken that begins so; None where they are not."""
    lines = [line.rstrip(b"\r") for line in start[:_SAMPLE].split(b"\n")]
    lines = [line for line in lines if line]
    width = max(map(_columns, lines), default=0)
    if not _NARROW <= width <= _WIDE:
        return None
    dress = max(_DRESSES, key=lambda each: sum(map(bool, map(each.match, lines))))
    if not any(map(dress.match, lines)):
        return None
    for words in (False, True):
        wrapping = Wrapping(width, words, dress)
        if _fits(wrapping, lines):
            return wrapping
    return None


def _fits(wrapping: Wrapping, lines: Sequence[bytes]) -> bool:
    """Whether nearly all lines without the dress are the rest of the line before."""
    bare = joined = full = 0
    for line, following in pairwise(lines):
        full += _columns(line) == wrapping.width
        if not wrapping.dress.match(following):
            bare += 1
            joined += wrapping.goes_on(line, following)
    enough = joined >= 2 or (joined == 1 and wrapping.width == _USUAL and not wrapping.words)
    broken = wrapping.words or joined * 2 > full
    return enough and broken and joined * 10 >= bare * 9


def _columns(line: bytes) -> int:
    return len(line) if line.isascii() else len(line.decode("utf-8", "replace"))


def unwrapped(blocks: Iterable[bytes], wrapping: Wrapping) -> Iterator[tuple[bytes, int]]:
    """Whole lines with their newlines, and of how many lines of the log each was made."""
    last: bytes | None = None
    entry, of_lines, size = [b""], 0, 0
    between = b" " if wrapping.words else b""
    for line in lines_in(blocks):
        bare = line.rstrip(b"\r\n")
        if last is not None and size < _ENTRY and wrapping.goes_on(last, bare):
            entry += [between, bare]
            of_lines += 1
            size += len(bare)
        else:
            if of_lines:
                yield b"".join([*entry, b"\n"]), of_lines
            entry, of_lines, size = [bare], 1, len(bare)
        last = bare
    if of_lines:
        yield b"".join([*entry, b"\n"]), of_lines


def lines_in(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a log without their newlines; one that is very long in pieces."""
    kept = b""
    for block in blocks:
        *whole, kept = (kept + block).split(b"\n")
        yield from whole
        if len(kept) > 1 << 20:
            yield kept
            kept = b""
    if kept:
        yield kept
