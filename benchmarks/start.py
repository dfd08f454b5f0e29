"""Start-up: `upcall-trace --help` against a Python that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from .rows import Row

ROUNDS = 15


def run() -> Iterator[Row]:
    """Rows of the table; the two take turns."""
    commands = {
        "an empty Python": ["-c", ""],
        "upcall-trace --help": ["-m", "upcall_trace", "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, arguments in commands.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(values) * 1000 for name, values in times.items()}
    empty, ours = commands
    yield Row(empty, median[empty], "ms")
    paired = statistics.median(b / a for a, b in zip(times[empty], times[ours], strict=True))
    yield Row(ours, median[ours], "ms", paired, empty)
