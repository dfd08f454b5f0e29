"""Captures of many hosts, to make datasets of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support import golden, records_of, write_capture
from upcall_trace.capture.records import Header
from upcall_trace.dataset.stored import Dataset, pieces_of

DAY_NS = 86_400_000_000_000
FIRST_NS = 1_790_000_000_000_000_000
"""2026-09-21."""
KERNELS = ("5.10.226", "6.1.62", "6.12.8")
NAMES = ("mmio_lifecycle", "cpu_lifecycle", "framing")


def captures(folder: Path, count: int, days: int = 3) -> list[Path]:
    """So many captures: of three recordings, three kernels and some days in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    known = [records_of(golden(name)) for name in NAMES]
    paths = []
    for number in range(count):
        header, records = known[number % len(known)]
        told = Header(
            "proxy", host=f"node{number}", arch=header.arch,
            wall_ns=FIRST_NS + number % days * DAY_NS,
            notes={"kernel": KERNELS[number // 3 % len(KERNELS)]},
        )  # fmt: skip
        paths.append(write_capture(folder / f"{number:04}.upcap", records, told))
    return paths


def rows(dataset: Dataset, table: str) -> list[dict[str, Any]]:
    """All rows of a table, in an order of their own."""
    listed = dataset.table(table, pieces_of(dataset.commits())).to_table().to_pylist()
    return sorted(listed, key=str)


def same_rows(one: Dataset, other: Dataset, tables: Iterable[str]) -> bool:
    """Whether two datasets hold the same."""
    return all(rows(one, table) == rows(other, table) for table in tables)
