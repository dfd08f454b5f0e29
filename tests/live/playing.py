"""A recording of a real guest replayed to the lab's guest, and reads that do not wait for ever."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from upcall_trace.compare.matchers import EVERY, parse_rules
from upcall_trace.lab.process import LiveGuest
from upcall_trace.replay.happening import Answered
from upcall_trace.replay.plan import DANGERS
from upcall_trace.replay.run import Replay, Terms, read_recording
from upcall_trace.replay.target import look_at
from upcall_trace.replay.tempo import Patience, Tempo
from upcall_trace.sockets.addresses import UnixAddress


def replay(
    recording: Path, guest: LiveGuest, speed: float | None = None
) -> tuple[Replay, list[Answered]]:
    """The replay after its one round, every byte compared, and what was answered in order."""
    target = look_at(UnixAddress(guest.address))
    assert target.kind == "lab"
    patience = Patience(silence_s=1.0)
    terms = Terms(Tempo(speed), patience, whole_bytes=True, allow=DANGERS)
    recorded = read_recording(recording)
    # The machine emulates its CPUs: how long an answer takes says nothing here.
    recorded.matchers.add(EVERY, parse_rules("latency=any"))
    with Replay(recorded, target, terms=terms) as played:
        happened = list(played.play())
    return played, [answered for answered in happened if isinstance(answered, Answered)]


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
