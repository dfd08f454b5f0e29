"""Entries of a log that may concern upcall, found in its blocks before any line is looked at.

An entry is a line with what belongs to it: the causes that the runtime prints on lines of their
own, or all the fields of a journal's entry. One linear pattern goes over whole blocks, so a log of
which little is wanted costs little more than reading it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Final, NamedTuple, Protocol

from .quoted_printable import is_quoted_printable, unquoted
from .wrapped import lines_in, unwrapped, wrapping_of

ENTRY_LIMIT: Final = 64 << 10
"""Bytes that lines may be joined to."""
PIECE_LIMIT: Final = 1 << 20
"""A longer line is read in pieces, which have one number."""
_DRESSED: Final = re.compile(
    rb'[ \t]{0,64}(?:\[ {0,12}\d|[{"<]|\d\d\d\d-|time=|[A-Z][a-z]{2} [ \d]\d |db-|virtio)'
)
CONTAINER: Final = re.compile(
    rb"\d{4}-\d\d-\d\dT[0-9:.,]{8,20}(?:Z|[+-]\d\d:?\d\d) (?:stdout|stderr) ([FP]) "
)
"""What a container's runtime writes before every line; after P the line goes on."""
_NUMBERED: Final = re.compile(rb"[ \t]{0,16}\d{1,9}\t")
"""What `cat -n` and an editor's copy write before every line."""
_CAUSE: Final = re.compile(rb"[ \t]{0,64}(?:\d{1,3}: |Caused by:|\r?\n|$)")
_INDENT: Final = re.compile(rb"(?:\r?\n){0,64}([ \t]{1,16})(?=[^ \t\r\n])")
_FIELD: Final = re.compile(rb"[ \t]{1,64}_{0,2}[A-Z]")


_ZEROES: Final = bytes.maketrans(b"123456789", b"0" * 9)
_HEX_ZEROES: Final = bytes.maketrans(b"123456789abcdef", b"0" * 15)
_ID: Final = b"0" * 64
_ID_MARK: Final = b"\x00" * 64
_BEFORE_ID: Final = (b'"', b"=", b" ")
_AFTER_ID: Final = re.compile(rb'"|\r?\n|\Z| [a-z_-]{1,32}=| -[a-z]')
_CURSOR: Final = re.compile(rb'"__CURSOR" ?: ?"([0-9a-z=;]{1,255})"')
"""A journal's place, which nothing looks at."""
_SHAPES: Final = 1 << 13


class LogEntry(NamedTuple):
    """`number` is the entry's first line, from 1; `raw` its bytes, the last newline included."""

    number: int
    raw: bytes
    hit: int = 0
    """Where in it something wanted is."""
    shape: bytes = b""
    """As `shape_of` tells it, where that is known."""


def shape_of(line: bytes) -> bytes:
    """The line with every digit written as 0, and with NULs for a container's id in a field.

    NULs also stand for a journal's place.
    """
    shape = line.translate(_ZEROES)
    if len(line) < len(_ID):
        return shape
    hexadecimal = line.translate(_HEX_ZEROES)
    at = hexadecimal.find(_ID)
    while at >= 0:
        end = at + len(_ID)
        whole = line[at - 1 : at] in _BEFORE_ID and _AFTER_ID.match(line, end)
        if whole and not shape[at:end].isalpha() and shape[at:end] != _ID:
            shape = shape[:at] + _ID_MARK + shape[end:]
        at = hexadecimal.find(_ID, end)
    if b'"__CURSOR"' in line and (found := _CURSOR.search(line)):
        begin, end = found.span(1)
        shape = shape[:begin] + bytes(end - begin) + shape[end:]
    return shape


class Finder(Protocol):
    """What finds places in a block: a compiled pattern of a linear engine."""

    def finditer(self, text: bytes, pos: int = 0) -> Iterable[re.Match[bytes]]: ...


