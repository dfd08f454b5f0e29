"""Kills and a failing disk, at points that strace picks: what was acknowledged is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.cli.test_record import COMMAND
from tests.guests import wait_until
from tests.support import run
from tests.vmm import Upcall, Vmm
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace"),
    # A client that is cut off while it connects leaves its socket to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WINDOW_S = 0.1
_LISTENING = "00010000"
"""A flag of /proc/net/unix."""
HANDED_OVER = 8
"""Records that the path may keep until it hands them over."""


def add(number: int) -> object:
    return mmio_request(MessageType.ADD_MMIO, number << 12, 0x1000, 5)


class Asking:
    """A client that asks as fast as it can, and when each answer came."""

    def __init__(self, path: Path, pause_s: float = 0) -> None:
        self.answered: list[float] = []
        self.slowest_s = 0.0
        self.cut_off: float | None = None
        self._path = path
        self._pause_s = pause_s
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            with Upcall(self._path) as client:
                client.stream.settimeout(30)
                while not self.stop.is_set():
                    begun = time.monotonic()
                    client.ask(add(len(self.answered)))  # type: ignore[arg-type]
                    self.answered.append(time.monotonic())
                    self.slowest_s = max(self.slowest_s, self.answered[-1] - begun)
                    time.sleep(self._pause_s)
        except OSError:
            self.cut_off = time.monotonic()

    @property
    def goes_on(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self.stop.set()
        self._thread.join(40)


def traced(directory: Path, *inject: str, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    traces = ",".join(what.partition(":")[0] for what in inject)
    injections = [word for what in inject for word in ("-e", f"inject={what}")]
    process = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", directory / "trace", "-e", f"trace={traces}", *injections,
         *within, *COMMAND, "--listen", directory / "p", "--upstream", directory / "vmm",
         "-o", directory / "c.upcap"],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    _started.append(process)
    wait_until(lambda: listens(directory / "p") or process.poll() is not None, 30)
    return process


_started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What a test that failed did not end."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def listens(path: Path) -> bool:
    """A socket is in its place a moment before it can be connected to, and a probe is recorded."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == _LISTENING for line in lines)


def written(directory: Path, times: int) -> None:
    """Wait until so many writes have been tried: how soon hangs on what else the machine does."""
    wait_until(lambda: (directory / "trace").read_bytes().count(b"pwrite64(") >= times, 90)


def end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """SIGTERM to what strace runs: its exit code, and how long it took to end."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if not children:  # it was killed, and only its other process is still at work
        return process.wait(40), 0.0
    recorder, begun = int(children[0]), time.monotonic()
    os.kill(recorder, signal.SIGTERM)
    while is_running(recorder) and time.monotonic() < begun + 30:
        time.sleep(0.02)
    took = time.monotonic() - begun
    return process.wait(40), took


def is_running(pid: int) -> bool:
    """False too for one that has ended and was not waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def recorded(directory: Path) -> set[int]:
    """Numbers of the requests in the captures, which can be recovered and have no hole."""
    asked: set[int] = set()
    for path in sorted(directory.glob("*.upcap")):
        with CaptureReader(path) as reader:
            for record in reader:
                if isinstance(record, Chunk) and len(record.data) == 1024 and record.to_guest:
                    asked.add(int.from_bytes(record.data[16:24], "little") >> 12)
            whole = not reader.damage
        saved = run("recover", path, "-o", directory / f"{path.stem}.saved")
        assert saved.code == (ExitCode.EXPECTED if whole else ExitCode.LOST)
        assert load(directory / f"{path.stem}.saved").complete
    assert asked == set(range(len(asked)))
    return asked


@dataclass(frozen=True, slots=True)
class Kill:
    """Whom, and at which call of which kind of its calls to the system."""

    victim: Victim
    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.victim.name.lower()}-{self.call}-{self.number}"


class Victim(Enum):
    """A process of the recorder, or both; with the calls that such a process makes."""

    PATH = ("epoll_wait", "recvfrom", "sendto", "write")
    WRITER = ("pwrite64", "pread64", "ioctl")
    BOTH = ("epoll_wait", "recvfrom", "sendto")


