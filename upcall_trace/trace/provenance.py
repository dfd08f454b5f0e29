"""Where each byte of a message comes from: written for it, or left over in the guest's buffers.

The guest has one buffer for requests and one for replies on each connection, zeroed once and never
cleared (docs/protocol.md section 4). Which bytes of a reply it writes follows from the request and
from the reply's header, so no model of the guest is needed. No IO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from dissectors.constants import (
    CPU_REPLY_MSG_SIZE,
    CPU_TYPES,
    EINVAL,
    ENODEV,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    PCI_TYPES,
    REPLY_LOAD_OFFSET,
    RET_OFFSET,
    Arch,
    MessageType,
)
from dissectors.events import Event, Lost, ReplyReceived, RequestReceived
from dissectors.messages import CpuRequestArm, Reply, Request

from ..capture.records import Begins, Chunk, Close, Gap, Header, How, Open, Record

Kind = Literal["fresh", "stale", "padding", "unknown"]
"""Written for this message; left over from an earlier one; zero since the connection began; or not
to be told from what was recorded."""

_LOAD_END: Final = REPLY_LOAD_OFFSET + CPU_REPLY_MSG_SIZE
_COUNT_OFFSET: Final = 16
_IDS_OFFSET: Final = 18
_NEVER: Final = -1
_UNKNOWN: Final = -2
_KEPT_OPEN: Final = 64


class Run(NamedTuple):
    """Bytes that belong together.

    `request` is the request that they are of, or whose reply they are of; None for padding and
    where it is not known.
    """

    offset: int
    length: int
    kind: Kind
    request: int | None


class _Shape(NamedTuple):
    """What a reply's bytes depend on."""

    executed: bool
    msg_type: int
    arm_sized: bool
    reply_load: int
    """Bytes of the load that its reply has after success, by the table of messages."""
    boot_cpu: bool
    """Read as an x86-64 request, its list has the boot CPU."""


class Provenance:
    """Follows one connection; feed it the observer's events in order.

    `from_start` is false for a connection that the recording first sees in the middle. `arch` is
    the guest's architecture where that is known.
    """

    def __init__(self, from_start: bool = True, arch: Arch | None = None) -> None:
        self._arch = arch
        owner = _NEVER if from_start else _UNKNOWN
        self._request_owners = _Owners(owner)
        self._reply_owners = _Owners(owner)
        self._last_reply: bytes | None = bytes(MESSAGE_SIZE) if from_start else None
        self._asked: dict[int, _Shape] = {}

    def request(self, event: RequestReceived) -> list[Run]:
        """The runs of a request as the guest saw it; none for a service that is not known here."""
        request = event.message
        if not isinstance(request, Request):
            return []
        if len(self._asked) < _KEPT_OPEN:
            self._asked[event.number] = _Shape(
                request.magic_version == MAGIC_VERSION,
                request.msg_type,
                isinstance(request, CpuRequestArm),
                sum(row.size for row in request.codec.layout.reply),
                0 in event.raw[_IDS_OFFSET:][: event.raw[_COUNT_OFFSET]],
            )
        self._request_owners.write(0, event.size, event.number)
        return _runs(self._request_owners, event.number)

    def reply(self, event: ReplyReceived) -> list[Run]:
        """The runs of a reply; none for a service that is not known here."""
        reply = event.message
        if not isinstance(reply, Reply):
            return []
        if len(event.raw) < MESSAGE_SIZE:  # a size limit cut it
            if event.number is not None:
                self._asked.pop(event.number, None)
            return []
        number = _UNKNOWN if event.number is None else event.number
        asked = None if event.number is None else self._asked.pop(event.number, None)
        if asked is not None and asked.msg_type != reply.msg_type:
            asked = None  # it answers something else
        owners, raw = self._reply_owners, event.raw
        owners.write(0, RET_OFFSET, number)
        load_end = REPLY_LOAD_OFFSET + max(CPU_REPLY_MSG_SIZE, asked.reply_load if asked else 0)
        left_over = [at >= load_end and byte != 0 for at, byte in enumerate(raw)]
        for begin, end, written in (
            (RET_OFFSET, REPLY_LOAD_OFFSET, self._writes_ret(asked, reply)),
            (REPLY_LOAD_OFFSET, load_end, self._writes_load(asked, reply, raw)),
        ):
            if written or self._changed(raw, begin, end):
                owners.write(begin, end, number)
            elif written is None:
                owners.write(begin, end, _UNKNOWN)
            elif any(raw[begin:end]):
                left_over[begin:end] = [True] * (end - begin)
        for begin, end in self._changes_beyond(raw, load_end):
            owners.write(begin, end, number)
        self._last_reply = raw
        return _of_nobody(_runs(owners, number), left_over)

    def lost(self, event: Lost) -> None:
        """Bytes are missing from the recording here."""
        if event.to_guest:
            self._request_owners = _Owners(_UNKNOWN)
            return
        for number in event.replies:
            self._asked.pop(number, None)
        self._forget_reply()

    def missing(self) -> None:
        """An unknown part of the recording is missing here."""
        self._asked.clear()
        self._request_owners = _Owners(_UNKNOWN)
        self._forget_reply()

    def _forget_reply(self) -> None:
        self._last_reply = None
        self._reply_owners.write(0, _LOAD_END, _UNKNOWN)

    def _writes_ret(self, asked: _Shape | None, reply: Reply) -> bool | None:
        """Whether the guest wrote `ret`; None when that cannot be told by the request."""
        if asked is None:
            return None
        if not asked.executed:
            return False
        if asked.msg_type in PCI_TYPES:
            # Success writes nothing, and the only failure there is is ENODEV.
            return None if reply.ret == ENODEV else False
        return True

    def _writes_load(self, asked: _Shape | None, reply: Reply, raw: bytes) -> bool | None:
        """Whether the guest wrote the load of its reply; None when that cannot be told."""
        if asked is None:
            return None
        if not asked.executed:
            return False
        if asked.msg_type not in CPU_TYPES:
            return bool(asked.reply_load) and reply.msg_size == asked.reply_load
        if reply.msg_size == CPU_REPLY_MSG_SIZE:
            return True
        arm = asked.arm_sized if self._arch is None else self._arch is Arch.AARCH64
        if asked.msg_type == MessageType.DEL_CPU and reply.ret == EINVAL:
            # To refuse to remove all it writes 0; to refuse the boot CPU it writes nothing.
            if any(raw[REPLY_LOAD_OFFSET:_LOAD_END]):
                return False
            return None if asked.boot_cpu and not arm else True
        return None if arm else False

    def _changed(self, raw: bytes, begin: int, end: int) -> bool:
        """True when a field is not what it was: whatever the rules say, it was written."""
        return self._last_reply is not None and raw[begin:end] != self._last_reply[begin:end]

    def _changes_beyond(self, raw: bytes, load_end: int) -> Iterator[tuple[int, int]]:
        """Stretches beyond the load, which no kernel writes, that were written even so."""
        if self._last_reply is None or raw[load_end:] == self._last_reply[load_end:]:
            return
        differs = [new != old for new, old in zip(raw, self._last_reply, strict=True)]
        edges = [
            at
            for at in range(load_end, len(raw) + 1)
            if (at < len(raw) and differs[at]) != (at > load_end and differs[at - 1])
        ]
        yield from zip(edges[::2], edges[1::2], strict=True)


