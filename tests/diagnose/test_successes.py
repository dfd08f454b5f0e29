"""Successes that pass without a thought leave everything as if they had been thought about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import Arch, MessageType
from dissectors.events import RequestReceived
from dissectors.messages import Request, cpu_request, hello, mmio_request, pci_request
from tests.support import each_recording, records_of, write_capture
from tests.trace.conversations import Recording, recordings
from tests.trace.short_runs import short_runs
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Begins, Chunk, Close, Header, Open, Record
from upcall_trace.capture.runs import MessageRun
from upcall_trace.diagnose import successes
from upcall_trace.diagnose.engine import Diagnosis
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.rules.registry import Cue, rules
from upcall_trace.diagnose.situation import Situation
from upcall_trace.diagnose.successes import take_run
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.noted_world import world_notes
from upcall_trace.kernel.world import PciDevice, World, kata_pod
from upcall_trace.trace.streams import in_bulk


@pytest.fixture(autouse=True)
def shortest() -> Iterator[None]:
    with short_runs():
        yield


def told(path: Path, world: World | None, bulk: bool) -> tuple[list[Finding], dict[str, Any], int]:
    """The findings in their order, everything that is remembered, and how many passed."""
    passed = 0
    with CaptureReader(path) as reader:
        diagnosis = Diagnosis(reader.header, world)
        found: list[Finding] = []
        for offset, item in in_bulk(reader) if bulk else reader.records():
            if isinstance(item, MessageRun):
                before = sum(c.requests for c in diagnosis.session.connections.values())
                found += take_run(diagnosis, item)
                after = sum(c.requests for c in diagnosis.session.connections.values())
                passed += after - before
            else:
                found += diagnosis.feed(item, offset)
        state = remembered(diagnosis)
        return found + diagnosis.finish(), state, passed


def remembered(diagnosis: Diagnosis) -> dict[str, Any]:
    judging, session = diagnosis.judging, diagnosis.session
    history = {
        field.name: getattr(judging.history, field.name)
        for field in dataclasses.fields(judging.history)
    }
    history |= {
        name: [*history[name].items()] for name in ("windows", "removed_windows", "pci", "cpus")
    }
    plugged = {
        key: at if isinstance(at, Situation) else at.situation()
        for key, at in judging.plugged.items()
    }
    watched = {
        conn: [
            getattr(each, field.name)
            for field in dataclasses.fields(each)
            if field.name not in ("situation", "open", "short")
        ]
        + [sorted(each.open)]
        for conn, each in diagnosis.watched.items()
    }
    return {
        "history": history,
        "plugged": [(key, {**shown(at)}) for key, at in plugged.items()],
        "watched": watched,
        "lock": (judging.lock.free_at, judging.lock.free_ns),
        "answered": judging.answered_ns,
        "removals": [*judging.removals],
        "connections": [*session.connections.values()],
        "observers": {conn: vars(each.observer) for conn, each in session.watched.items()},
        "last": {conn: each.last_ret for conn, each in session.watched.items()},
        "times": (session.last_ns, diagnosis.now_ns),
        "unanswered": diagnosis.unanswered,
        "guest": judging.model and judging.model.guest and judging.model.guest.state(),
    }


def shown(at: Situation) -> dict[str, Any]:
    """What a rule can see of a request that added a device; its history is everybody's."""
    left_out = ("history", "piece")  # how long a piece was means nothing where there was none
    return {
        field.name: getattr(at, field.name)
        for field in dataclasses.fields(at)
        if field.name not in left_out
    }


@given(recordings(), st.sampled_from([None, "x86_64", "aarch64"]), st.booleans())
def test_any_recording(
    tmp_path_factory: pytest.TempPathFactory, recorded: Recording, arch: str | None, known: bool
) -> None:
    path = write_capture(
        tmp_path_factory.mktemp("bulk") / "x.upcap", recorded, Header("test", arch=arch)
    )
    world = kata_pod() if known else None
    assert told(path, world, bulk=True)[:2] == told(path, world, bulk=False)[:2]


REQUESTS = st.sampled_from(
    [
        *(cpu_request(kind, ids) for kind in (MessageType.ADD_CPU, MessageType.DEL_CPU)
          for ids in ([5], [1], [2, 1], [3], [0], [])),
        *(mmio_request(kind, base, size, irq)
          for kind in (MessageType.ADD_MMIO, MessageType.DEL_MMIO)
          for base, size, irq in ((0xE0006000, 0x2000, 5), (0xE0008000, 0x2000, 5),
                                  (0xE0006000, 0x1000, 5), (0xE0000000, 0x2000, 5),
                                  (0xE0009000, 0x2000, 7))),
        *(pci_request(kind, 0, slot) for kind in (MessageType.ADD_PCI, MessageType.DEL_PCI)
          for slot in (3, 4, 9)),
    ]
)  # fmt: skip


