"""Messages to test with: seeded ones in bulk, hypothesis ones that shrink, and recorded ones."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from struct import Struct
from typing import NamedTuple

from hypothesis import strategies as st

from dissectors.constants import (
    CPU_MSG_SIZE,
    CPU_REPLY_MSG_SIZE,
    CPU_TYPES,
    HEADER_SIZE,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    MMIO_TYPES,
    PCI_MSG_SIZE,
    PCI_TYPES,
    Arch,
    MessageType,
)

GOLDEN = Path(__file__).parents[1] / "golden"

_HEADER = Struct("<4I")
_RET = Struct("<i")
_ROOM = MESSAGE_SIZE - HEADER_SIZE
_TYPES = [*MessageType, 9, 77, 0xFFFFFFFF]
_SIZES = [0, 1, 2, 4, 23, 24, 25, 257, 258, 259, MESSAGE_SIZE, 0xFFFFFFFF]
_MAGICS = [MAGIC_VERSION, 0, 0x444D0200, 0x00014D44, 0xFFFFFFFF]


class Sample(NamedTuple):
    """A message's bytes, and what its bytes do not say."""

    raw: bytes
    to_guest: bool
    arch: Arch
    """The architecture that the reader assumes."""


def request_size(msg_type: int, arch: Arch) -> int:
    """The `msg_size` that a correct client puts into a request; docs/protocol.md section 3."""
    if msg_type in CPU_TYPES:
        return CPU_MSG_SIZE[arch]
    if msg_type in MMIO_TYPES:
        return MMIO_MSG_SIZE
    return PCI_MSG_SIZE if msg_type in PCI_TYPES else 0


def valid(rng: Random) -> Sample:
    """A message with a correct header; its load is random, the rest is zeros or garbage."""
    arch = rng.choice(list(Arch))
    msg_type = rng.choice(list(MessageType))
    to_guest = rng.random() < 0.5
    if to_guest:
        msg_size = request_size(msg_type, arch)
        load = rng.randbytes(msg_size)
    else:
        ret = rng.choice((0, 0, 0, 1, -1, -5, -16, -17, -19, -22))
        msg_size = CPU_REPLY_MSG_SIZE if ret == 0 and msg_type in CPU_TYPES else 0
        load = _RET.pack(ret) + rng.randbytes(msg_size)
    rest = _ROOM - len(load)
    padding = bytes(rest) if rng.random() < 0.5 else rng.randbytes(rest)
    return Sample(
        _HEADER.pack(MAGIC_VERSION, msg_size, msg_type, 0) + load + padding, to_guest, arch
    )


def invalid(rng: Random) -> Sample:
    """Random bytes; half of them with a header that is close enough to choose a layout."""
    raw = rng.randbytes(MESSAGE_SIZE)
    if rng.random() < 0.5:
        header = (rng.choice(_MAGICS), rng.choice(_SIZES), rng.choice(_TYPES), rng.getrandbits(32))
        raw = _HEADER.pack(*header) + raw[HEADER_SIZE:]
    return Sample(raw, rng.random() < 0.5, rng.choice(list(Arch)))


def seeded(count: int, seed: int = 219) -> Iterator[Sample]:
    """`count` samples, every second one with a valid header; the same ones for the same seed."""
    rng = Random(seed)
    for number in range(count):
        yield valid(rng) if number % 2 else invalid(rng)


_u32 = st.integers(0, 0xFFFFFFFF)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """`MESSAGE_SIZE` bytes, every header field either a telling value or any."""
    header = _HEADER.pack(
        draw(st.sampled_from(_MAGICS) | _u32),
        draw(st.sampled_from(_SIZES) | _u32),
        draw(st.sampled_from(_TYPES) | _u32),
        draw(st.just(0) | _u32),
    )
    load = draw(st.binary(max_size=_ROOM))
    return header + load.ljust(_ROOM, draw(st.sampled_from([b"\0", b"\xaa"])))


def samples() -> st.SearchStrategy[Sample]:
    """Like `seeded`, but shrinking."""
    return st.builds(Sample, messages(), st.booleans(), st.sampled_from(Arch))


class Recorded(NamedTuple):
    """One recorded connection, cut at `MESSAGE_SIZE` in each direction.

    Where a client sent a request in pieces, `requests` holds what it meant, which is not what the
    guest took it for.
    """

    arch: Arch
    requests: list[bytes]
    replies: list[bytes]
    """Without the CONNECT message that came first."""
    hello: bytes


@cache
def golden() -> tuple[Recorded, ...]:
    """The connections of the recorded transcripts that came as far as the CONNECT message."""
    found = []
    for path in sorted(GOLDEN.glob("*.jsonl")):
        header, *records = map(json.loads, path.read_text().splitlines())
        streams: dict[tuple[int, str], bytearray] = defaultdict(bytearray)
        for record in records:
            if record["kind"] == "bytes":
                sent = bytes.fromhex(record["hex"]) + bytes(record["zeros"])
                streams[record["conn"], record["dir"]] += sent
        for conn in sorted({conn for conn, _ in streams}):
            _, _, requests = bytes(streams[conn, ">"]).partition(b"\n")
            _, _, replies = bytes(streams[conn, "<"]).partition(b"\n")
            if replies:
                hello, *rest = _cut(replies)
                found.append(Recorded(Arch(header["arch"]), _cut(requests[1:]), rest, hello))
    return tuple(found)


def _cut(stream: bytes) -> list[bytes]:
    """Whole messages only: what is left over at the end is dropped."""
    ends = range(MESSAGE_SIZE, len(stream) + 1, MESSAGE_SIZE)
    return [stream[end - MESSAGE_SIZE : end] for end in ends]


def golden_messages() -> Iterator[Sample]:
    """Every whole message of the recorded transcripts."""
    for conn in golden():
        for raw in conn.requests:
            yield Sample(raw, True, conn.arch)
        for raw in (conn.hello, *conn.replies):
            yield Sample(raw, False, conn.arch)
