"""Replays for tests: a recording, a simulated guest in the recorded machine's world, a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.kernel.recordings import worlds
from tests.support import records_of, write_capture
from upcall_trace.capture.records import Header, Record
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import World
from upcall_trace.replay.plan import DANGERS
from upcall_trace.replay.rebase import Rebase
from upcall_trace.replay.run import Recording, Replay, Terms, read_recording
from upcall_trace.replay.target import Target, look_at
from upcall_trace.replay.tempo import Patience
from upcall_trace.simulated.machine import Backend, Habits
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.trace.script import Key, Script
from upcall_trace.trace.scripting import read_script

QUICK = Patience(reply_s=12.0, silence_s=0.1, simulated=True)
"""As little as the 10 s limit for the service byte allows."""


def script_of(records: Iterable[Record], header: Header | None = None) -> Script:
    """The script of records."""
    return read_script(header or Header("test", arch="x86_64"), list(records))


def recording_of(path: Path, records: Iterable[Record], header: Header | None = None) -> Recording:
    """A recording that was written to `path` first."""
    return read_recording(write_capture(path, records, header or Header("test", arch="x86_64")))


def machine_of(recording: Path) -> str:
    """Which of the golden worlds a golden transcript was recorded in."""
    return records_of(recording)[0].notes["machine"]


@contextmanager
def guest_like(
    world: World, directory: Path, *faults: str, backend: Backend = Backend.VHOST
) -> Iterator[SimulatedGuest]:
    """A simulated guest with a control socket, in a world."""
    with SimulatedGuest(
        world, Habits(backend), [parse_fault(text) for text in faults],
        path=directory / "guest", control=directory / "control",
    ) as guest:  # fmt: skip
        yield guest


@contextmanager
def guest_of(recording: Path, directory: Path, *faults: str) -> Iterator[SimulatedGuest]:
    """One in the world that a golden recording began in."""
    with guest_like(worlds()[machine_of(recording)], directory, *faults) as guest:
        yield guest


def target_of(guest: SimulatedGuest) -> Target:
    """The guest as a replay finds it."""
    return look_at(UnixAddress(guest.path))


def played(
    recording: Recording,
    guest: SimulatedGuest,
    terms: Terms | None = None,
    script: Script | None = None,
    rebase: Rebase | None = None,
) -> Replay:
    """The replay after one round."""
    terms = replace(terms or Terms(patience=QUICK), allow=DANGERS)
    with Replay(recording, target_of(guest), script, rebase, terms) as replay:
        for _ in replay.play():
            pass
    return replay


def differing(replay: Replay) -> list[Key]:
    """The requests that were answered otherwise."""
    return [divergence.asked.key for divergence in replay.verdict.divergences]
