"""`conform` as a user meets it: exit codes, formats, refusals, resuming, recorded guests."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conform.wrong_guests import of_every_window, wrong_guest
from tests.guests import GuestProcess
from tests.kernel.recordings import worlds
from tests.support import GOLDEN, command, golden, run
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.on_socket import SimulatedGuest

WORLDS = GOLDEN / "worlds.toml"


def test_a_guest_that_agrees(tmp_path: Path) -> None:
    with SimulatedGuest(path=tmp_path / "guest", control=tmp_path / "control"):
        ended = run("conform", "--to", tmp_path / "guest", "--count", "600", "--seed", "3")
    assert ended.code == 0
    # Progress, on a machine that is so slow that there is any.
    assert all(" of 600 requests, 0 cases differ" in line for line in ended.err.splitlines())
    assert ended.out == "600 requests in 3 cases, seed 3: agree\n"


def test_a_planted_byte_is_found_with_both_answers_and_exit_code_1(tmp_path: Path) -> None:
    with wrong_guest(of_every_window, kata_pod(), tmp_path):
        address = tmp_path / "guest"
        ended = run("conform", "--to", address, "--count", "200")
        told = run("conform", "--to", address, "--count", "200", "--json").objects
        junit = run("conform", "--to", address, "--count", "200", "--format", "junit")
    assert ended.code == junit.code == 1
    assert "case 0 differs; the shortest that does: 1 request\n" in ended.out
    assert "     byte 4: model 0x00, guest 0x01\n" in ended.out
    assert ended.out.endswith("200 requests in 1 case, seed 0: 1 of 1 case differ\n")
    assert len(told[0]["differences"][0]["steps"]) == 1
    assert ElementTree.fromstring(junit.out)[0].attrib["failures"] == "1"


def test_without_control_it_says_what_that_means(tmp_path: Path) -> None:
    with SimulatedGuest(path=tmp_path / "guest"):
        ended = run("conform", "--to", tmp_path / "guest", "--count", "300")
    assert ended.code == 0
    assert "has to be fresh" in ended.err
    assert "300 requests in 1 case," in ended.out


def test_a_guest_that_says_nothing_of_itself_is_taken_for_a_pod(tmp_path: Path) -> None:
    with SimulatedGuest(path=tmp_path / "guest", control=tmp_path / "control"):
        Path(f"{tmp_path / 'guest'}.target").unlink()
        address: list[str | Path] = ["--to", tmp_path / "guest", "--count", "40"]
        ended = run("conform", *address, "--control", tmp_path / "control")
        told = run("conform", *address, "--world", WORLDS, "--machine", "pc", "--json",
                   "--deadline", "0.5")  # fmt: skip
    assert ended.code == 0
    assert "is taken for a default Kata pod" in ended.err
    assert told.code == 1
    assert told.objects[0]["world_known"] is True


def test_nobody_there_is_exit_code_4(tmp_path: Path) -> None:
    ended = run("conform", "--to", tmp_path / "none")
    assert (ended.code, ended.out) == (4, "")
    with SimulatedGuest(path=tmp_path / "guest"):
        ended = run("conform", "--to", tmp_path / "guest", "--control", tmp_path / "none")
    assert ended.code == 4
    assert "cannot be used" in ended.err


def test_wrong_usage(tmp_path: Path) -> None:
    assert run("conform").code == 2
    assert run("conform", "--to", tmp_path / "x", "--allow", "UP999").code == 2
    assert run("conform", "--to", tmp_path / "x", "--count", "0").code == 2


QUICK = ["cpu_lookup_5_10", "cpu_offlined_5_10", "mmio_edges_5_10", "pci_memory_5_10",
         "aarch64_lifecycle", "guest_oops_6_12"]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_a_guest_that_answers_from_a_recording_agrees(name: str, tmp_path: Path) -> None:
    """Real kernels against the model: what they answered is what it says, byte for byte."""
    machine = json.loads(golden(name).read_text().splitlines()[0])["machine"]
    guest = GuestProcess(tmp_path / "guest", "--replay", golden(name))
    try:
        arguments: list[str | Path] = ["conform", "--to", tmp_path / "guest"]
        arguments += ["--recording", golden(name), "--world", WORLDS, "--silence", "0.2"]
        refused = run(*arguments)
        allowed = [word for code in dangers_named(refused.err) for word in ("--allow", code)]
        ended = run(*arguments, *allowed) if allowed else refused
    finally:
        guest.kill()
    assert not allowed or refused.code == 2
    assert (ended.code, machine in worlds()) == (0, True), ended.out + ended.err
    assert ended.out.endswith("seed 0: agree\n")


def dangers_named(said: str) -> list[str]:
    """The codes after `--allow` in what a refusal says."""
    words = said.split()
    return [after for word, after in pairwise(words) if word == "--allow"]


def test_a_recording_of_another_world_differs(tmp_path: Path) -> None:
    guest = GuestProcess(tmp_path / "guest", "--replay", golden("mmio_edges_5_10"))
    try:
        ended = run("conform", "--to", tmp_path / "guest", "--recording",
                    golden("mmio_edges_5_10"), "--world", WORLDS, "--machine", "pc")  # fmt: skip
    finally:
        guest.kill()
    assert ended.code == 1
    assert "it cannot be made shorter without --control" in ended.out


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    with SimulatedGuest(path=tmp_path / "guest", control=tmp_path / "control"):
        arguments: list[str | Path] = ["conform", "--to", tmp_path / "guest", "--count", "100000",
                     "--resume", tmp_path / "place"]  # fmt: skip
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + 20
        while not (tmp_path / "place").exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert out.endswith("seed 0: agree, interrupted\n")
        place = json.loads((tmp_path / "place").read_text())
        place["asked"] = 99_900
        (tmp_path / "place").write_text(json.dumps(place))
        ended = run(*arguments)
    assert ended.code == 0
    assert ended.out.startswith("100000 requests in ")
