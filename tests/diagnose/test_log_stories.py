"""What the lines of VMMs, runtimes and consoles say together, one short log each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.diagnose.dresses import json_lines
from upcall_trace.diagnose.log_inputs import read_logs

SANDBOX: Final = "6b76768740b5d88f4eac4a1d65bafa3ffdc46eb38c487d8f7312e34561764022"
FIRST_US: Final = 1_788_256_800_000_000
Line = tuple[int, str]

INIT: Final[list[Line]] = [(0, "VM upcall init"), (1, "upcall client init success")]
READY: Final[list[Line]] = [
    *INIT, (900, "upcall connect server success"), (910, "upcall connect service success"),
]  # fmt: skip

VMM: Final[dict[str, tuple[str, Sequence[Line]]]] = {
    "refusal-then-ok": ("", [
        *INIT,
        (100, "upcall connect server check failed, upcall server connect error: connection reset"),
        (110, "upcall connect server check failed, upcall server connect error: connection reset"),
        (900, "upcall connect server success"),
        (910, "upcall connect service success"),
    ]),
    "wouldblock-once": ("UP101?", [
        *INIT,
        (100,
         ("upcall connect server check failed, upcall server connect error: operation would "
         "block")),
    ]),
    "not-ok": ("UP110", [
        *INIT,
        (100,
         ("upcall connect server check failed, upcall server connect error: expect ok, but "
         "received ER")),
    ]),
    "hello0": ("UP107", [
        *INIT,
        (900, "upcall connect server success"),
        (950,
         ("upcall connect service check failed, received invalid upcall message: upcall "
         "device manager expect msg_type 0, but received 0")),
    ]),
    "nohello": ("UP106 UP104?", [
        *INIT,
        (900, "upcall connect server success"),
        (950,
         "upcall connect service check failed, upcall service connect error: connection reset"),
    ]),
    "startfail": ("UP106?", [
        *INIT,
        (900, "upcall connect server success"),
        (950, "upcall connect service start failed upcall service connect error: broken pipe"),
    ]),
    "flood-resize": ("UP606", [
        *READY,
        (5000,
         "we should get message from event handler when connection state is `ServiceConnected`"),
        (6000, "resize vcpu: now: 1, desire: 2"),
        (6001, "resize vcpu: add"),
        (6002,
         ("resize vcpus\n\nCaused by:\n    0: failed to do_resize_vcpus on new_vcpus=2\n    "
         "1: vmm action error: ResizeVcpu(Upcall(SendRequest(Kind(ConnectionReset))))")),
        (7000, "resize vcpu: now: 2, desire: 2"),
        (7001, "resize vcpu: no need to resize"),
    ]),
    "balloon-own": ("UP604", [
        *INIT,
        (5000, "hotplug balloon device: balloon0"),
        (5001, "create device op context error: UpcallServerNotReady"),
        (5002,
         "failed to insert f_reporting balloon device: vmm action error: UpcallServerNotReady"),
    ]),
    "restored": ("UP604 UP109?", [
        (0, "VM restored from snapshot"),
        (1, "VM upcall init"),
        (2, "upcall client init success"),
        (500,
         ("resize vcpus\n\nCaused by:\n    0: failed to do_resize_vcpus on new_vcpus=2\n    "
         "1: vmm action error: UpcallServerNotReady")),
        (2002,
         ("upcall connect server check failed, upcall server connect error: operation would "
         "block")),
        (2012, "upcall reconnect server..."),
        (2020, "upcall connect server success"),
        (2030, "upcall connect service success"),
    ]),
    "hotplugging-late": ("UP601", [
        *READY,
        (5000, "resize vcpu: now: 1, desire: 9"),
        (5001, "resize vcpu: add"),
        (5250,
         ("resize vcpus\n\nCaused by:\n    0: failed to do_resize_vcpus on new_vcpus=9\n    "
         "1: timed out waiting on channel")),
        (5300,
         ("resize vcpus\n\nCaused by:\n    0: failed to do_resize_vcpus on new_vcpus=9\n    "
         "1: vmm action error: ResizeVcpu(VcpuIsHotplugging)")),
        (5900, "get vcpu event, cpu_index 8 success Success"),
        (5901, "cpu sync action send to closed channel sending on a closed channel"),
    ]),
    "hotplugging": ("UP702", [
        *READY,
        (5000, "resize vcpu: now: 1, desire: 3"),
        (5020, "get vcpu event, cpu_index 0 success Failed"),
        (5250,
         ("resize vcpus\n\nCaused by:\n    0: failed to do_resize_vcpus on new_vcpus=3\n    "
         "1: timed out waiting on channel")),
        (9000,
         ("resize vcpus\n\nCaused by:\n    0: failed to do_resize_vcpus on new_vcpus=3\n    "
         "1: vmm action error: ResizeVcpu(VcpuIsHotplugging)")),
    ]),
    "hotplugging-alone": ("UP702?", [
        (9000,
         ("failed to do_resize_vcpus on new_vcpus=3: vmm action error: "
         "ResizeVcpu(VcpuIsHotplugging)")),
    ]),
    "rollback": ("UP703", [
        *READY,
        (5000, "resize vcpu: now: 1, desire: 3"),
        (5001, "resize vcpu: add"),
        (5002, "activate vcpu error, rollback! VcpuFd(12)"),
        (5003, "resize vcpus\n\nCaused by:\n    1: vmm action error: ResizeVcpu(Vcpu(StartVcpu))"),
    ]),
    "exceed": ("UP703", [
        *READY,
        (5000,
         ("failed to do_resize_vcpus on new_vcpus=300: vmm action error: "
         "ResizeVcpu(ExpectedVcpuExceedMax)")),
    ]),
    "disk-timeout-exists": ("UP602? UP703", [
        *READY,
        (5000, "add_block_device: id=drive-1, path=/dev/vdb, use_pci_bus=true"),
        (5010,
         ("success to send InsertBlockDevice(BlockDeviceConfigInfo { drive_id: \"drive-1\" }) "
         "after retry 0")),
        (5260,
         ("add_block_device failed: id=drive-1, error=insert block device\n\nCaused by:\n    "
         "0: Failed to insert block device BlockDeviceConfigInfo { drive_id: \"drive-1\" }\n "
         "   1: timed out waiting on channel")),
        (9000,
         ("add_block_device failed: id=drive-1, error=insert block device\n\nCaused by:\n    "
         "0: Failed to insert block device\n    1: virtio-blk device error: block device "
         "path '/dev/vdb' already exists\n    2: block device path '/dev/vdb' already exists")),
    ]),
    "disk-late": ("UP601 UP704", [
        *READY,
        (5010,
         ("success to send InsertBlockDevice(BlockDeviceConfigInfo { drive_id: \"drive-1\" }) "
         "after retry 0")),
        (5260,
         ("add_block_device failed: id=drive-1, error=insert block device\n\nCaused by:\n    "
         "0: Failed to insert block device BlockDeviceConfigInfo { drive_id: \"drive-1\" }\n "
         "   1: timed out waiting on channel")),
        (5700, "send upcall result failed, due to SendError { .. }!"),
    ]),
    "disk-del-late": ("UP601 UP704", [
        *READY,
        (5010, "prepare remove block device"),
        (5260,
         ("Failed to prepare remove block device \"drive-1\"\n\nCaused by:\n    timed out "
         "waiting on channel")),
        (5700, "send upcall result failed, due to SendError { .. }!"),
    ]),
    "vfio-normal": ("", [
        *READY,
        (5000, "prepare to remove host device vfio-a"),
        (5001, "prepare remove VFIO device"),
        (5030, "send upcall result failed, due to SendError { .. }!"),
    ]),
    "disk-second": ("UP604? UP704?", [
        *READY,
        (5000,
         ("Failed to remove block device \"drive-4f2\"\n\nCaused by:\n    vmm action error: "
         "Block(UpdateNotAllowedPostBoot)")),
    ]),
    "fs": ("UP703", [
        *READY,
        (5000, "no support of shared-fs device hotplug"),
        (5001, "vmm action error: FsDevice(UpdateNotAllowedPostBoot)"),
    ]),
    "mem": ("UP703", [
        *READY,
        (5000,
         ("memory size unchanged, the request memory size 8192 is greater than the max memory "
         "size 4096")),
    ]),
    "vsock-limit": ("UP101?", [
        *READY,
        (5000, "vsock: connection limit reached; refusing new host connection"),
    ]),
    "shutdown-normal": ("", [
        *READY,
        (5000, "Received KVM_EXIT_SHUTDOWN signal"),
        (5001, "Vmm is stopping."),
        (5002, "Gracefully terminated VMM control loop"),
    ]),
    "shutdown-early": ("UP802?", [
        *INIT,
        (500, "Vmm is stopping."),
        (502, "Gracefully terminated VMM control loop"),
    ]),
    "startmicro": ("UP703", [
        *INIT,
        (500,
         "Failed to start MicroVm\n\nCaused by:\n    vmm action error: StartMicroVm(LoadKernel)"),
    ]),
    "save": ("UP703", [
        *READY,
        (500, "vmm action error: SaveMicrovm(MicrovmNotPaused)"),
    ]),
    "online-after-reset": ("UP605 UP705", [
        *READY,
        (5000, "resize vcpu: now: 1, desire: 3"),
        (5060, "upcall response failed upcall get response error: connection reset"),
        (5061, "get vcpu event, cpu_index 0 success Success"),
        (5070, "upcall connect server success"),
        (5080, "upcall connect service success"),
        (10100, "failed to online 2 CPU(s) after 100 retries"),
    ]),
    "online-alone": ("UP705?", [
        *READY,
        (10100,
         ("rpc status: Status { code: INTERNAL, message: \"failed to online 2 CPU(s) after "
         "100 retries\" }")),
    ]),
    "bridge": ("", [
        (8050,
         ("rpc status: Status { code: INTERNAL, message: \"Timeout after 3s waiting for "
         "uevent VirtioBlkPciMatcher { rex: "
         "Regex(\\\"^/devices/pci0000:00/0000:00:02.0/0000:01:03.0/virtio[0-9]+/block/\\\") "
         "}\" }")),
    ]),
    "uevent-mmio": ("UP705", [
        *READY,
        (8050,
         "Timeout after 3s waiting for uevent VirtioBlkMmioMatcher { suffix: \"/block/vdb\" }"),
    ]),
    "n0": ("UP605", [
        *READY,
        (5000, "resize vcpu: now: 1, desire: 3"),
        (5060, "get vcpu event, cpu_index 0 success Success"),
    ]),
    "gaveup": ("UP102 UP604", [
        *INIT,
        (6000, "upcall server's max reconnect time exceed"),
        (7000,
         "resize vcpus\n\nCaused by:\n    0: x\n    1: vmm action error: UpcallServerNotReady"),
    ]),
    "notbuilt": ("UP703", [
        (5000,
         ("We only support cpu resize through upcall server in the guest kernel now, please "
         "enable dbs-upcall feature.")),
    ]),
    "hot-add-mem-fail": ("UP606", [
        *READY,
        (4000,
         "we should get message from event handler when connection state is `ServiceConnected`"),
        (5000, "hot-add memory device: virtio-mem-0, size: 0x200MB."),
        (5001,
         ("failed to hot-add virtio-mem device virtio-mem-0, "
         "HotplugDevice(SendRequest(Kind(ConnectionReset)))")),
    ]),
    "rescpu-late10": ("UP601 UP702", [
        *READY,
        (5000, "resize vcpu: now: 1, desire: 2"),
        (5250,
         ("resize vcpus\n\nCaused by:\n    0: failed to do_resize_vcpus on new_vcpus=2\n    "
         "1: timed out waiting on channel")),
        (15080, "get vcpu event, cpu_index 0 success Failed"),
    ]),
    "500-booting": ("UP604", [
        *INIT,
        (6000, "After 500 attempts, it still doesn't work."),
    ]),
    "busyclient": ("UP604?", [
        *READY,
        (5000, "upcall is busy now"),
    ]),
    "unknown-action": ("UP703?", [
        *READY,
        (5000, "vmm action error: MachineConfig(InvalidVcpuCount(0))"),
    ]),
}  # fmt: skip
"""What is found, with `?` for what is possible only, and (milliseconds, message)."""

CONSOLE: Final[dict[str, tuple[str, Sequence[str]]]] = {
    "init-err": ("UP112?", [
        "[    1.1] db-upcall-srv: Init server err: -98",
    ]),
    "listen": ("UP112?", [
        "[    1.1] db-upcall-srv: Server vsock listen error",
        "[    1.1] db-upcall-srv: Init server err: -22",
    ]),
    "closed-late": ("UP104? UP105? UP106?", [
        "[   20.1] db-upcall-srv: Client connection closed, error code: -1",
    ]),
    "thread": ("UP106?", [
        "[   20.1] db-dev-mgr: db_devmgr_handler : Client process thread create failed, err: -12",
    ]),
    "notsent": ("UP605?", [
        "[   20.1] db-dev-mgr: add vcpu number: 1",
        "[   20.1] db-dev-mgr: adding vcpu apic_id 1",
        "[   30.1] db-dev-mgr: cpu event notification: apic ids index 1",
        "[   30.1] db-dev-mgr: db_devmgr_server : Server send message failed, err: -32",
    ]),
    "notpossible": ("UP211?", [
        "[   20.1] db-dev-mgr: del vcpu number : 1",
        "[   20.1] db-dev-mgr: deleting vcpu -1",
        "[   20.1] db-dev-mgr: cpu -1 cannot be deleted: cpu not possible",
        "[   20.1] db-dev-mgr: cpu event notification: apic ids index 0",
    ]),
    "busy": ("UP208?", [
        "[   20.1] db-dev-mgr: del vcpu number : 1",
        "[   20.1] db-dev-mgr: deleting vcpu 1",
        "[   20.1] db-dev-mgr: del vcpu failed, err: -16",
    ]),
    "plus1": ("UP214?", [
        "[   20.1] db-dev-mgr: del vcpu number : 1",
        "[   20.1] db-dev-mgr: deleting vcpu 1",
        "[   20.1] db-dev-mgr: del vcpu failed, err: 1",
        "[   20.1] db-dev-mgr: db_devmgr_process : Command run failed, err: 1",
    ]),
    "delfail-22": ("UP599?", [
        "[   20.1] db-dev-mgr: del vcpu number : 1",
        "[   20.1] db-dev-mgr: deleting vcpu 1",
        "[   20.1] db-dev-mgr: del vcpu failed, err: -22",
    ]),
    "reg-17": ("UP213?", [
        "[   20.1] db-dev-mgr: add vcpu number: 1",
        "[   20.1] db-dev-mgr: adding vcpu apic_id 1",
        "[   20.1] db-dev-mgr: cpu 1 cannot be added, register cpu failed -17",
    ]),
    "up-22": ("UP599?", [
        "[   20.1] db-dev-mgr: add vcpu number: 2",
        "[   20.1] db-dev-mgr: adding vcpu apic_id 1",
        "[   20.2] db-dev-mgr: adding vcpu apic_id 2",
        "[   20.1] db-dev-mgr: cpu 2 cannot be added, cpu up failed: -22",
    ]),
    "known-last": ("UP202?", [
        "[   20.1] db-dev-mgr: add vcpu number: 1",
        "[   20.1] db-dev-mgr: cpu cannot be added: apci_id 1 is already been used.",
    ]),
    "boot-cpu": ("UP205?", [
        "[   20.1] db-dev-mgr: del vcpu number : 2",
        "[   20.1] db-dev-mgr: deleting vcpu 1",
        "[   20.2] db-dev-mgr: cannot del bootstrap processor.",
    ]),
    "armdel": ("UP204?", [
        "[   20.1] db-dev-mgr: Current vcpu number: 4, Delete vcpu number: 4",
        "[   20.2] db-dev-mgr: cpu del parameter check error: cannot remove all vcpus",
    ]),
    "armoops": ("UP210?", [
        "[   20.1] db-dev-mgr: Current vcpu number: 4, Add vcpu number: 1",
        ("[   20.2] Unable to handle kernel NULL pointer dereference at virtual address "
        "0000000000000080"),
        "[   20.2] Internal error: Oops: 0000000096000006 [#1] SMP",
        "[   20.2] CPU: 1 PID: 160 Comm: db_dev_mgr Not tainted 6.1.192 #1",
    ]),
    "nobus": ("UP401?", [
        "[   20.1] db-dev-mgr: add pci device of busno: 07, devfn: 18",
        "[   20.1] db-dev-mgr: Could not find PCI bus for busno 07",
    ]),
    "noslot-del": ("UP403?", [
        "[   20.1] db-dev-mgr: remove pci device of busno: 00, devfn: 18",
        "[   20.1] db-dev-mgr: Could not find PCI device for slot 18",
    ]),
    "pcidel-oops": ("UP607?", [
        "[   20.1] db-dev-mgr: remove pci device of busno: 00, devfn: 18",
        ("[   20.2] general protection fault, probably for non-canonical address 0xdead: 0000 "
        "[#1] SMP"),
        "[   20.2] CPU: 1 PID: 160 Comm: db_dev_mgr Not tainted 6.1.192 #1",
    ]),
    "cpuhp": ("UP607?", [
        "[   20.1] db-dev-mgr: add vcpu number: 1",
        "[   20.1] db-dev-mgr: adding vcpu apic_id 1",
        "[   20.2] BUG: unable to handle page fault for address: ffffb0c000013000",
        "[   20.2] Oops: 0000 [#1] SMP",
        "[   20.2] CPU: 1 PID: 13 Comm: cpuhp/1 Not tainted 6.1.192 #1",
    ]),
    "hung-only": ("UP603?", [
        "[   20.1] db-dev-mgr: add vcpu number: 1",
        "[   20.1] db-dev-mgr: adding vcpu apic_id 1",
        "[  245.1] INFO: task db_dev_mgr:112 blocked for more than 122 seconds.",
    ]),
    "hung-mmio": ("UP310? UP603?", [
        "[   20.1] virtio-mmio: Registering device virtio-mmio.4 at 0xe0008000-0xe0009fff, IRQ 9.",
        "[  245.1] INFO: task db_dev_mgr:112 blocked for more than 122 seconds.",
    ]),
    "panic": ("UP802?", [
        "[   20.1] db-dev-mgr: add vcpu number: 1",
        "[   20.1] db-dev-mgr: adding vcpu apic_id 1",
        "[  25.1] Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled",
        "[  25.1] ---[ end Kernel panic - not syncing: Out of memory ]---",
    ]),
    "balloon": ("UP307?", [
        "[   20.1] virtio-mmio: Registering device virtio-mmio.4 at 0xe0008000-0xe0009fff, IRQ 5.",
        "[   20.1] virtio_balloon: probe of virtio6 failed with error -12",
    ]),
    "mem": ("UP307?", [
        "[   20.1] virtio-mmio: Registering device virtio-mmio.4 at 0xe0008000-0xe0009fff, IRQ 5.",
        "[   20.1] virtio_mem virtio6: start address: 0x100000000",
        "[   20.3] virtio_mem virtio6: adding memory failed: -17",
    ]),
    "virtiopci": ("UP404?", [
        "[   20.1] db-dev-mgr: add pci device of busno: 00, devfn: 18",
        "[   20.1] virtio-pci 0000:00:03.0: probe with driver virtio-pci failed with error -28",
    ]),
    "refuses": ("UP404?", [
        "[   20.1] db-dev-mgr: add pci device of busno: 00, devfn: 18",
        "[   20.1] virtio_blk virtio4: virtio: device refuses features: 0",
    ]),
    "irq-1": ("UP307?", [
        "[   20.1] virtio-mmio: Registering device virtio-mmio.4 at 0xe0008000-0xe0009fff, IRQ -1.",
    ]),
    "mmio-oops": ("UP309?", [
        "[   20.1] BUG: kernel NULL pointer dereference, address: 0000000000000020",
        "[   20.1] Oops: 0000 [#1] SMP",
        "[   20.1] CPU: 0 PID: 36 Comm: db_dev_mgr Not tainted 5.10.223 #1",
        "[   20.1]  ? virtio_mmio_add_device+0x2f/0x6a",
    ]),
    "magic": ("UP307?", [
        "[   20.1] virtio-mmio: Registering device virtio-mmio.4 at 0xe0008000-0xe0009fff, IRQ 5.",
        "[   20.1] virtio-mmio virtio-mmio.4: Wrong magic value 0x00000000!",
    ]),
    "del-oops-1id": ("UP206?", [
        "[   20.1] db-dev-mgr: del vcpu number : 1",
        "[   20.1] BUG: unable to handle page fault for address: ffffb0c000013000",
        "[   20.1] Oops: 0000 [#1] SMP",
        "[   20.1] CPU: 0 PID: 36 Comm: db_dev_mgr Not tainted 5.10.223 #1",
    ]),
    "oops-cut": ("UP206?", [
        "[   20.1] db-dev-mgr: del vcpu number : 1",
        "[   20.1] BUG: unable to handle page fault for address: ffffb0c000013000",
        "[   20.1] Oops: 0000 [#1] SMP",
    ]),
    "hostdmesg": ("", [
        "[    0.0] Linux version 6.8.0-45-generic (buildd@lcy02) #45-Ubuntu SMP",
        "[    2.1] systemd[1]: Started foo",
    ]),
}  # fmt: skip


def entries(lines: Sequence[Line], sandbox: str = SANDBOX) -> bytes:
    """A journal of one guest."""
    return json_lines(
        {"__REALTIME_TIMESTAMP": str(FIRST_US + ms * 1000), "_PID": "41017", "SOURCE": sandbox,
         "SYSLOG_IDENTIFIER": "kata", "SUBSYSTEM": "root", "MESSAGE": message}
        for ms, message in lines
    )  # fmt: skip


def told(path: Path, raw: bytes) -> str:
    (path / "log").write_bytes(raw)
    found = read_logs(found=[path / "log"]).findings()
    return " ".join(f.code + ("?" if f.inferred else "") for f in found)


@pytest.mark.parametrize("name", VMM)
def test_a_vmms_log(tmp_path: Path, name: str) -> None:
    expected, lines = VMM[name]
    assert told(tmp_path, entries(lines)) == expected


@pytest.mark.parametrize("name", CONSOLE)
def test_a_console(tmp_path: Path, name: str) -> None:
    expected, lines = CONSOLE[name]
    assert told(tmp_path, "".join(f"{line}\n" for line in lines).encode()) == expected


def test_a_loop_of_refusals_and_a_flood(tmp_path: Path) -> None:
    refused = "upcall connect server check failed, upcall server connect error: connection reset"
    loop = [(100 + 10 * n, refused) for n in range(501)]
    assert told(tmp_path, entries([*INIT, *loop])) == "UP102"
    assert told(tmp_path, entries([*INIT, *loop, *READY[2:]])) == ""
    flood = "we should get message from event handler when connection state is `ServiceConnected`"
    assert told(tmp_path, entries([*READY, *((5000 + n, flood) for n in range(3000))])) == "UP606?"


def test_a_process_that_the_host_killed_is_the_sandboxs(tmp_path: Path) -> None:
    killed = {
        "__REALTIME_TIMESTAMP": str(FIRST_US + 9_000_000), "SYSLOG_IDENTIFIER": "kernel",
        "MESSAGE": "Memory cgroup out of memory: Killed process 41017 (containerd-shim) total-vm:1",
    }  # fmt: skip
    other = {**killed, "MESSAGE": "Out of memory: Killed process 41017 (nginx) total-vm:1"}
    assert told(tmp_path, entries(READY) + json_lines([killed])) == "UP802"
    assert told(tmp_path, entries(READY) + json_lines([other])) == ""


def test_containerds_copy_of_an_error_is_not_told_again(tmp_path: Path) -> None:
    error = 'Others("resize\\n\\nCaused by:\\n    0: vmm action error: UpcallServerNotReady")'
    raw = entries([*INIT, (4000, "resize vcpus: vmm action error: UpcallServerNotReady")])
    assert told(tmp_path, raw + f"ctr: {error}: unknown\n".encode()) == "UP604"
    assert told(tmp_path, f"ctr: {error}: unknown\n".encode()) == "UP604?"


def test_lines_of_two_connections_at_one_time_keep_to_their_operations(tmp_path: Path) -> None:
    """While a CPU does not start, another connection plugs a PCI device."""
    lines = [
        "[    3.2] db-dev-mgr: add vcpu number: 2",
        "[    3.2] db-dev-mgr: adding vcpu apic_id 1",
        "[    3.3] db-dev-mgr: adding vcpu apic_id 2",
        "[    4.9] db-dev-mgr: add pci device of busno: 00, devfn: 30",
        "[   13.4] db-dev-mgr: cpu 2 cannot be added, cpu up failed: -5",
        "[   13.4] db-dev-mgr: db_devmgr_process : Command run failed, err: -5",
        "[   13.5] db-dev-mgr: db_devmgr_process : Command run failed, err: -17",
    ]
    raw = "".join(f"{line}\n" for line in lines).encode()
    assert told(tmp_path, raw) == "UP201? UP209? UP301? UP302?"
