"""A served socket: its connections, their threads, and their end."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guests import dial, receive_line, says_nothing, wait_until
from tests.vmm import descriptors_as_before
from upcall_trace.errors import WrongUsage
from upcall_trace.sockets import serving
from upcall_trace.sockets.serving import StreamServer


def greet(stream: socket.socket) -> None:
    """A greeting at once, then an echo of whatever comes."""
    stream.sendall(b"hello\n")
    while received := stream.recv(4096):
        stream.sendall(received)


def served(path: Path) -> socket.socket:
    """A stream that was greeted."""
    stream = dial(path)
    assert receive_line(stream) == b"hello\n"
    return stream


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    filling: list[int] = []
    try:
        while True:
            try:
                filling.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        for descriptor in filling:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_are_served_at_the_same_time(tmp_path: Path) -> None:
    with StreamServer(tmp_path / "s", greet):
        streams = [served(tmp_path / "s") for _ in range(10)]
        for number, stream in enumerate(reversed(streams)):
            stream.sendall(b"%d\n" % number)
            assert receive_line(stream) == b"%d\n" % number
            stream.close()


def test_a_connection_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    with StreamServer(tmp_path / "s", greet) as server:
        served(tmp_path / "s").close()
        threads = threading.active_count()
        with descriptors_as_before():
            for _ in range(20):
                served(tmp_path / "s").close()
        wait_until(lambda: threading.active_count() <= threads)
        wait_until(lambda: not server._streams and not server._threads)


def test_its_stream_is_closed_when_serve_returns(tmp_path: Path) -> None:
    def serve(stream: socket.socket) -> None:
        stream.sendall(b"bye\n")

    with StreamServer(tmp_path / "s", serve), dial(tmp_path / "s") as stream:
        assert receive_line(stream) == b"bye\n"
        assert stream.recv(1) == b""


def test_a_peer_that_went_away_is_no_error_and_others_are_served_on(tmp_path: Path) -> None:
    gone = threading.Event()

    def serve(stream: socket.socket) -> None:
        greet(stream)
        gone.set()
        raise ConnectionResetError

    with StreamServer(tmp_path / "s", serve), served(tmp_path / "s") as other:
        served(tmp_path / "s").close()
        assert gone.wait(10)
        other.sendall(b"still here\n")
        assert receive_line(other) == b"still here\n"
        served(tmp_path / "s").close()


def test_ending_connections_does_not_end_the_listening(tmp_path: Path) -> None:
    with StreamServer(tmp_path / "s", greet) as server:
        streams = [served(tmp_path / "s") for _ in range(3)]
        server.end_connections()
        assert [stream.recv(1) for stream in streams] == [b""] * 3
        for stream in streams:
            stream.close()
        with served(tmp_path / "s") as fresh:
            fresh.sendall(b"again\n")
            assert receive_line(fresh) == b"again\n"


def test_closing_ends_connections_and_waits_for_what_their_threads_still_do(
    tmp_path: Path,
) -> None:
    finished: list[bool] = []

    def serve(stream: socket.socket) -> None:
        greet(stream)
        time.sleep(0.1)
        finished.append(True)

    server = StreamServer(tmp_path / "s", serve)
    streams = [served(tmp_path / "s") for _ in range(3)]
    server.close()
    assert finished == [True] * 3
    assert not (tmp_path / "s").exists()
    for stream in streams:
        assert stream.recv(1) == b""
        stream.close()


def test_a_server_leaves_nothing_behind(tmp_path: Path) -> None:
    threads = threading.active_count()
    with descriptors_as_before(), StreamServer(tmp_path / "s", greet), served(tmp_path / "s"):
        assert (tmp_path / "s").is_socket()
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: threading.active_count() <= threads)


def test_closing_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_JOIN_S", 0.05)
    over = threading.Event()

    def serve(_: socket.socket) -> None:
        over.wait(10)

    server = StreamServer(tmp_path / "s", serve)
    with dial(tmp_path / "s"):
        wait_until(lambda: server._threads)
        begun = time.monotonic()
        server.close()
        assert 0.05 <= time.monotonic() - begun < 5
    over.set()


def test_a_connection_can_close_its_server_without_waiting_for_itself(tmp_path: Path) -> None:
    took: list[float] = []

    def serve(stream: socket.socket) -> None:
        begun = time.monotonic()
        server.close()
        took.append(time.monotonic() - begun)

    server = StreamServer(tmp_path / "s", serve)
    with dial(tmp_path / "s") as stream:
        assert stream.recv(1) == b""
    wait_until(lambda: took)
    assert took[0] < 1


def test_a_path_that_is_served_already_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    with StreamServer(tmp_path / "s", greet):
        threads = threading.active_count()
        with descriptors_as_before(), pytest.raises(WrongUsage, match="somebody listens"):
            StreamServer(tmp_path / "s", greet)
        assert threading.active_count() <= threads
        served(tmp_path / "s").close()


def test_without_descriptors_a_client_waits_until_there_are_some(tmp_path: Path) -> None:
    with (
        StreamServer(tmp_path / "s", greet),
        socket.socket(socket.AF_UNIX) as lucky,
        socket.socket(socket.AF_UNIX) as waiting,
    ):
        waiting.settimeout(10)
        with no_descriptors():
            # An accept that waits already has its descriptor.
            lucky.connect(str(tmp_path / "s"))
            waiting.connect(str(tmp_path / "s"))
            assert says_nothing(waiting, 0.1)
        assert receive_line(waiting) == b"hello\n"


def test_without_a_thread_a_connection_is_closed_and_the_next_one_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with StreamServer(tmp_path / "s", greet):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with dial(tmp_path / "s") as refused:
                assert refused.recv(1) == b""
        served(tmp_path / "s").close()
