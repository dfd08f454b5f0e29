"""The grammar of the filter language: the only module that imports lark."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from lark import Lark, Tree, UnexpectedInput, UnexpectedToken

from ..errors import UpcallError
from .filter_nodes import Node, Token

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


class NotAnExpression(UpcallError, ValueError):
    """Text that is none; `position` is where, counted from 0."""

    def __init__(self, position: int) -> None:
        super().__init__(f"not an expression, at {position}")
        self.position = position


def parse_tree(text: str) -> Node:
    """The tree of an expression; raises NotAnExpression."""
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        at_end = isinstance(error, UnexpectedToken) and error.token.type == "$END"
        raise NotAnExpression(len(text) if at_end else max(0, error.pos_in_stream or 0)) from None
    node = _converted(tree)
    assert isinstance(node, Node)  # the start of the grammar is no single word
    return node


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr")


def _converted(part: Any) -> Node | Token:
    if isinstance(part, Tree):
        if part.data == "value":
            return _converted(part.children[0])
        return Node(str(part.data), tuple(_converted(each) for each in part.children))
    token = Token(part)
    token.type, token.start_pos = part.type, part.start_pos or 0
    return token
