"""`python -m benchmarks [NAME…]`: measure, print one table, write one report.

Each round of each benchmark is a process of its own, so that one's memory is not another's. The
report is compared with the last one that was kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from .report import Figure, Report, as_json, compared, figures, page, read
from .rows import Row, Skip

ALL = {
    name: name for name in (
        "relays", "crowds", "disk", "weeks", "guest", "growth", "diagnosis", "logs",
        "fleet", "replay", "start", "tui", "lab", "memory",
    )
} | {"long": "long_run"}  # fmt: skip
"""Name and module of each benchmark."""
KEPT = Path(".bench/kept.json")
_LOOPS = 300_000


def main() -> None:
    """Run the named benchmarks, or all of them."""
    options = _options()
    if options.rows:
        _round(options.rows)
        return
    if options.largest:
        os.environ["UPCALL_BENCH_LARGEST"] = str(options.largest)
    found: list[Figure] = []
    skipped: dict[str, str] = {}
    for name in options.names or ALL:
        print(f"\n{name}", flush=True)
        rounds = []
        for _ in range(options.rounds):
            loop_s = _plain_loop()
            rows, why = _apart(name)
            rounds.append(((loop_s + _plain_loop()) / 2, rows))
            if why:
                skipped[name] = why
        for figure in figures(name, rounds):
            found.append(figure)
            print(f"  {figure.row}", flush=True)
        if name in skipped:
            print(f"  not measured: {skipped[name]}")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    report = Report(datetime.now(UTC).isoformat(timespec="seconds"), machine, found, skipped)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "bench.json").write_text(as_json(report), "utf-8")
    (options.output / "bench.html").write_text(page(report), "utf-8")
    print(f"\nwritten: {options.output / 'bench.json'}, {options.output / 'bench.html'}")
    _compare(report)
    if options.keep:
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(as_json(report), "utf-8")
        print(f"kept: {KEPT}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *ALL], help="all of them if not given")
    parser.add_argument("--rounds", type=int, default=1, help="the medians of so many are told")
    parser.add_argument("--largest", type=int, help="operations that growth goes up to: 10000000")
    parser.add_argument("--keep", action="store_true", help="compare later reports with this one")
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), help="folder")
    parser.add_argument("--rows", choices=ALL, help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(report: Report) -> None:
    if not KEPT.exists():
        print(f"nothing to compare with: --keep makes {KEPT}")
        return
    kept = read(KEPT)
    worse = list(compared(kept, report))
    for figure, times in worse:
        print(f"worse: {figure.benchmark}: {figure.row.name}: {times:.2f} times as before")
    if not worse:
        print(f"nothing became worse since {kept.when}")


def _apart(name: str) -> tuple[list[Row], str]:
    command = [sys.executable, "-m", "benchmarks", "--rows", name]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [json.loads(line) for line in told.splitlines()]
    why = next((line["skip"] for line in lines if "skip" in line), "")
    return [Row(**line) for line in lines if "skip" not in line], why


def _round(name: str) -> None:
    """One round, in this process: a JSON object a row."""
    try:
        for row in _measured(import_module(f"benchmarks.{ALL[name]}").run()):
            print(json.dumps(asdict(row)), flush=True)
    except Skip as why:
        print(json.dumps({"skip": str(why)}))


def _measured(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows with what they took, where they do not say themselves."""
    before = sum(os.times()[:4])
    for row in rows:
        now = sum(os.times()[:4])
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(who).ru_maxrss for who in both) / 1024
        if row.cpu_s is None:
            row = replace(row, cpu_s=round(now - before, 3))
        yield row if row.peak_mib is not None else replace(row, peak_mib=round(peak, 1))
        before = now


def _plain_loop() -> float:
    """Seconds of a loop that no change of ours makes slower."""
    begun = time.process_time()
    table: dict[int, tuple[int, int]] = {}
    for place in range(_LOOPS):
        table[place & 255] = (place, place + 1)
    return time.process_time() - begun


main()
