"""Values of fields as people read them, as the table of the protocol says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dissectors.constants import MAGIC_VERSION, errno_name, op_name
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.tables import FieldRow, Layout, Show

_HEXADECIMAL: Final = frozenset({Show.HEX, Show.MAGIC})


def id_list(ids: Sequence[int]) -> str:
    """Numbers in their order, runs of three and more shortened: `2,3`, `1-8`, `3-1`, `none`."""
    parts: list[str] = []
    begin = 0
    while begin < len(ids):
        step = 1 if begin + 1 < len(ids) and ids[begin + 1] > ids[begin] else -1
        end = begin + 1
        while end < len(ids) and ids[end] == ids[end - 1] + step:
            end += 1
        if end - begin >= 3:
            parts.append(f"{ids[begin]}-{ids[end - 1]}")
            begin = end
        else:
            parts.append(str(ids[begin]))
            begin += 1
    return ",".join(parts) or "none"


def shown(row: FieldRow, value: int | Sequence[int]) -> str:
    """A field's value in one word."""
    if isinstance(value, Sequence):
        return id_list(value)
    return f"{value:#x}" if row.show in _HEXADECIMAL else str(value)


def shown_in_full(row: FieldRow, value: int) -> str:
    """A number with what it stands for: `5 add_mmio`, `-17 EEXIST`, `0x18 slot 3 function 0`."""
    if row.bits:
        parts = (f"{part.name} {part.of(value)}" for part in row.bits)
        return " ".join((f"{value:#0{2 + 2 * row.item_size}x}", *parts))
    match row.show:
        case Show.MAGIC:
            return f"{value:#010x}" + ("" if value == MAGIC_VERSION else " wrong")
        case Show.MESSAGE_TYPE:
            return f"{value} {op_name(value)}"
        case Show.ERRNO if value:
            return f"{value} {errno_name(value) or ''}".rstrip()
    return shown(row, value)


def in_words(fields: Mapping[str, Any], shorten: Callable[[str], str]) -> str | None:
    """A request's fields in a few words, None for fields that no message of ours has.

    `shorten` cuts a list that is too long.
    """
    words = _WORDS.get(tuple(fields))
    if words is None:
        return None
    text, arrays, may_be_long = words
    # Another service may give its own fields the same names: then they hold other values.
    for name, value in fields.items():
        if type(value) is not int and name not in arrays:
            return None
    if not arrays:
        return text.format_map(fields)
    told = dict(fields)
    for name in arrays:
        ids = fields[name]
        if not isinstance(ids, list) or not all(type(number) is int for number in ids):
            return None
        told[name] = id_list(ids)
    filled = text.format_map(told)
    return shorten(filled) if may_be_long else filled


def _words_of(layout: Layout) -> tuple[tuple[str, ...], tuple[str, frozenset[str], bool]]:
    """A layout's names of fields; its text for `format`, which of them are lists, and whether the
    text has an end that may be cut off."""
    rows: dict[str, FieldRow] = {}
    for row in layout.request:
        if row.show is not Show.FILLING:
            rows |= dict.fromkeys((row.name, *(part.name for part in row.bits)), row)
    text = layout.messages[0].text
    fits = text and all(name in rows for name in _names_in(text))
    arrays = frozenset(name for name, row in rows.items() if row.count is not None)
    filled = text if fits else " ".join(f"{name}={{{name}}}" for name in rows)
    for name, row in rows.items():
        if row.name == name and name not in arrays and row.show in _HEXADECIMAL:
            filled = filled.replace(f"{{{name}}}", f"{{{name}:#x}}")
    return tuple(rows), (filled, arrays, bool(fits and arrays))


def _names_in(text: str) -> list[str]:
    return [part.partition("}")[0] for part in text.split("{")[1:]]


_WORDS: Final = dict(map(_words_of, DEVICE_MANAGER_TABLE.layouts[1:]))