class _Owners:
    """Which request each byte of a buffer is of, in few stretches."""

    def __init__(self, owner: int) -> None:
        self._stretches = [(0, owner), (MESSAGE_SIZE, _NEVER)]
        """(first byte, owner), up to the next one's first byte; the last one ends the buffer."""

    def write(self, begin: int, end: int, owner: int) -> None:
        """The bytes from `begin` up to `end` are this owner's from now on."""
        if begin >= end:
            return
        kept: list[tuple[int, int]] = []
        for first, last, other in self:
            if first < begin:
                kept.append((first, other))
            if first <= begin < last:
                kept.append((begin, owner))
            if last > end:
                kept.append((max(first, end), other))
        self._stretches = [*kept, self._stretches[-1]]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(first byte, byte after the last, owner) of each stretch."""
        for (first, owner), (last, _) in pairwise(self._stretches):
            yield first, last, owner


def _runs(owners: _Owners, number: int) -> list[Run]:
    """The stretches of a buffer as runs of the message `number`; neighbours alike are joined."""
    runs: list[Run] = []
    for first, last, owner in owners:
        kind: Kind = (
            "fresh" if owner == number and number != _UNKNOWN
            else "padding" if owner == _NEVER
            else "unknown" if owner == _UNKNOWN
            else "stale"
        )  # fmt: skip
        _join(runs, Run(first, last - first, kind, owner if owner >= 0 else None))
    return runs


def _join(runs: list[Run], run: Run) -> None:
    if runs and runs[-1][2:] == run[2:]:
        run = Run(runs[-1].offset, runs.pop().length + run.length, *run[2:])
    runs.append(run)


def _of_nobody(runs: list[Run], left_over: list[bool]) -> list[Run]:
    """What is not known to be of any reply, and was not written for this one either, is stale."""
    sorted_out: list[Run] = []
    for run in runs:
        stretch = left_over[run.offset : run.offset + run.length]
        if run.kind != "unknown" or not any(stretch):
            _join(sorted_out, run)
            continue
        for at, stale in enumerate(stretch, start=run.offset):
            _join(sorted_out, Run(at, 1, "stale" if stale else "unknown", None))
    return sorted_out


class Origins:
    """The provenance of every connection's bytes."""

    def __init__(self, header: Header) -> None:
        self._arch = Arch.named(header.arch)
        self._connections: dict[int, Provenance] = {}

    def feed(self, record: Record, events: Sequence[Event]) -> list[tuple[Run, ...]]:
        """The runs of each of a record's events."""
        match record:
            case Open(conn=conn, begins=begins):
                whole = begins is not Begins.MIDDLE
                self._connections[conn] = Provenance(whole, self._arch)
            case Gap(conn=0):
                for connection in self._connections.values():
                    connection.missing()
            case Chunk(conn=conn) | Gap(conn=conn):
                if conn not in self._connections:
                    self._connections[conn] = Provenance(from_start=False, arch=self._arch)
                return [_runs_of(self._connections[conn], event) for event in events]
            case Close(conn=conn, how=how) if how is not How.HALF:
                self._connections.pop(conn, None)
        return [()] * len(events)


def _runs_of(connection: Provenance, event: Event) -> tuple[Run, ...]:
    match event:
        case RequestReceived():
            return tuple(connection.request(event))
        case ReplyReceived():
            return tuple(connection.reply(event))
        case Lost():
            connection.lost(event)
    return ()
