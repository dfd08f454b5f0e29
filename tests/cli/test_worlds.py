"""A recording that keeps its guest's world needs no second file; a missing one is told."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.recordings import worlds
from tests.support import (
    DISK,
    GOLDEN,
    answer,
    ask,
    command,
    connect,
    golden,
    run,
    write_capture,
)  # fmt: skip
from upcall_trace.capture.records import Close, Header
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.noted_world import MACHINE, WORLD, noted_world, world_notes
from upcall_trace.kernel.world import World
from upcall_trace.simulated.machine import Backend, Habits
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.trace.opening import load

WORLDS = GOLDEN / "worlds.toml"
LACKING = "it notes the machine 'microvm', but not what that looks like"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A real guest's recording with its world in it."""
    path = tmp_path / "mmio.upcap"
    told = run("import", golden("mmio_lifecycle"), "-o", path, "--world", WORLDS)
    assert told.code == ExitCode.EXPECTED
    return path


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """The same, with the name of its machine only."""
    path = tmp_path / "named.upcap"
    assert run("import", golden("mmio_lifecycle"), "-o", path).code == ExitCode.EXPECTED
    return path


def world_in(path: Path) -> World | None:
    return noted_world(load(path).header.notes)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[SimulatedGuest]:
    """A guest that nobody said anything about: a default pod."""
    with SimulatedGuest(path=tmp_path / "pod") as guest:
        yield guest


def test_import_takes_the_table_that_a_transcript_names(kept: Path) -> None:
    assert world_in(kept) == worlds()["microvm"]


@pytest.mark.parametrize("words", [["--machine", "pc"], ["--note", "machine=pc"]])
def test_what_is_said_goes_before_what_a_transcript_names(tmp_path: Path, words: list[str]) -> None:
    out = tmp_path / "out.upcap"
    run("import", golden("mmio_lifecycle"), "-o", out, "--world", WORLDS, *words)
    assert world_in(out) == worlds()["pc"]
    assert load(out).header.notes[MACHINE] == "pc"


def test_edit_puts_a_world_into_a_capture_and_leaves_the_other_as_it_was(
    named: Path, tmp_path: Path
) -> None:
    out = tmp_path / "edited.upcap"
    assert run("edit", named, "--world", WORLDS, "-o", out).code == ExitCode.EXPECTED
    assert (world_in(named), world_in(out)) == (None, worlds()["microvm"])


def test_record_takes_over_what_a_simulated_guest_says_of_itself(tmp_path: Path) -> None:
    world, out, path = worlds()["microvm"], tmp_path / "out.upcap", tmp_path / "proxy"
    with SimulatedGuest(world, path=tmp_path / "guest") as guest:
        arguments = command("record", "--listen", path, "--upstream", guest.path, "-o", out)
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as recorder:
            assert recorder.stderr is not None
            while not recorder.stderr.readline().startswith("recording "):
                assert recorder.poll() is None
            with UpcallClient(UnixAddress(path)) as client:
                client.ask(DISK.encode(), timeout_s=5)
            recorder.send_signal(signal.SIGTERM)
            recorder.communicate(timeout=20)
    assert world_in(out) == world


def test_a_recording_of_a_guest_that_answers_from_a_recording_takes_over_nothing(
    tmp_path: Path, kept: Path
) -> None:
    out = tmp_path / "happened.upcap"
    arguments = command("guest", "--replay", kept, "--listen", tmp_path / "g", "--allow-unused")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as guest:
        assert guest.stderr is not None
        assert guest.stderr.readline().startswith("listening")
        told = run("replay", kept, "--to", tmp_path / "g", "--live", "-o", out)
        guest.terminate()
        guest.communicate(timeout=20)
    assert (told.code, told.err) == (ExitCode.EXPECTED, "")
    assert WORLD not in load(out).header.notes


