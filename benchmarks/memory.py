"""Guest memory: how fast it is looked through, what a watch sees, and what it costs the guest."""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dissectors.constants import MessageType
from dissectors.messages import Request, bare_request, cpu_request
from upcall_trace.capture.records import Chunk
from upcall_trace.lab import pieces
from upcall_trace.lab.process import LiveGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.sources import open_source
from upcall_trace.vantage.guest_memory.locating import locate
from upcall_trace.vantage.guest_memory.processes import RunningVmm

from .rows import Row, Skip

ROUNDS = 5
REQUESTS = 2_000
_T = 2.07
"""Student's, for 24 pairs of blocks; for more it is less."""
_SHARE = re.compile(r"([0-9.]+) % of a processor")


def run() -> Iterator[Row]:
    """Rows of the table."""
    yield from _scans("1 GiB, all of it resident", 1024, 1.0)
    yield from _scans("8 GiB, 5 % resident", 8192, 0.05)
    for service_us in (5_000, 1_000, 300):
        yield from _watch(service_us)
    missing = [piece.name for piece in pieces.survey() if piece.where is None]
    if missing:
        raise Skip(f"{', '.join(missing)} missing, see upcall-trace lab setup")
    for asking in _ASKED:
        yield from _guest(asking)


def _scans(what: str, mib: int, share: float) -> Iterator[Row]:
    with _writer(mib, share) as writer:
        before = _resident(writer.pid)
        times = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            with RunningVmm(writer.pid) as memory:
                found = locate(memory.windows(), memory.aligned)
            times.append(time.perf_counter() - begun)
            assert len(found.objects) == 1
        grown = _resident(writer.pid) - before
    yield Row(f"scan of {what}", statistics.median(times), "s")
    yield Row(f"scan of {what}: the VMM grew", grown / 1024, "MiB")


def _watch(service_us: int) -> Iterator[Row]:
    """What a watch at 200 us sees of requests that take so long, and how late."""
    with tempfile.TemporaryDirectory() as name, _writer(256, 0.2) as writer:
        path = Path(name) / "watched.upcap"
        with _recording(writer.pid, path) as recording:
            assert writer.stdin is not None
            assert writer.stdout is not None
            time.sleep(1)
            print(REQUESTS, service_us, service_us // 2, file=writer.stdin, flush=True)
            truth = json.loads(writer.stdout.readline())
            time.sleep(0.3)
        share = _SHARE.search(recording.said)
        seen, late = _compared(path, truth)
    late.sort()
    p99 = late[len(late) * 99 // 100] / 1000 if late else 0.0
    what = f"watch of requests of {service_us / 1000:g} ms"
    yield Row(f"{what}: seen", 100 * seen / REQUESTS, "% of them")
    if late:
        yield Row(f"{what}: late, p50", statistics.median(late) / 1000, "us")
        yield Row(f"{what}: late, p99", p99, "us")
    if share:
        yield Row(f"{what}: takes of a processor", float(share[1]), "%")


def _compared(path: Path, truth: list[tuple[list[int], int, int]]) -> tuple[int, list[int]]:
    """Requests that were seen, and how late each message was, in nanoseconds."""
    with open_source(path) as source:
        begun = source.header.wall_ns or 0
        chunks = [record for _, record in source.records() if isinstance(record, Chunk)]
    # The capture's clock is the monotonic one, tied to the wall clock once.
    to_monotonic = begun - (time.time_ns() - time.monotonic_ns())
    written = {tuple(key): (begun, ended) for key, begun, ended in truth}
    seen: set[tuple[int, ...]] = set()
    late: list[int] = []
    for chunk in chunks:
        key = (chunk.data[8], chunk.data[16], chunk.data[17]) if len(chunk.data) > 17 else ()
        if chunk.to_guest and key in written and key not in seen:
            seen.add(key)
            late.append(chunk.t_ns + to_monotonic - written[key][0])
    return len(seen), late


@dataclass(frozen=True, slots=True)
class _Asking:
    """What a real guest is asked, so many times a block, in so many pairs of blocks."""

    what: str
    machine: str
    requests: tuple[Request, ...]
    times: int
    blocks: int


_ASKED = (
    _Asking("a request that it does not know", "microvm", (bare_request(77),), 150, 40),
    _Asking(
        "ADD_CPU and DEL_CPU", "pc",
        (cpu_request(MessageType.ADD_CPU, [1]), cpu_request(MessageType.DEL_CPU, [1])), 10, 24,
    ),
)  # fmt: skip


def _guest(asking: _Asking) -> Iterator[Row]:
    """A real guest's answers with the watcher at work and without, in alternating blocks."""
    ratios, plain = [], []
    with tempfile.TemporaryDirectory() as name, LiveGuest("--machine", asking.machine) as guest:
        path = Path(name) / "watched.upcap"
        if MessageType.ADD_CPU in {request.msg_type for request in asking.requests}:
            guest.order({"start_vcpu": 1})
        pid = guest.status["pids"]["qemu"]
        with _recording(pid, path) as recording, UpcallClient(UnixAddress(guest.address)) as client:
            _block(client, asking)  # warm
            for number in range(asking.blocks):
                pair = {}
                for watched in ((True, False), (False, True))[number % 2]:  # against a drift
                    # Stopped it costs nothing, and it need not find the connection again.
                    recording.process.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)
                    time.sleep(0.05)
                    pair[watched] = _block(client, asking)
                ratios.append(pair[True] / pair[False])
                plain.append(pair[False])
            recording.process.send_signal(signal.SIGCONT)
    middle = statistics.mean(ratios)
    reach = _T * statistics.stdev(ratios) / len(ratios) ** 0.5
    name = f"the guest's latency with a watcher, {asking.what}"
    for what, value in (("", middle), (", low end of 95 %", middle - reach),
                        (", high end of 95 %", middle + reach)):  # fmt: skip
        yield Row(name + what, 100 * value, "%", value, "without")
    yield Row(f"{name}: without it takes", statistics.median(plain) / 1e6, "ms")


def _block(client: UpcallClient, asking: _Asking) -> float:
    """The median of what it took, in nanoseconds."""
    times = []
    for _ in range(asking.times):
        took = 0
        for request in asking.requests:
            answer = client.ask(request.encode(), 20)
            assert answer is not None
            took += answer.latency_ns
        times.append(took)
    return statistics.median(times)


@contextmanager
def _writer(mib: int, share: float) -> Iterator[subprocess.Popen[str]]:
    writer = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.memory_writer", str(mib), str(share)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        yield writer
    finally:
        writer.kill()
        writer.communicate()


class _Recording:
    def __init__(self, pid: int, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upcall_trace", "record", "--memory", str(pid), "-o", str(path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""


@contextmanager
def _recording(pid: int, path: Path) -> Iterator[_Recording]:
    recording = _Recording(pid, path)
    assert recording.process.stderr is not None
    recording.process.stderr.readline()
    try:
        yield recording
    finally:
        recording.process.send_signal(signal.SIGINT)
        _, recording.said = recording.process.communicate()


def _resident(pid: int) -> int:
    """Kilobytes of a process that are there, counted page by page."""
    found = re.search(r"^Rss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return int(found[1]) if found else 0
