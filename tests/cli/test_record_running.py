"""`record` as a service that runs for weeks: signals, rings, faults, metrics, findings, systemd."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.cli.test_record import COMMAND, Running, recording
from tests.support import run
from tests.vmm import Upcall, Vmm
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import FAULT, Close, Gap, How
from upcall_trace.control.order_socket import give_order
from upcall_trace.control.orders import BadOrder
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load

ADD = mmio_request(MessageType.ADD_MMIO, 1 << 20, 0x2000, 5)


def until(true: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def ask(path: Path, count: int = 1) -> None:
    with Upcall(path) as client:
        for _ in range(count):
            assert client.ask(ADD).ret == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_that_a_shell_had_it_ignore(tmp_path: Path, number: int) -> None:
    """`record … &` in a script: the shell ignores SIGINT for what it starts in the background."""
    with Vmm(tmp_path / "vmm"):
        command = [*COMMAND, "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm"]
        script = f"{' '.join(map(str, command))} -o {tmp_path}/c.upcap & echo $!; wait $!; exit $?"
        shell = subprocess.Popen(
            ["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with shell:
            assert shell.stdout is not None
            pid = int(shell.stdout.readline())
            until(lambda: (tmp_path / "p").exists())
            ask(tmp_path / "p")
            os.kill(pid, number)
            assert shell.wait(10) == ExitCode.EXPECTED
    assert load(tmp_path / "c.upcap").complete


STDERRS: dict[str, str] = {
    "closed": "2>&-", "full": "2>/dev/full", "a pipe that nobody reads": "2>{pipe}",
}  # fmt: skip


@pytest.mark.parametrize("where", STDERRS.values(), ids=STDERRS)
def test_whatever_stderr_does_changes_nothing(tmp_path: Path, where: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        pass
    with Vmm(tmp_path / "vmm"):
        command = [*COMMAND, "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm"]
        words = " ".join(map(str, command))
        process = subprocess.Popen(
            ["sh", "-c", f"exec {words} -o {tmp_path}/c.upcap {where.format(pipe=pipe)}"]
        )
        until((tmp_path / "p").exists)
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "p"))
        ask(tmp_path / "p", 10)
        begun = time.monotonic()
        process.terminate()
        assert process.wait(10) == ExitCode.EXPECTED
        assert time.monotonic() - begun < 2.5
    os.close(reader)
    os.close(writer)
    capture = load(tmp_path / "c.upcap")
    assert capture.complete
    assert len(capture.operations) == 10
    for other in ("info", "show", "diagnose"):
        shown = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m upcall_trace {other} {tmp_path}/c.upcap 2>&-"],
            stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert shown.returncode == ExitCode.EXPECTED


@pytest.mark.parametrize("in_place", [False, True])
def test_a_vmm_that_hangs_does_not_hold_up_the_end(tmp_path: Path, in_place: bool) -> None:
    """Its backlog is full: forty clients wait for being connected, some have left."""
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.bind(str(tmp_path / "vmm"))
        vmm.listen(0)
        where: list[str | Path] = ["--in-place", tmp_path / "vmm"]
        if not in_place:
            where = ["--listen", tmp_path / "p", "--upstream", tmp_path / "vmm"]
        running = Running(*where, "-o", tmp_path / "c.upcap")
        path = tmp_path / ("vmm" if in_place else "p")
        clients = []
        for _ in range(40):
            clients.append(client := socket.socket(socket.AF_UNIX))
            client.connect(str(path))
        for client in clients[:10]:
            client.close()
        time.sleep(0.3)
        begun = time.monotonic()
        assert running.end(signal.SIGINT) == ExitCode.EXPECTED
        assert time.monotonic() - begun < 2
        for client in clients:
            client.close()
    capture = load(tmp_path / "c.upcap")
    assert capture.complete
    left = [c for c in capture.connections if c.closed_ns is not None]
    assert len(capture.connections) == 40
    assert {(c.how, c.closed_by_guest) for c in left} == {(How.CLOSE, False)}
    assert len(left) >= 9


def test_clients_beyond_the_limit_are_refused_with_a_reason_of_our_own(tmp_path: Path) -> None:
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (110, 110)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with Vmm(tmp_path / "vmm"):
        running = Running(
            "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm", "-o", tmp_path / "c.upcap",
            before=[sys.executable, "-c", limited] if os.geteuid() else limits(limited),
        )  # fmt: skip
        clients = []
        refused = 0
        for _ in range(12):
            clients.append(client := socket.socket(socket.AF_UNIX))
            client.settimeout(5)
            client.connect(str(tmp_path / "p"))
            try:
                client.sendall(b"CONNECT 1024\n")
                refused += client.recv(64) == b""
            except (BrokenPipeError, ConnectionResetError):
                refused += 1
        for client in clients:
            client.close()
        running.end()
    room = next(line for line in running.said if line.startswith("room for"))
    count = int(room.split()[2])
    assert refused == 12 - count > 0
    assert any("was refused" in line for line in running.said)
    with CaptureReader(tmp_path / "c.upcap") as reader:
        ends = [r for r in reader if isinstance(r, Close) and r.how is How.REFUSED]
    assert len(ends) == refused
    assert all("the limit of open files is 110" in end.reason for end in ends)
    assert "UP101" not in run("diagnose", tmp_path / "c.upcap").out


def limits(limited: str) -> list[str]:
    """As root, who may raise every limit, without the right to."""
    return ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource",
            sys.executable, "-c", limited]  # fmt: skip


def test_a_ring_is_kept_and_reads_as_one(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"):
        running = Running(
            "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm", "-o", tmp_path / "ring",
            "--rotate-count", "50", "--keep", "4",
        )  # fmt: skip
        with Upcall(tmp_path / "p") as client:
            for _ in range(10):
                for _ in range(30):
                    client.ask(ADD)
                time.sleep(0.05)
        assert running.end() == ExitCode.EXPECTED
    assert len(list((tmp_path / "ring").iterdir())) == 4
    shown = run("info", "--json", tmp_path / "ring").objects[0]
    assert shown["complete"] is True
    assert 50 < shown["requests"] < 300
    assert shown["errors"] == 0
    assert "files" in running.said[-1]


def test_sighup_after_a_rename_goes_on_in_a_new_file(tmp_path: Path) -> None:
    with recording(tmp_path) as running:
        with Upcall(tmp_path / "proxy") as client:
            client.ask(ADD)
            running.process.send_signal(signal.SIGHUP)
            running.hear("was not renamed")
            (tmp_path / "c.upcap").rename(tmp_path / "old.upcap")
            running.process.send_signal(signal.SIGHUP)
            until((tmp_path / "c.upcap").exists)
            client.ask(ADD)
        assert running.end() == ExitCode.EXPECTED
    for name in ("old.upcap", "c.upcap"):
        capture = load(tmp_path / name)
        assert (capture.complete, len(capture.operations)) == (True, 1), name
    assert len(load(tmp_path).operations) == 2


def test_a_capture_that_others_change_is_left_to_them(tmp_path: Path) -> None:
    """Overwritten, then deleted: recording goes on in a new file each time, and says so."""
    with recording(tmp_path) as running:
        with Upcall(tmp_path / "proxy") as client:
            client.ask(ADD)
            time.sleep(0.1)
            (tmp_path / "c.upcap").write_bytes(b"something else")
            client.ask(ADD)
            until((tmp_path / "c.1.upcap").exists)
            client.ask(ADD)
            time.sleep(0.1)
            (tmp_path / "c.1.upcap").unlink()
            until((tmp_path / "c.1.upcap").exists)
            client.ask(ADD)
            time.sleep(0.1)
        assert running.end() == ExitCode.LOST
    assert (tmp_path / "c.upcap").read_bytes() == b"something else"
    assert len(load(tmp_path / "c.1.upcap").operations) >= 1
    assert sum("recording goes on in" in line for line in running.said) == 2


def test_a_renamed_capture_is_still_written(tmp_path: Path) -> None:
    with recording(tmp_path) as running:
        with Upcall(tmp_path / "proxy") as client:
            client.ask(ADD)
            (tmp_path / "c.upcap").rename(tmp_path / "other.upcap")
            (tmp_path / "c.upcap").write_bytes(b"foreign")
            running.hear("renamed or replaced")
            client.ask(ADD)
        assert running.end() == ExitCode.EXPECTED
    assert (tmp_path / "c.upcap").read_bytes() == b"foreign"
    assert len(load(tmp_path / "other.upcap").operations) == 2


def test_several_sockets_in_one_recorder(tmp_path: Path) -> None:
    with Vmm(tmp_path / "a"), Vmm(tmp_path / "b"):
        running = Running(
            "--listen", tmp_path / "pa", "--upstream", tmp_path / "a",
            "--listen", tmp_path / "pb", "--upstream", tmp_path / "b", "-o", tmp_path / "c.upcap",
        )  # fmt: skip
        until((tmp_path / "pb").exists)
        ask(tmp_path / "pa")
        ask(tmp_path / "pb", 2)
        assert running.end() == ExitCode.EXPECTED
    capture = load(tmp_path / "c.upcap")
    assert [(o.number, Path(o.name).name) for o in capture.origins] == [(1, "pa"), (2, "pb")]
    assert [(c.number, c.source, c.requests) for c in capture.connections] == [(1, 1, 1), (2, 2, 2)]


def test_a_vmm_that_comes_again_is_followed(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"):
        running = Running("--in-place", tmp_path / "vmm", "-o", tmp_path / "c.upcap")
        ask(tmp_path / "vmm")
        (tmp_path / "vmm").unlink()  # as a VMM does at its end
        with Vmm(tmp_path / "vmm"):
            running.hear("the VMM made a new socket")
            ask(tmp_path / "vmm", 2)
            assert running.end() == ExitCode.EXPECTED
            ask(tmp_path / "vmm")
    assert len(load(tmp_path / "c.upcap").operations) == 3


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose sockets may have long names."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_every_socket_of_a_pattern_as_it_comes_and_goes(short_path: Path) -> None:
    tmp_path = short_path
    sandboxes = [tmp_path / ("ab12" * 8), tmp_path / ("cd34" * 8)]
    for sandbox in sandboxes:
        sandbox.mkdir()
    running = Running("--in-place", "--watch", f"{tmp_path}/*/vmm", "-o", tmp_path / "out")
    with Vmm(sandboxes[0] / "vmm"):
        until((sandboxes[0] / "vmm.vmm").exists)
        ask(sandboxes[0] / "vmm")
        with Vmm(sandboxes[1] / "vmm"):
            until((sandboxes[1] / "vmm.vmm").exists)
            ask(sandboxes[1] / "vmm", 2)
        until(lambda: any((tmp_path / "out").glob("cd34*")))
    assert running.end() == ExitCode.EXPECTED
    found = {p.stem[:4]: load(p) for p in (tmp_path / "out").iterdir()}
    assert {k: (c.header.sandbox or "")[:4] for k, c in found.items()} == {
        "ab12": "ab12", "cd34": "cd34"}  # fmt: skip
    assert {k: len(c.operations) for k, c in found.items()} == {"ab12": 1, "cd34": 2}
    assert all(capture.complete for capture in found.values())


@contextmanager
def faulty(directory: Path, *options: str) -> Iterator[Running]:
    with recording(
        directory, "--allow", "--control", str(directory / "control"), *options
    ) as running:
        until((directory / "control").exists)
        yield running


def test_faults_are_committed_on_the_way_and_marked(tmp_path: Path) -> None:
    with faulty(tmp_path, "--fault", "add_mmio:ret=-16:when=2") as running:
        with Upcall(tmp_path / "proxy") as client:
            assert [client.ask(ADD).ret for _ in range(3)] == [0, -16, 0]
            assert running.process.poll() is None
            give_order(tmp_path / "control", {"fault": ["add_mmio:delay=200ms"]}, 5)
            begun = time.monotonic()
            assert client.ask(ADD).ret == 0
            assert time.monotonic() - begun > 0.19
            give_order(tmp_path / "control", {"fault": ["add_mmio:split=500"]}, 5)
            assert client.ask(ADD).ret == 0
            give_order(tmp_path / "control", {"fault": ["add_mmio:close"]}, 5)
            client.stream.sendall(ADD.encode())
            assert client.stream.recv(1024) == b""
            with pytest.raises(BadOrder, match="is not known"):
                give_order(tmp_path / "control", {"fault": ["add_mmio:explode"]}, 5)
        assert running.end() == ExitCode.EXPECTED
    capture = load(tmp_path / "c.upcap")
    assert [op.ret for op in capture.operations] == [0, -16, 0, 0, 0, None]
    assert [(m.request, m.text) for m in capture.marks if m.name == FAULT] == [
        (1, "add_mmio:ret=-16:when=2"), (3, "add_mmio:delay=200ms"),
        (4, "add_mmio:split=500"), (5, "add_mmio:close"),
    ]  # fmt: skip
    assert capture.connections[0].how is How.FAULT


def test_faults_are_refused_on_what_may_be_a_real_guest(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"):
        refused = run(
            "record", "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm",
            "-o", tmp_path / "c.upcap", "--fault", "any:drop",
        )  # fmt: skip
    assert refused.code == ExitCode.USAGE
    assert "may be a real guest" in refused.err
    assert not (tmp_path / "c.upcap").exists()


def scraped(path: Path) -> list[str]:
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(path))
        asked.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: asked.recv(4096), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.0 200 OK")
    return body.splitlines()


def test_metrics_as_prometheus_reads_them(tmp_path: Path) -> None:
    with recording(tmp_path, "--metrics", str(tmp_path / "metrics")) as running:
        ask(tmp_path / "proxy", 5)
        until((tmp_path / "metrics").exists)
        five = 'upcall_trace_operations_total{op="add_mmio",result="ok"} 5'
        until(lambda: five in scraped(tmp_path / "metrics"))
        lines = scraped(tmp_path / "metrics")
        running.end()
    assert "upcall_trace_connections_upcall_total 1" in lines
    assert "upcall_trace_lost_bytes_total 0" in lines
    assert 'upcall_trace_latency_seconds_bucket{le="+Inf"} 5' in lines
    assert all(line.startswith(("#", "upcall_trace_")) for line in lines)


def test_a_command_for_what_is_found(tmp_path: Path) -> None:
    script = tmp_path / "note.sh"
    script.write_text(f'#!/bin/sh\necho "$UPCALL_CODE $UPCALL_SEVERITY" >> {tmp_path}/found\n'
                      f"cat >> {tmp_path}/json\n")  # fmt: skip
    script.chmod(0o755)
    (tmp_path / "found").touch()
    with faulty(tmp_path, "--fault", "add_mmio:ret=-17", "--on-finding", str(script)) as running:
        with Upcall(tmp_path / "proxy") as client:
            assert client.ask(ADD).ret == -17
            until(lambda: "UP301" in (tmp_path / "found").read_text(), 30)
        running.end()
    assert "UP301 error" in (tmp_path / "found").read_text().splitlines()
    assert "code" in json.loads((tmp_path / "json").read_text().splitlines()[0])


def test_the_log_as_json(tmp_path: Path) -> None:
    with Vmm(tmp_path / "vmm"):
        process = subprocess.Popen(
            [*COMMAND, "--listen", tmp_path / "p", "--upstream", tmp_path / "vmm",
             "-o", tmp_path / "c.upcap", "--log-format", "json"], stderr=subprocess.PIPE,
        )  # fmt: skip
        until((tmp_path / "p").exists)
        ask(tmp_path / "p")
        process.terminate()
        _, said = process.communicate(timeout=10)
    events = [json.loads(line) for line in said.splitlines()]
    assert all({"v", "time", "event", "message"} <= event.keys() for event in events)
    assert (events[-1]["event"], events[-1]["operations"]) == ("ended", 1)


def test_as_a_service_of_systemd(tmp_path: Path) -> None:
    """A stand-in for the manager: a socket that it opened, and one that it is told by."""
    with Vmm(tmp_path / "vmm"), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        opened = socket.socket(socket.AF_UNIX)
        opened.bind(str(tmp_path / "p"))
        opened.listen(16)
        start = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True); "
            "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", start, str(opened.fileno()), *COMMAND,
             "--upstream", tmp_path / "vmm", "-o", tmp_path / "c.upcap"],
            pass_fds=[opened.fileno()], stderr=subprocess.PIPE,
            env={**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify"),
                 "WATCHDOG_USEC": "400000"},
        )  # fmt: skip
        told = [manager.recv(256)]
        ask(tmp_path / "p")
        told += [manager.recv(256), manager.recv(256)]
        process.terminate()
        told.append(manager.recv(256))
        while b"STOPPING=1" not in told[-1]:
            told.append(manager.recv(256))
        assert process.wait(10) == ExitCode.EXPECTED
        process.communicate()
        opened.close()
    assert told[0].startswith(b"READY=1")
    assert told[1:3] == [b"WATCHDOG=1"] * 2
    assert (tmp_path / "p").exists()
    assert len(load(tmp_path / "c.upcap").operations) == 1


def test_what_the_disk_had_no_room_for_is_told_to_the_byte(tmp_path: Path) -> None:
    with recording(tmp_path, file_limit=4000) as running:
        ask(tmp_path / "proxy", 300)
        assert running.end() == ExitCode.LOST
    told = [line for line in running.said if "bytes of traffic were not recorded" in line]
    lost = int(told[-1].rpartition(": ")[2].split()[0])
    capture = load(tmp_path / "c.upcap")
    payload = sum(connection.payload for connection in capture.connections)
    handshake = len(b"CONNECT 219\n") + len(b"OK 1073741824\n")
    with CaptureReader(tmp_path / "c.upcap") as reader:
        gaps = sum(r.size for r in reader if isinstance(r, Gap))
    assert payload + lost in (300 * 2048 + 1025, 300 * 2048 + 1025 + handshake)
    assert gaps <= lost


def test_a_follower_sees_what_waits(tmp_path: Path) -> None:
    with faulty(tmp_path, "--fault", "add_mmio:delay=2s:when=2") as running:
        capture = str(tmp_path / "c.upcap")
        command = [sys.executable, "-m", "upcall_trace", "show", "--follow", capture]
        follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with Upcall(tmp_path / "proxy") as client:
            client.ask(ADD)
            assert follower.stdout is not None
            next(line for line in follower.stdout if line.startswith("   1.0"))
            client.ask(ADD)
        running.end()
        shown, _ = follower.communicate(timeout=20)
    lines = [line for line in shown.splitlines() if line.startswith("   1.1")]
    assert len(lines) == 2
    assert "waits, for" in lines[0]
    assert lines[1].endswith("ok")
