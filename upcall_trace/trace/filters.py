"""The one filter language: an expression becomes a mask over the columns of operations.

`op == add_cpu and ret < 0`, `latency > 250ms`, `mmio_base in 0xc0000000..0xc0ffffff`, `stale`.
A comparison with a field that an operation does not have is false. docs/filters.md.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import ERRNO_NAMES
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.tables import ARCH_NAMES, FieldRow, MessageTable, Show

from ..codes import Severity
from ..codes import table as known_codes
from ..durations import UNITS_NS, nanoseconds
from ..errors import WrongUsage
from .filter_nodes import Node, Token
from .judgement import code_number
from .operations import ANOMALY_BIT, Operations
from .rows import other_tables

Mask = NDArray[np.bool_]
_Values = NDArray[Any]

_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LENGTH_LIMIT: Final = 8192
_DEPTH_LIMIT: Final = 64
_DIGITS_LIMIT: Final = 40
_DEEPER: Final = re.compile(r"\(|\bnot\b", re.IGNORECASE)
_ERRNO_NUMBERS: Final = {name: -number for number, name in ERRNO_NAMES.items()}
_OP_NUMBERS: Final = {name: m.number for name, m in DEVICE_MANAGER_TABLE.by_name.items()}


_NAMES: Final = {
    "code": {str(code): code_number(code) for code in known_codes()},
    "severity": {severity.name: int(severity) for severity in Severity},
}
Test = Callable[[_Values], Mask]
"""Compares the values of one column, giving a truth value for each."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the language: what it means, how its values are written, where they are.

    `rows` is the mask of operations whose value passes a test; those without one never do.
    """

    name: str
    meaning: str
    kind: str
    rows: Callable[[Operations, Test], Mask]


def _code(operations: Operations, test: Test) -> Mask:
    """Any code that was found at an operation."""
    judged = operations.judged()
    mask = np.zeros(len(operations), np.bool_)
    mask[judged.rows[test(judged.codes)]] = True
    return mask


def _finding(operations: Operations, test: Test) -> Mask:
    """The worst severity of what was found at an operation."""
    worst = operations.judged().worst
    hits: Mask = test(worst) & (worst > 0)
    return hits


def _column(name: str, operations: Operations, test: Test) -> Mask:
    return test(operations.column(name))


def _ours(name: str, operations: Operations, test: Test) -> Mask:
    return test(operations.column(name)) & operations.ours()


def _op(operations: Operations, test: Test) -> Mask:
    """A message's number, with its service's byte above it where that is not the device manager."""
    numbers = operations.column("msg_type").astype(np.int64)
    ours = operations.ours()
    if ours.all():
        return test(numbers)
    services = operations.column("service").astype(np.int64)
    named: Mask = test(np.where(ours, numbers, numbers | (services + 1) << _SERVICE_SHIFT))
    named &= ours | np.isin(services, [table.byte for table in other_tables()])
    return named


_SERVICE_SHIFT: Final = 32


def _time(operations: Operations, test: Test) -> Mask:
    return test(operations.t_ns())


def _answer(name: str, operations: Operations, test: Test) -> Mask:
    """What every reply has."""
    hits: Mask = test(operations.column(name)) & (operations.column("answered") == 1)
    return hits


def _load(name: str, operations: Operations, test: Test) -> Mask:
    """A field of a load, of whatever messages have it."""
    hits: Mask = operations.where(name, test)
    return hits


def _load_fields(table: MessageTable) -> Iterator[Field]:
    """The fields of a table's loads: numbers, their parts, and the elements of arrays."""
    for layout in table.layouts:
        for row in layout.request:
            yield from _fields_of(row, row.meaning)
    for layout in table.layouts:
        arch = f", {ARCH_NAMES[layout.arch]}" if layout.arch else ""
        for row in layout.reply:
            yield from _fields_of(row, f"of the reply{arch}: {row.meaning}")


def _fields_of(row: FieldRow, meaning: str) -> Iterator[Field]:
    if row.show is Show.FILLING:
        return
    if row.count is None:
        yield Field(row.name, meaning, "number", partial(_load, row.name))
    elif row.item:
        told = f"any element of {row.name}: {meaning}"
        yield Field(row.item, told, "number", partial(_load, row.item))
    for part in row.bits:
        yield Field(part.name, part.meaning, "number", partial(_load, part.name))


def _by_name(fields: Iterable[Field]) -> dict[str, Field]:
    """Fields by their names; of one that several messages have, each meaning is told once."""
    found: dict[str, Field] = {}
    for field in fields:
        known = found.setdefault(field.name, field)
        if field.meaning not in known.meaning:
            found[field.name] = replace(known, meaning=f"{known.meaning}; {field.meaning}")
    return found


