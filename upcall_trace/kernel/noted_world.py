"""The world of a recording's guest, as its header's notes keep it: name, and the table as JSON.

So that whoever replays, minimises or diagnoses the recording needs no second file. docs/worlds.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from .world import BadWorld, World, parse_world, world_table

MACHINE: Final = "machine"
"""The note that names a recording's world, as a table of a file would."""
WORLD: Final = "world"
"""The note that has the world itself."""
_LIMIT: Final = 1 << 20
_ROLES: Final = frozenset({"vsock", "blk", "fs", "net", "mem"})


def world_notes(world: World, name: str | None = None) -> dict[str, str]:
    """The notes that keep a world, and its name if it has one."""
    named = {MACHINE: name} if name else {}
    return named | {WORLD: json.dumps(world_table(world), separators=(",", ":"))}


def noted_world(notes: Mapping[str, str]) -> World | None:
    """The world that notes keep; None where there is none that can be read."""
    text = notes.get(WORLD)
    if text is None or len(text) > _LIMIT:
        return None
    try:
        return parse_world(notes.get(MACHINE, WORLD), json.loads(text))
    except (BadWorld, ValueError, RecursionError):
        return None


def redacted_world(notes: Mapping[str, str]) -> dict[str, str]:
    """The note of the world without words that a person chose; empty where there is none."""
    world = noted_world(notes)
    if world is None:
        return {}
    mmio = [replace(w, role=w.role if w.role in _ROLES else "") for w in world.mmio]
    pci = [replace(d, role=d.role if d.role in _ROLES else "") for d in world.pci]
    return world_notes(replace(world, mmio=tuple(mmio), pci=tuple(pci)))


def lacking_world(notes: Mapping[str, str]) -> str | None:
    """Why a recording that notes its machine has no world, in a sentence; None where all is well.

    A recording that notes nothing is of a default Kata pod, as far as anybody knows.
    """
    if WORLD in notes and noted_world(notes) is None:
        return "the world that it notes cannot be read"
    if MACHINE in notes and WORLD not in notes:
        return f"it notes the machine {notes[MACHINE]!r}, but not what that looks like"
    return None
