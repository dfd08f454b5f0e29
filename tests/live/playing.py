"""A recording of a real guest put to the lab's guest: the same sends, in the recorded order."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

from tests.support import records_of
from upcall_trace.capture.records import Chunk, Close, Open, Record, Vmm
from upcall_trace.lab.process import LiveGuest
from upcall_trace.transport import connect_unix

_APART_S = 0.1
"""Between two sends without a reply between them, so that the guest receives them apart."""
_PATIENCE_S = 15.0
_SILENCE_S = 1.0
_VCPU = re.compile(r"vCPU (\d+) created")
_MEMORY = re.compile(r"virtio-mem requested-size (\d+)(?: MiB)?")


def play(recording: Path, guest: LiveGuest) -> list[Record]:
    """The recording's records, with what this guest sent in the place of what the real one did.

    What the guest sends beyond the recording is added at the end of its connection.
    """
    streams: dict[int, socket.socket] = {}
    played: list[Record] = []
    asked: int | None = None
    for record in records_of(recording)[1]:
        match record:
            case Open(conn=conn):
                streams[conn] = connect_unix(guest.address)
                played.append(record)
            case Chunk(conn=conn, to_guest=True, data=sent):
                if asked == conn:
                    time.sleep(_APART_S)
                streams[conn].sendall(sent)
                asked = conn
                played.append(record)
            case Chunk(t_ns=t_ns, conn=conn, data=expected):
                got = receive(streams[conn], len(expected), _PATIENCE_S)
                asked = None
                played.append(Chunk(t_ns, conn, False, got))
            case Close(t_ns=t_ns, conn=conn) if conn in streams:  # ours may follow the guest's
                more = receive(streams[conn], 1, _PATIENCE_S if record.by_guest else _SILENCE_S)
                if more:
                    played.append(Chunk(t_ns, conn, False, more))
                streams.pop(conn).close()
                played.append(record)
            case Vmm(action=action):
                _order(action, guest)
                played.append(record)
            case _:
                played.append(record)
    for stream in streams.values():
        stream.close()
    return played


def receive(stream: socket.socket, size: int, patience_s: float) -> bytes:
    """`size` bytes, fewer when no more came in time or the guest closed."""
    deadline = time.monotonic() + patience_s
    received = b""
    while len(received) < size:
        stream.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            piece = stream.recv(size - len(received))
        except OSError:
            break
        if not piece:
            break
        received += piece
    return received


def _order(action: str, guest: LiveGuest) -> None:
    """What the VMM did at this place of the recording."""
    if found := _VCPU.fullmatch(action):
        guest.order({"start_vcpu": int(found[1])})
    elif found := _MEMORY.fullmatch(action):
        guest.order({"resize_memory": int(found[1]) << 20})
