"""`tui` as a command: what it starts, and what it says when it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import has_index
from upcall_trace.cli.support.recorder_process import RecorderFailed, RecorderProcess
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load

from ..support import command


def simulated(path: Path) -> subprocess.Popen[str]:
    """A simulated guest that listens already."""
    guest = subprocess.Popen(command("guest", "--listen", path), stderr=subprocess.PIPE, text=True)
    assert guest.stderr is not None
    assert "listening" in guest.stderr.readline()
    guest.stderr.close()
    return guest


def send(path: Path) -> None:
    subprocess.run(command("send", "--to", path, "add-cpu", "1"), check=False, capture_output=True)


def test_a_recording_that_cannot_begin_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RecorderFailed, match="gone") as caught,
        RecorderProcess(tmp_path / "p", str(tmp_path / "gone"), tmp_path / "x.upcap"),
    ):
        pass
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_a_recording_is_stopped_or_left_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = simulated(tmp_path / "g")
    try:
        with RecorderProcess(tmp_path / "p", str(tmp_path / "g"), tmp_path / "x.upcap") as one:
            send(tmp_path / "p")
            assert one.leave(stop=True) is ExitCode.EXPECTED
        assert "1 connections, 1 operations" in capsys.readouterr().err
        assert has_index(tmp_path / "x.upcap")
        with RecorderProcess(tmp_path / "q", str(tmp_path / "g"), tmp_path / "y.upcap") as other:
            assert other.leave(stop=False) is ExitCode.EXPECTED
        said = capsys.readouterr().err
        assert said.startswith("still recording into")
        send(tmp_path / "q")
        os.kill(int(said.split("kill ")[1].split()[0]), signal.SIGINT)
        until = time.monotonic() + 20
        while not has_index(tmp_path / "y.upcap") and time.monotonic() < until:
            time.sleep(0.05)
        assert len(load(tmp_path / "y.upcap").operations) == 1
    finally:
        guest.terminate()
        guest.wait(20)
