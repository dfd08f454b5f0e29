"""How fast the logs of a node are read, beside what reading their bytes and parsing JSON takes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from upcall_trace.diagnose.log_inputs import read_logs

from .rows import Row

_LINES: Final = 500_000
_PODS: Final = 50
_NOISE: Final = (
    "audit: type=1400 apparmor=STATUS operation=profile_load", "random: crng reseeded",
    "IPv6: ADDRCONF(NETDEV_CHANGE): veth12ab: link becomes ready", "TRANSFER sandbox state",
)  # fmt: skip
_WANTED: Final = (
    "resize vcpu: now: 1, desire: 2", "get vcpu event, cpu_index 1 success Success",
    "create virtio mmio device 0x2000@0xe0006000, irq: 0x5",
)  # fmt: skip


def run() -> Iterator[Row]:
    """A plain console with one wanted line in two hundred, and a journal of fifty pods."""
    chance = random.Random(1)  # the same in every run
    with TemporaryDirectory() as folder:
        for name, write in (("console", _console), ("journal", _journal)):
            path = Path(folder) / name
            with path.open("w") as file:
                file.writelines(write(chance))
            size = path.stat().st_size
            plain = _timed(partial(_split, path))
            took = _timed(partial(_diagnose, path))
            yield Row(f"{name}, on one core", _LINES / took, "lines/s", took / plain,
                      "the time of splitting it into lines")  # fmt: skip
            yield Row(f"{name}, bytes", size / took / 1e6, "MB/s")


def _split(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _diagnose(path: Path) -> int:
    return len(read_logs(found=[path]).findings())


def _console(chance: random.Random) -> Iterator[str]:
    for number in range(_LINES):
        said = chance.choice(_NOISE)
        if number % 200 == 0:
            said = "db-dev-mgr: add vcpu number: 1"
        yield f"[{number / 100:12.6f}] {said} {number}\n"


def _journal(chance: random.Random) -> Iterator[str]:
    pods = [f"{chance.getrandbits(256):064x}" for _ in range(_PODS)]
    for number in range(_LINES):
        pod = chance.randrange(_PODS)
        said = chance.choice(_WANTED if number % 20 == 0 else _NOISE)
        entry = {
            "__REALTIME_TIMESTAMP": str(1_788_256_800_000_000 + number * 500), "_PID": str(pod),
            "_HOSTNAME": "node-a", "SYSLOG_IDENTIFIER": "kata", "PRIORITY": "6",
            "SUBSYSTEM": "hypervisor", "SOURCE": pods[pod], "NAME": "kata-runtime",
            "MESSAGE": said,
        }  # fmt: skip
        yield json.dumps(entry) + "\n"


def _timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun
