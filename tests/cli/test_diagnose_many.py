"""Very many findings of several captures take no memory but their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dissectors.constants import EEXIST, MessageType
from dissectors.messages import mmio_request
from tests.support import answer, ask, command, connect, limited, write_capture
from upcall_trace.capture.records import Header, Record

ROOM = 80 << 20
"""For 80,000 findings in the order of 500 bytes each, and what an allocator leaves. As one
object of JSON they would take 200 MB more."""


_TELLING_ITS_PEAK = """
import sys
from upcall_trace.cli import main
try:
    main(sys.argv[1:])
finally:
    status = open("/proc/self/status").read()
    print(status.split("VmPeak:")[1].split()[0], file=sys.stderr)
"""
_ALONE = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
"""Threads of numpy's have address space of their own, as many as there are processors."""


def address_space(*arguments: str) -> int:
    """The most that the command had, in bytes."""
    program = [sys.executable, "-c", _TELLING_ITS_PEAK, *arguments]
    ended = subprocess.run(program, env=_ALONE, capture_output=True, text=True, check=True)
    return int(ended.stderr.split()[-1]) << 10


def refused(path: Path, count: int) -> str:
    """A capture of windows of their own that are all refused."""
    records: list[Record] = connect(1)
    for place in range(count):
        request = mmio_request(MessageType.ADD_MMIO, 0xE0000000 + place * 0x2000, 0x2000, 5)
        at = 1000 * (place + 1)
        records += (ask(request, at), answer(request, at + 500, ret=EEXIST))
    return str(write_capture(path, records, Header("test", arch="x86_64")))


def test_findings_of_several_captures_are_written_as_they_are_made(tmp_path: Path) -> None:
    diagnosing = ["diagnose", "-j", "2", "--json"]
    few = [refused(tmp_path / f"few{n}.upcap", 10) for n in range(2)]
    many = [refused(tmp_path / f"many{n}.upcap", 10_000) for n in range(4)]
    limit = address_space(*diagnosing, *few) + ROOM
    ended = subprocess.run(
        limited(command(*diagnosing, *many), "RLIMIT_AS", limit),
        env=_ALONE, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    findings = json.loads(ended.stdout)["findings"]
    assert [f["capture"] for f in findings] == sorted(f["capture"] for f in findings)
    assert {(f["conn"], f["request"]) for f in findings if f["code"] == "UP301"} == {
        (1, n) for n in range(10_000)
    }
