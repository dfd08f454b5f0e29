"""What a lab starts ends with it, also when it is killed in the middle of starting it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from upcall_trace.lab.parts import dies_with_this_thread

STARTER = """
import os, subprocess, sys
from pathlib import Path
from signal import SIGKILL
from upcall_trace.lab.parts import dies_with_this_thread
here = Path(sys.argv[1])
subprocess.Popen([*dies_with_this_thread(SIGKILL), "sh", "-c", "echo ran >$0", here / "ran"])
os.kill(os.getpid(), SIGKILL)
"""


def test_what_is_started_is_told_when_we_go(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    middle = f"""
import subprocess, sys
from signal import SIGTERM
from upcall_trace.lab.parts import dies_with_this_thread
child = subprocess.Popen([*dies_with_this_thread(SIGTERM), "sh", "-c",
    "trap 'echo told >$0; exit' TERM; echo up; read never <>$1", "{tmp_path / "told"}",
    "{tmp_path / "never"}"])
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", middle], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate()  # standard output ends with the last of them
    assert (tmp_path / "told").read_text() == "told\n"


def test_who_is_killed_before_the_child_asked_to_be_told_leaves_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setpriv that comes late: its parent is gone when it asks for the signal."""
    os.mkfifo(tmp_path / "gate")
    programs = tmp_path / "bin"
    programs.mkdir()
    late = programs / "setpriv"
    late.write_text(f'#!/bin/sh\nread go <{tmp_path / "gate"}\nexec /usr/bin/setpriv "$@"\n')
    late.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.wait(30) == -signal.SIGKILL
    (tmp_path / "gate").write_text("go\n")
    process.communicate()  # the output ends with the last of them
    assert not (tmp_path / "ran").exists()


def test_with_a_parent_that_lives_the_program_runs() -> None:
    command = [*dies_with_this_thread(signal.SIGKILL), "echo", "it", "runs"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "it runs\n"
