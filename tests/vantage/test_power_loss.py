"""A loss of power at any moment: what `--sync` promises is there, and all of it can be read."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.cli.test_record import COMMAND
from tests.support import command, run, small_capture, write_capture
from tests.vantage.crash_states import Call, State, available, calls, states, traced
from tests.vmm import Upcall, Vmm
from upcall_trace.capture.reader import CaptureReader, NotACapture
from upcall_trace.capture.records import Gap, Record
from upcall_trace.cli.support.recording_options import parse_sync
from upcall_trace.errors import ExitCode, WrongUsage

pytestmark = pytest.mark.skipif(not available, reason="there is no strace")
SEED = 20


def recorded(directory: Path, sync: str, rounds: int = 4) -> tuple[list[Call], Path]:
    """The calls of a recording of some requests, and the capture."""
    capture = directory / "c.upcap"
    words: list[str | Path] = [
        *COMMAND,
        "--listen",
        directory / "p",
        "--upstream",
        directory / "vmm",
        "-o",
        capture,
    ]
    with Vmm(directory / "vmm"):
        process = subprocess.Popen(
            traced(directory / "log", *words, "--sync", sync), stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        process.stderr.readline()  # it listens
        for _ in range(rounds):
            before = capture.stat().st_size
            with Upcall(directory / "p") as client:
                for number in range(4):
                    client.ask(mmio_request(MessageType.ADD_MMIO, number << 12, 0x1000, 5))
            while capture.stat().st_size == before:
                time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    return calls(directory / "log"), capture


def records(path: Path) -> list[Record] | None:
    """What a capture holds without what is told of its damage, None for what is none."""
    try:
        with CaptureReader(path) as reader:
            return [r for r in reader if not (isinstance(r, Gap) and r.conn == 0)]
    except NotACapture:
        return None


def written_before(sync_log: list[Call], capture: Path) -> Iterator[int]:
    """How many writes of records there were between two syncs, for each sync of the capture."""
    since = 0
    temporary = next(call.file for call in sync_log if call.other == str(capture))
    for call in sync_log:
        if call.file == temporary and call.name == "write":
            since += 1
        elif call.file == temporary and call.name == "sync":
            yield since
            since = 0
    assert since == 0


def check(state: State, whole: list[Record], scratch: Path) -> None:
    if state.content is None:
        assert state.sure is None
        return
    scratch.write_bytes(state.content)
    found = records(scratch)
    sure: list[Record] | None = None
    if state.sure:
        (scratch.with_suffix(".sure")).write_bytes(state.sure)
        sure = records(scratch.with_suffix(".sure"))
    if sure is not None:
        assert found is not None
        assert found[: len(sure)] == sure  # nothing that was synced is missing
    rest = iter(whole)
    assert all(record in rest for record in found or ())  # nothing is made up, or out of order


def check_all(happened: list[Call], capture: Path, count: int, scratch: Path) -> int:
    whole = records(capture)
    assert whole
    seen: set[bytes] = set()
    for state in states(happened, capture, count, SEED):
        if state.content is not None and state.content in seen:
            continue
        seen.add(state.content or b"")
        check(state, whole, scratch)
        if len(seen) % 40 == 1 and state.content is not None:
            assert run("info", scratch).code in (0, ExitCode.LOST, ExitCode.UNREADABLE)
    return len(seen)


@pytest.mark.parametrize("sync", ["always", "none", pytest.param("1ms", marks=pytest.mark.torture)])
def test_a_loss_of_power_leaves_what_was_synced_and_nothing_made_up(
    tmp_path: Path, sync: str
) -> None:
    happened, capture = recorded(tmp_path, sync)
    assert check_all(happened, capture, 8, tmp_path / "scratch.upcap") > 20


@pytest.mark.torture
@pytest.mark.parametrize(("sync", "many"), [("always", 200), ("1ms", 200), ("none", 2_000)])
def test_thousands_of_states_after_a_loss_of_power(tmp_path: Path, sync: str, many: int) -> None:
    """The fewer writes wait for the disk, the fewer states there are."""
    happened, capture = recorded(tmp_path, sync, rounds=40)
    assert check_all(happened, capture, 400, tmp_path / "scratch.upcap") > many


def test_with_always_nothing_is_written_before_the_disk_has_the_last_of_it(tmp_path: Path) -> None:
    happened, capture = recorded(tmp_path, "always")
    # A batch, and what the index had to say of the one before.
    assert max(written_before(happened, capture)) <= 3
    assert len(list(written_before(happened, capture))) > 3


@pytest.mark.parametrize(
    ("sync", "syncs"), [pytest.param("none", 1, marks=pytest.mark.torture), ("1h", 2)]
)
def test_without_always_the_disk_is_waited_for_that_often(
    tmp_path: Path, sync: str, syncs: int
) -> None:
    """At the end, and with a time also when the file is made."""
    happened, capture = recorded(tmp_path, sync)
    assert len(list(written_before(happened, capture))) == syncs


def test_with_sync_a_capture_has_its_header_from_its_first_moment(tmp_path: Path) -> None:
    happened, capture = recorded(tmp_path, "1h", rounds=1)
    scratch = tmp_path / "scratch.upcap"
    for state in states(happened, capture, 8, SEED):
        if state.content is not None:
            scratch.write_bytes(state.content)
            assert records(scratch) is not None


@pytest.mark.parametrize(
    "words",
    [
        ["filter", "IN", "ret < 0"],
        pytest.param(["recover", "IN"], marks=pytest.mark.torture),
        pytest.param(["merge", "IN"], marks=pytest.mark.torture),
    ],
    ids=lambda words: words[0],
)
def test_what_takes_the_place_of_a_file_is_whole_or_the_file_is_still_there(
    tmp_path: Path, words: list[str]
) -> None:
    given = write_capture(tmp_path / "x.upcap", small_capture())
    old = write_capture(tmp_path / "out.upcap", small_capture()[:6]).read_bytes()
    output = tmp_path / "out.upcap"
    filled = [str(given) if word == "IN" else word for word in words]
    go = command(*filled, "-o", output, "--overwrite")
    assert subprocess.run(traced(tmp_path / "log", *go), capture_output=True).returncode in (0, 3)
    new = output.read_bytes()
    assert new != old
    happened = calls(tmp_path / "log")
    found = {state.content for state in states(happened, output, 8, SEED, before=old)}
    assert found == {old, new}


@pytest.mark.parametrize("text", ["", "sometimes", "0", "0ms", "-1ms", "1 year", "ALWAYS"])
def test_a_wrong_sync_is_a_sentence(text: str) -> None:
    with pytest.raises(WrongUsage, match="--sync is always, none, or a time such as 100ms"):
        parse_sync(text)


def test_what_sync_takes() -> None:
    assert [parse_sync(text) for text in ("always", "none", "250ms", "1m")] == [0.0, None, 0.25, 60]


def test_a_sync_that_fails_is_a_loss(tmp_path: Path) -> None:
    inject = "inject=fdatasync:error=EIO:when=2"
    words: list[str | Path] = [*COMMAND, "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm"]
    with Vmm(tmp_path / "vmm"):
        process = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject,
             *words, "-o", tmp_path / "c.upcap", "--sync", "always"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        process.stderr.readline()
        with Upcall(tmp_path / "p") as client:
            for number in range(40):
                client.ask(mmio_request(MessageType.ADD_MMIO, number << 12, 0x1000, 5))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.LOST
    assert "c.upcap cannot be written: Input/output error" in said
