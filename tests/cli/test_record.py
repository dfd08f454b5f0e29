"""`record` as a user runs it: its own process, real sockets, real signals."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.support import has_index, limited
from tests.vmm import Upcall, Vmm, open_port
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk
from upcall_trace.errors import ExitCode
from upcall_trace.sockets.addresses import is_alive
from upcall_trace.trace.opening import Capture, load

COMMAND = [sys.executable, "-m", "upcall_trace", "record"]


class Running:
    """A `record` process that accepts connections."""

    def __init__(
        self, *arguments: str | Path, file_limit: int | None = None, before: Sequence[str] = ()
    ) -> None:
        command = [*before, *COMMAND, *map(str, arguments)]
        if file_limit is not None:
            command = limited(command, "RLIMIT_FSIZE", file_limit)
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        self.hear("recording ")

    def hear(self, words: str) -> None:
        """Wait for a line with those words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if words in line:
                return
        raise AssertionError(f"it ended without {words!r}: {self.said}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        with self.process:
            assert self.process.stderr is not None
            self.said += self.process.stderr.read().splitlines()
            self.process.wait(30)
        return self.process.returncode

    def kill(self) -> None:
        """End it the hard way, if it still runs."""
        with self.process:
            self.process.kill()


@contextmanager
def recording(directory: Path, *options: str, file_limit: int | None = None) -> Iterator[Running]:
    with Vmm(directory / "vmm"):
        running = Running(
            "--listen", directory / "proxy", "--upstream", directory / "vmm",
            "-o", directory / "c.upcap", *options, file_limit=file_limit,
        )  # fmt: skip
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_recording_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with recording(tmp_path, "--note", "pod=demo", "--arch", "x86_64") as running:
        expected = f"recording {tmp_path}/proxy -> {tmp_path}/vmm into {tmp_path}/c.upcap"
        assert running.said == [expected]
        with Upcall(tmp_path / "proxy") as client:
            assert client.ask(mmio_request(MessageType.ADD_MMIO, 1 << 20, 0x2000, 5)).ret == 0
            assert running.end(number) == ExitCode.EXPECTED
        room, summary = running.said[1:]
        assert room.startswith("room for ")
        assert summary == f"{tmp_path}/c.upcap: 1 connections, 1 operations"
    capture = load(tmp_path / "c.upcap")
    assert capture.complete
    assert has_index(tmp_path / "c.upcap")
    assert capture.started is not None
    assert capture.header.notes == {"pod": "demo"}
    assert capture.header.arch == "x86_64"
    assert capture.header.resolution_ns == 1
    assert not (tmp_path / "proxy").exists()


def when_written(path: Path) -> Capture:
    """A capture whose recorder was killed, once the process that writes it has ended as well."""
    until = time.monotonic() + 20
    while (capture := load(path)).live:
        assert time.monotonic() < until
        time.sleep(0.05)
    return capture


def test_everything_forwarded_a_tenth_of_a_second_before_a_kill_is_there(tmp_path: Path) -> None:
    """Kill -9 at random moments, while four clients ask as fast as they can."""
    rng = random.Random(219)
    for attempt in range(4):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        answered: dict[int, list[float]] = {}
        with recording(directory) as running:

            def ask_on(client_number: int, path: Path, answered: dict[int, list[float]]) -> None:
                times = answered[client_number] = []
                try:
                    with Upcall(path) as client:
                        while True:
                            base = client_number << 32 | len(times) << 12
                            client.ask(mmio_request(MessageType.ADD_MMIO, base, 0x1000, 5))
                            times.append(time.monotonic())
                except OSError:
                    return

            clients = [
                threading.Thread(target=ask_on, args=(n, directory / "proxy", answered))
                for n in range(4)
            ]
            for client in clients:
                client.start()
            until = time.monotonic() + 30
            while len(answered) < 4 or min(map(len, answered.values())) < 20:
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(0.2 + rng.random() * 0.7)
            killed = time.monotonic()
            running.kill()
            for client in clients:
                client.join(10)
        capture = when_written(directory / "c.upcap")
        assert not capture.complete
        seen: dict[int, int] = {}
        for operation in capture.operations:
            assert operation.fields["mmio_size"] == 0x1000
            if operation.ret == 0:
                base = operation.fields["mmio_base"]
                seen[base >> 32] = max(seen.get(base >> 32, 0), (base & 0xFFFFFFFF) >> 12)
        for client_number, times in answered.items():
            due = [index for index, when in enumerate(times) if when < killed - 0.1]
            assert due, "no traffic to speak of"
            assert seen[client_number] >= due[-1]
        shown = subprocess.run(
            [sys.executable, "-m", "upcall_trace", "info", directory / "c.upcap"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert shown.returncode == ExitCode.LOST
        assert "Traceback" not in shown.stderr


def test_a_full_disk_stops_the_recording_visibly(tmp_path: Path) -> None:
    with recording(tmp_path, "--on-store-error", "stop", file_limit=4000) as running:
        with suppress(OSError), Upcall(tmp_path / "proxy") as client:
            for number in range(5000):
                client.ask(mmio_request(MessageType.ADD_MMIO, number << 12, 0x1000, 5))
        assert running.wait() == ExitCode.LOST
    assert "could not be written (File too large)" in running.said[-1]
    capture = load(tmp_path / "c.upcap")
    assert len(capture.operations) > 10
    assert capture.damage == []


def test_a_full_disk_passes_the_traffic_when_asked_to(tmp_path: Path) -> None:
    with recording(tmp_path, "--on-store-error", "pass", file_limit=4000) as running:
        with Upcall(tmp_path / "proxy") as client:
            for number in range(300):
                client.ask(mmio_request(MessageType.ADD_MMIO, number << 12, 0x1000, 5))
            time.sleep(0.1)
            client.ask(mmio_request(MessageType.ADD_MMIO, 300 << 12, 0x1000, 5))
        assert running.end() == ExitCode.LOST
    assert "were not recorded" in running.said[-1]
    assert load(tmp_path / "c.upcap").damage == []


def test_in_place_under_a_running_vmm(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"):
        before = (tmp_path / "vmm").stat().st_ino
        with open_port(tmp_path / "vmm", 1024) as established:
            running = Running("--in-place", tmp_path / "vmm", "-o", tmp_path / "c.upcap")
            way_back = f"mv {tmp_path}/vmm.vmm {tmp_path}/vmm"
            assert running.said[0].endswith(way_back)
            with Upcall(tmp_path / "vmm") as client:
                client.ask(mmio_request(MessageType.ADD_MMIO, 1 << 20, 0x2000, 5))
            established.sendall(b"as before")
            assert established.recv(64) == b"as before"
            assert running.end() == ExitCode.EXPECTED
        assert (tmp_path / "vmm").stat().st_ino == before
        with Upcall(tmp_path / "vmm") as client:
            client.ask(mmio_request(MessageType.ADD_MMIO, 1 << 20, 0x2000, 5))
    assert len(load(tmp_path / "c.upcap").operations) == 1


def test_in_place_after_a_kill_the_way_back_that_was_printed_works(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"):
        running = Running("--in-place", tmp_path / "vmm", "-o", tmp_path / "c.upcap")
        way_back = running.said[0].rpartition(": ")[2]
        running.kill()
        until = time.monotonic() + 10  # for the process that writes to notice, and to end
        while is_alive(tmp_path / "vmm"):
            assert time.monotonic() < until
            time.sleep(0.01)
        subprocess.run(way_back.split(), check=True)
        with Upcall(tmp_path / "vmm") as client:
            client.ask(mmio_request(MessageType.ADD_MMIO, 1 << 20, 0x2000, 5))


def test_in_place_with_a_guest_port(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"), socket.socket(socket.AF_UNIX) as host:
        host.bind(str(tmp_path / "vmm_77"))
        host.listen()
        running = Running(
            "--in-place", tmp_path / "vmm", "--guest-port", "77", "-o", tmp_path / "c.upcap"
        )
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(str(tmp_path / "vmm_77"))
            accepted, _ = host.accept()
            guest.sendall(b"hello")
            assert accepted.recv(64) == b"hello"
            accepted.close()
        assert running.end() == ExitCode.EXPECTED
        assert is_alive(tmp_path / "vmm_77")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.upcap", "vmm", "vmm_77"]


def test_many_idle_connections_and_a_clean_end(tmp_path: Path) -> None:
    with recording(tmp_path) as running:
        streams = [open_port(tmp_path / "proxy", 1024) for _ in range(100)]
        begun = time.monotonic()
        assert running.end() == ExitCode.EXPECTED
        assert time.monotonic() - begun < 5
        for stream in streams:
            assert stream.recv(64) == b""
            stream.close()
    assert len(load(tmp_path / "c.upcap").connections) == 100


def refused(*arguments: str | Path) -> tuple[int, str]:
    """The exit code and the one line that `record` says when it does not start."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30
    )
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    assert len(lines) == 1 or lines[0].startswith("Usage"), done.stderr
    return done.returncode, lines[-1]


def test_what_cannot_be_recorded_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    output = ("-o", tmp_path / "c.upcap")
    listen = ("--listen", tmp_path / "p")
    long = tmp_path / ("x" * 110)
    with Vmm(tmp_path / "vmm"):
        cases: list[tuple[tuple[str | Path, ...], ExitCode, str]] = [
            ((*listen, "--upstream", tmp_path / "dead"), ExitCode.UNREACHABLE, "nobody listens"),
            ((*listen, "--upstream", tmp_path / "none"), ExitCode.UNREACHABLE, "no such socket"),
            ((*listen, "--upstream", long), ExitCode.USAGE, "107"),
            (("--listen", long, "--upstream", tmp_path / "vmm"), ExitCode.USAGE, "107"),
            ((*listen, "--upstream", "vsock://one"), ExitCode.USAGE, "vsock://CID"),
            (("--listen", tmp_path / "vmm", "--upstream", tmp_path / "vmm"), ExitCode.USAGE,
             "in use"),
            (("--in-place", tmp_path / "dead"), ExitCode.UNREACHABLE, "nobody listens"),
            (("--in-place", tmp_path), ExitCode.USAGE, "not a socket"),
            (listen, ExitCode.USAGE, "or --in-place"),
            (("--interface", "none0"), ExitCode.UNREACHABLE, "ip link add none0 type vsockmon"),
            (("--interface", "lo"), ExitCode.USAGE, "not a vsockmon interface"),
        ]  # fmt: skip
        for arguments, code, words in cases:
            exit_code, said = refused(*arguments, *output)
            assert (exit_code, words in said) == (code, True), (arguments, said)
        exit_code, said = refused(*listen, "--upstream", tmp_path / "vmm", "-o", tmp_path)
        assert (exit_code, "cannot be written" in said) == (ExitCode.USAGE, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dead", "vmm"]


def test_an_existing_capture_is_kept(tmp_path: Path) -> None:
    (tmp_path / "c.upcap").write_bytes(b"precious")
    with Vmm(tmp_path / "vmm"):
        exit_code, said = refused(
            "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm", "-o", tmp_path / "c.upcap"
        )
    assert (exit_code, "--overwrite" in said) == (ExitCode.USAGE, True)
    assert not (tmp_path / "p").exists()


def test_control_bytes_of_a_client_do_not_reach_the_terminal(tmp_path: Path) -> None:
    with recording(tmp_path) as running:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(tmp_path / "proxy"))
            stream.sendall(b"\x1b]0;owned\x07\n")
            stream.recv(64)
        running.end()
    shown = subprocess.run(
        [sys.executable, "-m", "upcall_trace", "show", "--frames", tmp_path / "c.upcap"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert b"\x1b" not in shown.stdout + shown.stderr + "".join(running.said).encode()
    with CaptureReader(tmp_path / "c.upcap") as reader:
        assert [r.data for r in reader if isinstance(r, Chunk)] == [b"\x1b]0;owned\x07\n"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
def test_the_socket_is_not_for_other_users(tmp_path: Path) -> None:
    with recording(tmp_path):
        assert (tmp_path / "proxy").stat().st_mode & 0o777 == 0o600
