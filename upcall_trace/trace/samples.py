"""The recordings of real guests that are shipped with the program."""

from __future__ import annotations

from pathlib import Path

from ..errors import UnreadableInput

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "samples", _PACKAGE.parent / "captures")
"""In an installed package, and in a checkout."""


def sample(name: str) -> Path:
    """The capture NAME.upcap; raises UnreadableInput when this installation has none."""
    for place in _PLACES:
        path = place / f"{name}.upcap"
        if path.is_file():
            return path
    raise UnreadableInput(f"the sample capture {name!r} is not part of this installation")


def samples() -> list[Path]:
    """All of them, by name; none when this installation has none."""
    found: dict[str, Path] = {}
    for place in reversed(_PLACES):
        found |= {path.name: path for path in place.glob("*.upcap")}
    return [found[name] for name in sorted(found)]