def test_a_diagnosis_is_as_certain_as_with_the_file(kept: Path, named: Path) -> None:
    with_file = run("diagnose", named, "--json", "--world", WORLDS, "--machine", "microvm")
    by_itself = run("diagnose", kept, "--json")
    assert by_itself.err == ""
    assert json.loads(by_itself.out)["findings"] == json.loads(with_file.out)["findings"]
    told = run("diagnose", named, "--json")
    assert f"{LACKING}; --world FILE tells, and makes causes certain" in told.err
    assert json.loads(told.out)["findings"] != json.loads(with_file.out)["findings"]


def test_a_state_has_what_was_there_at_boot(kept: Path, named: Path) -> None:
    with_file = run("state", named, "--json", "--world", WORLDS)
    by_itself = run("state", kept, "--json")
    assert (by_itself.out, by_itself.err) == (with_file.out, "")
    assert f"{LACKING}, so what the guest had at boot is not known" in run("state", named).err


def test_a_guest_is_made_like_the_one_in_a_capture(kept: Path, tmp_path: Path) -> None:
    arguments = command("guest", "--listen", tmp_path / "g", "--world", kept,
                        "--backend", "vhost-device-vsock")  # fmt: skip
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as guest:
        assert guest.stderr is not None
        assert guest.stderr.readline().startswith("listening")
        told = run("replay", kept, "--to", tmp_path / "g", "--live", "--bytes")
        guest.terminate()
        guest.communicate(timeout=20)
    assert (told.code, told.err) == (ExitCode.EXPECTED, "")


def test_a_capture_that_only_names_its_machine_makes_no_guest(named: Path, tmp_path: Path) -> None:
    told = run("guest", "--listen", tmp_path / "g", "--world", named)
    assert (told.code, LACKING in told.err) == (ExitCode.USAGE, True)


def test_a_replay_to_another_guest_says_so(kept: Path, named: Path, pod: SimulatedGuest) -> None:
    planned = run("replay", kept, "--to", pod.path)
    assert "notes another world than the target's: its guest booted otherwise" in planned.out
    told = run("replay", named, "--to", pod.path)
    assert f"{LACKING}, so nobody can say whether the target is like it" in told.err


def test_a_plan_for_a_guest_that_says_nothing_is_for_the_recorded_one(
    kept: Path, tmp_path: Path
) -> None:
    with SimulatedGuest(path=tmp_path / "g") as guest:
        (tmp_path / "g.target").unlink()
        planned = run("replay", kept, "--to", guest.path)
    assert "predictions are for the world that the recording notes" in planned.out
    assert "the model predicts other answers" not in planned.out


def test_a_capture_is_minimised_on_a_guest_like_its_own(kept: Path, named: Path) -> None:
    out = kept.with_name("small.upcap")
    told = run("minimise", kept, "--operation", "1.4", "-o", out)
    assert (told.code, told.err.count("pod")) == (ExitCode.EXPECTED, 0)
    assert world_in(out) == worlds()["microvm"]
    told = run("minimise", named, "--operation", "1.4", "-o", out, "--overwrite")
    assert f"{LACKING}, so a default Kata pod stands in for it" in told.err


def test_captures_of_different_guests_have_no_common_world(kept: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "pc.upcap", tmp_path / "both.upcap"
    write_capture(other, [*connect()], Header("test", notes=world_notes(worlds()["pc"])))
    assert run("merge", kept, other, "-o", out).code == ExitCode.EXPECTED
    assert world_in(out) is None
    assert run("merge", kept, kept, "-o", out, "--overwrite").code == ExitCode.EXPECTED
    assert world_in(out) == worlds()["microvm"]


def test_a_replay_keeps_the_world_of_whom_it_was_sent_to(tmp_path: Path) -> None:
    disk = [*connect(), ask(DISK, 10), answer(DISK, 20), Close(30, 1, by_guest=False)]
    path = write_capture(tmp_path / "disk.upcap", disk)
    out = tmp_path / "happened.upcap"
    world = worlds()["microvm"]
    with SimulatedGuest(world, Habits(Backend.VHOST), path=tmp_path / "g") as guest:
        assert run("replay", path, "--to", guest.path, "--live", "-o", out).code == 0
    assert world_in(out) == world
