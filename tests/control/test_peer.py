"""A note counts for the process that was connected to, not for the path that was looked at."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from socket import AF_UNIX
from socket import socket as Stream

from tests.guests import GuestProcess
from upcall_trace.control.target_note import read_target_note
from upcall_trace.replay.target import look_at
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress, connect_unix

_STRANGER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
sys.stdin.read()
"""


def test_the_guest_that_wrote_the_note_is_still_there(tmp_path: Path) -> None:
    with SimulatedGuest(path=tmp_path / "g") as guest:
        target = look_at(UnixAddress(guest.path))
        with connect_unix(guest.path) as stream:
            assert target.is_still_there(stream)


def test_who_has_taken_its_place_is_not_the_guest_of_the_note(tmp_path: Path) -> None:
    with SimulatedGuest(path=tmp_path / "g") as guest:
        target = look_at(UnixAddress(guest.path))
        with subprocess.Popen(
            [sys.executable, "-c", _STRANGER, tmp_path / "other"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        ) as stranger:  # fmt: skip
            assert stranger.stdout is not None
            stranger.stdout.readline()
            note = read_target_note(guest.path)
            assert note is not None
            assert note.pid == os.getpid()
            with Stream(AF_UNIX) as stream:
                stream.connect(str(tmp_path / "other"))
                # A program that the note's process runs may listen for it, as in the lab.
                assert note.is_of(stream)
                other = type(note)(note.kind, note.backend, note.name, note.world, None, 1 << 22)
                assert not other.is_of(stream)
            assert target.note == note


def test_the_path_may_be_the_guests_and_the_peer_another_one(tmp_path: Path) -> None:
    """Its socket was elsewhere for the moment of the connection, and is back."""
    guest = GuestProcess(tmp_path / "g")
    try:
        target = look_at(UnixAddress(guest.path))
        assert target.note is not None
        with (
            socket.create_server(str(tmp_path / "ours"), family=AF_UNIX),
            Stream(AF_UNIX) as stream,
        ):
            guest.path.rename(tmp_path / "kept")
            (tmp_path / "ours").rename(guest.path)
            stream.connect(str(guest.path))
            (tmp_path / "kept").rename(guest.path)
            assert read_target_note(guest.path) == target.note
            assert not target.is_still_there(stream)
        with connect_unix(guest.path) as stream:
            assert target.is_still_there(stream)
    finally:
        guest.kill()
