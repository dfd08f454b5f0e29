"""The one filter language: an expression becomes a mask over the columns of operations.

`op == add_cpu and ret < 0`, `latency > 250ms`, `mmio_base in 0xc0000000..0xc0ffffff`, `stale`.
A comparison with a field that an operation does not have is false. docs/filters.md.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from lark import Lark, Token, Transformer, UnexpectedInput, UnexpectedToken
from lark.exceptions import VisitError
from numpy.typing import NDArray

from dissectors.constants import ERRNO_NAMES, MessageType

from ..durations import UNITS_NS, nanoseconds
from ..errors import WrongUsage
from .operations import (
    ANOMALY_BIT,
    CPU_ARM,
    CPU_X86,
    MMIO,
    OTHER_SERVICE,
    PCI,
    Operations,
)

Mask = NDArray[np.bool_]
_Values = NDArray[Any]

_GRAMMAR: Final = r"""
?start: disjunction
?disjunction: conjunction ("or"i conjunction)*
?conjunction: negation ("and"i negation)*
?negation: "not"i negation -> negated
    | "(" disjunction ")"
    | NAME -> flag
    | NAME OPERATOR value -> comparison
    | NAME "in"i value ".." value -> between
    | NAME "in"i "(" value ("," value)* ")" -> among
value: QUANTITY | NAME
OPERATOR: "==" | "!=" | "<=" | ">=" | "<" | ">" | "="
NAME: /[A-Za-z_][A-Za-z0-9_-]*/
QUANTITY: /-?(0[xX][0-9a-fA-F]+|[0-9]+(\.[0-9]+)?\s*(ns|us|ms|s)\b|[0-9]+)/
%ignore /\s+/
"""
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
_OP_NUMBERS: Final = {t.name.lower(): int(t) for t in MessageType}


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


def _column(name: str, operations: Operations, test: Test) -> Mask:
    return test(operations.column(name))


def _ours(name: str, operations: Operations, test: Test) -> Mask:
    ours: Mask = operations.column("layout") != OTHER_SERVICE
    return test(operations.column(name)) & ours


def _time(operations: Operations, test: Test) -> Mask:
    return test(operations.t_ns())


def _load(name: str, *layouts: int, shift: int = 0, mask: int = -1) -> Any:
    """A field of the request's load, which only some layouts have."""

    def rows(operations: Operations, test: Test) -> Mask:
        values = operations.column(name)
        if shift or mask >= 0:
            values = (values >> shift) & mask
        has_load: Mask = np.isin(operations.column("layout"), layouts)
        return test(values) & has_load

    return rows


def _answer(name: str, *layouts: int) -> Any:
    """A field of the reply; one of its load only where the reply has that load."""

    def rows(operations: Operations, test: Test) -> Mask:
        values = operations.column(name)
        hits: Mask = test(values) & (operations.column("answered") == 1)
        if layouts:
            hits &= np.isin(operations.column("layout"), layouts) & (values >= 0)
        return hits

    return rows


def _any_apic_id(operations: Operations, test: Test) -> Mask:
    """Rows in whose list of APIC ids at least one passes the test."""
    hits = np.concatenate(([0], np.cumsum(test(operations.column("extra")))))
    ends = np.minimum(operations.column("extra_end"), len(hits) - 1)
    begins = ends - np.minimum(operations.column("extra_size"), ends)
    some: Mask = (hits[ends] > hits[begins]) & (operations.column("layout") == CPU_X86)
    return some


