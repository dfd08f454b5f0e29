"""Two recordings side by side, as text and as JSON values. docs/diff-edit-minimise.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from dissectors.services import ServiceReply

from ..trace.script import Asked
from ..views.messages import reply_text, request_object, request_text
from ..views.text import WIDTH, duration, safe
from .aligning import Conversation, Pair
from .replies import values

VERSION: Final = 1
_SIGNS: Final = {"only_a": "-", "only_b": "+", "changed": "!"}


def diff_lines(conversations: Sequence[Conversation]) -> Iterator[str]:
    """What differs, each request with its number in both, and the account of all."""
    for conversation in conversations:
        if all(pair.kind == "same" for pair in conversation.pairs):
            continue
        yield f"connection {conversation.a or '-'} in A, {conversation.b or '-'} in B"
        alike = 0
        for pair in conversation.pairs:
            if pair.kind == "same":
                alike += 1
                continue
            if alike:
                yield f"  {alike} alike"
            alike = 0
            yield from _pair_lines(pair)
        if alike:
            yield f"  {alike} alike"
    yield account(conversations)


def _pair_lines(pair: Pair) -> Iterator[str]:
    shown = pair.a or pair.b
    assert shown is not None
    start = f"{_SIGNS[pair.kind]} {_name(pair.a):>6} {_name(pair.b):>6}  "
    line = start + request_text(shown.message)
    if pair.kind != "changed":
        line = f"{line}: {safe(reply_text(shown.message, shown.reply))}"
    yield line[:WIDTH]
    for difference in pair.differences:
        sides = (difference.recorded, difference.got)
        told = [
            _value(difference.field, value, asked.reply if asked else None, shown)
            for value, asked in zip(sides, (pair.a, pair.b), strict=True)
        ]
        yield f"{'':<{len(start)}}{difference.field}: {told[0]} -> {told[1]}"[:WIDTH]


def _value(field: str, value: object, reply: ServiceReply | None, asked: Asked) -> str:
    match field:
        case "answer":
            return safe(reply_text(asked.message, reply))
        case "ret" if reply is not None:
            return safe(reply_text(asked.message, reply))
        case "latency" if isinstance(value, int):
            return duration(value)
        case "magic_version" if isinstance(value, int):
            return f"{value:#x}"
    return "none" if value is None else safe(str(value))


def account(conversations: Sequence[Conversation]) -> str:
    """One line: how many requests of which kind."""
    found = counts(conversations)
    told = f"{found['same']} alike"
    if len(found) == 1 and found["same"]:
        return f"{told}: no difference"
    words = {"only_a": "only in A", "only_b": "only in B", "changed": "answered otherwise"}
    return ", ".join([told, *(f"{found[kind]} {word}" for kind, word in words.items())])


def counts(conversations: Sequence[Conversation]) -> Counter[str]:
    """Pairs by their kind."""
    return Counter(pair.kind for conversation in conversations for pair in conversation.pairs)


def diff_object(a: Path, b: Path, conversations: Sequence[Conversation]) -> dict[str, Any]:
    """`diff --json`; `differences` is an iterator, for `out_json`."""
    found = counts(conversations)
    return {
        "v": VERSION,
        "a": str(a),
        "b": str(b),
        "same": found["same"],
        "changed": found["changed"],
        "only_a": found["only_a"],
        "only_b": found["only_b"],
        "differences": (
            {
                "kind": pair.kind,
                "a": _side(pair.a),
                "b": _side(pair.b),
                "differing": [difference.field for difference in pair.differences],
            }
            for conversation in conversations
            for pair in conversation.pairs
            if pair.kind != "same"
        ),
    }


def _side(asked: Asked | None) -> dict[str, Any] | None:
    if asked is None:
        return None
    return request_object(asked) | {"reply": values(asked.reply)}


def _name(asked: Asked | None) -> str:
    return asked.name if asked else ""
