"""The service byte's meaning: which messages follow it on a connection.

One service ships, the device manager. Another is a `Service` value that its package registers
under the entry point group `upcall_trace.services`; it is looked up only when its byte is seen, or
when somebody asks for a field or an operation that the device manager does not have.
docs/protocol.md section 1, docs/plugins.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from .codecs import Coded, CodedReply, ReplyDecoder, RequestDecoder, TableCodec
from .constants import MESSAGE_SIZE
from .errors import ServiceConflict
from .layouts import DEVICE_MANAGER_TABLE
from .messages import DEVICE_MANAGER_CODEC, decode_reply, decode_request
from .tables import MessageTable

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


@dataclass(frozen=True)
class Service:
    """A protocol of fixed-size messages in ping-pong behind one service byte.

    `hello_size` are the bytes of what the guest says first; 0 means that it says nothing before
    the first reply. The decoders are made from the table. They get as many bytes as its sizes say.
    """

    name: str
    table: MessageTable
    hello_size: int = 0
    codec: TableCodec[Coded, CodedReply] = field(init=False, repr=False, compare=False)
    decode_request: RequestDecoder[Coded] = field(init=False, repr=False, compare=False)
    decode_reply: ReplyDecoder[CodedReply] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ours = self.table is DEVICE_MANAGER_TABLE
        codec: TableCodec[Coded, CodedReply] = DEVICE_MANAGER_CODEC
        if not ours:
            codec = TableCodec(self.table, Coded, CodedReply)
        for name, value in (
            ("codec", codec),
            ("decode_request", decode_request if ours else codec.request_decoder()),
            ("decode_reply", decode_reply if ours else codec.reply_decoder()),
        ):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Callable[[int], Service | None], tuple[int]]:
        return service_for, (self.byte,)

    @property
    def byte(self) -> int:
        """The byte with which a client picks the service."""
        return self.table.byte

    @property
    def request_size(self) -> int:
        """Bytes of every request."""
        return self.table.request_size

    @property
    def reply_size(self) -> int:
        """Bytes of every reply."""
        return self.table.reply_size

    @property
    def identity(self) -> str:
        """Another text for every service that reads the same bytes in another way."""
        return f"{self.name} {self.hello_size} {self.table.fingerprint}"


DEVICE_MANAGER = Service("device manager", DEVICE_MANAGER_TABLE, hello_size=MESSAGE_SIZE)


def service_for(byte: int) -> Service | None:
    """The service that `byte` picks, or None when nobody knows it."""
    if byte == DEVICE_MANAGER.table.byte:
        return DEVICE_MANAGER
    return _registered().get(byte)


def registered() -> tuple[Service, ...]:
    """The services of other packages, by their bytes; raises ServiceConflict."""
    return tuple(service for _, service in sorted(_registered().items()))


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
