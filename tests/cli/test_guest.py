"""`guest` as a user runs it: its own process, real sockets, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from dissectors.constants import MESSAGE_SIZE, Arch, MessageType
from dissectors.messages import bare_request, cpu_request, decode_reply, mmio_request
from tests.guests import (
    HELLO,
    GuestProcess,
    ask,
    connected,
    dial,
    guest_process,
    receive,
    receive_line,
    says_nothing,
)
from tests.support import GOLDEN, command, run
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.model import Guest
from upcall_trace.kernel.world import kata_pod, load_worlds

ADD_MEM = bare_request(MessageType.ADD_MEM)
ADD_2 = cpu_request(MessageType.ADD_CPU, [2])
PLUG = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
WORLDS = GOLDEN / "worlds.toml"


def state_of(guest: GuestProcess, control: Path) -> object:
    with dial(control, b'{"state":true}\n') as stream:
        return json.loads(receive_line(stream))["state"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly_with_connections_open(
    tmp_path: Path, number: signal.Signals
) -> None:
    with guest_process(tmp_path, "--control", tmp_path / "control") as guest:
        assert guest.said == [f"listening on {tmp_path}/guest"]
        silent, asking = dial(guest.path), connected(guest.path)  # accepted in this order
        assert ask(asking, PLUG).ret == 0
        ordering = dial(tmp_path / "control")
        ordering.sendall(b'{"state":true}\n')
        assert ordering.makefile().readline().startswith("{")
        assert guest.end(number) == ExitCode.EXPECTED
        assert guest.said == [f"listening on {tmp_path}/guest"]
        for stream in (silent, asking, ordering):
            assert stream.recv(1) == b""
            stream.close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_guests_socket_is_taken_over(tmp_path: Path) -> None:
    with guest_process(tmp_path) as guest:
        guest.kill()
    assert (tmp_path / "guest").is_socket()
    with guest_process(tmp_path) as guest:
        connected(guest.path).close()


@pytest.mark.parametrize(
    ("options", "world"),
    [
        ((), kata_pod()),
        (("--kernel", "6.12"), kata_pod(kernel="6.12")),
        (("--arch", "aarch64"), kata_pod(Arch.AARCH64)),
        (("--arch", "aarch64", "--kernel", "6.18"), kata_pod(Arch.AARCH64, "6.18")),
        (("--world", str(WORLDS), "--machine", "pc"), load_worlds(WORLDS)["pc"]),
    ],
)
def test_which_guest_it_is(tmp_path: Path, options: tuple[str, ...], world: object) -> None:
    control = tmp_path / "control"
    with guest_process(tmp_path, "--control", control, *options) as guest:
        assert state_of(guest, control) == Guest(world).state()  # type: ignore[arg-type]


def test_a_file_with_one_machine_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text("[only]\nnr_cpu_ids = 3\ncpus_online = [0, 2]\n")
    with (
        guest_process(tmp_path, "--world", tmp_path / "w.toml") as guest,
        connected(guest.path) as stream,
    ):
        assert ask(stream, ADD_2).ret == -22


def test_faults_strike_and_are_told(tmp_path: Path) -> None:
    with guest_process(
        tmp_path, "--fault", "add_cpu:ret=-16:when=1", "--fault", "any:close:when=3"
    ) as guest:
        with connected(guest.path) as stream:
            assert ask(stream, ADD_2).ret == -16
            assert ask(stream, ADD_2).ret == 0
            stream.sendall(ADD_MEM.encode())
            assert stream.recv(1) == b""
        guest.end()
        assert guest.said[1:] == [
            "fault add_cpu:ret=-16:when=1 strikes connection 1, request 0",
            "fault any:close:when=3 strikes connection 1, request 2",
        ]


def test_the_same_seed_makes_the_same_faults(tmp_path: Path) -> None:
    def garbage(seed: str) -> bytes:
        options = ("--seed", seed, "--fault", "any:garbage:chance=0.5")
        with guest_process(tmp_path, *options) as guest, connected(guest.path) as stream:
            stream.sendall(ADD_MEM.encode() * 8)
            return receive(stream, 8 * MESSAGE_SIZE)

    assert garbage("1") == garbage("1") != garbage("2")


def test_the_other_options(tmp_path: Path) -> None:
    with guest_process(
        tmp_path, "--backend", "vhost-device-vsock", "--port", "1000", "--echo", "7", "--echo", "8",
        "--pace", "real", "--world", WORLDS, "--machine", "pc",
    ) as guest:  # fmt: skip
        for port in (b"7", b"8"):
            with dial(guest.path, b"CONNECT " + port + b"\n") as stream:
                assert receive_line(stream) == b"OK " + port + b"\n"
                stream.sendall(b"echo")
                assert receive(stream, 4) == b"echo"
        with dial(guest.path, b"CONNECT 219\n") as stream:
            assert stream.recv(1) == b""
        with dial(guest.path, b"CONNECT 1000\n") as stream:
            assert receive_line(stream) == b"OK 1000\n"
            stream.sendall(b"d")
            assert receive(stream, MESSAGE_SIZE) == HELLO
            stream.sendall(ADD_2.encode())
            assert says_nothing(stream, 0.3)  # it waits ten seconds for this vCPU


def test_without_pace_a_vcpu_that_does_not_start_fails_at_once(tmp_path: Path) -> None:
    options = ("--world", WORLDS, "--machine", "pc")
    with guest_process(tmp_path, *options) as guest, connected(guest.path) as stream:
        stream.sendall(ADD_2.encode())
        assert decode_reply(receive(stream, MESSAGE_SIZE)).ret == -5


def test_a_socket_for_its_owner_only(tmp_path: Path) -> None:
    with guest_process(tmp_path) as guest:
        assert guest.path.stat().st_mode & 0o777 == 0o600


# Mistakes: one sentence, and the code for it.


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (["--fault", "add_cpus:drop"], ExitCode.USAGE, "fault 'add_cpus:drop': 'add_cpus' is "),
        (["--fault", "any"], ExitCode.USAGE, "fault 'any': 'any' has no action; there are ret, "),
        (["--world", "{gone}"], ExitCode.UNREADABLE, "{gone}: No such file or directory"),
        (["--world", "{text}"], ExitCode.UNREADABLE, "{text} is not a TOML file: "),
        (["--world", "{wrong}"], ExitCode.UNREADABLE, "{wrong}: [x] kernel must be one of "),
        (["--world", "{worlds}"], ExitCode.USAGE, "the file has several machines; choose one"),
        (["--world", "{worlds}", "--machine", "q"], ExitCode.USAGE, "no machine 'q' in the file"),
        (["--machine", "pc"], ExitCode.USAGE, "--machine needs a file: give --world too"),
        (["--world", "{worlds}", "--arch", "x86_64"], ExitCode.USAGE, "--kernel and --arch are "),
        (["--control", "{text}"], ExitCode.USAGE, "{text} exists and is not a socket"),
        (["--control", "/nowhere/at/all"], ExitCode.USAGE, "cannot listen on /nowhere/at/all: "),
        (["--control", "{long}"], ExitCode.USAGE, "the socket path {long} has "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(
    tmp_path: Path, options: list[str], code: ExitCode, why: str
) -> None:
    (tmp_path / "text").write_text("no world\n")
    (tmp_path / "wrong").write_text('[x]\nkernel = "7"\n')
    names = {name: str(tmp_path / name) for name in ("gone", "text", "wrong")}
    names |= {"worlds": str(WORLDS), "long": f"/tmp/{'x' * 200}"}
    arguments = [option.format(**names) for option in options]
    outcome = run("guest", "--listen", tmp_path / "guest", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"upcall-trace: {why.format(**names)}")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "guest").exists()


@pytest.mark.parametrize(
    "options",
    [[], ["--listen"], ["--port", "-1"], ["--echo", "4294967296"], ["--pace", "slow"],
     ["--kernel", "5.4"], ["--seed", "x"], ["--backend", "qemu"]],
    ids=lambda options: " ".join(options) or "nothing",
)  # fmt: skip
def test_wrong_options(tmp_path: Path, options: list[str]) -> None:
    listen = ["--listen", str(tmp_path / "guest")] if len(options) > 1 else []
    outcome = run("guest", *listen, *options)
    assert outcome.code == ExitCode.USAGE
    assert "Error: " in outcome.err
    assert not (tmp_path / "guest").exists()


def test_a_path_that_somebody_listens_on(tmp_path: Path) -> None:
    with guest_process(tmp_path) as guest:
        second = subprocess.run(
            command("guest", "--listen", guest.path), capture_output=True, text=True, check=False
        )
        assert second.returncode == ExitCode.USAGE
        assert second.stderr == (f"upcall-trace: {guest.path} is in use: somebody listens on it\n")
        connected(guest.path).close()


def test_it_needs_neither_numpy_nor_scapy(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['numpy'] = sys.modules['scapy'] = None\n"
        "from upcall_trace.cli import main\nmain(sys.argv[1:])"
    )
    command_ = [command()[0], "-c", code, "guest", "--listen", str(tmp_path / "guest")]
    process = subprocess.Popen(command_, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"listening on {tmp_path}/guest\n"
        os.kill(process.pid, signal.SIGTERM)
    assert process.returncode == ExitCode.EXPECTED
