"""Snapshots of a recorder that keeps the last minutes in memory, and what a killed one kept."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.cli.test_record import Running
from tests.cli.test_record_running import ADD, ask, until
from tests.vmm import Upcall, Vmm
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load


def test_a_snapshot_of_the_last_moments_when_something_is_found(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"):
        running = Running(
            "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm", "-o", tmp_path / "out",
            "--snapshot", "5m", "--allow", "--fault", "add_mmio:ret=-17:when=3",
        )  # fmt: skip
        with Upcall(tmp_path / "p") as client:
            assert [client.ask(ADD).ret for _ in range(4)] == [0, 0, -17, 0]
            assert list((tmp_path / "out").iterdir()) == []
            time.sleep(5)
        assert running.end() == ExitCode.EXPECTED
    assert any("a snapshot is written in 60 s: UP" in line for line in running.said)
    (snapshot,) = (tmp_path / "out").iterdir()
    assert [op.ret for op in load(snapshot).operations] == [0, 0, -17, 0]


def test_without_a_reason_nothing_is_written_and_a_signal_is_one(tmp_path: Path) -> None:
    for signalled in (False, True):
        with Vmm(tmp_path / f"vmm{signalled}"):
            running = Running(
                "--listen", tmp_path / "p", "--upstream", tmp_path / f"vmm{signalled}",
                "-o", tmp_path / "out", "--snapshot", "10s",
            )  # fmt: skip
            ask(tmp_path / "p")
            if signalled:
                running.process.send_signal(signal.SIGUSR1)
                time.sleep(1)
            assert running.end() == ExitCode.EXPECTED
        assert len(list((tmp_path / "out").iterdir())) == signalled


def test_what_a_killed_recorder_kept_is_written_by_the_next_one(tmp_path: Path) -> None:
    """Into the directory that it was kept for; and the memory is free again."""

    def recorder(name: str) -> Running:
        return Running(
            "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm", "-o", tmp_path / name,
            "--snapshot", "10s",
        )  # fmt: skip

    with Vmm(tmp_path / "vmm"):
        killed = recorder("first")
        (ring,) = rings_of(killed.process.pid)
        ask(tmp_path / "p", 3)
        until(lambda: len(load(ring).operations) == 3)
        killed.kill()
        following = recorder("second")
        until(lambda: not ring.exists())
        assert following.end() == ExitCode.EXPECTED
    (snapshot,) = (tmp_path / "first").glob("*-left.upcap")
    assert len(load(snapshot).operations) == 3
    assert list((tmp_path / "second").iterdir()) == []


def rings_of(pid: int) -> set[Path]:
    """The rings that a process holds, by the locks that it has open."""
    held = (each.readlink() for each in Path(f"/proc/{pid}/fd").iterdir())
    return {path.parent for path in held if path.parent.name.startswith("upcall-trace-ring-")}