FIELDS: Final = {
    field.name: field
    for field in (
        Field("op", "the request's name", "op", partial(_ours, "msg_type")),
        Field("conn", "connection, from 1", "number", partial(_column, "conn")),
        Field("request", "request of its connection, from 0", "number",
              partial(_column, "request")),
        Field("t", "time since the capture's first record", "duration", _time),
        Field("ret", "the number on the wire", "number", _answer("ret")),
        Field("errno", "the name of a negative ret", "errno", _answer("ret")),
        Field("latency", "from request to reply", "duration", _answer("latency_ns")),
        Field("size", "bytes of the request that the guest received", "number",
              partial(_column, "size")),
        Field("msg_type", "the request's type as a number", "number", partial(_ours, "msg_type")),
        Field("msg_size", "the request's msg_size", "number", partial(_ours, "msg_size")),
        Field("mmio_base", "address of the window", "number", _load("mmio_base", MMIO)),
        Field("mmio_size", "bytes in the window", "number", _load("mmio_size", MMIO)),
        Field("mmio_irq", "its interrupt", "number", _load("mmio_irq", MMIO)),
        Field("busno", "PCI bus", "number", _load("busno", PCI)),
        Field("devfn", "PCI device and function", "number", _load("devfn", PCI)),
        Field("slot", "PCI slot, devfn >> 3", "number", _load("devfn", PCI, shift=3, mask=31)),
        Field("function", "PCI function, devfn & 7", "number", _load("devfn", PCI, mask=7)),
        Field("count", "CPUs in the request", "number", _load("count", CPU_X86, CPU_ARM)),
        Field("apic_ver", "APIC version", "number", _load("apic_ver", CPU_X86)),
        Field("apic_id", "any APIC id of the request's list", "number", _any_apic_id),
        Field("apic_index", "of the reply, x86-64", "number", _answer("reply_load", CPU_X86)),
        Field("cpu_id", "of the reply, aarch64", "number", _answer("reply_load", CPU_ARM)),
    )
}  # fmt: skip


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
    try:
        tree = _parser().parse(text)
        predicate: Predicate = _Build(text).transform(tree)
    except UnexpectedInput as error:
        at_end = isinstance(error, UnexpectedToken) and error.token.type == "$END"
        position = len(text) if at_end else max(0, error.pos_in_stream or 0)
        raise BadFilter(text, position, _expected(text, position)) from None
    except VisitError as error:
        if isinstance(error.orig_exc, BadFilter):
            raise error.orig_exc from None
        raise
    return Filter(text, predicate)


def _expected(text: str, position: int) -> str:
    if not text.strip():
        return "the expression is empty"
    if position >= len(text.rstrip()):
        return "something is missing at the end"
    return "expected a field, a comparison, and, or, not, or a bracket"


_built: list[Lark] = []


def _parser() -> Lark:
    if not _built:
        _built.append(Lark(_GRAMMAR, parser="lalr"))
    return _built[0]


class _Build(Transformer[Token, Predicate]):
    """Turns the parse tree into one predicate; its errors name the token they are about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def disjunction(self, parts: list[Predicate]) -> Predicate:
        return lambda operations: np.logical_or.reduce([part(operations) for part in parts])

    def conjunction(self, parts: list[Predicate]) -> Predicate:
        return lambda operations: np.logical_and.reduce([part(operations) for part in parts])

    def negated(self, parts: list[Predicate]) -> Predicate:
        return lambda operations: ~parts[0](operations)

    def value(self, tokens: list[Token]) -> Token:
        return tokens[0]

    def flag(self, tokens: list[Token]) -> Predicate:
        name = tokens[0]
        if name.lower() not in FLAGS:
            if name.lower() in FIELDS:
                raise self._bad(name, f"{name} needs a comparison, such as {name} == …")
            raise self._unknown(name, [*FLAGS, *FIELDS])
        return FLAGS[name.lower()][1]

    def comparison(self, tokens: list[Token]) -> Predicate:
        name, sign, value = tokens
        field = self._field(name)
        number = self._number(field, value)
        if field.kind in ("op", "errno") and sign not in ("==", "=", "!="):
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
        if name.lower() not in FIELDS:
            if name.lower() in FLAGS:
                raise self._bad(name, f"{name} stands alone, without a comparison")
            raise self._unknown(name, list(FIELDS))
        return FIELDS[name.lower()]

    def _number(self, field: Field, token: Token) -> int:
        if field.kind == "op" and token.type == "NAME":
            return self._op(token)
        if field.kind == "errno" and token.type == "NAME":
            if token.upper() not in _ERRNO_NUMBERS:
                raise self._unknown(token, list(_ERRNO_NUMBERS))
            return _ERRNO_NUMBERS[token.upper()]
        unit = next((unit for unit in UNITS_NS if token.endswith(unit)), None)
        named = token.type != "QUANTITY" or field.kind == "errno"
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
        if name not in _OP_NUMBERS:
            raise self._unknown(token, list(_OP_NUMBERS))
        return _OP_NUMBERS[name]

    def _unknown(self, token: Token, known: list[str]) -> BadFilter:
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
}
