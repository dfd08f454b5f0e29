"""Redaction of logs by an allow-list: what the diagnosis understands stays, and nothing else.

A line that says nothing of the table of understood lines is left out. The others are written anew,
with the marks that the diagnosis goes by: times, which guest, who spoke. docs/redaction.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..logs.entries import Scanner
from ..logs.lines import lines_of
from ..logs.table import understand, understood_in, wanted
from .allowed_text import StandIn
from .line_shapes import LineShapes, allowed_line


def allowed_lines(blocks: Iterable[bytes], stand_in: StandIn) -> Iterator[str | int]:
    """The understood lines of a log, redacted; a number stands for so many that were left out."""
    shapes = LineShapes()
    scanner = Scanner(wanted(), known=shapes)
    last = 0
    for entry in scanner.entries(blocks):
        text = shapes.line(entry, stand_in)
        if text is not None:
            if entry.number > last + 1:
                yield entry.number - last - 1
            last = max(last, entry.number)
            yield text
            continue
        for line, _ in understood_in(entry, None):
            if line.number > last + 1:
                yield line.number - last - 1
            last = max(last, line.number + line.text.count("\n"))
            yield allowed_line(line, stand_in)
            shapes.learn(entry, line)
    if scanner.lines > last:
        yield scanner.lines - last


def some_lines(
    blocks: Iterable[bytes], stand_in: StandIn, others: Callable[[bytes], bytes]
) -> Iterator[bytes]:
    """All lines of a log: the understood ones as above, and what `others` makes of the rest."""
    for entry in Scanner(None).entries(blocks):
        lines = [line for line in lines_of(entry, None) if understand(line)]
        if lines:
            for line in lines:
                yield allowed_line(line, stand_in).encode() + b"\n"
        else:
            yield others(entry.raw)
