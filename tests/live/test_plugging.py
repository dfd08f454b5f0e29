"""What upcall is for, in a running kernel: each thing comes and goes, seen by the guest itself.

All of it passes the capture proxy while the guest watches from inside, and the two recordings
tell the same operations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dissectors.constants import MessageType
from dissectors.messages import Request, cpu_request, mmio_request, pci_request
from tests.live.conftest import Start
from upcall_trace.lab.machines import hidden_disks
from upcall_trace.lab.process import LiveGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.trace.opening import load
from upcall_trace.views.json_objects import operation_object

MIB = 1 << 20


class Recorded:
    """A guest that is recorded outside and inside, and one connection to it."""

    def __init__(self, guest: LiveGuest, capture: Path) -> None:
        self.guest = guest
        self.capture = capture
        self.client = UpcallClient(UnixAddress(guest.address))

    def ask(self, request: Request, timeout_s: float = 20.0) -> int:
        """The reply's `ret`."""
        answer = self.client.ask(request.encode(), timeout_s)
        assert answer is not None
        return answer.reply.ret

    def operations(self, file: str) -> list[dict[str, Any]]:
        """What a recording tells, times aside."""
        capture = load(self.capture / file)
        found = [
            operation_object(capture.operations.operation(number))
            for number in range(len(capture.operations))
        ]
        for operation in found:
            del operation["t_ns"], operation["latency_ns"]
        return found


def test_cpus_pci_disks_and_memory_come_and_go_on_pc(live_guest: Start, tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    pc = Recorded(live_guest("--machine", "pc", "--capture", capture), capture)
    a_vcpu_comes_up_and_goes(pc)
    a_pci_disk_appears_and_goes(pc)
    memory_grows_by_256_mib_and_shrinks(pc)
    the_proxy_and_the_guest_recorded_the_same(pc)
    assert [vmm.action for vmm in load(capture / "proxy.upcap").vmm] == [
        "vCPU 1 created",
        "PCI device 0:9 plugged",
        "PCI device 0:9 unplugged",
        "virtio-mem requested-size 256 MiB",
        "virtio-mem requested-size 0",
    ]


def test_mmio_disks_come_and_go_on_microvm(live_guest: Start, tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    microvm = Recorded(live_guest("--machine", "microvm", "--capture", capture), capture)
    an_mmio_disk_appears_and_goes(microvm)
    the_proxy_and_the_guest_recorded_the_same(microvm)


def a_vcpu_comes_up_and_goes(pc: Recorded) -> None:
    assert pc.guest.state()["cpus_online"] == [0]
    pc.guest.order({"start_vcpu": 1})
    assert pc.ask(cpu_request(MessageType.ADD_CPU, [1])) == 0
    pc.guest.wait_for(lambda state: state["cpus_online"] == [0, 1])
    assert "processor\t: 1\n" in pc.guest.shell("cat /proc/cpuinfo").output
    assert pc.ask(cpu_request(MessageType.DEL_CPU, [1])) == 0
    pc.guest.wait_for(lambda state: state["cpus_online"] == [0])


def a_pci_disk_appears_and_goes(pc: Recorded) -> None:
    assert pc.guest.order({"plug_disk": True})["pci"] == {"bus": 0, "slot": 9}
    assert pc.guest.state()["disks"] == ["vda", "vdb"]  # the guest does not notice by itself
    assert pc.ask(pci_request(MessageType.ADD_PCI, 0, 9)) == 0
    pc.guest.wait_for(lambda state: state["disks"] == ["vda", "vdb", "vdc"])
    assert pc.guest.shell("head -c 4096 /dev/vdc | wc -c").output.strip() == "4096"
    assert pc.ask(pci_request(MessageType.DEL_PCI, 0, 9)) == 0
    pc.guest.wait_for(lambda state: state["disks"] == ["vda", "vdb"])
    pc.guest.order({"unplug_disk": 9})
    assert pc.ask(pci_request(MessageType.ADD_PCI, 0, 9)) == -19


def memory_grows_by_256_mib_and_shrinks(pc: Recorded) -> None:
    before = pc.guest.state()["memory_kib"]
    pc.guest.order({"resize_memory": 256 * MIB})
    pc.guest.wait_for(lambda state: state["memory_kib"] == before + 256 * 1024)
    pc.guest.order({"resize_memory": 0})
    pc.guest.wait_for(lambda state: state["memory_kib"] == before)


def an_mmio_disk_appears_and_goes(microvm: Recorded) -> None:
    disk = hidden_disks()[0]
    where = (disk.base, disk.size, disk.irq)
    assert microvm.guest.state()["disks"] == ["vda"]
    assert microvm.ask(mmio_request(MessageType.ADD_MMIO, *where)) == 0
    microvm.guest.wait_for(lambda state: state["disks"] == ["vda", "vdb"])
    assert microvm.guest.shell("head -c 4096 /dev/vdb | wc -c").output.strip() == "4096"
    assert microvm.ask(mmio_request(MessageType.ADD_MMIO, *where)) == -17
    assert microvm.ask(mmio_request(MessageType.DEL_MMIO, *where)) == 0
    microvm.guest.wait_for(lambda state: state["disks"] == ["vda"])


def the_proxy_and_the_guest_recorded_the_same(recorded: Recorded) -> None:
    # Another connection, and a request in two pieces: where it was cut is seen at both places.
    with UpcallClient(UnixAddress(recorded.guest.address)) as second:
        raw = pci_request(MessageType.DEL_PCI, 7, 7).encode()
        assert second.ask(raw[:20], 5.0) is not None
        assert second.ask(raw[20:], 5.0) is not None
    recorded.client.close()
    said = recorded.guest.close()
    assert "console.log, proxy.upcap, vsockmon.pcap" in said
    outside = recorded.operations("proxy.upcap")
    assert outside == recorded.operations("vsockmon.pcap")
    assert len(outside) >= 5
    assert "STATE cpus=0" in (recorded.capture / "console.log").read_text("utf-8", "replace")
    assert load(recorded.capture / "proxy.upcap").complete
