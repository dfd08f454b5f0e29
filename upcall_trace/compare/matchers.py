"""What may differ between a recorded reply and the one that came: rules by field, never a measure.

A rule is a field, an operator and a value: `ret=any`, `ret=0|-17`, `mmio…`. Rules stand in a TOML
file beside the recording, or in a mark of one operation in it. docs/replay.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dissectors.constants import (
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENODEV,
    EPERM,
)
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.tables import ARCH_NAMES

from ..capture.records import Mark
from ..capture.toml_files import BadToml, read_toml
from ..durations import nanoseconds
from ..errors import UnreadableInput, WrongUsage
from ..trace.script import Asked, Key

MARK: Final = "match"
"""The name of a mark whose text is rules for its operation."""
SUFFIX: Final = ".match.toml"

ERRNO_CLASSES: Final = {
    "success": frozenset({0}),
    "taken": frozenset({EEXIST, EBUSY}),
    "refused": frozenset({EINVAL, EPERM}),
    "missing": frozenset({ENODEV}),
    "failed": frozenset({EIO}),
}
"""Results that mean nearly the same; every other number is a class of its own."""


def _reply_fields() -> Iterator[tuple[str, str]]:
    """Each field of a reply's load, and whose it is."""
    for layout in DEVICE_MANAGER_TABLE.layouts:
        kinds = dict.fromkeys(message.name.rpartition("_")[2] for message in layout.messages)
        whose = " or ".join(_KIND_NAMES.get(kind, kind) for kind in kinds)
        arch = f", {ARCH_NAMES[layout.arch]}" if layout.arch else ""
        yield from ((row.name, f"of a {whose} reply{arch}") for row in layout.reply)


_KIND_NAMES: Final = {"cpu": "CPU"}
FIELDS: Final = {
    "answer": "whether there is a reply: 1, or 0 for silence",
    "ret": "the result",
    "msg_type": "of the reply",
    "msg_size": "of the reply",
    "msg_flags": "of the reply",
    "magic_version": "of the reply",
    **dict(_reply_fields()),
    "latency": "from the request's last byte to the reply's; without a rule, only whether it kept "
    "within the deadlines of 250 ms and 10 s",
    "bytes": "all 1024, only compared with --bytes",
}
"""What rules can be about."""
EVERY: Final = "*"