WORLDS = st.sampled_from(
    [
        kata_pod(),
        kata_pod(kernel="5.10", cpus=3),
        kata_pod(kernel="6.12", cpus=2),
        kata_pod(Arch.AARCH64, cpus=2),
        World(nr_cpu_ids=4, vcpus_running=(0, 1, 2)),
        World(needs_boot_mmio=True, pci_buses=(0,)),
        replace(kata_pod(), pci=(PciDevice(0, 4), PciDevice(0, 4, 1), PciDevice(0, 9, probe_ms=3))),
    ]
)
ASKED = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2]), REQUESTS, st.integers(0, 60)), max_size=25
)


@given(WORLDS, WORLDS, ASKED)
def test_any_world_in_the_header_or_given(
    tmp_path_factory: pytest.TempPathFactory,
    world: World,
    other: World,
    asked: list[tuple[int, Request, int]],
) -> None:
    """The recorded guest's own, which its header notes, and another one, which is not right."""
    path = write_capture(
        tmp_path_factory.mktemp("bulk") / "x.upcap",
        conversation(asked, world, 1000),
        Header("test", arch=world.arch.value, notes=world_notes(world)),
    )
    for given_world in (None, other):
        assert told(path, given_world, bulk=True)[:2] == told(path, given_world, bulk=False)[:2]


@given(ASKED, st.booleans(), st.sampled_from([1000, 300_000_000]))
def test_what_a_guest_answers(
    tmp_path_factory: pytest.TempPathFactory,
    asked: list[tuple[int, Request, int]],
    known: bool,
    step_ns: int,
) -> None:
    """A real guest's answers: the model agrees until something is changed on the way."""
    world = kata_pod()
    path = write_capture(
        tmp_path_factory.mktemp("bulk") / "x.upcap", conversation(asked, world, step_ns)
    )
    given_world = world if known else None
    assert told(path, given_world, bulk=True)[:2] == told(path, given_world, bulk=False)[:2]


def conversation(
    asked: list[tuple[int, Request, int]], world: World, step_ns: int
) -> Iterator[Record]:
    """Two connections; with a chance number of 0 an answer is another than the guest's."""
    guest = Guest(world)
    guest.plug_pci(PciDevice(0, 3))
    threads: dict[int, ServiceThread] = {}
    t_ns = 0
    for conn in (1, 2):
        threads[conn] = guest.connect()
        yield Open(t_ns, conn, Begins.SERVICE, 219, True)
        yield Chunk(t_ns, conn, True, b"d")
        yield Chunk(t_ns, conn, False, hello().encode())
    for conn, request, chance in asked:
        t_ns += step_ns
        yield Chunk(t_ns, conn, True, request.encode())
        reply = threads[conn].receive(request.encode()).reply
        if reply is not None:
            changed = reply[:20] + b"\3" + reply[21:] if chance == 0 else reply
            yield Chunk(t_ns + step_ns // 2, conn, False, changed)
    yield Close(t_ns + 1, 1, by_guest=False)


@each_recording
def test_golden_recordings(tmp_path: Path, golden: Path) -> None:
    header, recorded = records_of(golden)
    path = write_capture(tmp_path / "x.upcap", recorded, header)
    for world in (None, kata_pod()):
        assert told(path, world, bulk=True)[:2] == told(path, world, bulk=False)[:2]


def test_plain_successes_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do pass: else the others would compare a way with itself."""
    requests: list[Request] = [
        mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5),
        mmio_request(MessageType.DEL_MMIO, 0xE0006000, 0x2000, 5),
        cpu_request(MessageType.ADD_CPU, [1]),
        cpu_request(MessageType.DEL_CPU, [1]),
    ]
    asked = [(2 if n % 4 > 1 else 1, requests[n % 4], 1) for n in range(400)]
    world = kata_pod()
    path = write_capture(
        tmp_path / "x.upcap", conversation(asked, world, 1000), Header("test", arch="x86_64")
    )
    with CaptureReader(path) as reader:
        items = [item for _, item in in_bulk(reader)]
    assert sum(len(item) for item in items if isinstance(item, MessageRun)) >= 800
    diagnosis = Diagnosis(Header("test", arch="x86_64"), world)
    looked_at: list[RequestReceived] = []

    def look(_: Diagnosis, conn: int, watched: object, event: RequestReceived) -> list[Finding]:
        looked_at.append(event)
        return []

    monkeypatch.setattr(Diagnosis, "asked", look)
    for item in items:
        if isinstance(item, MessageRun):
            assert take_run(diagnosis, item) == []
        else:
            diagnosis.feed(item)
    assert not looked_at
    assert [c.requests for c in diagnosis.session.connections.values()] == [200, 200]
    assert diagnosis.model is not None
    assert diagnosis.model.guest is not None


def test_rules_that_listen_to_every_request_are_known_to_be_silent() -> None:
    """A new one has to be thought about: until then it makes everything slow, and nothing wrong."""
    listening = {
        str(each.code)
        for each in rules().values()
        if each.plugin is None and {Cue.REQUEST, Cue.REPLY} & set(each.when)
    }
    assert listening == {str(code) for code in successes._SILENT}
