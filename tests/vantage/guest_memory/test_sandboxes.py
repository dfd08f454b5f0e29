"""Which process holds which sandbox's VM, by command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from upcall_trace.errors import Unreachable, WrongUsage
from upcall_trace.vantage.guest_memory.sandboxes import process_of, sandbox_of, vmm_processes

FIRST = "5a5a" * 16
SECOND = "5a5b" * 16
SHIM = "/opt/kata/bin/containerd-shim-kata-v2 -namespace k8s.io -address /run/c.sock -id "
LARGE = "7f0000000000-7f0040000000 rw-s 00000000 00:01 77 /memfd:m\n"
SMALL = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0\n"


def machine(tmp_path: Path, *processes: tuple[int, str, str]) -> Path:
    """A /proc with these processes: id, command line, maps."""
    for pid, command, maps in processes:
        place = tmp_path / str(pid)
        place.mkdir()
        (place / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
        (place / "comm").write_text(command.split()[0].rpartition("/")[2][:15] + "\n")
        (place / "maps").write_text(maps)
    (tmp_path / "meminfo").write_text("")
    return tmp_path


def test_dragonball_is_inside_the_shim(tmp_path: Path) -> None:
    proc = machine(tmp_path, (7, f"{SHIM}{FIRST}", LARGE), (9, "/usr/bin/bash -c id", SMALL))
    (found,) = vmm_processes(proc)
    assert (found.pid, found.kind, found.sandbox) == (7, "Dragonball", FIRST)
    assert found.holds_a_guest
    assert found.size == 1 << 30


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (f"/usr/bin/qemu-system-x86_64 -name sandbox-{FIRST},debug-threads=on", "QEMU"),
        (f"/opt/kata/bin/cloud-hypervisor --api-socket /run/vc/vm/{FIRST}/clh-api.sock",
         "Cloud Hypervisor"),
        (f"/opt/kata/bin/firecracker --id {FIRST} --config-file c.json", "Firecracker"),
    ],
)  # fmt: skip
def test_other_vmms_are_processes_of_their_own(command: str, kind: str, tmp_path: Path) -> None:
    proc = machine(tmp_path, (7, f"{SHIM}{FIRST}", SMALL), (8, command, LARGE))
    shim, vmm = vmm_processes(proc)
    assert (shim.holds_a_guest, vmm.kind, vmm.sandbox) == (False, kind, FIRST)
    assert process_of("5a5a", [shim, vmm]) == vmm


def test_the_beginning_of_an_id_is_enough_while_it_is_the_only_one(tmp_path: Path) -> None:
    proc = machine(tmp_path, (7, f"{SHIM}{FIRST}", LARGE), (8, f"{SHIM}{SECOND}", LARGE))
    running = vmm_processes(proc)
    assert process_of("5a5a", running).pid == 7
    with pytest.raises(WrongUsage, match=r"'5a5' begins 2 sandboxes: 5a5a.*, 5a5b"):
        process_of("5a5", running)
    with pytest.raises(Unreachable, match="no sandbox 'ffff' runs on this machine"):
        process_of("ffff", running)
    with pytest.raises(Unreachable, match="none is known here"):
        process_of("ffff", [])


def test_ids_come_in_several_ways() -> None:
    assert sandbox_of(["shim", "-id", FIRST, "start"]) == FIRST
    assert sandbox_of(["shim", f"--id={FIRST}"]) == FIRST
    assert sandbox_of(["qemu", "-name", f"sandbox-{FIRST}"]) == FIRST
    assert sandbox_of(["shim", "-id"]) is None
    assert sandbox_of(["qemu", "-m", "512"]) is None
    assert sandbox_of([]) is None
