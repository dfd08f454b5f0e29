"""`tui` as a command: what it starts, and what it says when it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import hello, pci_request
from tests.support import has_index
from tests.vantage.guest_memory.cutouts import held
from tests.vantage.guest_memory.vmm_process import vmm_process
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


def proxy(directory: Path, listen: str, upstream: str) -> list[str]:
    """A recording's source: a proxy between two sockets."""
    return ["--listen", str(directory / listen), "--upstream", str(directory / upstream)]


def test_a_watch_of_a_vms_memory_is_followed_like_a_proxys_recording(tmp_path: Path) -> None:
    path = tmp_path / "memory.upcap"
    with vmm_process() as vmm:
        vmm.put(0x10000, held(bytes(1024), hello().encode()))
        with RecorderProcess(["--memory", str(vmm.pid)], path) as recorder:
            vmm.put(0x10010, pci_request(MessageType.ADD_PCI, 0, 4).encode())
            time.sleep(0.3)
            assert recorder.leave(stop=True) is ExitCode.EXPECTED
    assert [each.op for each in load(path).operations] == ["add_pci"]


def test_a_process_that_is_no_vmm_is_told_before_the_screen_is_taken(tmp_path: Path) -> None:
    with (
        pytest.raises(RecorderFailed, match="there is no process 4000000") as caught,
        RecorderProcess(["--memory", "4000000"], tmp_path / "x.upcap"),
    ):
        pass
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_a_recording_that_cannot_begin_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RecorderFailed, match="gone") as caught,
        RecorderProcess(proxy(tmp_path, "p", "gone"), tmp_path / "x.upcap"),
    ):
        pass
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_a_recording_is_stopped_or_left_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = simulated(tmp_path / "g")
    try:
        with RecorderProcess(proxy(tmp_path, "p", "g"), tmp_path / "x.upcap") as one:
            send(tmp_path / "p")
            assert one.leave(stop=True) is ExitCode.EXPECTED
        assert "1 connections, 1 operations" in capsys.readouterr().err
        assert has_index(tmp_path / "x.upcap")
        with RecorderProcess(proxy(tmp_path, "q", "g"), tmp_path / "y.upcap") as other:
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
