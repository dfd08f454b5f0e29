"""The service byte's meaning: which messages follow it on a connection.

One service ships, the device manager. Another is a `Service` value that its package registers
under the entry point group `upcall_trace.services`; it is looked up only when its byte is seen.
docs/protocol.md section 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from .constants import MESSAGE_SIZE, Arch
from .errors import ServiceConflict
from .messages import decode_reply, decode_request

ENTRY_POINT_GROUP = "upcall_trace.services"


class ServiceRequest(Protocol):
    """What a decoded request offers to whoever shows it."""

    @property
    def op(self) -> str: ...

    def fields(self) -> Mapping[str, object]: ...


class ServiceReply(Protocol):
    """What a decoded reply offers; `ret` 0 is success, a negative number an errno."""

    @property
    def ret(self) -> int: ...

    def fields(self) -> Mapping[str, object]: ...


@dataclass(frozen=True, slots=True)
class Service:
    """A protocol of fixed-size messages in ping-pong behind one service byte.

    Sizes are in bytes; `hello_size` 0 means that the guest says nothing before the first reply.
    Decoders get exactly as many bytes as the size says, and must not raise. The guest's first
    message, `hello_size` bytes, goes to `decode_reply` as well.
    """

    byte: int
    name: str
    request_size: int
    reply_size: int
    hello_size: int
    decode_request: Callable[[bytes, Arch], ServiceRequest]
    decode_reply: Callable[[bytes, Arch, ServiceRequest | None], ServiceReply]
    """Also gets the request that is answered, None when it is not in the recording."""


DEVICE_MANAGER = Service(
    byte=0x64,
    name="device manager",
    request_size=MESSAGE_SIZE,
    reply_size=MESSAGE_SIZE,
    hello_size=MESSAGE_SIZE,
    decode_request=decode_request,
    decode_reply=decode_reply,
)


def service_for(byte: int) -> Service | None:
    """The service that `byte` picks, or None when nobody knows it."""
    if byte == DEVICE_MANAGER.byte:
        return DEVICE_MANAGER
    return _registered().get(byte)


@cache
def _registered() -> dict[int, Service]:
    from importlib.metadata import entry_points  # a third of the start-up, rarely needed

    services: dict[int, Service] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            service = entry.load()
        except Exception as error:  # whatever a foreign package does when it is imported
            raise ServiceConflict(f"entry point {entry.name!r} cannot be loaded: {error}") from None
        if not isinstance(service, Service):
            raise ServiceConflict(f"entry point {entry.name!r} is not a Service")
        if service.byte == DEVICE_MANAGER.byte or service.byte in services:
            raise ServiceConflict(f"two services claim byte {service.byte:#04x}")
        services[service.byte] = service
    return services
