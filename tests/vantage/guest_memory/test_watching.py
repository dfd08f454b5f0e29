"""Watching a process with real memory: what it writes is recorded, as it appears."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dissectors.constants import MessageType
from dissectors.messages import hello, pci_request
from tests.guests import wait_until
from tests.support import records_of
from tests.vantage.guest_memory.cutouts import held
from tests.vantage.guest_memory.vmm_process import VmmProcess, resident, vmm_process
from upcall_trace.capture.records import Chunk, Close, Mark
from upcall_trace.trace.opening import load
from upcall_trace.vantage.guest_memory.processes import RunningVmm
from upcall_trace.vantage.guest_memory.watching import Watcher, WatchReport, account
from upcall_trace.vantage.recorder import Recorder, live_header
from upcall_trace.vantage.store import OnStoreError

PAGE = 4096
AT = 32 * PAGE + 0x18
NOTHING = bytes(1024)


@contextmanager
def watched(vmm: VmmProcess, path: Path) -> Iterator[Watcher]:
    """A watcher in a thread; it ends with the block."""
    stop = threading.Event()
    recorder = Recorder(path, live_header("guest-memory", None), OnStoreError.STOP, stop)
    with RunningVmm(vmm.pid) as memory:
        watcher = Watcher(memory, recorder)
        watcher.begin()
        thread = threading.Thread(target=watcher.watch, args=(stop,))
        thread.start()
        try:
            yield watcher
        finally:
            stop.set()
            thread.join()
            recorder.close()


def ask(vmm: VmmProcess, slot: int, at: int = AT) -> None:
    vmm.put(at + 16, pci_request(MessageType.ADD_PCI, 0, slot).encode())


def answer(vmm: VmmProcess, ret: int, at: int = AT) -> None:
    vmm.put(at + 1040, pci_request(MessageType.ADD_PCI, 0, 0).reply(ret).encode())


def seen(watcher: Watcher, requests: int, replies: int) -> None:
    """Wait until so many were seen: how fast a busy machine does it is not the question here."""
    tally = watcher.report.tally
    wait_until(lambda: (tally.requests, tally.replies) == (requests, replies))


def test_what_crosses_is_recorded_as_it_appears(tmp_path: Path) -> None:
    path = tmp_path / "memory.upcap"
    with vmm_process() as vmm:
        vmm.put(AT, held(NOTHING, hello().encode()))
        with watched(vmm, path) as watcher:
            for slot in range(1, 6):
                ask(vmm, slot)
                seen(watcher, slot, slot - 1)
                answer(vmm, -slot)
                seen(watcher, slot, slot)
    found = [(each.fields["slot"], each.ret) for each in load(path).operations]
    assert found == [(slot, -slot) for slot in range(1, 6)]
    _, records = records_of(path)
    (summary,) = [each for each in records if isinstance(each, Mark) and each.conn is None]
    assert "5 requests and 5 replies seen" in summary.text
    assert "counts of a socket were not found" in summary.text


def test_a_connection_that_begins_later_is_found_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "memory.upcap"
    with vmm_process() as vmm:
        vmm.fill(0, 4 << 20)
        with watched(vmm, path) as watcher:
            assert watcher.report.connections == 0
            for conn, offset in enumerate((0x08, 0x10, 0x18), 1):
                at = (100 + conn) * PAGE + offset - 16 + (16 if offset < 16 else 0)
                vmm.put(at, held(NOTHING, hello().encode()))
                wait_until(lambda conn=conn: watcher.report.connections == conn)
                ask(vmm, conn, at)
                seen(watcher, conn, 0)
    assert [each.fields["slot"] for each in load(path).operations] == [1, 2, 3]


def test_the_vm_goes_first_and_the_rest_of_the_program_as_before(tmp_path: Path) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with vmm_process() as vmm:
        vmm.put(AT, held(NOTHING, hello().encode()))
        with watched(vmm, tmp_path / "memory.upcap") as watcher:
            ask(vmm, 1)
            seen(watcher, 1, 0)
            tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
            assert max(os.getpriority(os.PRIO_PROCESS, task) for task in tasks) >= 10
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_watching_and_searching_leave_a_vmm_as_large_as_it_was(tmp_path: Path) -> None:
    with vmm_process(512 << 20) as vmm:
        for at in range(0, 512 << 20, 32 << 20):
            vmm.fill(at + 5 * PAGE, 7 * PAGE)
        vmm.put(AT, held(NOTHING, hello().encode()))
        before = resident(vmm.pid)
        with watched(vmm, tmp_path / "memory.upcap") as watcher:
            wait_until(lambda: watcher.report.looks > 1500)
        assert resident(vmm.pid) == before


def test_a_connection_that_gets_a_freed_ones_place_is_found(tmp_path: Path) -> None:
    path = tmp_path / "memory.upcap"
    freed = bytearray(held(NOTHING, hello().encode()))
    freed[2048:2056] = (0xFFFF888009990000).to_bytes(8, "little")  # the allocator's list
    with vmm_process() as vmm:
        vmm.put(AT, bytes(freed))
        with watched(vmm, path) as watcher:
            assert watcher.report.connections == 0
            time.sleep(0.2)
            vmm.put(AT, held(NOTHING, hello().encode(), socket=0xFFFF888005678B00))
            wait_until(lambda: watcher.report.connections == 1)
            ask(vmm, 7)
            seen(watcher, 1, 0)
    assert [each.fields["slot"] for each in load(path).operations] == [7]


def test_a_page_with_another_owner_ends_the_connection_and_none_of_it_is_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "memory.upcap"
    secret = b"correct horse battery staple"
    with vmm_process() as vmm:
        vmm.put(AT, held(NOTHING, hello().encode()))
        with watched(vmm, path) as watcher:
            ask(vmm, 1)
            seen(watcher, 1, 0)
            vmm.put(AT - 0x18, (secret * 150)[:PAGE])
            wait_until(lambda: watcher._watched == [])
    assert secret[:7] not in path.read_bytes()
    assert any(isinstance(record, Close) for record in records_of(path)[1])


def test_a_vmm_that_ends_ends_the_recording_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "memory.upcap"
    with vmm_process() as vmm:
        vmm.put(AT, held(NOTHING, hello().encode()))
        with watched(vmm, path) as watcher:
            ask(vmm, 1)
            seen(watcher, 1, 0)
            vmm.kill()
            wait_until(lambda: bool(watcher.report.ended))
    assert watcher.report.ended.endswith("has ended")
    capture = load(path)
    assert capture.complete
    assert [each.ret for each in capture.operations] == [None]


def test_what_is_kept_of_a_message_is_its_header_and_load(tmp_path: Path) -> None:
    path = tmp_path / "memory.upcap"
    with vmm_process() as vmm:
        vmm.put(AT, held(NOTHING, hello().encode()))
        with watched(vmm, path) as watcher:
            request = pci_request(MessageType.ADD_PCI, 0, 1).encode()
            vmm.put(AT + 16, request[:100] + b"S" * 900 + request[1000:])
            seen(watcher, 1, 0)
    chunks = [each.data for each in records_of(path)[1] if isinstance(each, Chunk)]
    assert request in chunks
    assert not any(b"SS" in chunk for chunk in chunks)


def test_the_account_says_what_may_be_missing() -> None:
    report = WatchReport(looks=1000, seconds=0.2, cpu_seconds=0.014, intervals=[200_000] * 5)
    report.tally.requests, report.tally.missed_requests = 95, 5
    told = account(report)
    assert (
        "1000 looks in 0.2 s, one every 200 us (99 % within 200 us), 7.0 % of a processor" in told
    )
    assert "5 requests (5.0 %) and 0 replies crossed between two looks" in told