_RULE: Final = re.compile(r"([a-z_]+)(<=|=)(\S+)")
_NUMBER: Final = r"-?[0-9]{1,10}|-?0x[0-9a-fA-F]{1,8}"
_RANGE: Final = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(us|ms|s)")
_FACTOR: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)x")
_KEY: Final = re.compile(r"(0|[1-9][0-9]{0,9})\.(0|[1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class MatchRule:
    """One field's. `kind` is `any`, `exact`, `class`, `one of`, `range`, `at most` or `times`.

    `values` are the numbers of `one of`, the ends of a `range`, the nanoseconds of `at most`, the
    thousandths of what is recorded of `times`.
    """

    field: str
    kind: str
    values: tuple[int, ...] = ()

    def accepts(self, recorded: object, got: object) -> bool:
        """Whether `got` will do in the place of `recorded`; None is a field that is not there."""
        match self.kind:
            case "any":
                return True
            case "exact":
                return recorded == got
            case "class":
                return _class(recorded) == _class(got)
            case "one of":
                return got in self.values
        if not isinstance(got, int):
            return False
        if self.kind == "at most":
            return got <= self.values[0]
        if self.kind == "times":
            return not isinstance(recorded, int) or got * 1000 <= recorded * self.values[0]
        return self.values[0] <= got <= self.values[1]

    def __str__(self) -> str:
        match self.kind:
            case "one of":
                return f"{self.field}={'|'.join(map(str, self.values))}"
            case "range":
                return f"{self.field}={self.values[0]}..{self.values[1]}"
            case "times":
                whole, rest = divmod(self.values[0], 1000)
                told = f"{whole}.{rest:03}".rstrip("0") if rest else str(whole)
                return f"{self.field}<={told}x"
            case "at most":
                unit = 1_000_000 if self.values[0] % 1_000_000 == 0 else 1000
                whole, rest = divmod(self.values[0], unit)
                told = f"{whole}.{rest:03}".rstrip("0") if rest else str(whole)
                return f"{self.field}<={told}{'us' if unit == 1000 else 'ms'}"
        return f"{self.field}={self.kind}"


def _class(ret: object) -> object:
    return next((name for name, numbers in ERRNO_CLASSES.items() if ret in numbers), ret)


def parse_rules(text: str) -> tuple[MatchRule, ...]:
    """The rules of a text such as `ret=0|-17 latency<=250ms`; raises WrongUsage."""
    words = text.split()
    if not words:
        raise WrongUsage("a matcher needs a rule, such as ret=any")
    return tuple(_rule(word) for word in words)


def _rule(word: str) -> MatchRule:
    found = _RULE.fullmatch(word)
    if not found:
        raise WrongUsage(f"{word!r} is no rule: ret=any, ret=0|-17, ret=class, latency<=250ms")
    name, operator, value = found.groups()
    if name not in FIELDS:
        raise WrongUsage(f"{word!r}: {name} is no field; there are {', '.join(FIELDS)}")
    if operator == "<=":
        if name == "latency" and (factor := _FACTOR.fullmatch(value)):
            whole, _, rest = factor[1].partition(".")
            return MatchRule(name, "times", (int(whole + rest.ljust(3, "0")),))
        duration = _DURATION.fullmatch(value)
        if name != "latency" or not duration:
            raise WrongUsage(f"{word!r}: only latency has a limit, such as latency<=250ms or <=2x")
        return MatchRule(name, "at most", (nanoseconds(duration[1], duration[2]),))
    if value in ("any", "exact") or (value == "class" and name == "ret"):
        return MatchRule(name, value)
    if name in ("latency", "bytes"):
        raise WrongUsage(f"{word!r}: {name} can be any, exact, or for latency <=250ms")
    if limits := _RANGE.fullmatch(value):
        low, high = int(limits[1], 0), int(limits[2], 0)
        if low > high:
            raise WrongUsage(f"{word!r}: the range is empty")
        return MatchRule(name, "range", (low, high))
    numbers = value.split("|")
    if not all(re.fullmatch(_NUMBER, number) for number in numbers):
        raise WrongUsage(f"{word!r}: {value} is no number, 1..5, 0|-17, any, exact or class")
    return MatchRule(name, "one of", tuple(int(number, 0) for number in numbers))


class Matchers:
    """Rules by where they hold: `*`, an operation's name, or one operation as `1.3`.

    The nearest one to an operation decides on a field.
    """

    def __init__(self, rules: Mapping[str, Iterable[MatchRule]] | None = None) -> None:
        self._rules = {
            place: {rule.field: rule for rule in of} for place, of in (rules or {}).items()
        }

    def __bool__(self) -> bool:
        return any(self._rules.values())

    @property
    def about_latency(self) -> bool:
        """Whether a rule says something of times."""
        return any("latency" in rules for rules in self._rules.values())

    @property
    def about_single(self) -> bool:
        """Whether a rule is for one operation alone."""
        return any(_KEY.fullmatch(place) for place in self._rules)

    def add(self, place: str, rules: Iterable[MatchRule]) -> None:
        """More rules for a place; they replace those of the same field there."""
        self._rules.setdefault(place, {}).update({rule.field: rule for rule in rules})

    def update(self, other: Matchers) -> None:
        """The rules of another one too; they replace those of the same field and place."""
        for place, rules in other._rules.items():
            self.add(place, rules.values())

    def renumbered(self, numbers: Mapping[Key, Key]) -> Matchers:
        """The same for a recording whose operations have other numbers, or are not there."""
        places = {f"{a[0]}.{a[1]}": f"{b[0]}.{b[1]}" for a, b in numbers.items()}
        return Matchers(
            {
                places.get(place, place): rules.values()
                for place, rules in self._rules.items()
                if place in places or not _KEY.fullmatch(place)
            }
        )

    def of(self, asked: Asked) -> dict[str, MatchRule]:
        """The rules for an operation, by field."""
        if not self._rules:
            return {}
        found: dict[str, MatchRule] = {}
        for place in (EVERY, asked.message.op, asked.name):
            found |= self._rules.get(place, {})
        return found

    def idle(self, asked: Iterable[Asked]) -> list[str]:
        """The places with rules where none of these operations is."""
        known = {EVERY}
        for each in asked:
            known |= {each.message.op, each.name}
        return [place for place in self._rules if place not in known]

    def __str__(self) -> str:
        lines = ["[match]"]
        for place, rules in self._rules.items():
            lines.append(f'"{place}" = "{" ".join(str(rule) for rule in rules.values())}"')
        return "\n".join(lines) + "\n"


def parse_matcher(text: str) -> tuple[str, tuple[MatchRule, ...]]:
    """A place and its rules: `1.3 ret=any`, `add_cpu apic_index=any`; raises WrongUsage."""
    place, _, rules = text.strip().partition(" ")
    if not _is_place(place):
        raise WrongUsage(f"{text!r}: {place!r} is no operation, such as 1.3, add_cpu or *")
    return place, parse_rules(rules)


def _is_place(place: str) -> bool:
    return (
        place == EVERY
        or bool(_KEY.fullmatch(place))
        or bool(re.fullmatch(r"[a-z][a-z0-9_]*", place))
    )


def parse_key(text: str) -> Key:
    """`1.3` as (1, 3); raises WrongUsage."""
    found = _KEY.fullmatch(text)
    if not found:
        raise WrongUsage(f"{text!r} is no operation: CONNECTION.REQUEST, such as 1.3")
    return int(found[1]), int(found[2])


def beside(recording: Path) -> Path:
    """Where a recording's matchers are kept."""
    return recording.with_name(recording.name.removesuffix(".upcap") + SUFFIX)


def read_matchers(recording: Path, marks: Iterable[Mark], file: Path | None = None) -> Matchers:
    """The rules of `file`, else of the one beside the recording if there is one, and of its marks.

    Raises UnreadableInput.
    """
    matchers = Matchers()
    path = file or beside(recording)
    if file is not None or path.exists():
        matchers = _of_file(path)
    for mark in marks:
        if mark.name == MARK and mark.conn is not None and mark.request is not None:
            try:
                matchers.add(f"{mark.conn}.{mark.request}", parse_rules(mark.text))
            except WrongUsage as error:
                where = f"the mark of {mark.conn}.{mark.request} in {recording}"
                raise UnreadableInput(f"{where}: {error}") from None
    return matchers


def write_matchers(path: Path, matchers: Matchers) -> None:
    """Keep the rules in a file; raises WrongUsage when it cannot be written."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(str(matchers), "utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise WrongUsage(f"{path} cannot be written: {error.strerror}") from None


def _of_file(path: Path) -> Matchers:
    try:
        table = read_toml(path)
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}") from None
    except BadToml as error:
        raise UnreadableInput(f"{path} is not a TOML file: {error}") from None
    rules = table.get("match")
    if set(table) - {"match"} or not isinstance(rules, dict):
        raise UnreadableInput(f"{path}: one table [match] is expected, and nothing else")
    matchers = Matchers()
    for place, told in rules.items():
        try:
            if not isinstance(told, str):
                raise WrongUsage(f"{place}: the rules are not a text")
            matchers.add(*parse_matcher(f"{place} {told}"))
        except WrongUsage as error:
            raise UnreadableInput(f"{path}: {error}") from None
    return matchers
