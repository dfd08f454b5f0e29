"""A running VMM's memory: found, read, and left exactly as large as it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.vantage.guest_memory.cutouts import held, image, packet
from tests.vantage.guest_memory.vmm_process import resident, vmm_process
from tests.vantage.guest_memory.whole_guest import BASE, OBJECT, WholeGuest
from upcall_trace.errors import Unreachable
from upcall_trace.vantage.guest_memory.assembling import assemble
from upcall_trace.vantage.guest_memory.conversations import Assembled, ObjectState
from upcall_trace.vantage.guest_memory.locating import locate
from upcall_trace.vantage.guest_memory.processes import RunningVmm, VmmGone, guest_mappings

MIB = 1 << 20


def look(memory: RunningVmm) -> Assembled:
    return assemble(locate(memory.windows(), memory.aligned), memory.read, memory.ranges)


@pytest.mark.parametrize("kind", ["shared", "private"])
def test_everything_is_found_and_no_page_becomes_resident(kind: str) -> None:
    with vmm_process(256 * MIB, kind) as vmm:
        vmm.fill(10 * MIB, 9 * MIB)
        vmm.put(100 * MIB + 0x18, held())
        vmm.put(200 * MIB, packet(held()[16:1040], 1024))
        vmm.put(256 * MIB - 4096, image("kata_6_1").read_bytes()[:4096])
        before = resident(vmm.pid)
        with RunningVmm(vmm.pid) as memory:
            assembled = look(memory)
            assert 9 * MIB <= memory.size <= 12 * MIB
            assert assembled.looked_at < 2 * memory.size
            assert len(assembled.conversations) == 2
            assert assembled.packets == 1
            # Following a pointer to a page that was never used must not make it one either.
            assert memory.read(memory.mappings[0].begin + 50 * MIB, 64) == b""
        assert resident(vmm.pid) == before


def test_in_a_whole_memory_an_object_that_points_nowhere_is_possible_at_most() -> None:
    """Whatever a guest fakes: it does not know where a socket of its kernel is."""
    real = WholeGuest(held()[16:1040], held()[1040:], 4, 4)
    with vmm_process(256 * MIB) as vmm:
        vmm.put(0, bytes(real.raw))
        vmm.put(40 * MIB, held(task=BASE + 0x123000, socket=BASE + 0x456780))
        with RunningVmm(vmm.pid) as memory:
            begin = memory.mappings[0].begin
            found = {each.held.address - begin: each for each in look(memory).conversations}
    assert found[OBJECT].certain
    assert found[OBJECT].state is ObjectState.ANSWERED
    assert found[40 * MIB].state is ObjectState.POSSIBLE
    assert "no socket is where it points" in found[40 * MIB].why


def test_what_lies_across_the_ends_of_windows_is_found() -> None:
    with vmm_process(64 * MIB) as vmm:
        vmm.fill(0, 20 * MIB)
        places = [4 * MIB * k - 1000 for k in (1, 2, 3, 4)]
        for at in places:
            vmm.put(at, held())
        with RunningVmm(vmm.pid) as memory:
            begin = memory.mappings[0].begin
            found = [each.held.address - begin for each in look(memory).conversations]
        assert found == places


def test_without_such_a_process_there_is_a_sentence() -> None:
    with pytest.raises(Unreachable, match="there is no process 4000000; upcall-trace doctor"):
        RunningVmm(4_000_000)


def test_a_process_that_is_no_vmm_is_told_so() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        try:
            with pytest.raises(Unreachable, match=r"process \d+ \(.+\) is no VMM"):
                RunningVmm(sleeping.pid)
        finally:
            sleeping.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_the_right_there_is_a_sentence_with_the_way_out() -> None:
    program = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from upcall_trace.vantage.guest_memory.processes import RunningVmm\n"
        "from upcall_trace.errors import Unreachable\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: RunningVmm(int(sys.argv[1]))\n"
        "except Unreachable as error: print(error)"
    )
    with vmm_process() as vmm:
        told = subprocess.run(
            [sys.executable, "-c", program, str(vmm.pid), *filter(None, sys.path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "may not be read (Permission denied): run this as the VMM's user or root" in told.stdout


def test_a_vmm_that_ends_is_noticed() -> None:
    with vmm_process() as vmm:
        vmm.fill(0, MIB)
        with RunningVmm(vmm.pid) as memory:
            assert memory.alive()
            vmm.kill()
            assert not memory.alive()
            with pytest.raises(VmmGone):
                memory.present()


MAPS = """\
55d0c0000000-55d0d0000000 r-xp 00000000 fe:00 1 /usr/bin/qemu-system-x86_64
55d0e0000000-55d0f0000000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0003000000 rw-s 00000000 00:01 77 /memfd:m (deleted)
7f0003000000-7f0004000000 rw-s 03000000 00:01 77 /memfd:m (deleted)
7f0100000000-7f0140000000 rwxp 00000000 00:00 0
7f0200000000-7f0204000000 rw-p 00000000 00:00 0
7f0300000000-7f0300100000 rw-p 00000000 00:00 0
7f0400000000-7f0480000000 rw-s 00000000 00:0f 9 /dev/hugepages/guest
7ffc00000000-7ffc10000000 rw-p 00000000 00:00 0 [stack]
"""


def test_a_guests_memory_is_in_large_writable_mappings() -> None:
    """Side by side they count as one: advice on a part of it, as for merging, splits it."""
    found = [(mapping.begin, mapping.size // MIB) for mapping in guest_mappings(MAPS)]
    assert found == [(0x7F0000000000, 64), (0x7F0200000000, 64), (0x7F0400000000, 2048)]
