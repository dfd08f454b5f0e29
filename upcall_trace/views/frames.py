"""A capture frame by frame: every record and every event in it, described in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dissectors.events import (
    ConnectLine,
    Event,
    Hello,
    Incomplete,
    Lost,
    OkLine,
    Opaque,
    PassFd,
    ReplyReceived,
    RequestReceived,
    ServiceByte,
)

from ..capture.records import (
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Origin,
    Record,
    Vmm,
)
from ..sources import Source
from ..trace.decoding import Session
from ..trace.provenance import Origins, Run
from .text import duration, fields_text, safe


@dataclass(frozen=True, slots=True)
class Frame:
    """One thing that happened; `direction` is `>` to the guest, `<` from it, else empty.

    `t_ns` counts from the capture's first record; `request` is the operation it belongs to. `runs`
    say where the bytes of a request or reply come from, where that was asked for.
    """

    number: int
    t_ns: int
    conn: int
    direction: str
    text: str
    raw: bytes = b""
    request: int | None = None
    runs: tuple[Run, ...] = ()


def frames(source: Source, with_provenance: bool = False) -> Iterator[Frame]:
    """Every frame of an open source, in the order of the records."""
    session = Session(source.header)
    origins = Origins(source.header) if with_provenance else None
    number = 0
    for offset, record in source.records():
        events = session.feed(record, offset)
        traced = origins.feed(record, events) if origins else [()] * len(events)
        shown = [_of_event(event) for event in events] or [_of_record(record)]
        for (direction, text, raw, request), runs in zip(shown, traced or [()], strict=True):
            if text:
                t_ns = getattr(record, "t_ns", session.last_ns) - (session.first_ns or 0)
                conn = getattr(record, "conn", 0) or 0
                yield Frame(number, t_ns, conn, direction, text, raw, request, runs)
                number += 1
        if isinstance(record, Close) and events:
            text = _of_record(record)[1]
            yield Frame(number, record.t_ns - (session.first_ns or 0), record.conn, "", text)
            number += 1


_Shown = tuple[str, str, bytes, int | None]


def _of_event(event: Event) -> _Shown:
    match event:
        case ConnectLine(raw=raw, port=port):
            return ">", _line("CONNECT", raw, port), raw, None
        case PassFd(raw=raw):
            return ">", "passfd: a descriptor takes over", raw, None
        case OkLine(raw=raw, port=port):
            return "<", _line("OK", raw, port), raw, None
        case ServiceByte(value=value, service=service):
            name = service.name if service else "no service that is known"
            early = ", before OK" if event.early else ""
            return ">", f"service byte {value:#04x}: {name}{early}", bytes([value]), None
        case Hello(raw=raw, valid=valid):
            text = "CONNECT message: the service is ready" if valid else "not a CONNECT message"
            return "<", text, raw, None
        case RequestReceived(number=number, raw=raw):
            return ">", _request(event), raw, number
        case ReplyReceived(number=number, message=reply, raw=raw):
            answers = "nothing that was asked" if number is None else f"request {number}"
            load = f" {fields_text(reply.fields())}" if reply.fields() else ""
            return "<", f"reply to {answers}: ret {reply.ret}{load}", raw, number
        case Opaque(to_guest=to_guest, raw=raw):
            return _arrow(to_guest), f"{len(raw)} bytes with no meaning here", raw, None
        case Lost(to_guest=to_guest, size=size):
            return _arrow(to_guest), f"{size} bytes are not in the recording", b"", None
        case Incomplete(to_guest=to_guest, raw=raw):
            return _arrow(to_guest), f"{len(raw)} bytes of something unfinished", raw, None


def _request(event: RequestReceived) -> str:
    message = event.message
    text = f"request {event.number}: {safe(message.op)} {fields_text(message.fields())}".rstrip()
    if event.size < len(event.raw):
        text += f" ({event.size} bytes, over those of the request before)"
    if event.continues is not None:
        text += f" (rest of split request {event.continues})"
    if event.rest_of is not None:
        text += f" (left over from request {event.rest_of})"
    return text


def _line(name: str, raw: bytes, port: int | None) -> str:
    return f"{name} line: {safe(raw)}" + ("" if port is not None else " (malformed)")


def _arrow(to_guest: bool) -> str:
    return ">" if to_guest else "<"


def _of_record(record: Record) -> _Shown:
    text = ""
    match record:
        case Open(begins=begins, port=port, accepted=accepted, peer=peer):
            text = _OPENED[begins]
            text += f", port {port}" if port is not None else ""
            text += f", by pid {peer[0]} uid {peer[1]}" if peer else ""
            text += ", refused" if accepted is False else ""
        case Close(by_guest=by_guest, how=how, reason=reason):
            text = ending_text(how, by_guest, reason)
        case GaveUp(after_ns=after_ns):
            text = f"the client waited {duration(after_ns)}, and nothing came"
        case Vmm(action=action):
            text = f"VMM: {safe(action)}"
        case Gap(size=size, reason=reason):
            text = f"{size} bytes not recorded: {safe(reason)}"
        case Mark(name=name, text=comment):
            text = f"mark {safe(name)} {safe(comment)}".rstrip()
        case Chunk(data=data):
            return _arrow(record.to_guest), f"{len(data)} bytes of an unfinished whole", data, None
        case Origin(number=number, kind=kind, name=name):
            text = f"from here on also from {safe(kind)} {safe(name)} (source {number})"
        case Header() | End():
            pass
    return "", text, b"", None


_OPENED = {
    Begins.LINE: "opened",
    Begins.SERVICE: "opened inside the guest",
    Begins.MIDDLE: "first seen in the middle",
    Begins.OTHER: "opened, not upcall",
}
_HOW = {How.CLOSE: "closed", How.HALF: "half-closed", How.RESET: "reset"}
_OURS = {
    How.REFUSED: "refused by the recorder",
    How.AWAY: "the VMM's socket was away",
    How.FAULT: "closed by a fault that the recorder was asked for",
}


def ending_text(how: How, by_guest: bool, reason: str = "") -> str:
    """Who ended a connection, how, and why where the recorder did."""
    if how.by_us:
        return _OURS[how] + (f": {safe(reason)}" if reason else "")
    return f"{_HOW[how]} by the {'guest' if by_guest else 'client'}"