FIELDS: Final = _by_name(
    (
        Field("op", "the request's name", "op", _op),
        Field("conn", "connection, from 1", "number", partial(_column, "conn")),
        Field("request", "request of its connection, from 0", "number",
              partial(_column, "request")),
        Field("t", "time since the capture's first record", "duration", _time),
        Field("ret", "the number on the wire", "number", partial(_answer, "ret")),
        Field("errno", "the name of a negative ret", "errno", partial(_answer, "ret")),
        Field("latency", "from request to reply", "duration", partial(_answer, "latency_ns")),
        Field("size", "bytes of the request that the guest received", "number",
              partial(_column, "size")),
        Field("msg_type", "the request's type as a number", "number", partial(_ours, "msg_type")),
        Field("msg_size", "the request's msg_size", "number", partial(_ours, "msg_size")),
        Field("code", "any code that was found at the operation", "code", _code),
        Field("finding", "the worst severity of what was found at the operation", "severity",
              _finding),
        *_load_fields(DEVICE_MANAGER_TABLE),
    )
)  # fmt: skip


def known_fields() -> dict[str, Field]:
    """The fields of the language, those of other packages' services as well."""
    return _by_name((*FIELDS.values(), *chain.from_iterable(map(_load_fields, other_tables()))))


def known_operations() -> dict[str, int]:
    """The operations by their names, those of other packages' services as well."""
    found = dict(_OP_NUMBERS)
    for table in other_tables():
        for name, message in table.by_name.items():
            found.setdefault(name, message.number | (table.byte + 1) << _SERVICE_SHIFT)
    return found


def _has(bits: int, operations: Operations) -> Mask:
    mask: Mask = (operations.column("anomalies") & bits) != 0
    return mask


def _is_answered(wanted: int, operations: Operations) -> Mask:
    mask: Mask = operations.column("answered") == wanted
    return mask


def _failed(operations: Operations) -> Mask:
    mask: Mask = (operations.column("answered") == 0) | (operations.column("ret") < 0)
    return mask


