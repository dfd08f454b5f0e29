"""Hybrid vsock's text lines on the VMM's Unix socket: CONNECT, OK, and Dragonball's passfd.

docs/protocol.md section 2. All functions take whole lines, newline included, and never raise.
"""

from __future__ import annotations

from .constants import CONNECT_LINE_LIMIT, OK_LINE_LIMIT, UPCALL_PORT
from .events import ConnectLine, OkLine

PASSFD_LINE = b"passfd\n"
_U32_LIMIT = 1 << 32


def line_end(received: bytes, limit: int = CONNECT_LINE_LIMIT) -> int:
    """Where the line at the start of `received` ends: its length with the newline.

    0 while it is not complete yet, -1 when `limit` bytes hold no newline: there is no line.
    """
    end = received.find(b"\n", 0, limit) + 1
    if end:
        return end
    return -1 if len(received) >= limit else 0


def parse_connect(line: bytes) -> int | None:
    """The port of `CONNECT <u32>\\n` in any case; None when the line is malformed."""
    return _port_after(b"connect", line, CONNECT_LINE_LIMIT)


def parse_ok(line: bytes) -> int | None:
    """The port of `OK <u32>\\n` in any case; None when the multiplexer said something else."""
    return _port_after(b"ok", line, OK_LINE_LIMIT)


def _port_after(word: bytes, line: bytes, limit: int) -> int | None:
    if not line.endswith(b"\n") or len(line) > limit:
        return None
    words = line[:-1].removesuffix(b"\r").split(b" ")
    if len(words) != 2 or words[0].lower() != word or not words[1].isdigit():
        return None
    port = int(words[1])
    return port if port < _U32_LIMIT else None


def connect_line(port: int = UPCALL_PORT) -> ConnectLine:
    """The line that asks the multiplexer for `port` in the guest."""
    return ConnectLine(b"CONNECT %d\n" % port, port)


def ok_line(port: int) -> OkLine:
    """The multiplexer's line once the guest accepted; `port` is its own choice."""
    return OkLine(b"OK %d\n" % port, port)


def ok_line_end(received: bytes) -> int:
    """`line_end` for the answer to a CONNECT line, which a client reads 50 bytes of at most."""
    return line_end(received, OK_LINE_LIMIT)
