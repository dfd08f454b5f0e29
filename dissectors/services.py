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
from typing import NamedTuple, Protocol

from .codecs import Coded, CodedReply, ReplyDecoder, RequestDecoder, TableCodec
from .constants import MESSAGE_SIZE
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
    """The services of other packages, by their bytes; those that cannot be used are left out."""
    return tuple(service for _, service in sorted(_registered().items()))


class Trouble(NamedTuple):
    """A registered service that cannot be used: its entry point, what that names, and why."""

    name: str
    target: str
    why: str


_troubles: list[Trouble] = []


def take_troubles() -> list[Trouble]:
    """What was found to be wrong since the last call; looks nothing up."""
    taken = list(_troubles)
    _troubles.clear()
    return taken


@cache
def _registered() -> dict[int, Service]:
    from importlib.metadata import entry_points  # a third of the start-up, rarely needed

    claims: dict[int, list[tuple[str, str, Service]]] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            service = entry.load()
        except (Exception, SystemExit) as error:  # whatever a foreign package does at import
            reason = f"cannot be loaded: {type(error).__name__}: {error}"
            _troubles.append(Trouble(entry.name, entry.value, reason))
            continue
        if not isinstance(service, Service):
            reason = f"is no Service but of type {type(service).__name__}"
            _troubles.append(Trouble(entry.name, entry.value, reason))
            continue
        claims.setdefault(service.byte, []).append((entry.name, entry.value, service))
    services: dict[int, Service] = {}
    for byte, claiming in claims.items():
        ours = byte == DEVICE_MANAGER.byte
        if len(claiming) == 1 and not ours:
            services[byte] = claiming[0][2]
            continue
        other = "the device manager" if ours else "another one"
        for name, target, _ in claiming:
            _troubles.append(Trouble(name, target, f"claims byte {byte:#04x}, as {other} does"))
    return services
