"""`record --memory`: one VM, every VM of the node, and what is refused."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import hello, pci_request
from tests.support import records_of, run
from tests.vantage.guest_memory.cutouts import held
from tests.vantage.guest_memory.vmm_process import vmm_process
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load

AT = 0x10000


class Recording:
    """A recording as a process of its own, until it is told to stop."""

    def __init__(self, *words: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upcall_trace", "record", *map(str, words)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.said = [self.process.stderr.readline()]

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=20)
        return said


def test_a_running_vm_is_recorded_into_a_file_of_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "memory.upcap"
    with vmm_process() as vmm:
        vmm.put(AT, held(bytes(1024), hello().encode()))
        recording = Recording("--memory", str(vmm.pid), "-o", path, "--interval", "1ms")
        assert recording.said[0].startswith(f"recording process {vmm.pid} (")
        assert "into" in recording.said[0]
        vmm.put(AT + 16, pci_request(MessageType.ADD_PCI, 0, 4).encode())
        time.sleep(0.3)
        said = recording.stop()
    assert recording.process.returncode == ExitCode.EXPECTED
    assert "1 requests and 0 replies seen" in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    header, _ = records_of(path)
    assert header.source == "guest-memory"
    (operation,) = load(path).operations
    assert (operation.op, operation.ret) == ("add_pci", None)


def test_every_vm_of_the_node_gets_a_capture_as_it_comes_and_goes(tmp_path: Path) -> None:
    directory = tmp_path / "captures"
    shim = tmp_path / "containerd-shim-kata-v2"
    shim.symlink_to(os.path.realpath(sys.executable))
    recording = Recording("--memory", "--watch", "-o", directory)
    assert "every VM of this machine" in recording.said[0]
    for sandbox in ("5a5a" * 16, "b0b0" * 16):
        with vmm_process(program=shim, arguments=("-id", sandbox)) as vmm:
            vmm.put(AT, held(bytes(1024), hello().encode()))
            path = directory / f"{sandbox}.upcap"
            deadline = time.monotonic() + 20
            while not path.exists() or path.stat().st_size < 300:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            vmm.put(AT + 16, pci_request(MessageType.ADD_PCI, 0, 4).encode())
            time.sleep(0.3)
    said = recording.stop()
    # It watches the VMs of other tests, too, of which it may lose something.
    assert recording.process.returncode in (ExitCode.EXPECTED, ExitCode.LOST)
    assert said.count("has ended: the recording is closed") >= 1
    for sandbox in ("5a5a" * 16, "b0b0" * 16):
        path = directory / f"{sandbox}.upcap"
        header, _ = records_of(path)
        assert header.sandbox == sandbox
        assert [each.op for each in load(path).operations] == ["add_pci"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--memory", "4000000"], ExitCode.UNREACHABLE, "there is no process 4000000"),
        (["--memory", "zzz"], ExitCode.UNREACHABLE, "no sandbox 'zzz' runs on this machine"),
        (["--memory"], ExitCode.USAGE, "needs the VMM's process id or sandbox"),
        (["--memory", "1", "--watch"], ExitCode.USAGE, "give --memory alone"),
        (["--memory", "1", "--interval", "soon"], ExitCode.USAGE, "no time such as 200us"),
        (["--memory", "1", "--interval", "1us"], ExitCode.USAGE, "from 20us to 10s"),
        (["--memory", "1", "--listen", "s"], ExitCode.USAGE, "takes no socket or interface"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str], code: ExitCode, sentence: str, tmp_path: Path
) -> None:
    outcome = run("record", *words, "-o", tmp_path / "out")
    assert outcome.code == code
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
