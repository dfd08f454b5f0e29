"""Recordings of a real Kata guest, put to the lab's guest: every failure is the same failure.

The table lists all that failed in the recordings. The lab's kernel is Linux 6.1 for x86-64 with
one CPU on `microvm`, so some recordings are played on `pc`, and some cannot be had.
"""

from __future__ import annotations

import re

from dissectors.constants import MessageType
from dissectors.messages import cpu_request
from tests.live.conftest import Start
from tests.live.playing import play
from tests.support import TRANSCRIPTS, decode, golden, operations, records_of
from upcall_trace.capture.records import Chunk, Record
from upcall_trace.client import UpcallClient
from upcall_trace.lab.process import LiveGuest
from upcall_trace.operations import Operation
from upcall_trace.transport import UnixAddress

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
}

Row = tuple[str, str, str, str, str]
ROWS: list[Row] = [
    (row[0], row[1], row[2], row[3], row[4])
    for row in (line.split() for line in TABLE.strip().splitlines()[1:])
]


def test_the_table_lists_every_failure_of_the_recordings() -> None:
    failures = [
        (recording.stem, *told(operation))
        for recording in TRANSCRIPTS
        if recording.stem not in CANNOT_BE_HAD
        for operation in operations(decode(records_of(recording)[1]))
        if operation.failed
    ]
    assert sorted(row[:4] for row in ROWS) == sorted(failures)
    assert {recording.stem for recording in TRANSCRIPTS} == {
        *CANNOT_BE_HAD,
        *(row[0] for row in ROWS),
    }


# A guest serves several recordings where each leaves alone what the next is about.


def test_what_failed_on_pc_fails_the_same(live_guest: Start) -> None:
    guest = live_guest("--machine", "pc")
    compare("pci_memory", guest)
    compare("cpu_lifecycle", guest)


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
    compare("mmio_lifecycle", guest)


def compare(name: str, guest: LiveGuest) -> None:
    """The lab's column of the table, and beyond it every byte that the real guest sent."""
    recorded = records_of(golden(name))[1]
    played = play(golden(name), guest)
    failures = [(name, *told(op)) for op in operations(decode(played)) if op.failed]
    assert failures == [(row[0], row[1], row[2], row[4]) for row in ROWS if row[0] == name]
    assert from_guest(played) == from_guest(recorded)


def told(operation: Operation) -> tuple[str, str, str]:
    """Request, operation and outcome as in the table."""
    outcome = "silence" if operation.ret is None else operation.errno or str(operation.ret)
    return f"{operation.conn}.{operation.request}", operation.op, outcome


def from_guest(records: list[Record]) -> dict[int, bytes]:
    """What each connection received, with the multiplexer's port left out."""
    received: dict[int, bytes] = {}
    for record in records:
        if isinstance(record, Chunk) and not record.to_guest:
            received[record.conn] = received.get(record.conn, b"") + record.data
    return {conn: re.sub(rb"^OK \d+\n", b"OK\n", came, count=1) for conn, came in received.items()}
