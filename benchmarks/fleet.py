"""Captures of a fleet to Parquet, killed in the middle too, and a question to all of them.

`UPCALL_BENCH_CAPTURES=10000` asks for the size of the target: 10^7 operations, some minutes, 2 GB.
One capture in a hundred is damaged, and one in four has failures. What comes out is checked.
"""

from __future__ import annotations

import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import MAGIC
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Header
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.dataset.fleet import workers
from upcall_trace.dataset.query import DayRange, ask, failures, query
from upcall_trace.dataset.stored import Dataset
from upcall_trace.diagnose.whole_capture import WholeCapture
from upcall_trace.kernel.world import kata_pod

from .diagnosis import records
from .rows import Row

CAPTURES = int(os.environ.get("UPCALL_BENCH_CAPTURES", "512"))
OPERATIONS = 1_000
JOBS = 2
ASKED = 5
SAMPLE = 20
_DAMAGED = 100
_FAULTY = 4
_DAY_NS = 86_400_000_000_000
_FIRST_NS = 1_790_000_000_000_000_000
_DAYS = 10


def run() -> Iterator[Row]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "captures")
        paths = _captures(folder)
        size = CAPTURES * OPERATIONS
        dataset = Dataset(str(Path(name, "fleet")))
        begun = time.perf_counter()
        process = _add(dataset, folder)
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - begun
        damaged = CAPTURES // _DAMAGED
        _check("exit code", os.waitstatus_to_exitcode(status), 3 if damaged else 0)
        on_disk = sum(path.stat().st_size for path in Path(dataset.url).rglob("*.parquet"))
        what = f"{CAPTURES:,} captures"
        yield Row(f"{what}, converted by {JOBS} processes", size / took, "operations/s", size=size,
                  message_bytes=on_disk / (2 * size), cpu_s=used.ru_utime + used.ru_stime,
                  peak_mib=used.ru_maxrss / 1024)  # fmt: skip
        yield Row(f"{what}, the whole conversion", took, "s", size=size)
        _check("captures", _one(dataset, "SELECT count(*) FROM captures"), CAPTURES)
        listed = _one(dataset, "SELECT count(*) FROM problems WHERE problem = 'damaged'")
        _check("problems", listed, damaged)
        yield Row(f"{what}, damaged and listed", listed, "captures", size=size)
        yield from _killed(what, folder, dataset, Path(name, "killed"))
        yield from _answers(what, dataset, paths)


def _captures(folder: Path) -> list[Path]:
    """The captures: the same records under a header of their own."""
    folder.mkdir()
    kinds = []
    for faulty in (True, False):
        path = folder.with_name("template")
        with CaptureWriter(path, Header("bench")) as writer:
            for record in records(OPERATIONS, kata_pod(), faulty):
                writer.write(record)
        with CaptureReader(path) as reader:
            kinds.append(reader.read(reader.first_offset, reader.size))
        path.unlink()
    paths = []
    for number in range(CAPTURES):
        header = Header(
            "bench", host=f"node{number}", wall_ns=_FIRST_NS + number % _DAYS * _DAY_NS,
            notes={"kernel": f"6.1.{number % 7}"},
        )  # fmt: skip
        body = kinds[number % _FAULTY != 0]
        if number % _DAMAGED == _DAMAGED - 1:
            body = body[: len(body) // 2] + b"damaged!" + body[len(body) // 2 + 8 :]
        paths.append(folder / f"{number}.upcap")
        paths[-1].write_bytes(MAGIC + encode(header) + body)
    return paths


def _add(dataset: Dataset, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "upcall_trace", "fleet", "add", dataset.url, str(folder),
         "-j", str(JOBS)],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _killed(what: str, folder: Path, whole: Dataset, path: Path) -> Iterator[Row]:
    """The same conversion, killed when half of it counts, and begun again."""
    dataset = Dataset(str(path))
    half = max(1, len(list(Path(whole.url, "commits").iterdir())) // 2)
    process = _add(dataset, folder)
    while process.poll() is None and len(list(path.glob("commits/*.json"))) < half:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(path.glob("commits/*.json")))
    begun = time.perf_counter()
    _add(dataset, folder).wait()
    took = time.perf_counter() - begun
    _check("files after a kill", _files(path), _files(Path(whole.url)))
    share = 100 * kept / max(1, len(list(path.glob("commits/*.json"))))
    yield Row(f"{what}, the rest after kill -9, {share:.0f} % were done", took, "s")


def _files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _answers(what: str, dataset: Dataset, paths: list[Path]) -> Iterator[Row]:
    from distributed import LocalCluster

    question = failures(["kernel", "op"])
    own, alone = _timed(lambda: ask(dataset, question, DayRange()))
    size = CAPTURES * OPERATIONS
    yield Row(f"{what}, failures by kernel and operation", alone * 1000, "ms", size=size)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster, workers(1, cluster.scheduler_address) as executor:  # type: ignore[no-untyped-call]  # fmt: skip
        there, apart = _timed(lambda: ask(dataset, question, DayRange(), executor))
    _check("Dask's answer", there.to_pylist(), own.to_pylist())
    yield Row(f"{what}, the same by Dask, two processes", apart * 1000, "ms", apart / alone,
              "DuckDB", size=size)  # fmt: skip
    chosen = paths[:: max(1, len(paths) // SAMPLE)]
    hosts = ", ".join(f"'node{path.stem}'" for path in chosen)
    told = query(
        dataset,
        "SELECT kernel, op, count(*) AS n, sum(CAST(ret IS NULL OR ret < 0 AS INTEGER)) AS bad "
        f"FROM operations WHERE host IN ({hosts}) GROUP BY kernel, op",
    ).to_pylist()
    found = {(row["kernel"], row["op"]): (row["n"], int(row["bad"])) for row in told}
    _check("plain Python's answer", found, _by_plain_python(chosen))


def _by_plain_python(paths: list[Path]) -> dict[tuple[str, str], tuple[int, int]]:
    counts: Counter[tuple[str, str]] = Counter()
    bad: Counter[tuple[str, str]] = Counter()
    for path in paths:
        whole = WholeCapture(path)
        for operation in whole.operations:
            key = (whole.header.notes["kernel"], operation.op)
            counts[key] += 1
            bad[key] += operation.failed
    return {key: (count, bad[key]) for key, count in counts.items()}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The answer, and the median of some times that it took."""
    times = []
    for _ in range(ASKED):
        begun = time.perf_counter()
        answer = work()
        times.append(time.perf_counter() - begun)
    return answer, statistics.median(times)


def _one(dataset: Dataset, sql: str) -> int:
    (row,) = query(dataset, sql).to_pylist()
    (value,) = row.values()
    return int(value)


def _check(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{what}: {str(found)[:200]} instead of {str(wanted)[:200]}")
