"""`replay` as a user meets it: the plan, what it refuses, the verdict, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.guests import guest_process, wait_until
from tests.kernel.recordings import worlds
from tests.replay.playing import guest_like, guest_of
from tests.support import (
    ADD_MEM,
    DISK,
    GOLDEN,
    answer,
    ask,
    command,
    connect,
    golden,
    limited,
    run,
    write_capture,
)
from upcall_trace.capture.records import Close, Header, Record
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.serving import StreamServer
from upcall_trace.trace.opening import load

OOPS = golden("guest_oops")
MMIO = golden("mmio_lifecycle")


@pytest.fixture
def microvm(tmp_path: Path) -> Iterator[SimulatedGuest]:
    """A guest in the world that most recordings began in."""
    with guest_of(MMIO, tmp_path) as guest:
        yield guest


def several(count: int, gap_ns: int = 1_000_000) -> list[Record]:
    records = connect(1)
    for place in range(count):
        at = (place + 1) * gap_ns
        records += [ask(ADD_MEM, at), answer(ADD_MEM, at + 1000, ret=-1)]
    return [*records, Close((count + 1) * gap_ns, 1, by_guest=False)]


def test_without_live_it_only_plans(microvm: SimulatedGuest) -> None:
    before = microvm.state()
    told = run("replay", MMIO, "--to", microvm.path)
    assert told.code == ExitCode.EXPECTED
    assert told.out.splitlines()[:5] == [
        f"15 requests to {microvm.path}, a simulated guest",
        " 1.0  add_mmio 0xfeb00400+0x200 irq=7",
        "        recorded and predicted: ok",
        "        changes: window 0xfeb00400+0x200 irq 7 appears",
        "        undone by: send del-mmio 0xfeb00400 0x200 7",
    ]
    assert microvm.state() == before


def test_a_plan_as_json(microvm: SimulatedGuest) -> None:
    told = run("replay", OOPS, "--to", microvm.path, "--json")
    (plan,) = told.objects
    assert told.code == ExitCode.USAGE
    assert list(plan) == ["v", "plan", "target", "rebased", "left_out", "vmm", "dangers", "refused"]
    assert [step["op"] for step in plan["plan"]] == ["del_cpu", "del_cpu", "add_mem", "add_cpu"]
    assert plan["plan"][1]["predicted"] == {"answer": 0}
    assert plan["dangers"] == [
        {
            "code": "UP206",
            "why": "to remove a CPU that the guest cannot find kills the thread that is asked",
            "conn": 1,
            "request": 1,
            "allowed": False,
        }
    ]
    assert plan["refused"] is True
    assert plan["target"]["kind"] == "simulated"


@pytest.mark.parametrize("recording", ["guest_oops", "guest_oops_6_12"])
def test_a_danger_is_refused_by_name_and_nothing_is_sent(recording: str, tmp_path: Path) -> None:
    # On the wire: whoever listens here hears of every connection, and of every byte.
    heard: list[bytes] = []
    with StreamServer(tmp_path / "wire", lambda stream: heard.append(stream.recv(64))):
        told = run("replay", golden(recording), "--to", tmp_path / "wire", "--live",
                   "--world", GOLDEN / "worlds.toml", "--allow", "real-guest")  # fmt: skip
    assert told.code == ExitCode.USAGE
    refusal, way_out = told.out.splitlines()[-2:]
    assert refusal.startswith("refused: request 1.1: to remove a CPU that the guest cannot find")
    assert refusal.endswith("(UP206)")
    assert way_out == "to do it all the same: --allow UP206"
    assert heard == []


def test_allowed_by_name_it_is_done(tmp_path: Path) -> None:
    with guest_of(OOPS, tmp_path) as guest:
        told = run("replay", OOPS, "--to", guest.path, "--live", "--allow", "UP206")
    assert told.code == ExitCode.EXPECTED
    assert told.out.startswith("4 of 4 requests replayed in ")
    assert told.out.endswith(": all as recorded\n")


def test_what_may_be_a_real_guest_needs_to_be_named(microvm: SimulatedGuest) -> None:
    microvm.path.with_name("guest.target").unlink()
    told = run("replay", MMIO, "--to", microvm.path, "--live", "--world", GOLDEN / "worlds.toml")
    assert told.code == ExitCode.USAGE
    assert told.out.endswith("to do it all the same: --allow real-guest\n")
    told = run("replay", MMIO, "--to", microvm.path, "--live", "--world", GOLDEN / "worlds.toml",
               "--allow", "real-guest")  # fmt: skip
    assert told.code == ExitCode.EXPECTED


def test_a_world_that_is_not_the_targets_is_told(microvm: SimulatedGuest) -> None:
    worlds: list[str | Path] = ["--world", GOLDEN / "worlds.toml", "--machine"]
    told = run("replay", MMIO, "--to", microvm.path, *worlds, "pc")
    assert "the world that was given is not the one that the target says" in told.out
    told = run("replay", MMIO, "--to", microvm.path, *worlds, "microvm")
    assert "the world that was given" not in told.out


def test_the_first_difference_is_told_with_its_reason_and_the_command_that_accepts_it(
    tmp_path: Path,
) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(2), Header("test", arch="x86_64"))
    with guest_like(kata_pod(), tmp_path, "add_mem:ret=-16:when=2") as guest:
        told = run("replay", recording, "--to", guest.path, "--live")
    assert told.code == ExitCode.DIFFERENT
    assert told.out.splitlines()[:3] == [
        "first difference: request 1.1 add_mem",
        "                recorded                  predicted                 got",
        "  ret           -1 EPERM                  -1 EPERM                  -16 EBUSY",
    ]
    assert "  recorded: UP511 reserved-memory-op: The guest has no handler for add_mem" in told.out
    accepting = f"  to accept it: upcall-trace edit {recording} --match '1.1 ret=-1|-16'"
    assert accepting in told.out.splitlines()
    assert told.out.splitlines()[-1].endswith("; 1 answered otherwise (ret 1)")


def test_a_verdict_as_json(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(2), Header("test", arch="x86_64"))
    with guest_like(kata_pod(), tmp_path, "add_mem:ret=-16:when=2") as guest:
        told = run("replay", recording, "--to", guest.path, "--live", "--json")
    (verdict,) = told.objects
    assert list(verdict) == [
        "v", "verdict", "requests", "replayed", "same", "seconds", "differences", "not_sent",
        "connections", "remarks", "ended", "interrupted", "target",
    ]  # fmt: skip
    assert (verdict["verdict"], verdict["same"], verdict["replayed"]) == ("different", 1, 2)
    (difference,) = verdict["differences"]
    assert difference["differing"] == ["ret"]
    assert (difference["recorded"]["ret"], difference["got"]["ret"]) == (-1, -16)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--match", "1.1 ret=any"], ExitCode.EXPECTED),
        (["--match", "add_mem ret=class"], ExitCode.DIFFERENT),
        (["--match", "* ret=-20..0"], ExitCode.EXPECTED),
        (["--until", "1.0"], ExitCode.EXPECTED),
        (["--filter", "request == 5"], ExitCode.NOTHING_RUN),
        (["--filter", "requests == 5"], ExitCode.USAGE),
        (["--start", "1.7"], ExitCode.USAGE),
        (["--speed", "fast"], ExitCode.USAGE),
        (["--match", "1.1"], ExitCode.USAGE),
        (["--machine", "pc"], ExitCode.USAGE),
        (["--target", "red"], ExitCode.USAGE),
        (["--step"], ExitCode.USAGE),
        (["--match", "add_mmoi ret=any"], ExitCode.USAGE),
        (["--match", "7.7 ret=any"], ExitCode.USAGE),
        (["--learn", "--loop", "2"], ExitCode.USAGE),
        (["--rebase", "--map", "map.toml"], ExitCode.USAGE),
    ],
)
def test_how_it_ends(options: list[str], code: ExitCode, tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(2), Header("test", arch="x86_64"))
    with guest_like(kata_pod(), tmp_path, "add_mem:ret=-16:when=2") as guest:
        told = run("replay", recording, "--to", guest.path, "--live", *options)
    assert told.code == code, told
    assert (told.err.count("\n") == 1) == (code in (ExitCode.USAGE, ExitCode.NOTHING_RUN))


@pytest.mark.parametrize("words", ["--max-gap nan", "--deadline inf", "--silence -1"])
def test_times_that_are_none(words: str, tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(1), Header("test", arch="x86_64"))
    told = run("replay", recording, "--to", tmp_path / "guest", *words.split())
    assert told.code == ExitCode.USAGE
    assert "Error: Invalid value for" in told.err


def test_files_and_sockets_that_are_not_there(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(1), Header("test", arch="x86_64"))
    told = run("replay", tmp_path / "none.upcap", "--to", tmp_path / "guest")
    assert told.code == ExitCode.UNREADABLE
    told = run("replay", recording, "--to", tmp_path / "guest", "--live", "--allow", "real-guest")
    assert told.code == ExitCode.UNREACHABLE
    assert "nobody listens on" in told.err
    with guest_like(kata_pod(), tmp_path) as guest:
        told = run("replay", recording, "--to", guest.path, "--live", "-o", recording,
                   "--overwrite")  # fmt: skip
        assert told.code == ExitCode.USAGE
        assert "is the input; give another name for the output" in told.err
        (tmp_path / "other.upcap").write_bytes(b"kept")
        told = run("replay", recording, "--to", guest.path, "--live", "-o",
                   tmp_path / "other.upcap")  # fmt: skip
        assert told.code == ExitCode.USAGE
        assert "exists; give another name, or --overwrite" in told.err
    refused = run("replay", recording, "--to", tmp_path / "guest", "--live", "-o",
                  tmp_path / "other.upcap", "--overwrite")  # fmt: skip
    assert refused.code == ExitCode.UNREACHABLE
    assert (tmp_path / "other.upcap").read_bytes() == b"kept"


@pytest.mark.parametrize("live", [[], ["--live"], ["--live", "--allow", "real-guest"]])
def test_where_nobody_listens_it_is_not_called_a_real_guest(
    tmp_path: Path, live: list[str]
) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(1), Header("test", arch="x86_64"))
    with guest_like(kata_pod(), tmp_path) as guest:
        path = guest.path
    told = run("replay", recording, "--to", path, *live)
    assert (told.code, told.out) == (ExitCode.UNREACHABLE, "")
    assert told.err == f"upcall-trace: nobody listens on {path}: there is no such socket\n"


def test_a_control_socket_that_cannot_be_used_ends_it_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(1), Header("test", arch="x86_64"))
    with guest_like(kata_pod(), tmp_path) as guest:
        before = guest.state()
        told = run("replay", recording, "--to", guest.path, "--live", "--control", tmp_path / "no")
        assert (told.code, told.out) == (ExitCode.UNREACHABLE, "")
        assert "the control socket cannot be used: nobody listens on" in told.err
        assert guest.state() == before


def test_a_guest_that_was_used_before_can_be_booted_anew(tmp_path: Path) -> None:
    plugged = [*connect(), ask(DISK, 10), answer(DISK, 20), Close(30, 1, by_guest=False)]
    recording = write_capture(tmp_path / "a.upcap", plugged, Header("test", arch="x86_64"))
    told = "was used since it booted; --reset boots it again first"
    with SimulatedGuest(kata_pod(), path=tmp_path / "g", control=tmp_path / "c"):
        first, second, third = (
            run("replay", recording, "--to", tmp_path / "g", "--live", *words)
            for words in ([], [], ["--reset"])
        )
    assert [each.code for each in (first, second, third)] == [0, ExitCode.DIFFERENT, 0]
    assert [told in each.err for each in (first, second, third)] == [False, True, False]


def test_a_torn_recording_is_replayed_and_that_is_said(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(3), Header("test", arch="x86_64"))
    recording.write_bytes(recording.read_bytes()[:-60])
    with guest_like(kata_pod(), tmp_path) as guest:
        told = run("replay", recording, "--to", guest.path, "--live")
    assert told.code == ExitCode.LOST
    assert "the end is torn" in told.err


def test_what_happened_is_a_capture_that_can_be_diagnosed(tmp_path: Path) -> None:
    output = tmp_path / "happened.upcap"
    with guest_of(OOPS, tmp_path) as guest:
        told = run("replay", OOPS, "--to", guest.path, "--live", "--allow", "UP206", "-o", output)
    assert told.code == ExitCode.EXPECTED
    codes = [f["code"] for f in run("diagnose", "--json", output).objects[0]["findings"]]
    assert "UP206" in codes
    assert load(output).complete


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(400), Header("test", arch="x86_64"))
    with guest_process(tmp_path) as guest:
        told = subprocess.run(
            limited(command("replay", recording, "--to", guest.path, "--live", "-o",
                            tmp_path / "happened.upcap"), "RLIMIT_FSIZE", 8192),
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    assert told.returncode == ExitCode.LOST
    assert "does not have all of what happened: File too large" in told.stderr


@pytest.mark.parametrize("address", ["", ".", "/"])
def test_addresses_that_are_none(address: str, tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(1), Header("test", arch="x86_64"))
    told = run("replay", recording, "--to", address, "--live", "--allow", "real-guest")
    assert told.code in (ExitCode.USAGE, ExitCode.UNREACHABLE)
    assert told.err.count("\n") == 1 or told.out


def test_after_a_difference_nothing_more_goes_to_what_may_be_a_real_guest(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(4), Header("test", arch="x86_64"))
    allowed = ["--live", "--allow", "real-guest"]
    for options, replayed in (([], "2 of 4"), (["--keep-going"], "4 of 4")):
        with guest_like(kata_pod(), tmp_path, "add_mem:ret=-16:when=2") as guest:
            guest.path.with_name("guest.target").unlink()
            told = run("replay", recording, "--to", guest.path, *allowed, *options)
        assert told.code == ExitCode.DIFFERENT
        assert told.out.splitlines()[-1].startswith(f"{replayed} requests replayed")


def test_rounds_with_a_reset_between(tmp_path: Path) -> None:
    with guest_of(MMIO, tmp_path) as guest:
        told = run("replay", MMIO, "--to", guest.path, "--live", "--reset", "--loop", "3")
    assert told.code == ExitCode.EXPECTED
    assert [line for line in told.out.splitlines() if line.startswith("round")] == [
        "round 1 of 3", "round 2 of 3", "round 3 of 3",
    ]  # fmt: skip


def test_rebased_by_the_command(tmp_path: Path) -> None:
    window = (0xFEB00000, 0x200, 5)
    request = mmio_request(MessageType.ADD_MMIO, *window)
    records = [*connect(1), ask(request, 1), answer(request, 2)]
    recording = write_capture(tmp_path / "a.upcap", records, Header("test", arch="x86_64"))
    with guest_like(worlds()["microvm"], tmp_path) as guest:
        assert run("replay", recording, "--to", guest.path, "--live").code == ExitCode.DIFFERENT
        told = run("replay", recording, "--to", guest.path, "--rebase")
        assert "rebased: MMIO base 0xfeb00000 -> 0xfeb01000" in told.out
        told = run("replay", recording, "--to", guest.path, "--rebase", "--live")
        assert told.code == ExitCode.EXPECTED
        assert [w["base"] for w in guest.state()["mmio"]][-1] == 0xFEB01000


def test_learning_keeps_what_varies_beside_the_recording(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(3), Header("test", arch="x86_64"))
    varying = "add_mem:ret=-11:when=5"  # in the second round
    with guest_like(kata_pod(), tmp_path, varying) as guest:
        told = run("replay", recording, "--to", guest.path, "--live", "--learn")
        assert told.code == ExitCode.EXPECTED
    rules = tmp_path / "a.match.toml"
    assert told.err == f"{rules}: rules for what varied\n"
    assert rules.read_text() == '[match]\n"1.1" = "ret=-11|-1"\n'
    with guest_like(kata_pod(), tmp_path, "add_mem:ret=-11:when=2") as guest:
        assert run("replay", recording, "--to", guest.path, "--live").code == ExitCode.EXPECTED
    with guest_like(kata_pod(), tmp_path, "add_mem:ret=-12:when=2") as guest:
        assert run("replay", recording, "--to", guest.path, "--live").code == ExitCode.DIFFERENT


def test_what_is_always_otherwise_is_not_learnt(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(1), Header("test", arch="x86_64"))
    with guest_like(kata_pod(), tmp_path, "add_mem:ret=-11") as guest:
        told = run("replay", recording, "--to", guest.path, "--live", "--learn")
    assert told.code == ExitCode.DIFFERENT
    assert "1.0 is answered otherwise than recorded each time: no rule was made" in told.err
    assert not (tmp_path / "a.match.toml").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(number: signal.Signals, tmp_path: Path) -> None:
    records = several(500, gap_ns=20_000_000)
    recording = write_capture(tmp_path / "a.upcap", records, Header("test", arch="x86_64"))
    output = tmp_path / "happened.upcap"
    with guest_process(tmp_path) as guest:
        replaying = subprocess.Popen(
            command("replay", recording, "--to", guest.path, "--live", "--speed", "recorded",
                    "-o", output),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not output.exists() or output.stat().st_size < 2000:
            time.sleep(0.05)
        replaying.send_signal(number)
        out, err = replaying.communicate(timeout=10)
    assert replaying.returncode == ExitCode.INTERRUPTED
    assert "of 500 requests replayed" in out
    assert out.endswith("; interrupted\n")
    assert err == ""
    assert load(output).complete


def press(terminal: int, key: bytes) -> None:
    """Press a key once the program waits for one: then the terminal is in no line mode."""
    wait_until(lambda: not termios.tcgetattr(terminal)[3] & termios.ICANON)
    os.write(terminal, key)


def test_step_by_step_on_a_terminal(tmp_path: Path) -> None:
    recording = write_capture(tmp_path / "a.upcap", several(4), Header("test", arch="x86_64"))
    with guest_process(tmp_path) as guest:
        parent, child = pty.openpty()
        with subprocess.Popen(
            command("replay", recording, "--to", guest.path, "--live", "--step"),
            stdin=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as stepping:  # fmt: skip
            os.close(child)
            assert stepping.stdout is not None
            assert stepping.stdout.readline() == "1.0  add_mem\n"
            press(parent, b" ")
            assert stepping.stdout.readline().strip().startswith("EPERM (-1)")
            assert stepping.stdout.readline() == "1.1  add_mem\n"
            press(parent, b"c")
            rest, _ = stepping.communicate(timeout=10)
        os.close(parent)
    assert stepping.returncode == ExitCode.EXPECTED
    assert [line for line in rest.splitlines() if line.endswith("add_mem")] == [
        "1.2  add_mem", "1.3  add_mem",
    ]  # fmt: skip


def test_a_hostile_recording_does_not_steer_the_terminal(tmp_path: Path) -> None:
    header = Header("test", arch="x86_64", notes={"tied-to": "name=\x1b]0;owned\x07"})
    recording = write_capture(tmp_path / "\x1b[31m.upcap", several(1), header)
    with guest_like(kata_pod(), tmp_path, "add_mem:ret=5") as guest:
        told = run("replay", recording, "--to", guest.path, "--live", "--allow", "other-target")
        told_json = run("replay", recording, "--to", guest.path, "--json")
    assert told.code == ExitCode.DIFFERENT
    assert "\x1b" not in told.out + told.err + told_json.out
    assert json.loads(told_json.out)["dangers"][0]["code"] == "other-target"
