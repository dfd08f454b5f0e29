"""What a plan predicts, how it would be undone, and what it refuses to begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from dissectors.constants import Arch, MessageType
from dissectors.messages import Request, cpu_request, mmio_request, pci_request
from tests.diagnose.random_traffic import traffic
from tests.kernel.recordings import worlds
from tests.replay.playing import guest_like, machine_of, recording_of, script_of, target_of
from tests.support import TRANSCRIPTS, answer, ask, connect, each_recording, golden, write_capture
from upcall_trace.capture.records import Close, Header, Record, Vmm
from upcall_trace.diagnose.finding import Finding
from upcall_trace.errors import UnreadableInput, WrongUsage
from upcall_trace.kernel.outcome import Fate
from upcall_trace.kernel.world import PciDevice, Window, World, kata_pod
from upcall_trace.replay.plan import (
    DANGERS,
    OTHER_TARGET,
    REAL_GUEST,
    Plan,
    make_plan,
    shows_danger,
)
from upcall_trace.replay.run import Recording, Replay, Terms, read_recording
from upcall_trace.replay.target import TIED_TO, dangers, look_at, parse_fingerprint
from upcall_trace.sockets.addresses import UnixAddress, VsockAddress
from upcall_trace.sockets.serving import StreamServer

_T = MessageType
UNPLUG = mmio_request(_T.DEL_MMIO, 0xE0008000, 0x2000, 5)
POD = kata_pod()
BARE = Header("test")


def plan_of(*requests: Request | Record, world: World = POD, guessed: bool = False) -> Plan:
    """A plan of requests on one connection, each a millisecond after the other."""
    records: list[Record] = connect(1)
    for place, item in enumerate(requests):
        at = (place + 1) * 1_000_000
        records.append(ask(item, at) if isinstance(item, Request) else item)
    return make_plan(script_of(records), world, guessed)


@pytest.mark.parametrize("recording", TRANSCRIPTS, ids=lambda path: path.stem)
def test_with_the_right_world_what_was_recorded_is_predicted(recording: Path) -> None:
    read = read_recording(recording)
    plan = make_plan(read.script, worlds()[machine_of(recording)])
    assert len(plan.rehearsed) == len(read.script.asked)
    for key, rehearsed in plan.rehearsed.items():
        assert rehearsed.raw == read.script.asked[key].reply_raw, key


def test_changes_and_the_way_back() -> None:
    window = (0xE0006000, 0x2000, 7)
    plan = plan_of(
        cpu_request(_T.ADD_CPU, [1, 2]),
        mmio_request(_T.ADD_MMIO, *window),
        mmio_request(_T.ADD_MMIO, *window),
        pci_request(_T.DEL_PCI, 0, 6),
        cpu_request(_T.DEL_CPU, [2]),
        mmio_request(_T.DEL_MMIO, *window),
    )
    assert [(each.changes, each.undo) for each in plan.rehearsed.values()] == [
        (("CPU 1 comes up", "CPU 2 comes up"), ("del-cpu 2 1",)),
        (("window 0xe0006000+0x2000 irq 7 appears",), ("del-mmio 0xe0006000 0x2000 7",)),
        ((), ()),
        (("PCI device 0:6.0 goes",), ("add-pci 0 6.0",)),
        (("CPU 2 goes",), ("add-cpu 2",)),
        (("window 0xe0006000+0x2000 irq 7 goes",), ("add-mmio 0xe0006000 0x2000 7",)),
    ]
    assert plan.dangers == []


def test_the_vmms_side_is_part_of_it() -> None:
    world = World(nr_cpu_ids=4, pci=(PciDevice(0, 1),), vcpus_running=(0,))
    plan = plan_of(
        cpu_request(_T.ADD_CPU, [1]),
        Vmm(1_500_000, "vCPU 1 created"),
        cpu_request(_T.ADD_CPU, [1]),
        Vmm(3_500_000, "PCI device 0:9 plugged"),
        pci_request(_T.ADD_PCI, 0, 9),
        world=world,
    )
    rets = [each.reply.ret for each in plan.rehearsed.values() if each.reply]
    assert rets == [-5, 0, 0]


@pytest.mark.parametrize(
    ("request_", "world", "code", "fate"),
    [
        (cpu_request(_T.DEL_CPU, [9]), kata_pod(cpus=3), "UP206", Fate.THREAD_DIED),
        (cpu_request(_T.DEL_CPU, [1, 2]), kata_pod(cpus=3), "UP207", Fate.THREAD_DIED),
        (cpu_request(_T.ADD_CPU, 40), kata_pod(Arch.AARCH64), "UP210", Fate.THREAD_DIED),
        (mmio_request(_T.DEL_MMIO, 0xE0004000, 0x2000, 5), POD, "UP308", Fate.CUT_OFF),
        (
            mmio_request(_T.ADD_MMIO, 0xE0006000, 0x2000, 5),
            World(needs_boot_mmio=True),
            "UP309",
            Fate.THREAD_DIED,
        ),
        (
            mmio_request(_T.ADD_MMIO, 0xE0006000, 0x2000, 7),
            replace(POD, mmio_hidden=(Window(0xE0006000, 0x2000, 5),)),
            "UP310",
            Fate.HANGS,
        ),
        (cpu_request(_T.ADD_CPU, [4, 4]), POD, "UP213", Fate.ANSWERED),
    ],
)
def test_what_would_harm_the_guest_is_a_danger(
    request_: Request, world: World, code: str, fate: Fate
) -> None:
    header = Header("test", arch=world.arch.value)
    plan = make_plan(script_of([*connect(1), ask(request_, 1)], header), world)
    (danger,) = plan.dangers
    assert (danger.code, danger.key) == (code, (1, 0))
    assert str(danger).startswith("request 1.0: ")
    assert plan.rehearsed[1, 0].fate is fate
    assert plan.rehearsed[1, 0].undo is None
    assert plan.refused(()) == [danger]
    assert plan.refused({code}) == []


def test_a_request_that_would_wait_for_the_stuck_lock_is_one_too() -> None:
    records = [*connect(1), *connect(2), ask(cpu_request(_T.DEL_CPU, [1, 2]), 1, 1)]
    records.append(ask(cpu_request(_T.ADD_CPU, [4]), 2, 2))
    plan = make_plan(script_of(records), kata_pod(cpus=3))
    assert [(danger.code, danger.key) for danger in plan.dangers] == [
        ("UP207", (1, 0)),
        ("UP603", (2, 0)),
    ]


@pytest.mark.parametrize("name", ["guest_oops", "guest_oops_6_12", "aarch64_lifecycle"])
def test_what_killed_a_thread_in_the_recording_is_a_danger_in_any_world(name: str) -> None:
    read = read_recording(golden(name))
    silent = [key for key, asked in read.script.asked.items() if asked.reply is None]
    plan = make_plan(read.script, kata_pod(cpus=20), True, lambda: read.findings)
    assert {danger.key for danger in plan.dangers} >= set(silent[:1])


def is_shown(read: Recording) -> bool:
    """Whether each danger among the findings is at a request that can show one."""
    asked = read.script.asked
    places = [(f.conn or 0, f.request or 0) for f in read.findings if f.code in DANGERS]
    return all(asked[key].cut_off or shows_danger(asked[key]) for key in places if key in asked)


@each_recording
def test_dangers_of_a_recording_are_where_they_are_looked_for(golden: Path) -> None:
    assert is_shown(read_recording(golden))


@pytest.mark.parametrize("seed", range(12))
def test_so_they_are_in_any_recording(tmp_path: Path, seed: int) -> None:
    made = traffic(Random(seed), 60)
    for world in (None, made.world):
        path = write_capture(tmp_path / f"{bool(world)}.upcap", made.records, made.header)
        assert is_shown(replace(read_recording(path), world=world))


def test_a_recording_that_cannot_show_a_danger_is_not_diagnosed() -> None:
    request = mmio_request(_T.ADD_MMIO, 0xE0006000, 0x2000, 5)
    told: list[str] = []

    def findings() -> list[Finding]:
        told.append("asked")
        return []

    for reply, asked in (([answer(request, 2, ret=-17)], []), ([], ["asked"])):
        records = [*connect(1), ask(request, 1), *reply, Close(5_000_000_000, 1, by_guest=False)]
        make_plan(script_of(records), POD, recorded=findings)
        assert told == asked


def test_in_a_world_that_nobody_told_any_foreign_device_may_be_the_channels() -> None:
    own = (0xD0000000, 0x1000, 5)
    refused = mmio_request(_T.ADD_MMIO, 0xD0008000, 0x1000, 5)
    requests: tuple[Request | Record, ...] = (
        mmio_request(_T.ADD_MMIO, *own),
        answer(mmio_request(_T.ADD_MMIO, *own), 1_500_000),
        mmio_request(_T.DEL_MMIO, *own),
        refused,
        answer(refused, 4_500_000, ret=-17),
        mmio_request(_T.DEL_MMIO, 0xD0008000, 0x1000, 5),
        pci_request(_T.DEL_PCI, 0, 3),
    )
    guessed = plan_of(*requests, guessed=True)
    assert [(d.code, d.key) for d in guessed.dangers] == [("UP308", (1, 3)), ("UP308", (1, 4))]
    assert plan_of(*requests).dangers == []


def test_so_it_is_with_a_world_that_does_not_say_which_one_the_channel_is(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", [*connect(1), ask(UNPLUG, 1)])
    target = look_at(UnixAddress(tmp_path / "nobody"), worlds()["microvm"])
    assert [d.code for d in Replay(recording, target).plan.dangers] == [REAL_GUEST, "UP308"]
    told = look_at(UnixAddress(tmp_path / "nobody"), POD)
    assert [d.code for d in Replay(recording, told).plan.dangers] == [REAL_GUEST]


def test_a_second_round_without_a_reset_meets_what_the_first_one_left(tmp_path: Path) -> None:
    gone = [*connect(1), ask(cpu_request(_T.DEL_CPU, [2]), 1)]
    recording = recording_of(tmp_path / "a.upcap", gone)
    with guest_like(kata_pod(cpus=3), tmp_path) as guest:
        for rounds, reset, codes in ((1, False, []), (2, False, ["UP206"]), (2, True, [])):
            terms = Terms(rounds=rounds, reset=reset)
            replay = Replay(recording, target_of(guest), terms=terms)
            assert [danger.code for danger in replay.plan.dangers] == codes


def test_nothing_is_played_that_was_not_allowed(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", [*connect(1), ask(UNPLUG, 1)])
    heard: list[bytes] = []
    with StreamServer(tmp_path / "wire", lambda stream: heard.append(stream.recv(9))):
        terms = Terms(output=tmp_path / "out.upcap")
        replay = Replay(recording, look_at(UnixAddress(tmp_path / "wire")), terms=terms)
        with replay, pytest.raises(WrongUsage, match=r"refused: .* may be a real guest"):
            list(replay.play())
    assert heard == []
    assert not (tmp_path / "out.upcap").exists()


def test_a_recording_of_another_architecture_is_tied_to_it(tmp_path: Path) -> None:
    with guest_like(POD, tmp_path) as guest:
        (danger,) = dangers(target_of(guest), Header("test", arch="aarch64"))
        assert danger.code == OTHER_TARGET
        assert dangers(target_of(guest), Header("test", arch="mips")) == []


def test_a_target_without_a_note_counts_as_a_real_guest(tmp_path: Path) -> None:
    with guest_like(POD, tmp_path) as guest:
        assert dangers(target_of(guest), BARE) == []
        (tmp_path / "guest.target").unlink()
        (danger,) = dangers(target_of(guest), BARE)
    assert danger.code == REAL_GUEST
    assert "may be a real guest" in str(danger)
    assert [d.code for d in dangers(look_at(VsockAddress(3)), BARE)] == [REAL_GUEST]


def test_a_note_tells_world_and_control(tmp_path: Path) -> None:
    with guest_like(worlds()["pc"], tmp_path) as guest:
        target = target_of(guest)
    assert (target.kind, target.guessed, target.world) == ("simulated", False, worlds()["pc"])
    assert target.control == tmp_path / "control"
    assert target.fingerprint == {
        "arch": "x86_64", "backend": "vhost-device-vsock", "name": "simulated",
    }  # fmt: skip
    assert look_at(UnixAddress(tmp_path / "guest")).guessed


@pytest.mark.parametrize(
    ("tie", "told", "refused"),
    [
        ("arch=x86_64", {}, []),
        ("arch=aarch64", {}, ["a target whose arch is aarch64; this one's is x86_64"]),
        ("name=rack-7,backend=dragonball", {}, ["name is rack-7", "backend is dragonball"]),
    ],
)
def test_a_recording_can_be_tied_to_a_target(
    tie: str, told: dict[str, str], refused: list[str], tmp_path: Path
) -> None:
    with guest_like(POD, tmp_path) as guest:
        target = look_at(UnixAddress(guest.path), told=told)
        found = dangers(target, Header("test", notes={TIED_TO: tie}))
    assert [danger.code for danger in found] == [OTHER_TARGET] * len(refused)
    assert all(any(text in str(danger) for danger in found) for text in refused), [
        str(danger) for danger in found
    ]


def test_what_nobody_knows_of_a_target_can_be_told(tmp_path: Path) -> None:
    tied = Header("test", notes={TIED_TO: "name=rack-7"})
    nobody = UnixAddress(tmp_path / "nobody")
    assert [d.code for d in dangers(look_at(nobody), tied)] == [REAL_GUEST, OTHER_TARGET]
    told = look_at(nobody, told={"name": "rack-7"})
    assert [d.code for d in dangers(told, tied)] == [REAL_GUEST]
    contradiction = "--target says name is rack-7; the target says simulated"
    with guest_like(POD, tmp_path) as guest, pytest.raises(WrongUsage, match=contradiction):
        look_at(UnixAddress(guest.path), told={"name": "rack-7"})


def test_a_tie_that_cannot_be_read_is_the_recordings_fault(tmp_path: Path) -> None:
    with guest_like(POD, tmp_path) as guest, pytest.raises(UnreadableInput, match="is tied to"):
        dangers(target_of(guest), Header("test", notes={TIED_TO: "colour=red"}))


@pytest.mark.parametrize("text", ["", "arch", "colour=red", "arch="])
def test_a_fingerprint_that_is_none(text: str) -> None:
    with pytest.raises(WrongUsage, match="is no fingerprint"):
        parse_fingerprint(text)


def test_a_replay_of_a_tied_recording_knows_it(tmp_path: Path) -> None:
    header = Header("test", arch="x86_64", notes={TIED_TO: "name=rack-7"})
    recording = recording_of(tmp_path / "a.upcap", connect(1), header)
    with guest_like(POD, tmp_path) as guest:
        replay = Replay(recording, target_of(guest))
    assert [danger.code for danger in replay.plan.dangers] == [OTHER_TARGET]
