"""Sockets to listen on: modes, stale ones, and a VMM's socket moved aside and given back."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from upcall_trace.errors import Unreachable, WrongUsage
from upcall_trace.sockets.addresses import (
    UnixAddress,
    VsockAddress,
    check_reachable,
    is_alive,
    parse_address,
)
from upcall_trace.sockets.listening import InPlace, Listener


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def stale(path: Path) -> None:
    """A socket whose process has gone."""
    listen(path).close()


@pytest.fixture
def vmm(tmp_path: Path) -> Iterator[socket.socket]:
    with listen(tmp_path / "vmm") as listener:
        yield listener


def test_a_listener_is_private_and_removes_itself(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        listener = Listener(tmp_path / "s")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    listener.close()
    assert not (tmp_path / "s").exists()


def test_a_listener_leaves_a_path_alone_that_is_no_longer_its_own(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s")
    (tmp_path / "s").unlink()
    with listen(tmp_path / "s") as other:
        listener.close()
        assert (tmp_path / "s").exists()
        assert is_alive(tmp_path / "s")
        assert other.fileno() >= 0


def test_a_stale_socket_is_taken_over_and_a_live_one_is_not(tmp_path: Path) -> None:
    stale(tmp_path / "s")
    first = Listener(tmp_path / "s")
    with pytest.raises(WrongUsage, match="somebody listens"):
        Listener(tmp_path / "s")
    assert is_alive(tmp_path / "s")
    first.close()


def test_a_file_is_never_replaced_by_a_socket(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(WrongUsage, match="not a socket"):
        Listener(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"


def test_a_path_too_long_or_in_no_directory(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="107"):
        Listener(tmp_path / ("x" * 108))
    with pytest.raises(WrongUsage, match="cannot listen"):
        Listener(tmp_path / "none" / "s")


def test_looking_whether_somebody_listens_makes_no_connection(
    tmp_path: Path, vmm: socket.socket
) -> None:
    check_reachable(UnixAddress(tmp_path / "vmm"))
    vmm.setblocking(False)
    with pytest.raises(BlockingIOError):
        vmm.accept()


@pytest.mark.parametrize("name", ["missing", "stale", "file"])
def test_nobody_listens(tmp_path: Path, name: str) -> None:
    stale(tmp_path / "stale")
    (tmp_path / "file").touch()
    with pytest.raises(Unreachable, match=name):
        check_reachable(UnixAddress(tmp_path / name))


def test_in_place_swaps_and_gives_back(tmp_path: Path, vmm: socket.socket) -> None:
    path = tmp_path / "vmm"
    path.chmod(0o660)
    before = path.stat()
    place = InPlace(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_ino != before.st_ino
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        place.listener.socket.accept()[0].close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place.aside))
        vmm.accept()[0].close()
    place.close()
    assert path.stat().st_ino == before.st_ino
    assert [entry.name for entry in tmp_path.iterdir()] == ["vmm"]


def test_in_place_never_leaves_a_moment_without_a_socket(
    tmp_path: Path, vmm: socket.socket
) -> None:
    failures: list[OSError] = []
    over = threading.Event()

    def connect_all_the_time() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                try:
                    client.connect(str(tmp_path / "vmm"))
                except BlockingIOError:
                    pass  # a full backlog is not a missing socket
                except OSError as error:
                    failures.append(error)

    thread = threading.Thread(target=connect_all_the_time)
    thread.start()
    for _ in range(200):
        InPlace(tmp_path / "vmm").close()
    over.set()
    thread.join()
    # Ours is closed a moment after the VMM's is back, so a connection may meet a closed listener.
    assert not [e for e in failures if not isinstance(e, ConnectionRefusedError)]


def test_in_place_puts_back_what_a_killed_proxy_left(tmp_path: Path, vmm: socket.socket) -> None:
    path = tmp_path / "vmm"
    path.rename(tmp_path / "vmm.vmm")
    stale(path)
    place = InPlace(path)
    assert place.recovered
    assert place.way_back == f"mv {tmp_path / 'vmm.vmm'} {path}"
    place.close()
    assert is_alive(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["vmm"]


def test_in_place_refuses_a_second_proxy(tmp_path: Path, vmm: socket.socket) -> None:
    place = InPlace(tmp_path / "vmm")
    with pytest.raises(WrongUsage, match="another proxy"):
        InPlace(tmp_path / "vmm")
    place.close()
    assert is_alive(tmp_path / "vmm")


def test_in_place_lets_go_when_the_vmm_has_gone_or_started_anew(
    tmp_path: Path, vmm: socket.socket
) -> None:
    place = InPlace(tmp_path / "vmm")
    vmm.close()  # as at exit: gone, and its path with it
    (tmp_path / "vmm").unlink()
    with listen(tmp_path / "vmm"):
        fresh = (tmp_path / "vmm").stat().st_ino
        place.close()
        assert (tmp_path / "vmm").stat().st_ino == fresh
        assert [entry.name for entry in tmp_path.iterdir()] == ["vmm"]


@pytest.mark.parametrize("kind", ["missing", "file", "stale"])
def test_in_place_needs_a_vmm(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    stale(tmp_path / "stale")
    with pytest.raises((WrongUsage, Unreachable)):
        InPlace(tmp_path / kind)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "stale"]


def test_addresses() -> None:
    assert parse_address("vsock://3") == VsockAddress(3)
    assert parse_address("vsock://3:219") == VsockAddress(3, 219)
    assert parse_address("run/kata.hvsock") == UnixAddress(Path("run/kata.hvsock"))
    assert str(VsockAddress(3, 219)) == "vsock://3:219"


@pytest.mark.parametrize("text", ["vsock://", "vsock://x", "vsock://3:", "vsock://3:4294967296"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(WrongUsage, match="vsock://CID"):
        parse_address(text)


def test_closing_twice_leaves_alone_who_came_after(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = Listener(path)
    first.close()
    second = Listener(path)
    try:  # it may well get the inode that the first one had
        first.close()
        assert path.exists()
    finally:
        second.close()
