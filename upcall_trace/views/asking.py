"""Requests as words that people type: what `send` asks for, and what an operation would be sent by.

The rows of the table say which values are asked for, and what they are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dissectors.tables import ARCH_NAMES, Bits, FieldRow, Layout, MessageRow, MessageTable, Show

from ..errors import UpcallError


class BadWord(UpcallError, ValueError):
    """A word that is no value of its field, or too many or too few of them: one sentence."""


def _asked(layout: Layout) -> list[FieldRow]:
    """The fields that a request is asked for, in the order in which they are written.

    What counts an array's elements is known by them. A list comes last, where it may have any
    number of words.
    """
    counting = {row.length for row in layout.request if row.count is not None and row.length}
    asked = [
        row for row in layout.request
        if row.name not in counting and row.show is not Show.FILLING and (row.word or row.count)
    ]  # fmt: skip
    return sorted(asked, key=lambda row: row.count is not None)


def usage(table: MessageTable, message: MessageRow) -> str:
    """What stands behind an operation's name: `BASE SIZE IRQ`, `ID…, on aarch64 a COUNT`."""
    told: dict[str, str] = {}
    for layout in table.layouts_of(message.number):
        words = (
            f"{row.word or row.name.upper()}{'…' if row.count is not None else ''}"
            for row in _asked(layout)
        )
        arch = f", on {ARCH_NAMES[layout.arch]} a " if layout.arch and told else ""
        told.setdefault(" ".join(words), arch)
    return "".join(f"{arch}{words}" for words, arch in told.items())


def values_of(layout: Layout, words: Sequence[str]) -> dict[str, int | list[int]]:
    """The values that words are for; raises BadWord."""
    asked = _asked(layout)
    rest = list(words)
    values: dict[str, int | list[int]] = {}
    for row in asked:
        if row.count is not None:
            most = min(row.count, _most(layout, row))
            last = row is asked[-1]
            listed, rest = (rest, []) if last else (_split(rest), rest[1:])
            if len(listed) > most:
                raise BadWord(f"{len(words)} values were given")
            values[row.name] = [number_in(word, *row.limits) for word in listed]
            continue
        if not rest:
            raise BadWord(f"{len(words)} values were given")
        values[row.name] = _of_bits(row, rest[0]) if row.bits else number_in(rest[0], *row.limits)
        rest = rest[1:]
    if rest:
        raise BadWord(f"{len(words)} values were given")
    return values


def _most(layout: Layout, row: FieldRow) -> int:
    """The largest number that the field which counts an array's elements can hold."""
    counting = next((other for other in layout.request if other.name == row.length), None)
    assert row.count is not None  # it is an array
    return row.count if counting is None else counting.limits[1]


def _split(rest: Sequence[str]) -> list[str]:
    return rest[0].split(",") if rest and rest[0] else []


def _of_bits(row: FieldRow, word: str) -> int:
    """A value by its parts, the highest first and dots between: `3.0`, or `3` for zeros behind."""
    value = 0
    parts = word.split(".")
    if len(parts) > len(row.bits):
        raise BadWord(f"{word!r} is not a number")
    for part, number in zip(row.bits, parts, strict=False):
        value = part.put(value, number_in(number, 0, part.limit))
    return value


def number_in(word: str, least: int, most: int) -> int:
    """The number that a word says; raises BadWord."""
    try:
        number = int(word, 0)
    except ValueError:
        raise BadWord(f"{word!r} is not a number") from None
    if not least <= number <= most:
        raise BadWord(f"{word} is not within {least} and {most:#x}")
    return number


def words_of(layout: Layout, fields: Mapping[str, Any]) -> list[str]:
    """The words that an operation's fields would be sent by; none where nothing is asked for."""
    words: list[str] = []
    asked = _asked(layout)
    for row in asked:
        value = fields[row.name]
        if row.count is not None:
            listed = [str(number) for number in value]
            words += listed if row is asked[-1] else [",".join(listed)]
        elif row.bits:
            words.append(".".join(str(fields[_name(part)]) for part in row.bits))
        else:
            words.append(hex(value) if row.show is Show.HEX else str(value))
    return words


def _name(part: Bits) -> str:
    return part.name
