"""`guest --replay` as a user runs it: a client against a recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dissectors.messages import cpu_request
from tests.guests import GuestProcess, ask, connected, dial, guest_process, receive, says_nothing
from tests.replay.modelled import ADD_MEM, TWO_CPUS, T, disk, file_of, overlapping
from tests.support import golden, run
from upcall_trace.control.target_note import read_target_note
from upcall_trace.errors import ExitCode


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return file_of(tmp_path / "in.upcap", disk(0), overlapping(0), (2, ADD_MEM))


@contextmanager
def playing(tmp_path: Path, capture: Path, *options: str) -> Iterator[GuestProcess]:
    with guest_process(tmp_path, "--replay", capture, *options) as guest:
        yield guest


def test_a_client_that_asks_as_recorded_gets_what_was_recorded(
    tmp_path: Path, capture: Path
) -> None:
    with playing(tmp_path, capture) as guest:
        with connected(guest.path) as first, connected(guest.path) as second:
            assert [ask(first, disk(0)).ret, ask(first, overlapping(0)).ret] == [0, -17]
            assert ask(second, ADD_MEM).ret == -1
        assert guest.end() == ExitCode.EXPECTED
        assert guest.said == [f"listening on {guest.path}"]


def test_another_request_closes_and_is_told_and_the_end_is_1(tmp_path: Path, capture: Path) -> None:
    with playing(tmp_path, capture) as guest:
        with connected(guest.path) as stream:
            assert ask(stream, disk(0)).ret == 0
            stream.sendall(disk(7).encode())
            assert stream.recv(1) == b""
        assert guest.end() == ExitCode.DIFFERENT
        told, *unused = guest.said[1:]
        assert told == (
            "connection 1, request 1: recorded 1.1 add_mmio 0xd0001000+0x2000 irq=5; "
            "got add_mmio 0xd0070000+0x2000 irq=5"
        )
        assert unused == [
            "never asked: 1.1 add_mmio 0xd0001000+0x2000 irq=5",
            "never asked: 2.0 add_mem",
        ]


@pytest.mark.parametrize(
    ("options", "code"),
    [((), ExitCode.DIFFERENT), (("--allow-unused",), ExitCode.EXPECTED)],
)
def test_what_nobody_asked(
    tmp_path: Path, capture: Path, options: tuple[str, ...], code: ExitCode
) -> None:
    with playing(tmp_path, capture, *options) as guest:
        with connected(guest.path) as stream:
            ask(stream, disk(0))
        assert guest.end() == code
        assert len(guest.said) == (1 if options else 3)


def test_nobody_asking_is_never_green(tmp_path: Path, capture: Path) -> None:
    with playing(tmp_path, capture, "--allow-unused") as guest:
        connected(guest.path).close()
        assert guest.end() == ExitCode.NOTHING_RUN
        assert guest.said[1:] == ["nothing was asked"]


def test_with_matching_the_order_and_the_connections_are_the_clients(
    tmp_path: Path, capture: Path
) -> None:
    with playing(tmp_path, capture, "--matching") as guest:
        with connected(guest.path) as stream:
            rets = [ask(stream, request).ret for request in (ADD_MEM, overlapping(0), disk(0))]
        assert (rets, guest.end()) == ([-1, -17, 0], ExitCode.EXPECTED)


def test_silence_and_other_ports(tmp_path: Path) -> None:
    kill = cpu_request(T.DEL_CPU, [9])
    capture = file_of(tmp_path / "in.upcap", kill, world=TWO_CPUS)
    with playing(tmp_path, capture) as guest:
        with dial(guest.path, b"CONNECT 1024\n") as other:
            assert receive(other, 1) == b""
        with connected(guest.path) as stream:
            stream.sendall(kill.encode())
            assert says_nothing(stream)
        assert guest.end() == ExitCode.EXPECTED


def test_a_recording_replayed_to_its_own_guest_is_as_recorded(tmp_path: Path) -> None:
    with playing(tmp_path, golden("stale_results")) as guest:
        note = read_target_note(guest.path)
        assert note is not None
        assert (note.kind, note.backend) == ("simulated", "recording")
        told = run("replay", golden("stale_results"), "--to", guest.path, "--live", "--bytes")
        assert (told.code, told.err) == (ExitCode.EXPECTED, "")
        assert guest.end() == ExitCode.EXPECTED
    assert not list(tmp_path.glob("guest*"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--world", "w.toml"], "--world is not for a guest that answers from a recording"),
        (["--fault", "any:drop"], "--fault is not for a guest"),
        (["--control", "c"], "--control is not for a guest"),
        (["--port", "219"], "--port is not for a guest"),
    ],
)
def test_options_of_a_simulated_guest_are_refused(
    tmp_path: Path, capture: Path, options: list[str], complaint: str
) -> None:
    told = run("guest", "--listen", tmp_path / "g", "--replay", capture, *options)
    assert (told.code, complaint in told.err) == (ExitCode.USAGE, True)


def test_options_of_a_recording_need_one(tmp_path: Path) -> None:
    told = run("guest", "--listen", tmp_path / "g", "--matching")
    assert told.code == ExitCode.USAGE
    assert "are for --replay" in told.err


def test_a_recording_without_operations_and_one_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no capture\n")
    empty = file_of(tmp_path / "empty.upcap")
    for path, code in ((tmp_path / "text", ExitCode.UNREADABLE), (empty, ExitCode.NOTHING_RUN)):
        assert run("guest", "--listen", tmp_path / "g", "--replay", path).code == code
