"""Every way to decode decodes all of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import growth


def test_each_step_does_what_it_is_timed_for(tmp_path: Path) -> None:
    steps = dict(growth._STEPS)
    if not shutil.which("tshark"):
        steps.pop("tshark")
    for name, step in steps.items():  # in their order: the first one writes the capture
        step(64, tmp_path)()
        assert (tmp_path / "c.upcap").exists(), name


def test_a_step_tells_seconds_and_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.growth", "write", "64", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, cpu, peak = map(float, told.split())
    assert seconds > 0
    assert cpu > 0
    assert peak > 10
