"""The note beside a socket: believed while its guest lives, and never otherwise."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests import guest_process
from tests.kernel.recordings import worlds
from tests.support import command, without_privileges
from upcall_trace.control.target_note import PostedNote, TargetNote, read_target_note
from upcall_trace.kernel.world import kata_pod, parse_world, world_table
from upcall_trace.simulated.on_socket import SimulatedGuest

NOTE = TargetNote("lab", "vhost-device-vsock", "pc", kata_pod(), "/run/control")


@pytest.fixture
def listening(tmp_path: Path) -> Path:
    """A socket that exists."""
    path = tmp_path / "guest"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


def note(path: Path) -> Path:
    return path.with_name(path.name + ".target")


def test_it_says_what_is_behind_the_socket_while_it_hangs_there(listening: Path) -> None:
    assert read_target_note(listening) is None
    with PostedNote(listening, NOTE):
        assert read_target_note(listening) == NOTE
        assert note(listening).stat().st_mode & 0o777 == 0o600
    assert read_target_note(listening) is None
    assert not note(listening).exists()


def test_one_that_outlived_its_guest_is_not_believed(listening: Path, tmp_path: Path) -> None:
    with PostedNote(listening, NOTE):
        left = note(listening).read_bytes()
    note(listening).write_bytes(left)
    note(listening).chmod(0o600)
    assert read_target_note(listening) is None


def test_one_of_an_earlier_socket_at_this_path_is_not_believed(listening: Path) -> None:
    with PostedNote(listening, NOTE) as posted:
        listening.unlink()
        assert read_target_note(listening) is None
        # The old one's inode may be given out again only once nobody has it any more.
        with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as another:
            other.bind(str(listening.with_name("other")))
            another.bind(str(listening))
            if read_target_note(listening) is not None:
                listening.unlink()
                listening.with_name("other").rename(listening)
            posted.write(listening, NOTE)
            assert read_target_note(listening) == NOTE


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told | {"v": 2},
        lambda told: told | {"kind": "real"},
        lambda told: told | {"socket": [1, 2]},
        lambda told: told | {"name": 7},
        lambda told: told | {"world": {"kernel": "2.4"}},
        lambda told: told | {"more": 1},
        lambda told: {key: told[key] for key in told if key != "world"},
        lambda told: [told],
    ],
)
def test_a_note_that_is_not_right_is_no_note(
    listening: Path, change: Callable[[object], object]
) -> None:
    with PostedNote(listening, NOTE):
        told = json.loads(note(listening).read_bytes())
        note(listening).write_text(json.dumps(change(told)))
        assert read_target_note(listening) is None


def test_a_link_and_a_file_that_others_may_write_are_no_notes(listening: Path) -> None:
    with PostedNote(listening, NOTE):
        note(listening).chmod(0o666)
        assert read_target_note(listening) is None
        note(listening).chmod(0o600)
        note(listening).rename(note(listening).with_name("elsewhere"))
        note(listening).symlink_to("elsewhere")
        assert read_target_note(listening) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")
def test_a_strangers_note_is_not_believed(listening: Path) -> None:
    with PostedNote(listening, NOTE):
        os.chown(note(listening), 12345, 12345)
        assert read_target_note(listening) is None
        os.chown(note(listening), 0, 0)
        os.chown(listening, 12345, 12345)
        assert read_target_note(listening) is None


@pytest.mark.parametrize("name", [*worlds(), "pod"])
def test_a_world_comes_back_from_its_table(name: str) -> None:
    world = worlds().get(name, kata_pod())
    assert parse_world(name, json.loads(json.dumps(world_table(world)))) == world


def test_a_simulated_guest_hangs_one_and_takes_it_along(tmp_path: Path) -> None:
    world = worlds()["microvm"]
    path, control = tmp_path / "guest", tmp_path / "control"
    with SimulatedGuest(world, path=path, control=control):
        note = read_target_note(path)
        assert note == TargetNote("simulated", "dragonball", "simulated", world, str(control))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_guest_is_believed_no_longer(tmp_path: Path) -> None:
    with guest_process(tmp_path) as guest:
        assert read_target_note(guest.path) is not None
        guest.kill()
        assert read_target_note(guest.path) is None
        assert note(guest.path).exists()
    with guest_process(tmp_path) as guest:
        assert read_target_note(guest.path) is not None


def test_where_no_note_can_be_left_there_is_no_guest(tmp_path: Path) -> None:
    note(tmp_path / "guest").mkdir()
    ended = subprocess.run(
        without_privileges(command("guest", "--listen", tmp_path / "guest")),
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "cannot be told to be simulated: File exists" in ended.stderr
