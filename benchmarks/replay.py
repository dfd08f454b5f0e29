"""A replay against the simulated guest: how many requests a second, and how punctual."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import numpy as np

from dissectors.constants import MessageType
from dissectors.messages import hello, mmio_request
from upcall_trace.capture.records import Chunk, Close, Header, Open
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.replay.run import Replay, Terms, read_recording
from upcall_trace.replay.target import look_at
from upcall_trace.replay.tempo import Tempo
from upcall_trace.sockets.addresses import UnixAddress

from .relays import start

FAST, PUNCTUAL = 20_000, 2_000
GAP_NS = 3_000_000


def run() -> Iterator[str]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        guest = directory / "guest"
        start(stack, guest, sys.executable, "-m", "upcall_trace", "guest", "--listen", str(guest))
        target = look_at(UnixAddress(guest))
        fast = read_recording(_recording(directory / "fast.upcap", FAST))
        for what, output in (("max", None), ("max, recorded", directory / "happened.upcap")):
            with Replay(fast, target, terms=Terms(output=output)) as replay:
                begun = perf_counter()
                for _ in replay.play():
                    pass
                rate = replay.verdict.same / (perf_counter() - begun)
            yield f"--speed {what:<14} {rate:7,.0f} requests a second"
        punctual = read_recording(_recording(directory / "punctual.upcap", PUNCTUAL))
        with Replay(punctual, target, terms=Terms(Tempo(1.0))) as replay:
            for _ in replay.play():
                pass
            late = np.array(replay.late_ns) / 1e6
            p50, p99 = np.percentile(late, (50, 99))
        yield (
            f"--speed recorded, {len(late)} requests: late by {p50:.3f} ms (median), "
            f"{p99:.3f} ms (p99), {late.max():.3f} ms at most"
        )


def _recording(path: Path, requests: int) -> Path:
    """One connection that plugs and unplugs a device over and over."""
    with CaptureWriter(path, Header("benchmark", arch="x86_64")) as writer:
        writer.write(Open(0, 1))
        for to_guest, sent in (
            (True, b"CONNECT 219\n"), (False, b"OK 1\n"), (True, b"d"), (False, hello().encode()),
        ):  # fmt: skip
            writer.write(Chunk(0, 1, to_guest, sent))
        for number in range(requests):
            kind = MessageType.DEL_MMIO if number % 2 else MessageType.ADD_MMIO
            request = mmio_request(kind, 0xF0000000, 0x1000, 5)
            now = (number + 1) * GAP_NS
            writer.write(Chunk(now, 1, True, request.encode()))
            writer.write(Chunk(now + 100_000, 1, False, request.reply().encode()))
        writer.write(Close((requests + 1) * GAP_NS, 1, by_guest=False))
    return path
