"""Start-up: commands that read one small capture, against a Python that does nothing.

Nearly all of their time is importing. It is counted as time of the processor: that of a clock says
what else the machine does.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .rows import Row

ROUNDS = 15
_CAPTURE = Path(__file__).parents[1] / "captures" / "guest_oops.upcap"
_READING = ("info", "show", "show --json", "diagnose")


def run() -> Iterator[Row]:
    """Rows of the table; the commands take turns."""
    empty = "an empty Python"
    ours = {
        "upcall-trace --help": ["--help"],
        **{f"upcall-trace {words}": [*words.split(), str(_CAPTURE)] for words in _READING},
    }
    times: dict[str, list[float]] = {name: [] for name in (empty, *ours)}
    for _ in range(ROUNDS):
        times[empty].append(_processor_ms("-c", ""))
        for name, arguments in ours.items():
            times[name].append(_processor_ms("-m", "upcall_trace", *arguments))
    yield Row(empty, statistics.median(times[empty]), "ms")
    for name in ours:
        paired = statistics.median(b / a for a, b in zip(times[empty], times[name], strict=True))
        yield Row(name, statistics.median(times[name]), "ms", paired, empty)


def _processor_ms(*arguments: str) -> float:
    """What a Python takes of the processor, its own time and the kernel's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000
