"""Captures of a fleet to Parquet, and a question to all of them.

`UPCALL_BENCH_CAPTURES=10000` asks for the size of the target, which takes minutes.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from upcall_trace.capture.records import Header
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.dataset.fleet import add, find_sources, workers
from upcall_trace.dataset.query import DayRange, ask, failures
from upcall_trace.dataset.stored import Dataset
from upcall_trace.kernel.world import kata_pod

from .diagnosis import records
from .rows import Row

CAPTURES = int(os.environ.get("UPCALL_BENCH_CAPTURES", "200"))
OPERATIONS = 1_000
JOBS = 2
ASKED = 5
_DAY_NS = 86_400_000_000_000
_FIRST_NS = 1_790_000_000_000_000_000
_DAYS = 10


def run() -> Iterator[Row]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder, url = Path(name, "captures"), str(Path(name, "fleet"))
        folder.mkdir()
        ready = list(records(OPERATIONS, kata_pod(), faulty=True))
        for number in range(CAPTURES):
            header = Header(
                "bench", host=f"node{number}", wall_ns=_FIRST_NS + number % _DAYS * _DAY_NS,
                notes={"kernel": f"6.1.{number % 7}"},
            )  # fmt: skip
            with CaptureWriter(folder / f"{number}.upcap", header) as writer:
                for record in ready:
                    writer.write(record)
        begun = time.perf_counter()
        with workers(JOBS, None) as executor:
            added = add(url, find_sources([str(folder)]), executor)
        took = time.perf_counter() - begun
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = sum(path.stat().st_size for path in Path(url).rglob("*.parquet"))
        what = f"{added.captures:,} captures"
        yield Row(f"{what}, converted by {JOBS} processes", added.operations / took, "operations/s",
                  size=added.operations, cpu_s=used.ru_utime + used.ru_stime,
                  peak_mib=used.ru_maxrss / 1024,
                  message_bytes=size / (2 * added.operations))  # fmt: skip
        yield Row(f"{what}, the whole conversion", took, "s", size=added.operations)
        dataset = Dataset(url)
        times = []
        for _ in range(ASKED):
            begun = time.perf_counter()
            ask(dataset, failures(["kernel", "op"]), DayRange())
            times.append(time.perf_counter() - begun)
        yield Row(f"{what}, failures by kernel and operation", statistics.median(times) * 1000,
                  "ms", size=added.operations)  # fmt: skip
