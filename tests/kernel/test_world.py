"""Worlds: the file they are read from, what it may not say, and the default Kata pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from dissectors.constants import Arch
from tests.support import GOLDEN
from upcall_trace.errors import UnreadableInput, WrongUsage
from upcall_trace.kernel.model import Guest
from upcall_trace.kernel.world import (
    SERIES,
    PciDevice,
    Window,
    World,
    choose_world,
    kata_pod,
    load_worlds,
)


def written(directory: Path, text: str) -> Path:
    path = directory / "w.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_recorded_machines() -> None:
    worlds = load_worlds(GOLDEN / "worlds.toml")
    devices = (Window(0xFEB00000, 0x200, 5), Window(0xFEB00200, 0x200, 6))
    others = tuple(Window(0xFEB00000 + n * 0x200, 0x200, 5 + n) for n in range(2, 8))
    four = (0, 1, 2, 3)
    assert worlds == {
        "microvm": World(
            "6.1",
            nr_cpu_ids=4,
            cpus_online=four,
            vcpus_running=four,
            mmio=devices,
            mmio_hidden=others,
        ),
        "microvm_6_12": World(
            "6.12",
            nr_cpu_ids=4,
            cpus_online=four,
            boot_table=four,
            vcpus_running=four,
            mmio=devices,
            mmio_hidden=others,
        ),
        "pc": World(
            "6.1",
            nr_cpu_ids=4,
            pci=tuple(PciDevice(0, slot) for slot in (0, 1, 3, 4, 6, 8, 16)),
        ),
        "aarch64": World(
            "6.1",
            Arch.AARCH64,
            nr_cpu_ids=4,
            cpus_online=(0, 1),
            vcpus_running=four,
            pci=(PciDevice(0, 0), PciDevice(0, 4)),
            max_irq=987,
        ),
        "microvm_5_10": World(
            "5.10",
            nr_cpu_ids=4,
            cpus_online=four,
            vcpus_running=four,
            mmio=(Window(0xFEB00000, 0x200, 5, "vsock"), Window(0xFEB00200, 0x200, 6)),
            mmio_hidden=others,
            iomem=(
                (0x0, 0xFFF),
                (0x1000, 0x9FBFF),
                (0x9FC00, 0x9FFFF),
                (0xD0000, 0xEFFFF),
                (0xF0000, 0xFFFFF),
                (0x100000, 0x1FFFFFFF),
                (0xFEE00000, 0xFEE00FFF),
            ),
        ),
        "pc_5_10": World(
            "5.10",
            nr_cpu_ids=4,
            pci=(
                *(PciDevice(0, slot) for slot in (0, 1)),
                *(PciDevice(0, 1, function) for function in (1, 3)),
                PciDevice(0, 3, role="vsock"),
                *(PciDevice(0, slot) for slot in (4, 6, 8, 16)),
            ),
            needs_boot_mmio=True,
        ),
    }
    assert [name for name, world in worlds.items() if not world.is_old] == ["microvm_6_12"]


def test_every_key(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [all]
        kernel = "6.18"
        arch = "x86_64"
        nr_cpu_ids = 0x10
        cpus_online = [0, 2]
        boot_table = [0, 2, 4]
        vcpus_running = [0, 2, 4, 255]
        mmio = [{ base = 0xfeb00000, size = 1, irq = 0xffffffff, role = "vsock" }]
        mmio_hidden = [{ base = 0xd0000000, size = 2, irq = 9, probe_ms = 3000 }]
        pci = [{ bus = 255, slot = 31, function = 7, role = "blk", probe_ms = 7 }]
        pci_buses = [1]
        iomem = [{ base = 0x1000, size = 0x1000 }]
        phys_bits = 40
        max_irq = 0
        needs_boot_mmio = true
        """,
    )
    (world,) = load_worlds(path).values()
    assert world == World(
        kernel="6.18",
        arch=Arch.X86_64,
        nr_cpu_ids=16,
        cpus_online=(0, 2),
        boot_table=(0, 2, 4),
        vcpus_running=(0, 2, 4, 255),
        mmio=(Window(0xFEB00000, 1, 0xFFFFFFFF, "vsock"),),
        mmio_hidden=(Window(0xD0000000, 2, 9),),
        pci=(PciDevice(255, 31, 7),),
        pci_buses=(1,),
        iomem=((0x1000, 0x1FFF),),
        phys_bits=40,
        max_irq=0,
        needs_boot_mmio=True,
    )
    # These are no part of a comparison.
    assert (world.pci[0].role, world.pci[0].probe_ms) == ("blk", 7)
    assert world.mmio_hidden[0].probe_ms == 3000


