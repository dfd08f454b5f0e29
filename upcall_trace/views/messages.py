"""One request and one reply in a few words, and a request as an object."""

from __future__ import annotations

from typing import Any

from dissectors.constants import result_meaning
from dissectors.messages import Reply, Request
from dissectors.services import ServiceReply, ServiceRequest

from ..trace.script import Asked
from .text import answer_text, fields_text, safe


def request_text(message: ServiceRequest) -> str:
    """`add_mmio 0xe0006000+0x2000 irq=5`."""
    return f"{safe(message.op)} {fields_text(message.fields())}".rstrip()


def request_object(asked: Asked) -> dict[str, Any]:
    """A request as every JSON object of replays has it."""
    return {
        "conn": asked.conn,
        "request": asked.request,
        "op": asked.message.op,
        "fields": dict(asked.message.fields()),
    }


def reply_text(message: ServiceRequest, reply: ServiceReply | None) -> str:
    """`ok`, `EEXIST (-17) window or IRQ already taken`, `no answer`."""
    if reply is None:
        return answer_text(None)
    if reply.ret and isinstance(message, Request):
        return answer_text(reply.ret, result_meaning(message.msg_type, reply.ret))
    if isinstance(reply, Reply) and reply.msg_size:
        return answer_text(reply.ret, load=reply.fields())
    return answer_text(reply.ret)
