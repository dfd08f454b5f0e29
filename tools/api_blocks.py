"""The reference of `import upcall_trace`, made from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum, IntEnum
from functools import cached_property
from typing import Any, Final

import upcall_trace

from .markdown import code, fenced, table

_GROUPS: Final = {
    "Captures": "open_capture WholeCapture Operation Connection",
    "Findings": "diagnose_capture Finding Severity",
    "Exports": "export_capture Loss",
    "Guests": "SimulatedGuest World kata_pod load_worlds connect UpcallClient",
    "Recording and replaying": "record_traffic replay_capture Verdict",
    "Errors": "UpcallError UserError WrongUsage UnreadableInput Unreachable",
}


def api() -> str:
    """Every public name under the heading of its group."""
    parts: list[str] = []
    for group, names in _GROUPS.items():
        parts.append(f"## {group}")
        for name in names.split():
            parts += _entry(name, getattr(upcall_trace, name))
    return "\n\n".join(parts)


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"### {name}"
    if not inspect.isclass(value):
        signature = inspect.signature(value)
        returned = signature.return_annotation
        yield fenced(f"{name}({_parameters(signature)}) -> {returned}", "text")
    elif issubclass(value, Exception):
        base = value.__bases__[0].__name__
        yield fenced(f"class {name}({base})", "text")
    yield _linked(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        yield from _members(value)


def _members(value: type) -> Iterator[str]:
    if issubclass(value, Exception):
        return
    own = {name: each for name, each in vars(value).items() if not name.startswith("_")}
    if dataclasses.is_dataclass(value):
        rows = [(code(field.name), code(str(field.type))) for field in dataclasses.fields(value)]
        yield table(("field", "type"), rows)
    elif issubclass(value, IntEnum):
        yield table(("value", "number"), [(code(each.name), each.value) for each in value])
    rows = [
        (code(_called(name, each)), _first_paragraph(each))
        for name, each in own.items()
        if inspect.isfunction(each) or isinstance(each, property | cached_property)
    ]
    if rows:
        yield table(("member", "what it is"), rows)


def _called(name: str, member: Any) -> str:
    if not inspect.isfunction(member):
        return name
    return f"{name}({_parameters(inspect.signature(member), first=1)})"


def _parameters(signature: inspect.Signature, first: int = 0) -> str:
    """The parameters as they are written, without the quotes around types."""
    parts: list[str] = []
    for each in [*signature.parameters.values()][first:]:
        if each.kind is each.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "" if each.default is each.empty else f" = {_value(each.default)}"
        parts.append(f"{each.name}: {each.annotation}{default}")
    return ", ".join(parts)


def _value(default: object) -> str:
    return (
        f"{type(default).__name__}.{default.name}" if isinstance(default, Enum) else repr(default)
    )


def _first_paragraph(member: Any) -> str:
    return _linked(" ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split()))


def _linked(text: str) -> str:
    """With the pages that a docstring names as links."""
    return re.sub(r"\bdocs/([a-z-]+\.md)", r"[\1](\1)", text)
