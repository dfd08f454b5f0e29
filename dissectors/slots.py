"""Functions that make objects of frozen dataclasses with slots at the cost of plain ones.

The `__init__` of a frozen dataclass looks up each field by its name. That takes most of the time
of decoding. The functions made here fill an object of a class with the same slots that is not
frozen, and then tell the object that it is of the frozen class. They give equal objects.
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
    own = hasattr(kind, "__post_init__") or not kind.__dataclass_params__.init
    plain = not own and [field.name for field in fields(kind)] == list(values)
    twin = _twin(kind) if plain else None
    lines = [f"def make({takes}):", first or "pass"]
    if twin is not None:
        lines.append("made_ = new_(twin_)")
        lines += [f"made_.{name} = {value}" for name, value in values.items()]
        lines += ["made_.__class__ = kind_", "return made_"]
    else:
        lines.append(f"return kind_({', '.join(values.values())})")
    names: dict[str, Any] = {**known, "kind_": kind, "twin_": twin, "new_": object.__new__}
    exec("\n ".join(lines), names)  # noqa: S102
    return names["make"]


def _twin(kind: Any) -> Any:
    """A class with the same slots whose objects can be filled; None where there can be none."""
    slots = [getattr(kind, field.name, None) for field in fields(kind)]
    if not all(isinstance(slot, MemberDescriptorType) for slot in slots):
        return None
    names = {"__slots__": kind.__slots__, "__setattr__": object.__setattr__}
    twin: Any = type(kind.__name__, kind.__bases__, names)
    try:
        object.__new__(twin).__class__ = kind
    except TypeError:  # not of the same form
        return None
    return twin


def positional(kind: Callable[..., Any]) -> Any:
    """A function that makes a `kind` of all its fields, in their order."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return maker(kind, {name: name for name in names}, ", ".join(names))