def test_what_is_left_out(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[empty]\n[cpus]\nnr_cpu_ids = 2\ncpus_online = [0, 3]\n[new]\nkernel = "6.12"\n',
    )
    worlds = load_worlds(path)
    assert worlds["empty"] == World()
    assert worlds["cpus"].vcpus_running == (0, 3)
    assert worlds["cpus"].boot_table == ()
    assert worlds["new"].boot_table == (0,)


QEMU = """
[machine]
mmio = [
  { base = 0xfeb00000, size = 0x200, irq = 5 },
  { base = 0xfeb00400, size = 0x200, irq = 7 },
]
"""


def test_the_other_transports_of_qemus_microvm_are_disks_unless_the_file_says_otherwise(
    tmp_path: Path,
) -> None:
    (world,) = load_worlds(written(tmp_path, QEMU)).values()
    assert [(window.base, window.irq) for window in world.mmio_hidden] == [
        (0xFEB00000 + n * 0x200, 5 + n) for n in (1, 3, 4, 5, 6, 7)
    ]
    for other in (QEMU + "mmio_hidden = []\n", QEMU.replace("irq = 7", "irq = 8"), "[pod]"):
        (world,) = load_worlds(written(tmp_path, other)).values()
        assert world.mmio_hidden == ()


MISTAKES = {
    "colour = 1": "has an unknown key 'colour'; known are kernel, arch, nr_cpu_ids, ",
    'kernel = "6.2"': "kernel must be one of 5.10, 6.1, 6.12, 6.18, not '6.2'",
    "kernel = 6.1": "kernel must be one of 5.10, 6.1, 6.12, 6.18, not 6.1",
    'arch = "arm64"': "arch must be one of x86_64, aarch64, not 'arm64'",
    "nr_cpu_ids = 0": "nr_cpu_ids must be a number from 1 to 0x2000, not 0",
    "nr_cpu_ids = true": "nr_cpu_ids must be a number from 1 to 0x2000, not True",
    "nr_cpu_ids = 2.0": "nr_cpu_ids must be a number from 1 to 0x2000, not 2.0",
    "cpus_online = 4": "cpus_online is not an array",
    "cpus_online = []": "cpus_online is empty",
    "cpus_online = [0, 256]": "cpus_online[1] must be a number from 0 to 0xff, not 256",
    "cpus_online = [0, 1]": "cpus_online has more CPUs than nr_cpu_ids",
    "nr_cpu_ids = 2\ncpus_online = [0, 0]": "cpus_online names a CPU twice",
    "boot_table = [0, 1, 1]": "boot_table names a CPU twice",
    'boot_table = ["0"]': "boot_table[0] must be a number from 0 to 0xff, not '0'",
    "vcpus_running = [-1]": "vcpus_running[0] must be a number from 0 to 0xff, not -1",
    'arch = "aarch64"\ncpus_online = [1]': "cpus_online must have 0 and numbers below nr_cpu_ids",
    'arch = "aarch64"\nnr_cpu_ids = 2\ncpus_online = [0, 2]': "cpus_online must have 0 and ",
    "mmio = [7]": "mmio[0] is not a table",
    "mmio = { base = 1, size = 1, irq = 5 }": "mmio is not an array",
    "mmio = [{ base = 1, irq = 5 }]": "mmio[0] has no 'size'",
    "mmio = [{ base = 1, size = 0, irq = 5 }]": "mmio[0].size must be a number from 1 to ",
    "mmio = [{ base = 1, size = 1, irq = -5 }]": "mmio[0].irq must be a number from 0 to ",
    'mmio = [{ base = "1", size = 1, irq = 5 }]': "mmio[0].base must be a number from 0 to ",
    "mmio = [{ base = 1, size = 1, irq = 5, role = 1 }]": "mmio[0].role must be a text, not 1",
    "mmio = [{ base = 1, size = 1, irq = 5, kind = 1 }]": "mmio[0] has an unknown key 'kind'; ",
    "pci = [{ bus = 0, slot = 1 }, { bus = 0 }]": "pci[1] has no 'slot'",
    "pci = [{ bus = 256, slot = 1 }]": "pci[0].bus must be a number from 0 to 0xff, not 256",
    "pci = [{ bus = 0, slot = 32 }]": "pci[0].slot must be a number from 0 to 0x1f, not 32",
    "pci = [{ bus = 0, slot = 1, function = 8 }]": "pci[0].function must be a number from 0 ",
    "pci_buses = [300]": "pci_buses[0] must be a number from 0 to 0xff, not 300",
    "iomem = [{ base = 0 }]": "iomem[0] has no 'size'",
    "iomem = [{ base = 0, size = 0 }]": "iomem[0].size must be a number from 1 to ",
    "phys_bits = 53": "phys_bits must be a number from 32 to 0x34, not 53",
    "max_irq = 4294967296": "max_irq must be a number from 0 to 0xffffffff, not 4294967296",
    "needs_boot_mmio = 1": "needs_boot_mmio must be true or false, not 1",
}
"""What stands in a table, and what is said of it."""


