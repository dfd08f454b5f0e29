"""A lab's life: up, down, reset, killed in the middle, several at once; nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dissectors.constants import MessageType
from dissectors.messages import bare_request, cpu_request, mmio_request, pci_request
from tests.guests import wait_until
from tests.live.conftest import Start
from tests.support import records_of
from tests.test_docs import blocks
from upcall_trace.capture.records import Chunk, Vmm
from upcall_trace.errors import ExitCode, PeerDied, Unreachable
from upcall_trace.lab.machines import hidden_disks
from upcall_trace.lab.process import LiveGuest
from upcall_trace.sockets.addresses import UnixAddress, connect_unix
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.trace.opening import load

LAB = [sys.executable, "-m", "upcall_trace", "lab"]


def lab(*words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A `lab` command as a user runs it."""
    return subprocess.run(
        [*LAB, *words], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that have something to do with this directory's labs."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in words:
            found.append(words.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def await_end(directory: Path) -> None:
    """Children die with their parent, but not in the same moment."""
    deadline = time.monotonic() + 5
    while processes_of(directory):
        assert time.monotonic() < deadline, processes_of(directory)
        time.sleep(0.02)


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


@pytest.mark.torture
def test_twenty_times_up_and_down_leaves_nothing(
    labs_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for _ in range(20):
        started = lab("up", "--machine", "microvm", "--detach")
        assert started.returncode == 0, started.stderr
        address = Path(started.stdout.strip())
        with UpcallClient(UnixAddress(address)) as client:
            answer = client.ask(cpu_request(MessageType.DEL_CPU, [0]).encode(), 5)
            assert answer is not None
            assert answer.reply.ret == -22
        assert lab("down", "--name", address.parent.name).returncode == 0
        assert not address.parent.exists()
        await_end(address.parent)
    assert list(tmp_path.iterdir()) == []
    assert left(labs_directory) == []


@pytest.fixture
def busy(labs_directory: Path) -> Iterator[tuple[LiveGuest, socket.socket]]:
    """A guest in the middle of a request: it waits for a vCPU that nobody started."""
    guest = LiveGuest("--machine", "pc")
    with connect_unix(guest.address) as stream:
        stream.settimeout(8)
        stream.sendall(b"CONNECT 219\n")
        assert stream.recv(7) == b"OK 219\n"
        stream.sendall(b"d")
        assert len(stream.recv(1024, socket.MSG_WAITALL)) == 1024
        stream.sendall(cpu_request(MessageType.ADD_CPU, [1]).encode())
        time.sleep(0.3)
        yield guest, stream
    if guest.process.poll() is None:
        guest.close()


@pytest.mark.parametrize(
    ("victim", "sentence"),
    [
        pytest.param(
            "qemu", "the lab pc is over: qemu was killed by SIGKILL", marks=pytest.mark.torture
        ),
        pytest.param(
            "vhost-device-vsock",
            "the lab pc is over: vhost-device-vsock was killed by SIGKILL",
            marks=pytest.mark.torture,
        ),
    ],
)
def test_a_part_that_is_killed_ends_the_lab_with_a_sentence(
    victim: str, sentence: str, busy: tuple[LiveGuest, socket.socket]
) -> None:
    guest, stream = busy
    directory = guest.address.parent
    os.kill(guest.status["pids"][victim], signal.SIGKILL)
    with pytest.raises(PeerDied, match=sentence):
        guest.wait()
    assert guest.process.returncode == ExitCode.DIFFERENT
    assert stream.recv(1) == b""
    assert not directory.exists()
    await_end(directory)


def test_a_guest_that_panics_ends_the_lab_with_its_reason(live_guest: Start) -> None:
    guest = live_guest("--machine", "microvm")
    with pytest.raises(Unreachable):
        guest.shell("echo c >/proc/sysrq-trigger")
    panicked = "the lab microvm is over: the guest's kernel panicked: sysrq triggered crash"
    with pytest.raises(PeerDied, match=panicked):
        guest.wait()


def test_a_killed_lab_takes_its_parts_along_and_the_next_one_works(
    busy: tuple[LiveGuest, socket.socket], labs_directory: Path
) -> None:
    guest, stream = busy
    guest.process.kill()
    guest.process.communicate()
    assert stream.recv(1) == b""
    await_end(guest.address.parent)
    assert left(labs_directory) == ["pc"]
    told = lab("shell", "true")
    assert told.returncode == ExitCode.UNREACHABLE
    assert told.stderr == "upcall-trace: the lab pc is gone: its process was killed\n"
    assert left(labs_directory) == []


def test_a_detached_lab_that_dies_says_why_when_asked(labs_directory: Path) -> None:
    started = lab("up", "--machine", "microvm", "--detach", "--name", "doomed")
    assert started.returncode == 0, started.stderr
    (status,) = json.loads(lab("status", "--json").stdout)["labs"]
    assert status["state"]["disks"] == ["vda"]
    os.kill(status["pids"]["qemu"], signal.SIGKILL)
    await_end(Path(status["address"]).parent)
    told = lab("status")
    assert told.stdout == "no lab is running\n"
    assert told.stderr == (
        "doomed is gone and was cleared away: the lab doomed is over: qemu was killed by SIGKILL\n"
    )
    assert left(labs_directory) == []


def test_a_reset_boots_anew_and_ends_connections(live_guest: Start) -> None:
    guest = live_guest("--machine", "microvm")
    with UpcallClient(UnixAddress(guest.address)) as client:
        disk = hidden_disks()[0]
        request = mmio_request(MessageType.ADD_MMIO, disk.base, disk.size, disk.irq)
        answer = client.ask(request.encode(), 5)
        assert answer is not None
        assert answer.reply.ret == 0
        guest.wait_for(lambda state: state["disks"] == ["vda", "vdb"])
        guest.order({"reset": True})
        assert client.ask(request.encode(), 5) is None
    assert guest.wait_for(lambda state: state["disks"] == ["vda"])
    with UpcallClient(UnixAddress(guest.address)) as client:
        answer = client.ask(request.encode(), 5)
        assert answer is not None
        assert answer.reply.ret == 0
    assert lab("shell", "exit 3").returncode == ExitCode.DIFFERENT


@pytest.mark.torture
def test_two_at_once_have_names_to_tell_them_apart(live_guest: Start) -> None:
    first, second = (live_guest("--machine", "microvm") for _ in range(2))
    assert (first.name, second.name) == ("microvm", "microvm-2")
    with pytest.raises(Unreachable, match="a lab called microvm-2 is running"):
        LiveGuest("--machine", "microvm", "--name", "microvm-2")
    assert lab("shell", "true").returncode == ExitCode.USAGE  # which of the two?
    assert lab("shell", "--name", "microvm-2", "true").returncode == ExitCode.EXPECTED


def test_with_auto_the_vmm_does_what_a_request_needs(live_guest: Start, tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    guest = live_guest("--machine", "pc", "--auto", "--capture", capture)
    with UpcallClient(UnixAddress(guest.address)) as client:
        for request in (
            cpu_request(MessageType.ADD_CPU, [1]),
            pci_request(MessageType.ADD_PCI, 0, 12),
        ):
            answer = client.ask(request.encode(), 20)
            assert answer is not None
            assert answer.reply.ret == 0
    guest.wait_for(lambda state: state["cpus_online"] == [0, 1] and "vdc" in state["disks"])
    assert lab("down", "--name", guest.name).returncode == 0
    assert not guest.address.parent.exists()
    guest.wait()
    # As in a VMM: first its own side, then the request.
    happened = [
        record.action if isinstance(record, Vmm) else "request"
        for record in records_of(capture / "proxy.upcap")[1]
        if isinstance(record, Vmm) or (isinstance(record, Chunk) and len(record.data) == 1024)
    ]
    assert happened == [
        *("request", "vCPU 1 created", "request", "request"),
        *("PCI device 0:12 plugged", "request", "request"),
    ]  # the first one is the CONNECT message, and every second one a reply


def test_traffic_and_a_second_signal_do_not_spoil_the_end_of_a_recording(
    live_guest: Start, tmp_path: Path
) -> None:
    capture = tmp_path / "capture"
    guest = live_guest("--machine", "microvm", "--capture", capture)
    over = threading.Event()

    def ask_all_the_time() -> None:
        with UpcallClient(UnixAddress(guest.address)) as client:
            while not over.is_set() and client.ask(bare_request(77).encode(), 5):
                pass

    asking = threading.Thread(target=ask_all_the_time)
    asking.start()
    time.sleep(0.3)
    for _ in range(2):
        guest.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    said = guest.wait()
    over.set()
    asking.join()
    assert "console.log, proxy.upcap, vsockmon.pcap" in said
    assert load(capture / "proxy.upcap").complete
    again = lab("up", "--machine", "microvm", "--capture", str(capture))
    assert again.returncode == ExitCode.USAGE
    assert "has proxy.upcap, vsockmon.pcap, console.log already" in again.stderr


def test_who_stops_waiting_for_a_lab_has_none(labs_directory: Path) -> None:
    waiting = subprocess.Popen(
        [*LAB, "up", "--machine", "microvm", "--detach"], stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: [*labs_directory.glob("*/lab.json")])
    waiting.terminate()
    _, said = waiting.communicate(timeout=10)
    assert waiting.returncode == ExitCode.INTERRUPTED
    assert said == "upcall-trace: interrupted while the guest was starting\n"
    assert left(labs_directory) == []


def test_the_example_in_python_does_what_it_says(labs_directory: Path) -> None:
    (example,) = blocks("lab.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "lab.md", "exec"), names)
    assert names["answer"].reply.ret == 0


KILLS = [
    ("?vfork,?clone,?clone3,?fork", 2), ("connect", 2),
    *(pytest.param("?vfork,?clone,?clone3,?fork", n, marks=pytest.mark.torture)
      for n in (1, 3, 4, 5)),
    *(pytest.param(point, n, marks=pytest.mark.torture)
      for point in ("mkdir", "flock", "bind", "connect", "rename", "link", "unlink", "write")
      for n in (1, 2, 3, 5, 8)),
    *(pytest.param("read", n, marks=pytest.mark.torture) for n in range(500, 900, 12)),
]  # fmt: skip
"""System calls before which the lab is killed, and how many of their kind went before."""


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
@pytest.mark.parametrize(("point", "number"), KILLS)
def test_nothing_of_a_lab_survives_a_kill_at_any_moment(
    point: str, number: int, labs_directory: Path
) -> None:
    """Neither what it started, nor, once somebody looked, its folder."""
    kill = f"--inject={point}:signal=KILL:when={number}"
    process = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", kill, *LAB, "up", "--machine", "microvm"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline():  # it came up without having come to that point
        lab("down", "--all", "--force")
    process.communicate(timeout=60)
    await_end(labs_directory)
    lab("status")
    assert left(labs_directory) == []
