"""Recordings of a real Kata guest, put to the lab's guest: every failure is the same failure.

The table lists all that failed in the recordings. The lab's kernel is Linux 6.1 for x86-64 with
one CPU on `microvm`, so some recordings are played on `pc`, and some cannot be had.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from dissectors.constants import MessageType, errno_name
from dissectors.messages import cpu_request
from tests.live.conftest import Start
from tests.live.playing import replay
from tests.support import TRANSCRIPTS, golden
from upcall_trace.compare.replies import Got
from upcall_trace.errors import ExitCode
from upcall_trace.lab.process import LiveGuest
from upcall_trace.replay.happening import Answered
from upcall_trace.replay.plan import DANGERS
from upcall_trace.replay.report import verdict_lines
from upcall_trace.replay.run import Replay, Terms, patience_with, read_recording
from upcall_trace.replay.target import look_at
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient

TABLE = """
recording          request  operation        real     lab
cpu_lifecycle      1.0      add_cpu          EIO      EIO
cpu_lifecycle      1.2      add_cpu          EINVAL   EINVAL
cpu_lifecycle      1.7      del_cpu          EINVAL   EINVAL
cpu_lifecycle      1.8      del_cpu          EINVAL   EINVAL
pci_memory         1.5      add_pci          ENODEV   ENODEV
pci_memory         1.6      del_pci          ENODEV   ENODEV
pci_memory         1.7      del_pci          ENODEV   ENODEV
pci_memory         1.8      add_pci          ENODEV   ENODEV
pci_memory         1.9      add_pci          ENODEV   ENODEV
mmio_lifecycle     1.2      add_mmio         EEXIST   EEXIST
mmio_lifecycle     1.3      add_mmio         EEXIST   EEXIST
mmio_lifecycle     1.4      add_mmio         EEXIST   EEXIST
mmio_lifecycle     1.7      add_mmio         EINVAL   EINVAL
mmio_lifecycle     1.8      add_mmio         EBUSY    EBUSY
mmio_lifecycle     1.9      add_mmio         EINVAL   EINVAL
mmio_lifecycle     1.10     del_mmio         ENODEV   ENODEV
mmio_lifecycle     1.12     del_mmio         ENODEV   ENODEV
framing            1.0      add_mem          EPERM    EPERM
framing            1.1      del_mem          EPERM    EPERM
framing            1.2      add_mem          EPERM    EPERM
framing            3.0      add_mmio         EINVAL   EINVAL
framing            3.1      connect          EINVAL   EINVAL
framing            4.0      add_mem          EPERM    EPERM
framing            4.1      type_4294967295  EPERM    EPERM
handshake          7.0      add_mem          EPERM    EPERM
handshake          8.0      add_mem          EPERM    EPERM
handshake          9.0      add_mem          EPERM    EPERM
handshake          10.0     add_mem          EPERM    EPERM
stale_results      1.2      add_mmio         EEXIST   EEXIST
stale_results      1.3      add_mmio         EEXIST   EEXIST
stale_results      1.6      add_cpu          EINVAL   EINVAL
stale_results      1.7      add_mem          EPERM    EPERM
stale_results      1.8      del_mem          EPERM    EPERM
stale_results      1.9      connect          EPERM    EPERM
stale_results      1.10     type_77          EPERM    EPERM
stale_results      1.11     add_mem          EPERM    EPERM
guest_oops         1.1      del_cpu          silence  silence
guest_oops         2.0      add_mem          EPERM    EPERM
"""
"""Every failure in the recordings; a reply that repeats an old errno counts as one."""

CANNOT_BE_HAD = {
    "aarch64_lifecycle": "the lab has no machine of that architecture",
    "cpu_lifecycle_6_12": "the lab's kernel is 6.1, which treats CPUs differently",
    "guest_oops_6_12": "the lab's kernel is 6.1, which treats CPUs differently",
} | {
    path.stem: "the lab's kernel is 6.1; what 5.10 does alike, older recordings have"
    for path in TRANSCRIPTS
    if path.stem.endswith("_5_10")
}

Row = tuple[str, str, str, str, str]
ROWS: list[Row] = [
    (row[0], row[1], row[2], row[3], row[4])
    for row in (line.split() for line in TABLE.strip().splitlines()[1:])
]


def test_the_table_lists_every_failure_of_the_recordings() -> None:
    failures = [
        (recording.stem, *told(Answered(asked, Got(asked.reply))))
        for recording in TRANSCRIPTS
        if recording.stem not in CANNOT_BE_HAD
        for asked in read_recording(recording).script.asked.values()
        if failed(Got(asked.reply))
    ]
    assert sorted(row[:4] for row in ROWS) == sorted(failures)
    assert {recording.stem for recording in TRANSCRIPTS} == {
        *CANNOT_BE_HAD,
        *(row[0] for row in ROWS),
    }


# A guest serves several recordings where each leaves alone what the next is about.


def test_what_failed_on_pc_fails_the_same(live_guest: Start) -> None:
    guest = live_guest("--machine", "pc")
    with Watch(guest) as seen:
        compare("pci_memory", guest, speed=1.0)  # time enough to see the memory come and go
    assert {state["memory_kib"] - guest.state()["memory_kib"] for state in seen} >= {0, 256 << 10}
    assert [state["disks"] for state in seen].count(["vda"]) > 0  # one was removed, and came back
    compare("cpu_lifecycle", guest)
    guest.wait_for(lambda state: state["cpus_online"] == [0, 1, 2, 3])


def test_what_failed_with_all_cpus_up_fails_the_same(live_guest: Start) -> None:
    guest = live_guest("--machine", "pc")
    for cpu in (1, 2, 3):
        guest.order({"start_vcpu": cpu})
    with UpcallClient(UnixAddress(guest.address)) as client:
        answer = client.ask(cpu_request(MessageType.ADD_CPU, [1, 2, 3]).encode(), 20)
    assert answer is not None
    assert answer.reply.ret == 0
    compare("stale_results", guest)
    compare("guest_oops", guest)


def test_what_failed_on_microvm_fails_the_same(live_guest: Start) -> None:
    guest = live_guest("--machine", "microvm")
    compare("handshake", guest)
    compare("framing", guest)
    with Watch(guest) as seen:
        compare("mmio_lifecycle", guest, speed=1.0)
    assert max(len(state["disks"]) for state in seen) > len(seen[0]["disks"])


@pytest.mark.torture
@pytest.mark.parametrize("name", ["guest_oops", "cpu_lookup_5_10"])
def test_a_recording_with_silence_comes_out_right_twenty_times(
    live_guest: Start, name: str
) -> None:
    guest = live_guest("--machine", "pc")
    recording = read_recording(golden(name))
    for _ in range(20):
        guest.order({"reset": True})
        for cpu in (1, 2, 3):
            guest.order({"start_vcpu": cpu})
        with UpcallClient(UnixAddress(guest.address)) as client:
            assert client.ask(cpu_request(MessageType.ADD_CPU, [1, 2, 3]).encode(), 20)
        target = look_at(UnixAddress(guest.address))
        terms = Terms(patience=patience_with(target, 15.0, None), allow=DANGERS)
        with Replay(recording, target, terms=terms) as played:
            assert list(played.play())
        assert list(verdict_lines(played, 0.0))[-1].endswith(": all as recorded")


class Watch:
    """What the guest's own state is while something else happens to it."""

    def __init__(self, guest: LiveGuest) -> None:
        self._guest = guest
        self._over = threading.Event()
        self._seen: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._seen.append(self._guest.state())

    def __enter__(self) -> list[dict[str, Any]]:
        self._seen.append(self._guest.state())
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)  # the guest looks at itself five times a second
        self._over.set()
        self._thread.join()


def compare(name: str, guest: LiveGuest, speed: float | None = None) -> None:
    """The lab's column of the table, and beyond it every byte that the real guest sent."""
    played, happened = replay(golden(name), guest, speed)
    failures = [(name, *told(each)) for each in happened if failed(each.got)]
    assert sorted(failures) == sorted(
        (row[0], row[1], row[2], row[4]) for row in ROWS if row[0] == name
    )
    assert played.verdict.first is None
    assert played.verdict.exit_code == ExitCode.EXPECTED, "".join(verdict_lines(played, 0))


def failed(got: Got) -> bool:
    return got.reply is None or got.reply.ret < 0


def told(answered: Answered) -> tuple[str, str, str]:
    """Request, operation and outcome as in the table."""
    asked, reply = answered.asked, answered.got.reply
    outcome = "silence" if reply is None else errno_name(reply.ret) or str(reply.ret)
    return f"{asked.conn}.{asked.request}", asked.message.op, outcome
