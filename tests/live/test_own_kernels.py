"""A user's own kernel with ACPI: what is plugged stays hidden until upcall tells the guest.

The kernels are Debian's of two series, with our module in the place of Kata's drivers. It assigns
no BARs, as Kata's assigns none. What appears when is read off the guest's own STATE lines.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import Request, cpu_request, pci_request
from tests.live.conftest import Start
from upcall_trace.control.target_note import read_target_note
from upcall_trace.errors import Unreachable
from upcall_trace.lab import pieces
from upcall_trace.lab.initramfs import initramfs_for
from upcall_trace.lab.machines import PC
from upcall_trace.lab.process import LiveGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient

NEWER = "linux-image-6.12-cloud-amd64"
PACKAGES = [
    pytest.param(pieces.KERNEL_PACKAGE, "6.1", id="6.1"),
    pytest.param(NEWER, "6.12", id="6.12", marks=pytest.mark.torture),
]
TABLE = """
what happened       ret  CPUs  disks
booted              -    0     vda vdb
plug-disk 9         -    0     vda vdb
add-pci 0 9         0    0     vda vdb vdc
start-vcpu 1        -    0     vda vdb vdc
add-cpu 1           0    0,1   vda vdb vdc
start-vcpu 3        -    0,1   vda vdb vdc
del-pci 0 9         0    0,1   vda vdb
unplug-disk 9       -    0,1   vda vdb
"""
LOOKS_S = 0.6
"""The guest's init looks five times a second."""


class Table:
    """What the guest has, line by line."""

    def __init__(self, guest: LiveGuest) -> None:
        self._guest = guest
        self.lines = ["", "what happened       ret  CPUs  disks"]

    def row(self, what: str, ret: object = "-") -> None:
        time.sleep(LOOKS_S)
        state = self._guest.state()
        cpus = ",".join(map(str, state["cpus_online"]))
        self.lines.append(f"{what:<19} {ret!s:<4} {cpus:<5} {' '.join(state['disks'])}")

    def order(self, what: str, **order: object) -> None:
        self._guest.order(dict(order))
        self.row(what)

    def ask(self, what: str, client: UpcallClient, request: Request) -> None:
        answer = client.ask(request.encode(), 20)
        assert answer is not None, what
        self.row(what, answer.reply.ret)


@pytest.mark.parametrize(("package", "series"), PACKAGES)
def test_what_appears_when(
    lab_pieces: pieces.Kernel, live_guest: Start, package: str, series: str
) -> None:
    try:
        kernel = pieces.fetch_kernel(package, print)
    except Unreachable as error:
        pytest.skip(f"NO SECOND KERNEL: {error}")
    words = f"lab_modules={','.join(PC.modules)} lab_cpus=4 lab_bars=0"
    guest = live_guest("--machine", "pc", "--kernel", kernel.image,
                       "--initrd", initramfs_for(kernel, print), "--append", words)  # fmt: skip
    guest.wait_for(lambda state: "cpus_online" in state)
    note = read_target_note(Path(guest.address))
    assert note is not None
    assert (note.world.kernel, note.world.nr_cpu_ids, note.world.cpus_online) == (series, 4, (0,))
    table = Table(guest)
    table.row("booted")
    table.order("plug-disk 9", plug_disk=9)
    with UpcallClient(UnixAddress(guest.address)) as client:
        table.ask("add-pci 0 9", client, pci_request(MessageType.ADD_PCI, 0, 9))
        table.order("start-vcpu 1", start_vcpu=1)
        table.ask("add-cpu 1", client, cpu_request(MessageType.ADD_CPU, [1]))
        table.order("start-vcpu 3", start_vcpu=3)
        table.ask("del-pci 0 9", client, pci_request(MessageType.DEL_PCI, 0, 9))
    table.order("unplug-disk 9", unplug_disk=9)
    assert "\n".join([*table.lines, ""]) == TABLE
