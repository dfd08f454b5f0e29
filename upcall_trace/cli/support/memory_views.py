"""What was found in a guest's memory, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dissectors.constants import (
    CPU_MSG_SIZE,
    CPU_TYPES,
    MMIO_MSG_SIZE,
    PCI_MSG_SIZE,
    Arch,
    errno_name,
    op_name,
)
from dissectors.messages import Reply, bare_request, decode_reply, decode_request

from ...vantage.guest_memory.conversations import Assembled, Exchange, Sighting, Talk
from ...vantage.guest_memory.locating import CarvedMessage, CarvedPacket
from ...vantage.guest_memory.processes import RunningVmm
from ...views.messages import reply_text, request_text
from ...views.text import safe
from .memory_target import GuestMemory, now_text

VERSION: Final = 1


def memory_object(
    memory: GuestMemory, assembled: Assembled, arch: Arch, sandbox: str | None
) -> dict[str, Any]:
    """`peek --json`."""
    here = enumerate(assembled.conversations, 1)
    return {
        "v": VERSION,
        "memory": memory.name,
        "sandbox": sandbox,
        "seen": now_text() if isinstance(memory, RunningVmm) else None,
        "connections": [_conversation_object(conn, each, arch) for conn, each in here],
        "unplaced": [*_stranger_objects(assembled, arch), *_lone_objects(assembled, arch)],
        "looked_at": assembled.looked_at,
        "objects": len(assembled.conversations),
        "packets": assembled.packets,
        "look_alikes": assembled.immediates,
        "overflowed": assembled.overflowed,
    }


def _conversation_object(conn: int, told: Sighting, arch: Arch) -> dict[str, Any]:
    held, talk = told.held, told.talk
    history = [_exchange_object(conn, each, arch) for each in (talk.in_order() if talk else ())]
    return {
        "address": f"{held.address:#x}",
        "state": str(told.state),
        "unanswered": told.unanswered,
        "certain": told.certain,
        "why": told.why,
        "conn": conn,
        "peer_port": talk.peer_port if talk else None,
        "request": _request_object(held.request, told.number, arch) if told.asked else None,
        "reply": _reply_object(held.reply, arch),
        "in_order": not (talk and talk.conflicting),
        "history": history + [_loose_object(each, arch) for each in (talk.loose if talk else ())],
        "requests_counted": told.counts.requests if told.counts else None,
    }


def _request_object(raw: bytes, number: int | None, arch: Arch) -> dict[str, Any]:
    message = decode_request(raw, arch)
    shown: dict[str, Any] = {
        "request": number,
        "op": message.op,
        "fields": dict(message.fields()),
        "msg_type": message.msg_type,
        "msg_size": message.msg_size,
    }
    if message.magic_version != message.reply().magic_version:
        shown["anomalies"] = ["bad-magic"]
    return shown


def _reply_object(raw: bytes, arch: Arch) -> dict[str, Any]:
    message = decode_reply(raw, arch)
    load = message.fields() if message.msg_size else {}
    return {
        "ret": message.ret,
        "errno": errno_name(message.ret),
        "msg_type": message.msg_type,
        "msg_size": message.msg_size,
    } | dict(load)


def _exchange_object(conn: int | None, each: Exchange, arch: Arch) -> dict[str, Any]:
    """An operation of the history, as `show --json` has it; `fields` is null without a request."""
    asked = decode_request(each.request, arch) if each.request is not None else None
    told = _reply_object(each.reply, arch) if each.reply is not None else None
    op = asked.op if asked else op_name(told["msg_type"]) if told else None
    return {
        "conn": conn,
        "request": each.number,
        "op": op,
        "fields": dict(asked.fields()) if asked else None,
        "ret": told.pop("ret") if told else None,
        "errno": told.pop("errno") if told else None,
        "reply": told,
        "request_address": None if each.request_at is None else f"{each.request_at:#x}",
        "reply_address": None if each.reply_at is None else f"{each.reply_at:#x}",
    }


def _loose_object(packet: CarvedPacket, arch: Arch) -> dict[str, Any]:
    """A packet whose place in the order is not known."""
    raw = packet.payload
    shown: dict[str, Any] = {
        "address": f"{packet.address:#x}",
        "to_guest": packet.to_guest,
        "peer_port": packet.peer_port,
        "request": None,
        "size": packet.size,
    }
    if len(raw) == 1024:
        shown |= _request_object(raw, None, arch) if packet.to_guest else _reply_object(raw, arch)
    return shown


def _stranger_objects(assembled: Assembled, arch: Arch) -> Iterator[dict[str, Any]]:
    for conn, talk in enumerate(assembled.strangers, len(assembled.conversations) + 1):
        for each in talk.in_order():
            yield {"peer_port": talk.peer_port} | _exchange_object(conn, each, arch)
        for packet in talk.loose:
            yield _loose_object(packet, arch)


def _lone_objects(assembled: Assembled, arch: Arch) -> Iterator[dict[str, Any]]:
    for message in assembled.messages:
        to_guest = message_direction(message.raw)
        shown: dict[str, Any] = {
            "address": f"{message.address:#x}",
            "to_guest": to_guest,
            "peer_port": None,
        }
        if to_guest is not False:
            shown |= _request_object(message.raw, None, arch)
        if to_guest is not True:
            shown |= _reply_object(message.raw, arch)
        yield shown


def message_direction(raw: bytes) -> bool | None:
    """Whether a message that stands alone was for the guest; None when nothing tells."""
    message = decode_request(raw)
    size = message.msg_size
    if size == 4:
        return False
    if size in (*CPU_MSG_SIZE.values(), MMIO_MSG_SIZE, PCI_MSG_SIZE):
        return True
    if message.msg_type in CPU_TYPES or message.fields():
        return False
    return False if any(raw[16:20]) else None


# Text.


def memory_lines(
    memory: GuestMemory, assembled: Assembled, arch: Arch
) -> Iterator[tuple[str, str | None]]:
    """What `peek` prints: lines, each with its colour."""
    yield f"{safe(memory.name)}: {_counted(assembled)}", None
    for conn, told in enumerate(assembled.conversations, 1):
        yield "", None
        yield from _conversation_lines(conn, told, arch)
    for conn, talk in enumerate(assembled.strangers, len(assembled.conversations) + 1):
        yield "", None
        yield f"connection {conn}: of its packets alone, host's port {talk.peer_port}", None
        yield from _history_lines(talk, arch)
    if assembled.messages:
        yield "", None
        yield "messages that stand alone, in no known order:", None
    for message in assembled.messages:
        yield f"  {message.address:#x}  {_lone_text(message, arch)}", None


def _counted(assembled: Assembled) -> str:
    parts = (
        f"{len(assembled.conversations)} connection objects",
        f"{assembled.packets} packets",
        f"{len(assembled.messages)} messages that stand alone",
    )
    looked = f"{assembled.looked_at / (1 << 20):.1f} MiB looked through"
    more = "; there is more than is kept" if assembled.overflowed else ""
    return f"{', '.join(parts)}; {looked}{more}"


_COLOURS: Final = {
    "waiting": "red",
    "dead": "red",
    "possible": "yellow",
    "freed": None,
    "answered": None,
}


def _conversation_lines(conn: int, told: Sighting, arch: Arch) -> Iterator[tuple[str, str | None]]:
    sure = "certain" if told.certain else "by its looks"
    yield (
        f"connection {conn} at {told.held.address:#x}: {told.state} ({sure})",
        _COLOURS[told.state],
    )
    if told.asked:
        number = "" if told.number is None else f" {told.number}"
        asked = decode_request(told.held.request, arch)
        yield f"  last request{number}: {request_text(asked)}", None
        answered = decode_reply(told.held.reply, arch)
        if told.unanswered:
            yield "  not answered; the reply buffer still has the one before:", "red"
            yield f"  {_bare_reply(answered)}", None
        else:
            yield f"  last reply: {reply_text(asked, answered)}", None
    else:
        yield "  the service is ready, and nothing was asked yet", None
    for reason in told.why:
        yield f"  - {reason}", None
    if told.talk is not None:
        yield from _history_lines(told.talk, arch)


def _history_lines(talk: Talk, arch: Arch) -> Iterator[tuple[str, str | None]]:
    if talk.exchanges:
        how = "order uncertain, its port was used again" if talk.conflicting else "in order"
        yield f"  packets, {how}:", None
    for each in talk.in_order():
        asked = decode_request(each.request, arch) if each.request is not None else None
        told = decode_reply(each.reply, arch) if each.reply is not None else None
        what = request_text(asked) if asked else "(the request is gone)"
        if told is None:
            answer = "(no packet with the reply)"
        elif asked is not None:
            answer = reply_text(asked, told)
        else:
            answer = _bare_reply(told)
        yield f"    {each.number:>4}  {what:<44} {answer}", None
    if talk.loose:
        yield f"  packets in no known order: {len(talk.loose)}", None


def _bare_reply(told: Reply) -> str:
    """A reply whose request is not there: its type is the request's."""
    if told.is_hello:
        return "the CONNECT message"
    return f"{op_name(told.msg_type)}: {reply_text(bare_request(told.msg_type), told)}"


def _lone_text(message: CarvedMessage, arch: Arch) -> str:
    to_guest = message_direction(message.raw)
    if to_guest is False:
        told = decode_reply(message.raw, arch)
        return f"reply to {op_name(told.msg_type)}: ret {told.ret}"
    text = request_text(decode_request(message.raw, arch))
    return f"request {text}" if to_guest else f"{text}, a request or a reply"