def _begins_line(block: bytes, at: int) -> bool:
    """Whether the line at `at` begins an entry: not so for causes, and what is indented."""
    if numbered := _NUMBERED.match(block, at):
        at = numbered.end()
    if block.startswith((b"\n", b"\r\n", b"Caused by:"), at):
        return False
    if block[at : at + 1] not in (b" ", b"\t"):
        dress = CONTAINER.match(block, at)
        if dress is None:
            return True
        before = block.rfind(b"\n", 0, max(at - 1, 0)) + 1
        dress_before = CONTAINER.match(block, before) if at else None
        goes_on = dress_before is not None and dress_before[1] == b"P"
        cause = _CAUSE.match(block, dress.end()) or block[dress.end() : dress.end() + 1] in (
            b" ",
            b"\t",
        )
        return not goes_on and not cause
    return bool(_DRESSED.match(block, at))


def _begins_export(block: bytes, at: int) -> bool:
    return block.startswith(b"__CURSOR=", at)


def _begins_pretty(block: bytes, at: int) -> bool:
    return block.startswith(b"{", at)


def _begins_verbose(block: bytes, at: int) -> bool:
    return block[at : at + 1] not in (b" ", b"\t", b"\n", b"\r")


def _begins_indented(indent: bytes, block: bytes, at: int) -> bool:
    """Of a log that was indented as a whole, as in a list or a block of YAML."""
    within = at + len(indent)
    if not block.startswith(indent, at) or block[within : within + 1] in (b" ", b"\t"):
        return _begins_line(block, at)
    return not _CAUSE.match(block, within)


def _form(start: bytes) -> Callable[[bytes, int], bool]:
    """Where entries begin, as the log's first bytes tell."""
    if start.startswith(b"__CURSOR="):
        return _begins_export
    if re.match(rb"\{\r?\n", start):
        return _begins_pretty
    first = start.find(b"\n") + 1
    if re.search(rb"\[s=[0-9a-f]{8,64};", start[:512]) and _FIELD.match(start, first):
        return _begins_verbose
    indent = None if _NUMBERED.match(start) else _INDENT.match(start)
    lines = [line for line in start.split(b"\n")[:-1] if line.strip()]
    if indent is not None and lines and all(line.startswith(indent[1]) for line in lines):
        return partial(_begins_indented, indent[1])
    return _begins_line


