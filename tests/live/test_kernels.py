"""A user's own kernel: a good one works, and of a bad one the lab says what is wrong with it.

The kernel is the stock one each time; what makes it good or bad is the file system it gets.
"""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import cpu_request
from tests.live.conftest import Start
from upcall_trace.errors import Unreachable
from upcall_trace.lab.initramfs import initramfs_for
from upcall_trace.lab.machines import MICROVM, PC
from upcall_trace.lab.pieces import Kernel
from upcall_trace.lab.process import LiveGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient

OUR_MODULE = "insmod /modules/upcall_lab.ko boot_mmio=0xfeb00000,0x200,5"
MODULES = f"lab_modules={','.join(MICROVM.modules)}"


def file_system(kernel: Kernel, tmp_path: Path, beginning: str, module: str) -> Path:
    """The lab's own, with an init that begins differently and loads our module or does not."""
    tree = tmp_path / "tree"
    tree.mkdir()
    packed = gzip.decompress(initramfs_for(kernel, print).read_bytes())
    subprocess.run(["cpio", "--quiet", "-id"], input=packed, cwd=tree, check=True)
    init = (tree / "init").read_text("utf-8").split("\n")
    inserts = next(number for number, line in enumerate(init) if "upcall_lab.ko" in line)
    init[inserts] = f"    {module}"
    init.insert(next(number for number, line in enumerate(init) if line == "IFS=,"), beginning)
    (tree / "init").write_text("\n".join(init), "utf-8")
    names = "\n".join(str(path.relative_to(tree)) for path in tree.rglob("*"))
    made = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        input=names.encode(),
        cwd=tree,
        capture_output=True,
        check=True,
    )
    archive = tmp_path / "initrd"
    archive.write_bytes(made.stdout)
    return archive


def refused(kernel: Path, *options: str | Path) -> str:
    """What `lab up` says about a kernel."""
    with pytest.raises(Unreachable) as raised:
        LiveGuest("--machine", "microvm", "--kernel", kernel, *options)
    return str(raised.value)


def test_a_kernel_with_upcall_and_a_file_system_of_its_own(
    lab_pieces: Kernel, live_guest: Start, tmp_path: Path
) -> None:
    archive = file_system(lab_pieces, tmp_path, MODULES, OUR_MODULE)
    guest = live_guest("--machine", "microvm", "--kernel", lab_pieces.image, "--initrd", archive)
    with UpcallClient(UnixAddress(guest.address)) as client:
        answer = client.ask(cpu_request(MessageType.DEL_CPU, [0]).encode(), 5)
    assert answer is not None
    assert answer.reply.ret == -22
    guest.wait_for(lambda state: state.get("virtio") == ["virtio0"])


@pytest.mark.torture
def test_a_kernel_without_vsock(lab_pieces: Kernel, labs_directory: Path) -> None:
    assert "has no virtio vsock device" in refused(lab_pieces.image)


@pytest.mark.torture
def test_a_kernel_without_upcall(lab_pieces: Kernel, labs_directory: Path, tmp_path: Path) -> None:
    archive = file_system(lab_pieces, tmp_path, f"lab_modules={','.join(PC.modules)}", ":")
    said = refused(lab_pieces.image, "--machine", "pc", "--initrd", archive)
    assert "has no upcall server" in said


def test_a_kernel_that_panics(lab_pieces: Kernel, labs_directory: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "initrd"
    nothing.write_bytes(b"")
    said = refused(lab_pieces.image, "--initrd", nothing)
    assert said.startswith("the guest's kernel panicked: ")
    assert "root fs" in said


@pytest.mark.torture
def test_a_guest_that_hangs(lab_pieces: Kernel, labs_directory: Path, tmp_path: Path) -> None:
    stuck = "while :; do echo stuck in a loop >/dev/kmsg; sleep 1; done"
    archive = file_system(lab_pieces, tmp_path, stuck, ":")
    said = refused(lab_pieces.image, "--initrd", archive, "--boot-limit", "6")
    assert said.startswith("the guest does not come up; its console ends with: ")
    assert said.endswith("stuck in a loop")


def test_a_file_that_is_no_kernel(lab_pieces: Kernel, labs_directory: Path, tmp_path: Path) -> None:
    novel = tmp_path / "novel"
    novel.write_text("It was a dark and stormy night.\n" * 100)
    said = refused(novel)
    assert "qemu ended with 1 and said: " in said
    assert "kernel" in said
