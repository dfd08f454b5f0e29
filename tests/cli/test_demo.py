"""`demo` as a newcomer runs it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from upcall_trace.trace.opening import load


def test_the_demo_records_explains_and_leaves_its_capture() -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "upcall_trace", "demo"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - begun < 10
    found = re.search(r"^(/.*demo\.upcap)$", done.stdout, re.MULTILINE)
    assert found
    path = Path(found[1])
    capture = load(path)
    assert capture.complete
    assert [(op.op, op.ret) for op in capture.operations] == [
        ("add_cpu", 0), ("add_cpu", -22), ("add_mmio", 0), ("add_mmio", -17), ("del_mmio", -19),
        ("del_mmio", 0), ("add_mmio", 0), ("add_pci", -19), ("add_pci", -19), ("del_cpu", None),
        ("add_mem", -1),
    ]  # fmt: skip
    assert len(capture.marks) == len(capture.operations)
    assert done.stdout.count("        # ") >= len(capture.operations)
    assert max(map(len, done.stdout.split("\n\n")[0].splitlines())) <= 100
    for name in ("guest", "proxy"):
        assert not (path.parent / name).exists()
    commands = [shlex.split(line, comments=True) for line in tried(done.stdout)]
    assert len(commands) == 5
    again = subprocess.run(commands[1], capture_output=True, text=True, check=False)
    assert "UP" in again.stdout, again.stderr


def tried(said: str) -> list[str]:
    """The commands that it proposes; each can be run as it stands."""
    return said.partition("\nTry:\n")[2].splitlines()
