"""Recordings as hypothesis makes them: whole messages in turn, and now and then something odd."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st

from dissectors.constants import MAGIC_VERSION, MESSAGE_SIZE
from dissectors.hvsock import connect_line, ok_line
from tests.support import HELLO
from upcall_trace.capture.records import (
    CUT_OFF,
    DAMAGED,
    LEFT_OUT,
    Begins,
    Chunk,
    Close,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)

MAGICS = st.sampled_from([MAGIC_VERSION] * 12 + [0, MAGIC_VERSION + 1])
TYPES = st.sampled_from([1, 2, 5, 6, 7, 8] * 3 + [0, 3, 4, 9, 77, 0xFFFFFFFF])
SIZES = {1: (258, 258, 258, 1, 0), 2: (258, 258, 1), 5: (24, 24, 23), 6: (24,), 7: (2,), 8: (2,)}
RETS = st.sampled_from([0] * 8 + [-22, -22, -17, -16, -19, -5, -1, 1, -(1 << 31), (1 << 31) - 1])
BASES = st.sampled_from([0xE0000000, 0xE0002000, 0xE0001FFF, 0xE0004000, 0, (1 << 64) - 0x2000])
CONNS = st.sampled_from([1, 1, 1, 2, 3])
GARBAGE = st.binary(min_size=1, max_size=40)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, nearly always one that makes sense."""
    msg_type = draw(TYPES)
    size = draw(st.sampled_from(SIZES.get(msg_type, (0, 5))))
    head = struct.pack("<4I", draw(MAGICS), size, msg_type, draw(st.sampled_from([0, 0, 0, 7])))
    load = b""
    if msg_type in (1, 2):
        ids = draw(st.lists(st.integers(0, 5) | st.integers(0, 255), max_size=4))
        count = len(ids) if size != 1 and draw(st.booleans()) else draw(st.integers(0, 255))
        load = bytes([count, 0x14, *ids])
    elif msg_type in (5, 6):
        load = struct.pack("<QQI", draw(BASES), draw(st.sampled_from([0x2000, 0x1000, 0])), 5)
    elif msg_type in (7, 8):
        load = bytes(draw(st.tuples(st.integers(0, 1), st.sampled_from([8, 9, 24, 255]))))
    left = draw(st.sampled_from([b""] * 8 + [b"left over"]))
    return (head + load + left).ljust(MESSAGE_SIZE, b"\0")


@st.composite
def replies(draw: st.DrawFn, request: bytes) -> bytes:
    """An answer to it, nearly always one that fits."""
    (msg_type,) = struct.unpack_from("<I", request, 8)
    if draw(st.integers(0, 20)) == 0:
        msg_type = draw(TYPES)
    ret = draw(RETS)
    size = 4 if msg_type in (1, 2) and ret == 0 and draw(st.integers(0, 9)) else 0
    load = draw(st.sampled_from([0, 0, 1, 2, 7, 0xFFFFFFFF])) if size else 0
    if draw(st.integers(0, 12)) == 0:
        load = 3
    left = draw(st.sampled_from([b""] * 12 + [b"\0\0\0left over"]))
    head = struct.pack("<4IiI", draw(MAGICS), size, msg_type, 0, ret, load)
    return (head + left).ljust(MESSAGE_SIZE, b"\0")


