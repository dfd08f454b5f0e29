"""`record -o -`: a capture that other programs read while it grows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.support import has_index, run
from tests.vmm import Upcall, Vmm
from upcall_trace.capture.frames import MAGIC
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load

PROGRAM = [sys.executable, "-m", "upcall_trace"]
DISK = mmio_request(MessageType.ADD_MMIO, 1 << 20, 0x2000, 5)


def start(folder: Path, stdout: int) -> subprocess.Popen[str]:
    """A recorder that accepts connections, its capture going to `stdout`."""
    words = ["record", "--listen", folder / "proxy", "--upstream", folder / "vmm", "-o", "-"]
    recorder = subprocess.Popen(
        [*PROGRAM, *map(str, words)], stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    assert recorder.stderr is not None
    first = recorder.stderr.readline()
    assert first == f"recording {folder}/proxy -> {folder}/vmm into standard output\n"
    return recorder


def ended(recorder: subprocess.Popen[str]) -> tuple[int, str]:
    recorder.send_signal(signal.SIGTERM)
    assert recorder.stderr is not None
    with recorder:
        return recorder.wait(30), recorder.stderr.read()


def test_traffic_is_in_the_pipe_as_soon_as_it_crossed(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with Vmm(tmp_path / "vmm"), os.fdopen(read_end, "rb") as pipe:
        recorder = start(tmp_path, write_end)
        os.close(write_end)
        came = pipe.read(len(MAGIC))
        assert came == MAGIC
        with Upcall(tmp_path / "proxy") as client:
            assert client.ask(DISK).ret == 0
            # Zeros at the end are only counted. Without the request this waits until the timeout.
            while DISK.encode().rstrip(b"\0") not in came:
                came += pipe.read1()
        code, said = ended(recorder)
        came += pipe.read()
    assert code == ExitCode.EXPECTED, said
    assert said.endswith("standard output: 1 connections, 1 operations\n")
    path = tmp_path / "c.upcap"
    path.write_bytes(came)
    assert load(path).complete
    assert has_index(path)
    assert len(run("show", "--json", path).objects) == 1
    assert not Path("-").exists()


@pytest.mark.parametrize(
    ("reader", "expected"),
    [("show", '"op": "add_mmio"'), ("diagnose", "of add_mmio 0x100000"), ("info", '"requests": 1')],
)
def test_other_commands_read_it_to_its_end(tmp_path: Path, reader: str, expected: str) -> None:
    with Vmm(tmp_path / "vmm"):
        following = subprocess.Popen(
            [*PROGRAM, reader, "--json", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert following.stdin is not None
        assert following.stdout is not None
        recorder = start(tmp_path, following.stdin.fileno())
        following.stdin.close()
        with Upcall(tmp_path / "proxy") as client:
            assert client.ask(DISK).ret == 0
        code, said = ended(recorder)
        with following:
            shown = following.stdout.read()
    assert (code, following.returncode) == (ExitCode.EXPECTED, ExitCode.EXPECTED), said
    assert expected in shown


def test_a_reader_that_is_gone_ends_no_traffic(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with Vmm(tmp_path / "vmm"):
        recorder = start(tmp_path, write_end)
        os.close(write_end)
        os.close(read_end)
        with Upcall(tmp_path / "proxy") as client:
            for _ in range(3):
                assert client.ask(DISK).ret == 0
        code, said = ended(recorder)
    assert code == ExitCode.LOST
    assert "cannot be written: Broken pipe" in said
    assert "bytes of traffic were not recorded (Broken pipe)" in said


def test_several_files_do_not_fit(tmp_path: Path) -> None:
    for more in (["--rotate-size", "1M"], ["--snapshot", "10s"]):
        outcome = run(
            "record", "--listen", tmp_path / "p", "--upstream", tmp_path / "v", "-o", "-", *more
        )
        assert outcome.code == ExitCode.USAGE
        assert "-o names a directory" in outcome.err