_STALE: Final = sum(bit for name, bit in ANOMALY_BIT.items() if name.startswith("stale-"))
Predicate = Callable[[Operations], Mask]
FLAGS: Final[dict[str, tuple[str, Predicate]]] = {
    "answered": ("a reply came", partial(_is_answered, 1)),
    "unanswered": ("no reply came", partial(_is_answered, 0)),
    "failed": ("no reply, or a negative ret", _failed),
    "stale": ("any of stale-success, stale-error and stale-load", partial(_has, _STALE)),
    **{name: ("the anomaly of that name", partial(_has, bit)) for name, bit in ANOMALY_BIT.items()},
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed expression; `mask` has one truth value for each operation."""

    text: str
    mask: Predicate


class BadFilter(WrongUsage):
    """An expression that cannot be understood; `position` is where, counted from 0.

    `why` is the sentence without the place.
    """

    def __init__(self, text: str, position: int, why: str) -> None:
        super().__init__(f"filter, at character {position + 1} ({text[position:][:20]!r}): {why}")
        self.position = position
        self.why = why


def parse(text: str) -> Filter:
    """Parse a filter expression; raises BadFilter, which names the place and the nearest field."""
    if len(text) > _LENGTH_LIMIT:
        raise BadFilter(text, _LENGTH_LIMIT, f"more than {_LENGTH_LIMIT} characters")
    deeper = list(_DEEPER.finditer(text))[_DEPTH_LIMIT:]
    if deeper:
        raise BadFilter(text, deeper[0].start(), f"more than {_DEPTH_LIMIT} brackets and nots")
    from .filter_grammar import NotAnExpression, parse_tree  # a small installation lacks lark

    try:
        tree = parse_tree(text)
    except NotAnExpression as error:
        raise BadFilter(text, error.position, _expected(text, error.position)) from None
    return Filter(text, _Build(text).predicate(tree))


def _expected(text: str, position: int) -> str:
    if not text.strip():
        return "the expression is empty"
    if position >= len(text.rstrip()):
        return "something is missing at the end"
    return "expected a field, a comparison, and, or, not, or a bracket"


class _Build:
    """Turns the parse tree into one predicate; its errors name the token they are about."""

    def __init__(self, text: str) -> None:
        self._text = text

    def predicate(self, tree: Node) -> Predicate:
        """The predicate of a branch: the method of its name makes it from what is below."""
        below = [self.predicate(each) if isinstance(each, Node) else each for each in tree.children]
        made: Predicate = getattr(self, tree.name)(below)
        return made

    def disjunction(self, parts: list[Predicate]) -> Predicate:
        return lambda operations: np.logical_or.reduce([part(operations) for part in parts])

    def conjunction(self, parts: list[Predicate]) -> Predicate:
        return lambda operations: np.logical_and.reduce([part(operations) for part in parts])

    def negated(self, parts: list[Predicate]) -> Predicate:
        return lambda operations: ~parts[0](operations)

    def flag(self, tokens: list[Token]) -> Predicate:
        name = tokens[0]
        if name.lower() not in FLAGS:
            fields = known_fields()
            if name.lower() in fields:
                raise self._bad(name, f"{name} needs a comparison, such as {name} == …")
            raise self._unknown(name, [*FLAGS, *fields])
        return FLAGS[name.lower()][1]

    def comparison(self, tokens: list[Token]) -> Predicate:
        name, sign, value = tokens
        field = self._field(name)
        number = self._number(field, value)
        if field.kind in ("op", "errno", "code") and sign not in ("==", "=", "!="):
            raise self._bad(sign, f"{field.name} has names: only == and != make sense")
        compare = _COMPARE[sign]
        return lambda operations: field.rows(operations, lambda values: compare(values, number))

    def between(self, tokens: list[Token]) -> Predicate:
        field = self._field(tokens[0])
        low, high = (self._number(field, token) for token in tokens[1:])
        return lambda operations: field.rows(
            operations, lambda values: (values >= low) & (values <= high)
        )

    def among(self, tokens: list[Token]) -> Predicate:
        field = self._field(tokens[0])
        wanted = [self._number(field, token) for token in tokens[1:]]
        return lambda operations: field.rows(
            operations,
            lambda values: np.logical_or.reduce([values == number for number in wanted]),
        )

    def _field(self, name: Token) -> Field:
        wanted = name.lower()
        if wanted in FIELDS:
            return FIELDS[wanted]
        if wanted in FLAGS:
            raise self._bad(name, f"{name} stands alone, without a comparison")
        fields = known_fields()
        if wanted not in fields:
            raise self._unknown(name, list(fields))
        return fields[wanted]

    def _number(self, field: Field, token: Token) -> int:
        if field.kind == "op" and token.type == "NAME":
            return self._op(token)
        if field.kind == "errno" and token.type == "NAME":
            if token.upper() not in _ERRNO_NUMBERS:
                raise self._unknown(token, list(_ERRNO_NUMBERS))
            return _ERRNO_NUMBERS[token.upper()]
        if field.kind in _NAMES and token.type == "NAME":
            known = _NAMES[field.kind]
            if token.upper() not in known:
                raise self._unknown(token, [name.lower() for name in known])
            return known[token.upper()]
        unit = next((unit for unit in UNITS_NS if token.endswith(unit)), None)
        named = token.type != "QUANTITY" or field.kind in ("errno", *_NAMES)
        if named or (field.kind != "duration") != (unit is None):
            wanted = _WRITTEN[field.kind]
            raise self._bad(token, f"{field.name} is compared with {wanted}")
        if len(token) > _DIGITS_LIMIT:
            raise self._bad(token, "the number is too long")
        if unit is not None:
            return nanoseconds(token.removesuffix(unit).strip(), unit)
        return int(token, 0) if "x" in token.lower() else int(token)

    def _op(self, token: Token) -> int:
        name = token.lower()
        if name.startswith("type_") and name[5:].isdigit() and len(name) <= _DIGITS_LIMIT:
            return int(name[5:])
        if name in _OP_NUMBERS:
            return _OP_NUMBERS[name]
        operations = known_operations()
        if name not in operations:
            raise self._unknown(token, list(operations))
        return operations[name]

    def _unknown(self, token: Token, known: list[str]) -> BadFilter:
        import difflib  # only on a mistyped name

        near = difflib.get_close_matches(token.lower(), [name.lower() for name in known], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return self._bad(token, f"{str(token)!r} is not known; {hint}")

    def _bad(self, token: Token, why: str) -> BadFilter:
        return BadFilter(self._text, token.start_pos or 0, why)


_WRITTEN: Final = {
    "number": "a number, such as 5 or 0xe0006000",
    "duration": "a time with its unit, such as 250ms or 1.5s",
    "op": "an operation, such as add_cpu",
    "errno": "an errno, such as EEXIST",
    "code": "a code, such as UP301",
    "severity": "a severity: note, warning, error or fatal",
}
