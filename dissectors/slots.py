"""Functions that make objects of frozen dataclasses with slots at the cost of plain ones.

The `__init__` of a frozen dataclass looks up each field by its name. That takes most of the time
of decoding. The functions made here set the slots, which are known, and give equal objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MemberDescriptorType
from typing import Any


def maker(kind: Any, values: Mapping[str, str], takes: str, first: str = "", **known: Any) -> Any:
    """A function with the parameters `takes` that makes a `kind`.

    `values` has for each field an expression, in the order of the fields; `first` is a statement
    that goes before them, and `known` are the names that both use. A dataclass without slots, or
    one that does more in its `__init__` than to set fields, is called as usual.
    """
    slots = [getattr(kind, name, None) for name in values]
    plain = all(isinstance(slot, MemberDescriptorType) for slot in slots)
    own = hasattr(kind, "__post_init__") or not kind.__dataclass_params__.init
    lines = [f"def make({takes}):", first or "pass"]
    if plain and not own and [field.name for field in fields(kind)] == list(values):
        known |= {f"set{at}_": slot.__set__ for at, slot in enumerate(slots) if slot is not None}
        lines.append("made_ = new_(kind_)")
        lines += [f"set{at}_(made_, {value})" for at, value in enumerate(values.values())]
        lines.append("return made_")
    else:
        lines.append(f"return kind_({', '.join(values.values())})")
    names: dict[str, Any] = {**known, "kind_": kind, "new_": object.__new__}
    exec("\n ".join(lines), names)  # noqa: S102
    return names["make"]


def positional(kind: Callable[..., Any]) -> Any:
    """A function that makes a `kind` of all its fields, in their order."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return maker(kind, {name: name for name in names}, ", ".join(names))
