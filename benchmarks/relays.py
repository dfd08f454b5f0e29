"""1 KiB ping-pong and bulk bytes: direct, through socat, and through `record` while it records."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from .peers import bulk, ping_pong
from .rows import Row, Skip
from .tui import Terminal

ROUNDS = 9
EXCHANGES = 2_000
BULK_SIZE = 1 << 30
BULK_ROUNDS = 5


def run() -> Iterator[Row]:
    """Rows of the table; relays take turns, so that the machine's mood meets all of them."""
    if shutil.which("socat") is None:
        raise Skip("socat is not installed; apt-get install socat")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        server = directory / "vmm"
        start(stack, server, sys.executable, "-m", "benchmarks.peers", str(server))
        paths = {
            "direct": server,
            "socat": _socat(stack, directory / "socat", server),
            "socat -b262144": _socat(stack, directory / "socat-big", server, "-b262144"),
            "record": _record(stack, directory / "record", server),
        }
        yield from _ping_pong({name: paths[name] for name in ("direct", "socat", "record")})
        yield from _bulk({name: path for name, path in paths.items() if name != "socat"})
        # Last, as a browser that catches up takes time from whatever comes after.
        followed = _record(stack, directory / "followed", server)
        follower = stack.enter_context(Terminal(directory / "followed.upcap", home=directory))
        follower.until(b"recording")
        threading.Thread(target=_show, args=(follower,), daemon=True).start()
        _, tails = _rounds({"record": paths["record"], "followed": followed})
        yield Row(
            "the browser follows: p99 of record", statistics.median(tails["followed"]), "us",
            _paired(tails["followed"], tails["record"]), "record",
        )  # fmt: skip


def _rounds(paths: dict[str, Path]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Of each round the median and the 99th percentile, in microseconds."""
    medians: dict[str, list[float]] = {name: [] for name in paths}
    tails: dict[str, list[float]] = {name: [] for name in paths}
    for path in paths.values():
        ping_pong(path, EXCHANGES)  # warm
    for _ in range(ROUNDS):
        for name, path in paths.items():
            times = sorted(ping_pong(path, EXCHANGES))
            medians[name].append(times[len(times) // 2] / 1000)
            tails[name].append(times[len(times) * 99 // 100] / 1000)
    return medians, tails


def _ping_pong(paths: dict[str, Path]) -> Iterator[Row]:
    medians, tails = _rounds(paths)
    p50 = {name: statistics.median(values) for name, values in medians.items()}
    p99 = {name: statistics.median(values) for name, values in tails.items()}
    for name in paths:
        for share, found, of in ((50, p50, medians), (99, p99, tails)):
            ratio = (_paired(of[name], of["socat"]), "socat") if name != "socat" else (None, "")
            yield Row(f"1 KiB ping-pong, {name}, p{share}", found[name], "us", *ratio)
    yield Row("record adds to direct, p50", p50["record"] - p50["direct"], "us")
    yield Row("record adds to direct, p99", p99["record"] - p99["direct"], "us")


def _bulk(paths: dict[str, Path]) -> Iterator[Row]:
    speeds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(BULK_ROUNDS):
        for name, path in paths.items():
            speeds[name].append(bulk(path, BULK_SIZE) / 1e9)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    plain = "socat -b262144"
    for name, speed in median.items():
        ratio = (_paired(speeds[name], speeds[plain]), plain) if name != plain else (None, "")
        yield Row(f"1 GiB on another port, {name}", speed, "GB/s", *ratio)


def _paired(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _record(stack: ExitStack, path: Path, server: Path) -> Path:
    start(
        stack, path, sys.executable, "-m", "upcall_trace", "record",
        "--listen", str(path), "--upstream", str(server), "-o", str(path.with_suffix(".upcap")),
    )  # fmt: skip
    return path


def _show(follower: Terminal) -> None:
    """Take what the browser draws, as a terminal does, until it ends."""
    try:
        while True:
            follower.read(1.0)
    except OSError:
        pass


def _socat(stack: ExitStack, path: Path, server: Path, *options: str) -> Path:
    start(
        stack, path, "socat", *options,
        f"UNIX-LISTEN:{path},fork,backlog=64", f"UNIX-CONNECT:{server}",
    )  # fmt: skip
    return path


def start(
    stack: ExitStack, path: Path, *command: str, said: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """A process that lives as long as the stack, once it listens; `said` is its stderr."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL if said is None else said)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    for _ in range(200):
        if path.exists():
            time.sleep(0.2)
            return process
        time.sleep(0.05)
    raise TimeoutError(f"{command[0]} does not listen at {path}")
