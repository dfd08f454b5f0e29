"""One request and one reply in a few words, and a request as an object."""

from __future__ import annotations

from typing import Any

from dissectors.constants import errno_name, result_meaning
from dissectors.messages import Reply, Request
from dissectors.services import ServiceReply, ServiceRequest

from ..trace.script import Asked
from .text import fields_text, safe


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
        return "no answer"
    if reply.ret == 0:
        load = reply.fields() if isinstance(reply, Reply) and reply.msg_size else {}
        return " ".join(["ok", *(f"{name}={value}" for name, value in load.items())])
    name = errno_name(reply.ret)
    number = f"{name} ({reply.ret})" if name else f"ret {reply.ret}"
    meaning = result_meaning(message.msg_type, reply.ret) if isinstance(message, Request) else ""
    return f"{number} {meaning}".rstrip()
