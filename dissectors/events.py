"""What can happen on an upcall connection, as plain frozen dataclasses.

Requests and replies are numbered from 0 in the order in which the guest received the requests: one
receive, one request, whatever it holds (docs/protocol.md section 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .services import Service, ServiceReply, ServiceRequest


@dataclass(frozen=True, slots=True)
class ConnectLine:
    """The client's first line; `port` is None when it is malformed."""

    raw: bytes
    port: int | None


@dataclass(frozen=True, slots=True)
class PassFd:
    """Dragonball's `passfd` line: a descriptor follows and takes over the connection."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class OkLine:
    """The multiplexer's answer to the CONNECT line; `port` is None when it is not an OK."""

    raw: bytes
    port: int | None


@dataclass(frozen=True, slots=True)
class ServiceByte:
    """The byte that picks a service, None when no such service is known."""

    value: int
    service: Service | None
    early: bool
    """Sent before the multiplexer said OK: some backends lose it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The guest's first message; not `valid` when its header is not that of a CONNECT message.

    Of other services only its size is known: it is then not decoded, and valid.
    """

    message: ServiceReply | None
    raw: bytes = field(repr=False)
    valid: bool


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """One receive in the guest, decoded over what its buffer held before."""

    number: int
    size: int
    """Bytes received; fewer than `len(raw)` when the rest of `raw` is of an earlier request."""
    message: ServiceRequest
    raw: bytes = field(repr=False)
    position: int
    """Where in the recorded send this receive begins."""
    continues: int | None = None
    """The request whose first piece this is the rest of: a split request."""
    rest_of: int | None = None
    """The request that was longer than one receive and left these bytes over."""
    overlaps: int | None = None
    """The oldest request still unanswered when this one came."""


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """One whole message from the guest, and the request it answers: None when none was open.

    `raw` is shorter where a size limit cut the message: all that `message` says is in what is left.
    """

    number: int | None
    message: ServiceReply
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Opaque:
    """Bytes with no meaning here: another port's, an unknown service's, after a malformed line."""

    to_guest: bool
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """Bytes that were on the wire and are not in the recording.

    `replies` are the requests whose replies went with them; of requests that a gap took as
    well, only the first ones.
    """

    to_guest: bool
    size: int
    replies: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A line or message from either side that a gap or the connection's end cut off."""

    to_guest: bool
    raw: bytes = field(repr=False)


Event = (
    ConnectLine
    | PassFd
    | OkLine
    | ServiceByte
    | Hello
    | RequestReceived
    | ReplyReceived
    | Opaque
    | Lost
    | Incomplete
)
