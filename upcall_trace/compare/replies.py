"""Recorded and got, field by field: what counts, what is left alone, what is a difference.

Only fields that the guest writes are compared; padding and bytes left over in its buffers count
with `whole_bytes` alone. docs/replay.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dissectors.constants import CALLER_TIMEOUT_NS, SERVICE_BYTE_LIMIT_NS
from dissectors.messages import Reply, Request
from dissectors.services import ServiceReply, ServiceRequest

from ..trace.script import Asked
from .matchers import Matchers, MatchRule

Values = dict[str, int | str | None]
"""A reply's fields by name; `answer` is 1, or 0 for silence, and then it is the only one."""

REQUEST_HEADER: Final = ("msg_type", "msg_size", "msg_flags", "magic_version")
_HEADER: Final = ("ret", *REQUEST_HEADER)
_EXACT: Final = "exact"
_DEADLINES: Final = (CALLER_TIMEOUT_NS, SERVICE_BYTE_LIMIT_NS)


@dataclass(frozen=True, slots=True)
class Got:
    """What a guest answered to a request; `reply` is None for silence."""

    reply: ServiceReply | None
    raw: bytes = b""
    latency_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as it should be; `rule` is what it broke, None for equality."""

    field: str
    recorded: int | str | None
    got: int | str | None
    rule: MatchRule | None = None


def request_values(message: ServiceRequest) -> dict[str, object]:
    """The fields that make two requests the same one, whatever their padding."""
    if not isinstance(message, Request):
        return {"op": message.op, **message.fields()}
    header = {name: getattr(message, name) for name in REQUEST_HEADER}
    return {**header, **message.fields()}


def values(reply: ServiceReply | None) -> Values:
    """The fields of a reply that are compared."""
    if reply is None:
        return {"answer": 0}
    found: Values = {"answer": 1}
    if isinstance(reply, Reply):
        found |= {name: getattr(reply, name) for name in _HEADER}
        # Without a size there is no load: what decodes as one is left over in the buffer.
        return found | (reply.fields() if reply.msg_size else {})
    return found | {"ret": reply.ret} | {name: str(value) for name, value in reply.fields().items()}


def deadlines_missed(latency_ns: int | None) -> int:
    """How many of the deadlines an answer came too late for: 250 ms, 10 s (section 4, 5)."""
    return 0 if latency_ns is None else sum(latency_ns > limit for limit in _DEADLINES)


def differences(
    asked: Asked,
    got: Got,
    matchers: Matchers,
    whole_bytes: bool = False,
    deadlines: bool = False,
) -> tuple[Difference, ...]:
    """Where what came is not what the recording has, or what the rules allow in its place.

    With `deadlines` it counts, too, when an answer came too late that was in time.
    """
    rules = matchers.of(asked)
    late = (
        deadlines
        and asked.latency_ns is not None
        and deadlines_missed(got.latency_ns) > deadlines_missed(asked.latency_ns)
    )
    if not rules and not whole_bytes and not late and asked.reply == got.reply:
        return ()
    if asked.cut_off:
        return ()
    recorded, came = values(asked.reply), values(got.reply)
    if recorded["answer"] != came["answer"]:
        rule = rules.get("answer")
        if rule is not None and rule.accepts(recorded["answer"], came["answer"]):
            return ()
        return (Difference("answer", recorded["answer"], came["answer"], rule),)
    if "latency" in rules and recorded["answer"]:
        recorded["latency"], came["latency"] = asked.latency_ns, got.latency_ns
    found = [
        Difference(name, recorded.get(name), came.get(name), rules.get(name))
        for name in {**recorded, **came}
        if not _accepted(rules.get(name), recorded.get(name), came.get(name))
    ]
    if late and "latency" not in rules:
        found.append(Difference("latency", asked.latency_ns, got.latency_ns))
    if whole_bytes and not found and asked.reply_raw != got.raw:
        rule = rules.get("bytes")
        if rule is None or rule.kind == _EXACT:
            at = next(
                (n for n, pair in enumerate(zip(asked.reply_raw, got.raw, strict=False))
                 if pair[0] != pair[1]),
                min(len(asked.reply_raw), len(got.raw)),
            )  # fmt: skip
            found.append(Difference("bytes", _at(asked.reply_raw, at), _at(got.raw, at)))
    return tuple(found)


def _accepted(rule: MatchRule | None, recorded: object, came: object) -> bool:
    return recorded == came if rule is None else rule.accepts(recorded, came)


def _at(raw: bytes, offset: int) -> str:
    return f"{raw[offset : offset + 8].hex(' ')} at {offset:#06x}"
