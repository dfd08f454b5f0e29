"""What a filter expression consists of, whatever parsed it."""

from __future__ import annotations

from dataclasses import dataclass


class Token(str):
    """A word of the expression: its kind in the grammar, and where it begins."""

    __slots__ = ("start_pos", "type")

    type: str
    start_pos: int


@dataclass(frozen=True, slots=True)
class Node:
    """A branch of the tree, by the name of its rule in the grammar."""

    name: str
    children: tuple[Node | Token, ...]
