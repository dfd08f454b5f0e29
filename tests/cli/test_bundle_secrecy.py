"""No byte that is to be redacted reaches a disk, at any moment, and a kill leaves nothing."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.guests import wait_until
from tests.support import DISK, answer, ask, command, connect
from upcall_trace.capture.records import Header, Mark
from upcall_trace.capture.writer import CaptureWriter

SECRET: Final = "hunter2"
LOG: Final = f"""\
VM upcall init
Jan  2 03:04:05 {SECRET}-node kata[123]: vmm action error: Block(InvalidPath(/{SECRET}/x))
the password is {SECRET}
"""
TRACED: Final = "trace=write,pwrite64,writev,pwritev,sendfile,copy_file_range,splice"


def log(folder: Path) -> list[str]:
    (folder / "log").write_text(LOG)
    return ["--vmm-log", str(folder / "log")]


def packed_log(folder: Path) -> list[str]:
    (folder / "log.gz").write_bytes(gzip.compress(LOG.encode()))
    return ["--vmm-log", str(folder / "log.gz")]


def capture(folder: Path) -> list[str]:
    header = Header(f"{SECRET}-tool", host=f"{SECRET}-host", notes={"x": f"{SECRET}-note"})
    with CaptureWriter(folder / "c.upcap", header) as writer:
        for record in [*connect(), ask(DISK, 10), answer(DISK, 20)]:
            writer.write(record)
        writer.write(Mark(30, None, None, f"{SECRET}-mark", f"{SECRET}-text"))
    return [str(folder / "c.upcap")]


def packed_capture(folder: Path) -> list[str]:
    (plain,) = capture(folder)
    (folder / "c.gz").write_bytes(gzip.compress(Path(plain).read_bytes()))
    return [str(folder / "c.gz")]


def written(folder: Path, *options: str) -> list[str]:
    """Every write of a `bundle` of these inputs but those to the terminal and to memory."""
    trace = folder / "trace"
    subprocess.run(
        ["strace", "-f", "-y", "-qq", "-s", "1000000", "-e", TRACED, "-o", trace,
         *command("bundle", *options, "--overwrite", "-o", folder / "out.tar.gz")],
        capture_output=True, check=True, timeout=100,
    )  # fmt: skip
    return [line for line in trace.read_text().splitlines() if "</memfd:" not in line]


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
@pytest.mark.parametrize("made", [log, packed_log, capture, packed_capture])
def test_nothing_that_is_redacted_is_ever_written(
    made: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    inputs = made(tmp_path)
    told = [line for line in written(tmp_path, *inputs, "--redact") if SECRET in line]
    assert told == []
    as_it_is = written(tmp_path, *inputs)
    assert made is not log or any(SECRET in line for line in as_it_is)  # so it would be seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_kill_in_the_middle_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = command("bundle", "--vmm-log", pipe, "--redact", "-o", tmp_path / "out.tar.gz")
    # What the tests were started by may ignore it, as nohup and a script's background do.
    ours = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=ours) as bundle:
        with pipe.open("wb") as feeding:
            feeding.write(LOG.encode() * 30_000)
            feeding.flush()
            wait_until(lambda: [*tmp_path.glob(".upcall-bundle.*/vmm.log")])
            for path in tmp_path.glob(".upcall-bundle.*/*"):
                assert SECRET.encode() not in path.read_bytes()
            bundle.send_signal(number)
            assert bundle.wait(60) not in (0, None)
        assert not re.search(SECRET, bundle.stderr.read() if bundle.stderr else "")
    assert [*tmp_path.iterdir()] == [pipe]
