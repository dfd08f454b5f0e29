"""Plans, diffs and replays: how long they take, and how punctual a replay is.

Plans and diffs are whole commands, each a process of its own, from its start to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dissectors.constants import MessageType
from dissectors.messages import hello, mmio_request
from upcall_trace.capture.records import Chunk, Close, Header, Open
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.kernel.world import kata_pod
from upcall_trace.replay.run import Replay, Terms, read_recording
from upcall_trace.replay.target import look_at
from upcall_trace.replay.tempo import Tempo
from upcall_trace.sockets.addresses import UnixAddress

from .diagnosis import records as mixed
from .relays import start
from .rows import Row

FAST, PUNCTUAL, MANY = 20_000, 2_000, 100_000
GAP_NS = 3_000_000


def run() -> Iterator[Row]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        guest = directory / "guest"
        start(stack, guest, sys.executable, "-m", "upcall_trace", "guest", "--listen", str(guest))
        target = look_at(UnixAddress(guest))
        fast = read_recording(_recording(directory / "fast.upcap", FAST))
        for what, output in (("max", None), ("max, recorded", directory / "happened.upcap")):
            with Replay(fast, target, terms=Terms(output=output)) as replay:
                begun = time.perf_counter()
                for _ in replay.play():
                    pass
                rate = replay.verdict.same / (time.perf_counter() - begun)
            yield Row(f"--speed {what}", rate, "requests/s", size=FAST)
        yield from _commands(directory, guest)
        punctual = read_recording(_recording(directory / "punctual.upcap", PUNCTUAL))
        with Replay(punctual, target, terms=Terms(Tempo(1.0))) as replay:
            for _ in replay.play():
                pass
            late = np.array(replay.late_ns) / 1e6
            p50, p99 = np.percentile(late, (50, 99))
        for name, value in (("p50", p50), ("p99", p99), ("at most", late.max())):
            yield Row(f"--speed recorded, late, {name}", float(value), "ms", size=len(late))


def _commands(directory: Path, guest: Path) -> Iterator[Row]:
    paths = {}
    recordings = {"a": (MANY, False), "b": (MANY, True), "long": (198_000, True),
                  "short": (40_000, False)}  # fmt: skip
    for name, (operations, faulty) in recordings.items():
        paths[name] = directory / f"{name}.upcap"
        with CaptureWriter(paths[name], Header("bench", arch="x86_64")) as writer:
            for record in mixed(operations, kata_pod(), faulty):
                writer.write(record)
    a, b, long, short = map(str, paths.values())
    for name, size, arguments in (
        ("diff of two that are alike", MANY, ["diff", a, a]),
        ("diff of two, a half of them otherwise", MANY, ["diff", a, b]),
        ("diff of 198,000 against 40,000", 198_000, ["diff", long, short]),
        ("replay, the plan", MANY, ["replay", a, "--to", str(guest)]),
        ("replay, the plan as JSON", MANY, ["replay", a, "--to", str(guest), "--json"]),
    ):
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "upcall_trace", *arguments], stdout=subprocess.DEVNULL
        )
        _, _, used = os.wait4(process.pid, 0)
        yield Row(name, time.perf_counter() - begun, "s", size=size,
                  cpu_s=used.ru_utime + used.ru_stime, peak_mib=used.ru_maxrss / 1024)  # fmt: skip


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