def complaint(path: Path) -> str:
    with pytest.raises(UnreadableInput) as raised:
        load_worlds(path)
    said = str(raised.value)
    assert said.startswith(f"{path}: [x] ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: [x] ")


@pytest.mark.parametrize(("text", "answer"), MISTAKES.items())
def test_a_mistake_is_answered_with_its_table_and_key(
    tmp_path: Path, text: str, answer: str
) -> None:
    assert complaint(written(tmp_path, f"[first]\n[x]\n{text}\n")).startswith(answer)


@pytest.mark.parametrize("text", ["x = 3", "[[x]]"])
def test_what_is_no_table_is_named(tmp_path: Path, text: str) -> None:
    assert complaint(written(tmp_path, text)) == "is not a table"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="No such file"):
        load_worlds(tmp_path / "gone")
    with pytest.raises(UnreadableInput, match="Is a directory"):
        load_worlds(tmp_path)
    for raw in (b"[x", b"\xff\xfe", b"x = " + b"[" * 50_000):
        (tmp_path / "bad").write_bytes(raw)
        with pytest.raises(UnreadableInput, match="bad is not a TOML file: "):
            load_worlds(tmp_path / "bad")


def test_choosing_a_machine() -> None:
    one, two = World(), World("6.12")
    assert choose_world({"a": one}, None) is one
    assert choose_world({"a": one, "b": two}, "b") is two
    with pytest.raises(WrongUsage, match="several machines; choose one with --machine: a, b"):
        choose_world({"a": one, "b": two}, None)
    with pytest.raises(WrongUsage, match="no machine 'c' in the file; there are: a, b"):
        choose_world({"a": one, "b": two}, "c")
    for name in (None, "a"):
        with pytest.raises(WrongUsage, match="the file has no machine"):
            choose_world({}, name)


# The default pod, docs/protocol.md section 5.


@pytest.mark.parametrize("kernel", SERIES)
def test_a_kata_pod_on_x86(kernel: str) -> None:
    pod = kata_pod(kernel=kernel, cpus=2)
    assert (pod.kernel, pod.arch, pod.cpus_online) == (kernel, Arch.X86_64, (0, 1))
    assert [(w.base, w.size, w.irq) for w in pod.mmio] == [
        (0xE0000000, 0x2000, 5),
        (0xE0002000, 0x2000, 5),
        (0xE0004000, 0x2000, 5),
    ]
    assert PciDevice(0, 1) in pod.pci
    assert set(pod.vcpus_running) == set(pod.boot_table) == set(range(32))


def test_a_kata_pod_on_arm() -> None:
    pod = kata_pod(Arch.AARCH64)
    assert pod.mmio[0] == Window(0x60103000, 0x2000, 32, "blk")
    assert {window.irq for window in pod.mmio} == {32}


@pytest.mark.parametrize("arch", Arch)
def test_in_a_kata_pod_one_device_is_the_channels_own(arch: Arch) -> None:
    roles = [window.role for window in kata_pod(arch).mmio]
    assert roles == ["blk", "fs", "vsock"]
    assert len(Guest(kata_pod(arch)).windows) == 3
