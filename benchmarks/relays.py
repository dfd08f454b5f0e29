"""1 KiB ping-pong and bulk bytes: direct, through socat, and through `record` while it records."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from .peers import bulk, ping_pong

ROUNDS = 9
EXCHANGES = 2_000
BULK_SIZE = 1 << 30
BULK_ROUNDS = 5


def run() -> Iterator[str]:
    """Rows of the table; relays take turns, so that the machine's mood meets all of them."""
    if shutil.which("socat") is None:
        yield "socat is not installed; apt-get install socat"
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        server = directory / "vmm"
        start(stack, server, sys.executable, "-m", "benchmarks.peers", str(server))
        paths = {
            "direct": server,
            "socat": _socat(stack, directory / "socat", server),
            "socat -b262144": _socat(stack, directory / "socat-big", server, "-b262144"),
            "record": directory / "record",
        }
        start(
            stack, paths["record"], sys.executable, "-m", "upcall_trace", "record",
            "--listen", str(paths["record"]), "--upstream", str(server),
            "-o", str(directory / "bench.upcap"),
        )  # fmt: skip
        yield from _ping_pong({name: paths[name] for name in ("direct", "socat", "record")})
        yield from _bulk({name: path for name, path in paths.items() if name != "socat"})


def _ping_pong(paths: dict[str, Path]) -> Iterator[str]:
    medians: dict[str, list[float]] = {name: [] for name in paths}
    tails: dict[str, list[float]] = {name: [] for name in paths}
    for path in paths.values():
        ping_pong(path, EXCHANGES)  # warm
    for _ in range(ROUNDS):
        for name, path in paths.items():
            times = sorted(ping_pong(path, EXCHANGES))
            medians[name].append(times[len(times) // 2] / 1000)
            tails[name].append(times[len(times) * 99 // 100] / 1000)
    p50 = {name: statistics.median(values) for name, values in medians.items()}
    p99 = {name: statistics.median(values) for name, values in tails.items()}
    for name in paths:
        yield f"1 KiB ping-pong, {name:<8} p50 {p50[name]:7.1f} us   p99 {p99[name]:7.1f} us"
    added50, added99 = p50["record"] - p50["direct"], p99["record"] - p99["direct"]
    yield f"record adds {added50:.1f} us (p50) and {added99:.1f} us (p99) to direct"
    yield f"record / socat at p50: {p50['record'] / p50['socat']:.2f}"


def _bulk(paths: dict[str, Path]) -> Iterator[str]:
    speeds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(BULK_ROUNDS):
        for name, path in paths.items():
            speeds[name].append(bulk(path, BULK_SIZE) / 1e9)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    for name, speed in median.items():
        yield f"1 GiB on another port, {name:<15} {speed:5.2f} GB/s"
    yield f"record / socat -b262144: {median['record'] / median['socat -b262144']:.2f}"


def _socat(stack: ExitStack, path: Path, server: Path, *options: str) -> Path:
    start(
        stack, path, "socat", *options,
        f"UNIX-LISTEN:{path},fork,backlog=64", f"UNIX-CONNECT:{server}",
    )  # fmt: skip
    return path


def start(stack: ExitStack, path: Path, *command: str) -> subprocess.Popen[bytes]:
    """A process that lives as long as the stack, once it listens at `path`."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    for _ in range(200):
        if path.exists():
            time.sleep(0.2)
            return process
        time.sleep(0.05)
    raise TimeoutError(f"{command[0]} does not listen at {path}")
