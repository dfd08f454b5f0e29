r"""Conversations for an observer that read like one.

    assert (
        Playbook()
        >> b"CONNECT 219\n"
        >> "CONNECT line, port 219"
        << b"OK 1024\n"
        << "OK line, port 1024"
    )

`>>` is to the guest and `<<` from it. Bytes and messages are what crosses, a string is what the
observer is to say about it. Each playbook is played three times: the guest's bytes whole, byte by
byte, and with more bytes behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import ndiff
from enum import Enum
from itertools import pairwise
from typing import Self

from dissectors.constants import MAGIC_VERSION, Arch
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
from dissectors.messages import Reply, Request, bare_request, hello
from dissectors.observer import Observer, Start


@dataclass(frozen=True)
class Gap:
    """`size` bytes that crossed and were not recorded."""

    size: int


class Happening(Enum):
    """What is no bytes and has no direction."""

    RESYNC = "an unknown part is missing"
    END = "the end"


RESYNC, END = Happening
Item = bytes | Gap | Happening
Step = tuple[bool, Item]
"""Whether it goes to the guest, and what it is."""
Cut = Callable[[bytes], Iterable[bytes]]


CONNECT, OK, SERVICE = b"CONNECT 219\n", b"OK 1024\n", b"d"
HELLO = hello().encode()
HANDSHAKE: list[Step] = [(True, CONNECT), (False, OK), (True, SERVICE), (False, HELLO)]
MAGIC = MAGIC_VERSION.to_bytes(4, "little")


def ask(number: int) -> Request:
    """A request that can be told from every other."""
    return bare_request(1000 + number)


def answer(number: int) -> Reply:
    """The reply to `ask(number)`."""
    return ask(number).reply(ret=number)


def whole(received: bytes) -> list[bytes]:
    return [received]


def byte_by_byte(received: bytes) -> list[bytes]:
    return [received[at : at + 1] for at in range(len(received))]


def cut_at(positions: Iterable[int]) -> Cut:
    """A cut of any bytes at these positions."""

    def cut(received: bytes) -> list[bytes]:
        ends = sorted({min(at, len(received)) for at in positions} | {0, len(received)})
        return [received[begin:end] for begin, end in pairwise(ends)]

    return cut


def feed(observer: Observer, steps: Iterable[Step], cut: Cut = whole) -> Iterator[Event]:
    """What the observer says; `cut` slices bytes from the guest, since only those are a stream."""
    for to_guest, item in steps:
        match item:
            case bytes() if to_guest:
                yield from observer.to_guest(item)
            case bytes():
                for piece in cut(item):
                    yield from observer.from_guest(piece)
            case Gap(size=size):
                yield from observer.lost(to_guest, size)
            case Happening.RESYNC:
                observer.resync()
            case Happening.END:
                yield from observer.end()


def is_to_guest(event: Event) -> bool:
    if isinstance(event, Opaque | Incomplete | Lost):
        return event.to_guest
    return isinstance(event, ConnectLine | PassFd | ServiceByte | RequestReceived)


def crossed(event: Event) -> bytes:
    """The bytes that an event is about."""
    match event:
        case ServiceByte(value=value):
            return bytes([value])
        case RequestReceived(raw=raw, size=size):
            return raw[:size]
        case Lost():
            return b""
    return event.raw


def one_way(events: Iterable[Event], to_guest: bool) -> list[Event]:
    """The events of one direction, with neighbours joined that are bytes and nothing more."""
    joined: list[Event] = []
    for event in events:
        if is_to_guest(event) is not to_guest:
            continue
        if isinstance(event, Opaque | Incomplete):
            before = b""
            if joined and isinstance(joined[-1], Opaque):
                before = crossed(joined.pop())
            event = Opaque(to_guest, before + event.raw)
        joined.append(event)
    return joined


def fact(event: Event) -> str:
    """An event in a few words, with everything that is not in its bytes."""
    match event:
        case ConnectLine(raw=raw, port=port):
            return f"CONNECT line, {_port(raw, port)}"
        case PassFd():
            return "passfd line"
        case OkLine(raw=raw, port=port):
            return f"OK line, {_port(raw, port)}"
        case ServiceByte(value=value, service=service, early=early):
            name = service.name if service else "unknown"
            return f"service {value:#04x}, {name}" + (", early" if early else "")
        case Hello(valid=valid):
            return "hello" if valid else "hello, not valid"
        case RequestReceived():
            words = f"request {event.number} {event.message.op}"
            if event.size < len(event.raw):
                words += f", {event.size} bytes"
            words += f", at {event.position}" if event.position else ""
            for name in ("continues", "rest_of", "overlaps"):
                other = getattr(event, name)
                words += f", {name} {other}" if other is not None else ""
            return words
        case ReplyReceived(number=None, message=message):
            return f"reply to nothing, ret {message.ret}"
        case ReplyReceived(number=number, message=message):
            return f"reply to {number}, ret {message.ret}"
        case Opaque(raw=raw):
            return f"opaque {_shown(raw)}"
        case Incomplete(raw=raw):
            return f"incomplete {_shown(raw)}"
        case Lost(size=size, replies=replies):
            return f"lost {size} bytes" + (f" and replies {replies}" if replies else "")


def facts(events: Iterable[Event]) -> list[str]:
    """One line an event, in the notation of a playbook."""
    return [f"{_arrow(is_to_guest(event))} {fact(event)}" for event in events]


def _port(raw: bytes, port: int | None) -> str:
    return f"port {port}" if port is not None else f"malformed {_shown(raw)}"


def _shown(raw: bytes) -> str:
    return repr(raw) if len(raw) <= 32 else f"{len(raw)} bytes"


def _arrow(to_guest: bool) -> str:
    return ">>" if to_guest else "<<"


class Playbook:
    """Steps, and between them what the observer is to say about them."""

    def __init__(self, start: Start = Start.LINE, arch: Arch = Arch.X86_64) -> None:
        self._start = start
        self._arch = arch
        self._steps: list[Step] = []
        self._expected: list[list[str]] = []

    def __rshift__(self, item: Item | Request | Reply | str) -> Self:
        return self._add(True, item)

    def __lshift__(self, item: Item | Request | Reply | str) -> Self:
        return self._add(False, item)

    def _add(self, to_guest: bool, item: Item | Request | Reply | str) -> Self:
        if isinstance(item, str):
            self._expected[-1].append(f"{_arrow(to_guest)} {item}")
        else:
            raw = item.encode() if isinstance(item, Request | Reply) else item
            self._steps.append((to_guest, raw))
            self._expected.append([])
        return self

    def __bool__(self) -> bool:
        observer = self._observer()
        expected: list[str] = []
        told: list[str] = []
        events: list[Event] = []
        for step, lines in zip(self._steps, self._expected, strict=True):
            new = list(feed(observer, [step]))
            events += new
            expected += [_step(step), *(f"    {line}" for line in lines)]
            told += [_step(step), *(f"    {line}" for line in facts(new))]
        _compare(expected, told, "the guest's bytes whole")

        bytewise = list(feed(self._observer(), self._steps, byte_by_byte))
        for to_guest in (True, False):
            _compare(
                facts(one_way(events, to_guest)),
                facts(one_way(bytewise, to_guest)),
                f"{_arrow(to_guest)} with the guest's bytes one by one",
            )
        if (False, END) not in self._steps and (True, END) not in self._steps:
            trailing: list[Step] = [(False, b"\0\1\2"), (False, END)]
            longer = one_way(feed(self._observer(), [*self._steps, *trailing]), False)
            ended = one_way(feed(self._observer(), [*self._steps, (False, END)]), False)
            _compare(
                facts(one_way([*ended, Opaque(False, b"\0\1\2")], False)),
                facts(longer),
                "<< with more bytes behind",
            )
        return True

    def _observer(self) -> Observer:
        return Observer(self._start, self._arch)


def _step(step: Step) -> str:
    to_guest, item = step
    match item:
        case bytes():
            return f"{_arrow(to_guest)} {_shown(item)}"
        case Gap(size=size):
            return f"{_arrow(to_guest)} {size} bytes not recorded"
        case _:
            return f"-- {item.value}"


def _compare(expected: list[str], told: list[str], how: str) -> None:
    if expected != told:
        diff = "\n".join(ndiff(expected, told))
        raise AssertionError(f"{how}; - is expected, + is what the observer says:\n{diff}")


def ready(playbook: Playbook) -> Playbook:
    """A playbook whose handshake is over."""
    return (
        playbook
        >> CONNECT
        >> "CONNECT line, port 219"
        << OK
        << "OK line, port 1024"
        >> SERVICE
        >> "service 0x64, device manager"
        << HELLO
        << "hello"
    )