def _odd(draw: st.DrawFn, conn: int, request: bytes, reply: bytes) -> list[Record]:
    """Something that is no whole message in its turn; times are set later."""
    cut = draw(st.integers(1, MESSAGE_SIZE - 1))
    ways: list[Callable[[], list[Record]]] = [
        lambda: [Chunk(0, conn, True, request[:cut]), Chunk(0, conn, True, request[cut:]),
                 Chunk(0, conn, False, reply), Chunk(0, conn, False, reply)],
        lambda: [Chunk(0, conn, True, request[:cut]), Chunk(0, conn, False, reply)],
        lambda: [Chunk(0, conn, True, request), Chunk(0, conn, False, reply[:cut]),
                 Chunk(0, conn, False, reply[cut:])],
        lambda: [Chunk(0, conn, True, request * 2), Chunk(0, conn, False, reply * 2)],
        lambda: [Chunk(0, conn, True, request + b"x"), Chunk(0, conn, False, reply)],
        lambda: [Chunk(0, conn, True, request), Chunk(0, conn, True, request),
                 Chunk(0, conn, False, reply), Chunk(0, conn, False, reply)],
        lambda: [Chunk(0, conn, True, request)],
        lambda: [Chunk(0, conn, False, reply)],
        lambda: [Chunk(0, conn, True, request), Chunk(0, conn, False, reply, 500)],
        lambda: [Chunk(0, conn, draw(st.booleans()), draw(GARBAGE))],
        lambda: [Gap(0, conn, draw(st.booleans()), draw(st.integers(0, 2500)), "too slow")],
        lambda: [Gap(0, conn, True, draw(st.integers(0, 900)), CUT_OFF)],
        lambda: [Gap(0, 0, False, 99, draw(st.sampled_from([DAMAGED, LEFT_OUT])))],
        lambda: [Close(0, conn, draw(st.booleans()), draw(st.sampled_from(How)))],
        lambda: [GaveUp(0, conn, 1000)],
        lambda: [Vmm(0, "start_vcpu 5", conn), Mark(0, conn, 0, "comment", "here")],
    ]  # fmt: skip
    return draw(st.sampled_from(ways))()


def _opening(draw: st.DrawFn, conn: int) -> list[Record]:
    begins = draw(st.sampled_from([Begins.LINE, Begins.SERVICE, Begins.SERVICE, Begins.MIDDLE]))
    port = None if begins is Begins.LINE else 219
    opening: list[Record] = [Open(0, conn, begins, port, begins is Begins.SERVICE or None)]
    if begins is Begins.LINE:
        opening += [Chunk(0, conn, True, connect_line().raw), Chunk(0, conn, False, ok_line(1).raw)]
    if begins is not Begins.MIDDLE:
        opening += [Chunk(0, conn, True, b"d"), Chunk(0, conn, False, HELLO)]
    return opening


class Recording(list[Record]):
    """Records that say in a few words what they are when a test fails."""

    def __repr__(self) -> str:
        texts = [
            f"{record} {record.data.hex().rstrip('0')}"
            if isinstance(record, Chunk)
            else f"{record}"
            for record in self
        ]
        return "\n".join(texts)[:9000]


@st.composite
def recordings(draw: st.DrawFn, oddities: int = 3, steps: int = 14) -> Recording:
    """Connections with requests and replies in turn; several may be open at one time."""
    found: list[Record] = []
    opened: set[int] = set()
    waiting: dict[int, bytes] = {}
    odd_left = draw(st.integers(0, oddities))
    for _ in range(draw(st.integers(4, steps))):
        conn = draw(CONNS)
        if conn not in opened or draw(st.integers(0, 40)) == 0:
            found += _opening(draw, conn)
            opened.add(conn)
            waiting.pop(conn, None)
        if conn in waiting:
            found.append(Chunk(0, conn, False, draw(replies(waiting.pop(conn)))))
            continue
        request = draw(requests())
        if odd_left and draw(st.integers(0, 3)) == 0:
            odd_left -= 1
            found += _odd(draw, conn, request, draw(replies(request)))
            continue
        found.append(Chunk(0, conn, True, request))
        if draw(st.integers(0, 4)):
            for _ in range(draw(st.integers(0, 3))):
                found.append(Chunk(0, conn, False, draw(replies(request))))
                request = draw(requests())
                found.append(Chunk(0, conn, True, request))
            found.append(Chunk(0, conn, False, draw(replies(request))))
        else:
            waiting[conn] = request
    return _timed(draw, found)


def _timed(draw: st.DrawFn, records: list[Record]) -> Recording:
    steps = st.sampled_from([100, 5_000, 70_000, 300_000_000, 2_000_000_000, 11_000_000_000])
    t_ns = draw(st.sampled_from([0, 1 << 40]))
    found = Recording()
    usual = draw(steps)
    for record in records:
        t_ns += usual if draw(st.integers(0, 9)) else draw(steps)
        found.append(record if isinstance(record, (Mark, Header)) else replace(record, t_ns=t_ns))
    return found
