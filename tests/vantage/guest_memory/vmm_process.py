"""A process with a shared mapping as large as a guest's memory: what a VMM is to its watchers."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PROGRAM: Final = """
import mmap, os, sys, time
size = int(sys.argv[1])
if sys.argv[2] == "shared":
    fd = os.memfd_create("ram")
    os.ftruncate(fd, size)
    ram = mmap.mmap(fd, size)
else:
    ram = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print("ready", flush=True)
for line in sys.stdin:
    words = line.split()
    if words[0] == "fill":                       # fill AT SIZE: pages that were used
        at, length = int(words[1]), int(words[2])
        ram[at : at + length] = os.urandom(4096) * (length // 4096)
    elif words[0] == "put":                      # put AT HEX
        raw = bytes.fromhex(words[2])
        ram[int(words[1]) : int(words[1]) + len(raw)] = raw
    print(time.monotonic_ns(), flush=True)
"""


class VmmProcess:
    """Tell it what to have in its memory; it says when it has it, by the monotonic clock."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def fill(self, at: int, size: int) -> None:
        """Use these pages."""
        self._order(f"fill {at} {size}")

    def put(self, at: int, raw: bytes) -> int:
        """Write at an offset; when it was done, in nanoseconds."""
        return self._order(f"put {at} {raw.hex()}")

    def _order(self, order: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(order, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def vmm_process(
    size: int = 64 << 20,
    kind: str = "shared",
    program: Path = Path(sys.executable),
    arguments: tuple[str, ...] = (),
) -> Iterator[VmmProcess]:
    """A process with `size` bytes of memory that nobody used yet.

    `program` is Python under another name, for those who look at names.
    """
    process = subprocess.Popen(
        [program, "-c", _PROGRAM, str(size), kind, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield VmmProcess(process)
    finally:
        process.kill()
        process.communicate()


def resident(pid: int) -> int:
    """Bytes of a process that are there, as the kernel counts them page by page.

    Counted while it waits for an order: on its way there Python may use one more page.
    """
    process = Path(f"/proc/{pid}")
    while "\nState:\tS" not in (process / "status").read_text():
        time.sleep(0.001)
    found = re.search(r"^Rss: +(\d+) kB", (process / "smaps_rollup").read_text(), re.M)
    assert found is not None
    return int(found[1]) << 10