class Scanner:
    """Goes over a log once. `lines` counts all of its lines, wanted or not."""

    def __init__(
        self, wanted: Finder | None, at_once: bool = False, known: Container[bytes] = ()
    ) -> None:
        self._wanted = wanted
        self._known = known
        """Shapes of lines that are wanted, if they are entries: such lines are not searched."""
        self._begin: set[bytes] = set()
        """Those of them that begin an entry, and that nothing before them may change."""
        self._at_once = at_once
        """Tell a line as soon as it is whole, though more may belong to it: of a log that grows."""
        self.lines = 0
        self.first = b""
        """The log's first bytes."""
        self.last = b""
        """Its last line, as far as it was read."""

    def entries(self, blocks: Iterable[bytes]) -> Iterator[LogEntry]:
        """The entries in which something is wanted; all of them where `wanted` is None."""
        begins: Callable[[bytes, int], bool] | None = None
        kept = b""
        blocks = iter(blocks)
        for block in blocks:
            data = kept + block if kept else block
            if begins is None:
                self.first = data[:4096]
                begins = _form(self.first)
                if not self._at_once and begins is _begins_line:
                    whole = _whole_lines(data, blocks)
                    if whole is not None:
                        yield from self._of_whole(whole)
                        return
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) >= PIECE_LIMIT:
                    yield from self._region(data, len(data), begins)
                    data = b""
                kept = data
                continue
            if not self._at_once:
                end = _last_entry(data, end, begins)
            yield from self._region(data, end, begins)
            kept = data[end:]
        if kept and begins is not None:
            yield from self._region(kept, len(kept), begins)
            self.lines += not kept.endswith(b"\n")

    def _of_whole(self, lines: Iterable[tuple[bytes, int]]) -> Iterator[LogEntry]:
        """The wanted lines of a log whose lines were broken; each with how many it was made of."""
        for line, of_lines in lines:
            number = self.lines + 1
            self.lines += of_lines
            self.last = line[-4096:].rstrip(b"\n")
            if self._wanted is None:
                yield LogEntry(number, line)
            elif match := next(iter(self._wanted.finditer(line)), None):
                yield LogEntry(number, line, match.start())

    def _region(
        self, data: bytes, end: int, begins: Callable[[bytes, int], bool]
    ) -> Iterator[LogEntry]:
        """The wanted entries of `data[:end]`, which holds whole entries."""
        region = data if end == len(data) else data[:end]
        if self._wanted is None:
            yield from self._all(region, begins)
            return
        done = counted = 0
        number = self.lines + 1
        matches = iter(self._wanted.finditer(region))
        while match := next(matches, None):
            at = match.start()
            if at < done:
                matches = iter(self._wanted.finditer(region, done))
                continue
            first = max(region.rfind(b"\n", done, at) + 1, done)
            while first > done and at - first < ENTRY_LIMIT and not begins(region, first):
                first = max(region.rfind(b"\n", done, first - 1) + 1, done)
            last = _next_entry(region, at, first, begins)
            number += region.count(b"\n", counted, first)
            counted = first
            yield LogEntry(number, region[first:last], at - first)
            done = last
            if self._known:
                for known, shape in self._known_lines(region, done, begins):
                    if counted < done:
                        number += region.count(b"\n", counted, done)
                    yield LogEntry(number, region[done:known], 0, shape)
                    number += 1
                    done = counted = known
        self._passed(region)

    def _known_lines(
        self, region: bytes, at: int, begins: Callable[[bytes, int], bool]
    ) -> Iterator[tuple[int, bytes]]:
        """(end, shape) of the lines from `at` on that are entries and known to be wanted."""
        end = region.find(b"\n", at) + 1
        shape = self._begins_known(region, at, end, begins)
        while shape is not None:
            after = region.find(b"\n", end) + 1
            following = self._begins_known(region, end, after, begins)
            if following is None and end < len(region) and not begins(region, end):
                return
            yield end, shape
            end, shape = after, following

    def _begins_known(
        self, region: bytes, at: int, end: int, begins: Callable[[bytes, int], bool]
    ) -> bytes | None:
        """The shape of a line that is known, and begins an entry whatever is before it."""
        shape = shape_of(region[at:end]) if end else b""
        if shape in self._begin:
            return shape
        if shape not in self._known or not begins(region, at):
            return None
        dress = CONTAINER.match(region, at)
        if dress is not None and dress[1] == b"P":
            return None
        if len(self._begin) >= _SHAPES:
            self._begin.clear()
        self._begin.add(shape)
        return shape

    def _all(self, region: bytes, begins: Callable[[bytes, int], bool]) -> Iterator[LogEntry]:
        at, number = 0, self.lines + 1
        while at < len(region):
            last = _next_entry(region, at, at, begins)
            yield LogEntry(number, region[at:last])
            number += region.count(b"\n", at, last)
            at = last
        self._passed(region)

    def _passed(self, region: bytes) -> None:
        self.lines += region.count(b"\n")
        stop = len(region) - region.endswith(b"\n")
        self.last = region[max(region.rfind(b"\n", 0, stop) + 1, stop - 4096) : stop]


def _whole_lines(start: bytes, more: Iterable[bytes]) -> Iterator[tuple[bytes, int]] | None:
    """The lines of a log that a terminal or a mail program broke; None of one that is whole."""
    if is_quoted_printable(start):
        return unquoted(lines_in(chain([start], more)))
    wrapping = wrapping_of(start)
    return None if wrapping is None else unwrapped(chain([start], more), wrapping)


def _last_entry(data: bytes, end: int, begins: Callable[[bytes, int], bool]) -> int:
    """Where the last entry of `data[:end]` begins, as more of it may come."""
    at = end
    while at and end - at < ENTRY_LIMIT:
        at = data.rfind(b"\n", 0, at - 1) + 1
        if begins(data, at):
            return at
    return end


def _next_entry(region: bytes, at: int, first: int, begins: Callable[[bytes, int], bool]) -> int:
    """Where the entry ends that the line at `at` is in."""
    last = region.find(b"\n", at) + 1
    while last and last < len(region) and last - first < ENTRY_LIMIT and not begins(region, last):
        last = region.find(b"\n", last) + 1
    return last or len(region)