def kill_at(directory: Path, kill: Kill) -> tuple[list[float], float | None]:
    """When each request was answered, and when the client was cut off, if it was."""
    # All of a PID namespace dies in the moment in which its first process does.
    within = ["unshare", "--pid", "--fork"] if kill.victim is Victim.BOTH else []
    with Vmm(directory / "vmm"):
        process = traced(directory, f"{kill.call}:signal=KILL:when={kill.number}", within=within)
        if process.poll() is not None:
            return [], None  # killed before it listened: nothing was acknowledged
        asking = Asking(directory / "p")
        until = time.monotonic() + 5
        while (
            time.monotonic() < until and asking.goes_on and not (directory / "c.1.upcap").exists()
        ):
            time.sleep(0.01)
        if kill.victim is Victim.WRITER:
            time.sleep(WINDOW_S)  # some more, for the other process alone
        cut_off = asking.cut_off
        asking.join()
        if process.poll() is None:
            end(process)
    time.sleep(0.3)
    return asking.answered, cut_off


@pytest.mark.parametrize(
    ("kill", "lost"),
    [
        (Kill(Victim.WRITER, "pwrite64", 9), 0), (Kill(Victim.PATH, "sendto", 40), HANDED_OVER),
        (Kill(Victim.BOTH, "epoll_wait", 190), None),
    ],
    ids=str,
)  # fmt: skip
def test_a_kill_leaves_no_hole(tmp_path: Path, kill: Kill, lost: int | None) -> None:
    """What the end lacks hangs on what else wants the processors; the long run asks for times."""
    answered, _ = kill_at(tmp_path, kill)
    asked = recorded(tmp_path)
    assert lost is None or len(answered) - len(asked) <= lost


SEED = int(os.environ.get("UPCALL_TRACE_SEED", "16"))


def kills(count: int) -> Iterator[Kill]:
    """As many as wanted, all kinds of calls in turn; the same ones for the same seed."""
    chance = random.Random(SEED)
    kinds = [(victim, call) for victim in Victim for call in victim.value]
    for number in range(count):
        yield Kill(*kinds[number % len(kinds)], chance.randint(3, 800))


@pytest.mark.torture
@pytest.mark.parametrize("busy", [0, 2])
@pytest.mark.parametrize("kill", list(kills(200)), ids=str)
def test_two_hundred_kill_points(tmp_path: Path, kill: Kill, busy: int) -> None:
    """Alone, and beside programs that want both processors."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        answered, cut_off = kill_at(tmp_path, kill)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    due = (cut_off or time.monotonic()) - WINDOW_S
    assert recorded(tmp_path) >= {n for n, when in enumerate(answered) if when < due}


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT", "EROFS"])
def test_a_disk_that_fails_costs_records_and_no_reply(tmp_path: Path, error: str) -> None:
    with Vmm(tmp_path / "vmm"):
        process = traced(tmp_path, f"pwrite64:error={error}:when=3..5")
        asking = Asking(tmp_path / "p", pause_s=0.001)
        written(tmp_path, 6)
        asking.join()
        code, _ = end(process)
    assert code == ExitCode.LOST
    capture = load(tmp_path / "c.upcap")
    assert capture.complete
    crossed = len(asking.answered) * 2048
    recorded = sum(connection.payload for connection in capture.connections)
    assert capture.lost_bytes > 0
    assert 0 <= recorded + capture.lost_bytes - crossed <= 2048 + 1100
    assert run("diagnose", tmp_path / "c.upcap").code == ExitCode.LOST


def test_a_disk_that_hangs_holds_up_nobody_and_not_the_end(tmp_path: Path) -> None:
    """It hangs for longer than all the rest takes, on a busy machine and under strace, too."""
    with Vmm(tmp_path / "vmm"):
        process = traced(tmp_path, "pwrite64:delay_enter=12000000:when=4")
        asking = Asking(tmp_path / "p", pause_s=0.001)
        written(tmp_path, 3)
        before = len(asking.answered)
        wait_until(lambda: len(asking.answered) > before + 50, 90)
        asking.join()
        code, took = end(process)
    assert asking.slowest_s < 12
    assert code == ExitCode.LOST
    assert took < 10
    with CaptureReader(tmp_path / "c.upcap") as reader:
        assert list(reader)
        assert not reader.complete
