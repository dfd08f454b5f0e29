"""`minimise` as a user meets it: a guest, the smallest capture, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dissectors.messages import cpu_request
from tests.guests import guest_process
from tests.replay.modelled import (
    ADD_MEM,
    TWO_CPUS,
    T,
    disk,
    file_of,
    harmless,
    overlapping,
    recorded,
    words,
)
from tests.support import GOLDEN, command, golden, run, write_capture
from upcall_trace.capture.records import Mark
from upcall_trace.cli import minimise
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.trace.opening import load
from upcall_trace.transform.minimising import Part

OVERLAP = ["1.0 add_mmio 0", "1.1 add_mmio -17"]


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Two hundred operations, of which the last fails for one of the others."""
    background = harmless(198)
    return file_of(tmp_path / "long.upcap", *background[:70], disk(1), *background[70:],
                   overlapping(1))  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.upcap"


def left(path: Path) -> list[str]:
    return words(load(path).operations)


def test_two_hundred_operations_become_two_in_a_moment(long: Path, out: Path) -> None:
    begun = time.monotonic()
    told = run("minimise", long, "-o", out)
    assert time.monotonic() - begun < 20
    assert told.code == ExitCode.EXPECTED
    assert told.err.startswith(f"{out}: 2 of 200 operations, after ")
    assert left(out) == OVERLAP
    assert [line.split()[3] for line in told.out.splitlines()[1:]] == ["add_mmio", "add_mmio"]
    notes = load(out).header.notes
    assert (notes["edited-from"], notes["minimised"]) == ("long.upcap", "around 1.199")


def test_what_is_left_fails_again(long: Path, out: Path) -> None:
    run("minimise", long, "-o", out)
    assert run("minimise", out, "-o", out.with_suffix(".again")).err.startswith(
        f"{out.with_suffix('.again')}: 2 of 2 operations"
    )
    with SimulatedGuest(kata_pod()) as guest:
        assert run("replay", out, "--to", guest.path, "--live").code == ExitCode.EXPECTED


def test_on_a_guest_elsewhere_that_is_reset_between_tries(
    long: Path, out: Path, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    with SimulatedGuest(kata_pod(), path=tmp_path / "guest", control=control) as guest:
        told = run("minimise", long, "-o", out, "--to", guest.path)
        assert told.code == ExitCode.EXPECTED
        assert left(out) == OVERLAP
        mmio = guest.state()["mmio"]
        assert len(mmio) == len(kata_pod().mmio) + 1  # of the last try, and of no other


def test_a_guest_that_cannot_be_reset_or_is_not_there(long: Path, out: Path) -> None:
    with SimulatedGuest(kata_pod()) as guest:
        told = run("minimise", long, "-o", out, "--to", guest.path)
        assert (told.code, "give --control" in told.err) == (ExitCode.USAGE, True)
    told = run("minimise", long, "-o", out, "--to", guest.path)
    assert told.code == ExitCode.UNREACHABLE


def test_dangers_are_refused_until_they_are_allowed(tmp_path: Path, out: Path) -> None:
    kill = cpu_request(T.DEL_CPU, [9])
    capture = file_of(tmp_path / "in.upcap", disk(1), kill, world=TWO_CPUS)
    control = tmp_path / "control"
    with SimulatedGuest(TWO_CPUS, path=tmp_path / "guest", control=control) as guest:
        before = guest.state()
        to = ("minimise", capture, "-o", out, "--to", guest.path)
        told = run(*to)
        assert told.code == ExitCode.USAGE
        assert "refused: request 1.1: " in told.err
        assert "--allow UP206" in told.err
        assert guest.state() == before
        assert run(*to, "--allow", "UP206").code == ExitCode.EXPECTED
    assert left(out) == ["1.0 del_cpu None"]


def test_parts_that_would_be_dangerous_are_not_tried(tmp_path: Path, out: Path) -> None:
    """Without the add, the removal would kill the guest's thread."""
    one = cpu_request(T.ADD_CPU, [2])
    gone = cpu_request(T.DEL_CPU, [2])
    capture = file_of(tmp_path / "in.upcap", one, gone, disk(1), overlapping(1), world=TWO_CPUS)
    control = tmp_path / "control"
    with SimulatedGuest(TWO_CPUS, path=tmp_path / "guest", control=control) as guest:
        told = run("minimise", capture, "-o", out, "--to", guest.path)
    assert told.code == ExitCode.EXPECTED
    assert left(out) == OVERLAP


def test_the_operation_can_be_named(tmp_path: Path, out: Path) -> None:
    capture = file_of(tmp_path / "in.upcap", ADD_MEM, disk(1), overlapping(1), ADD_MEM)
    assert run("minimise", capture, "-o", out).code == ExitCode.EXPECTED
    assert left(out) == ["1.0 add_mem -1"]
    again = ("minimise", capture, "-o", out, "--operation", "1.2")
    refused = run(*again)
    assert refused.err == f"upcall-trace: {out} exists; give another name, or --overwrite\n"
    assert run(*again, "--overwrite").code == ExitCode.EXPECTED
    assert left(out) == OVERLAP


def test_a_world_makes_the_guest(out: Path) -> None:
    worlds = ("--world", GOLDEN / "worlds.toml")
    told = run("minimise", golden("mmio_lifecycle"), "-o", out, "--operation", "1.4", *worlds)
    assert told.code == ExitCode.EXPECTED
    assert left(out) == OVERLAP


def test_where_it_does_not_fail_so_both_answers_are_told(tmp_path: Path, out: Path) -> None:
    capture = file_of(tmp_path / "in.upcap", cpu_request(T.ADD_CPU, [1]), world=TWO_CPUS)
    told = run("minimise", capture, "-o", out)
    assert told.code == ExitCode.DIFFERENT
    assert told.err == (
        "1.0 add_cpu apic_ids=1 does not fail as recorded on this guest: recorded EINVAL (-22) "
        "id known, not listed, or none free, now ok apic_index=1\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], ExitCode.NOTHING_RUN, "nothing has failed in"),
        (["--operation", "1.0"], ExitCode.NOTHING_RUN, "1.0 has not failed in"),
        (["--operation", "1.7"], ExitCode.USAGE, "has no operation 1.7"),
        (["--operation", "last"], ExitCode.USAGE, "'last' is no operation"),
        (["--allow", "UP206"], ExitCode.USAGE, "are for the guest at --to"),
    ],
)
def test_what_cannot_be_made_smaller(
    tmp_path: Path, out: Path, arguments: list[str], code: ExitCode, complaint: str
) -> None:
    told = run("minimise", file_of(tmp_path / "in.upcap", disk(1)), "-o", out, *arguments)
    assert (told.code, told.err.count("\n")) == (code, 1)
    assert complaint in told.err
    assert not out.exists()


def test_answers_are_those_that_the_guest_gave_to_the_smaller_sequence(
    tmp_path: Path, out: Path
) -> None:
    """What a reply has left over from an operation that is gone is gone too."""
    add = cpu_request(T.ADD_CPU, [1, 2, 3])
    capture = file_of(tmp_path / "in.upcap", add, disk(1), overlapping(1))
    assert run("minimise", capture, "-o", out).code == ExitCode.EXPECTED
    assert "stale-load" in load(capture).operations.operation(2).anomalies
    assert load(out).operations.operation(1).anomalies == ()


def test_matchers_and_comments_of_what_is_left_stay(tmp_path: Path, out: Path) -> None:
    marks = [Mark(5, 1, n, "match", "latency<=1s") for n in range(3)]
    records = [*recorded([disk(5), disk(1), overlapping(1)]), *marks]
    run("minimise", write_capture(tmp_path / "in.upcap", records), "-o", out)
    assert [(mark.request, mark.text) for mark in load(out).marks] == [
        (0, "latency<=1s"), (1, "latency<=1s")]  # fmt: skip


def test_when_it_is_stopped_it_writes_the_smallest_so_far(
    long: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[Callable[[], None]] = []

    def on_signals(stop: object) -> Callable[[], None]:
        stops.append(stop.set)  # type: ignore[attr-defined]
        return lambda: None

    def reporter(_: int) -> Callable[[Part], None]:
        return lambda part: stops[0]() if len(part) < 100 else None

    monkeypatch.setattr(minimise, "stop_on_signals", on_signals)
    monkeypatch.setattr(minimise, "_reporter", reporter)
    monkeypatch.setattr(minimise, "on_model", lambda *_: lambda _: None)
    told = run("minimise", long, "-o", out)
    assert told.code == ExitCode.INTERRUPTED
    assert "ended early, it may not be the smallest: interrupted" in told.err
    assert 2 < len(left(out)) < 100
    assert left(out)[-1].endswith("add_mmio -17")


def test_a_signal_before_the_first_try_is_over_leaves_nothing(
    tmp_path: Path, long: Path, out: Path
) -> None:
    options = ("--control", tmp_path / "control", "--fault", "any:delay=20s")
    with guest_process(tmp_path, *options) as guest:
        arguments = command("minimise", long, "-o", out, "--to", guest.path)
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as running:
            assert guest.process.stderr is not None
            assert "strikes connection 1" in guest.process.stderr.readline()
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=20)
    assert (running.returncode, out.exists()) == (ExitCode.INTERRUPTED, False)
    assert said == "upcall-trace: interrupted\n"


def test_a_guest_that_goes_away_ends_it_with_what_there_is(
    long: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = SimulatedGuest(kata_pod(), path=tmp_path / "guest", control=tmp_path / "control")

    def reporter(_: int) -> Callable[[Part], None]:
        return lambda part: guest.close() if len(part) < 100 else None

    monkeypatch.setattr(minimise, "_reporter", reporter)
    monkeypatch.setattr(minimise, "on_model", lambda *_: lambda _: None)
    with guest:
        told = run("minimise", long, "-o", out, "--to", guest.path)
    assert told.code == ExitCode.DIFFERENT
    assert "ended early, it may not be the smallest: the control socket" in told.err
    assert left(out)[-1].endswith("add_mmio -17")
