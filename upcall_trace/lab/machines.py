"""The machines that the lab boots: QEMU's arguments, the kernel's command line, and the world.

One table for each machine, so that what QEMU is given, what the guest is told and what the model
is told cannot differ. docs/lab.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..kernel.world import PciDevice, Window, World

MEMORY_MIB: Final = 512
GUEST_CID: Final = 3
SHELL_PORT: Final = 1022
"""Where the guest's agent takes commands, a vsock port of the guest."""
DUMP_PORT: Final = 1023
"""Where the guest's agent sends what vsockmon saw, a vsock port of the host."""
DISK_SIZE: Final = 8 << 20
TRANSPORT_BASE: Final = 0xFEB00000
TRANSPORT_SIZE: Final = 0x200
FIRST_IRQ: Final = 5
_TRANSPORT_DISKS: Final = 5
"""On transports 1 to 5; the first one is registered at boot, like the channel on transport 0."""
VSOCK_SLOT: Final = 3
MEMORY_SLOT: Final = 8
MEMORY_ID: Final = "vmem0"
GROWN_MEMORY_MIB: Final = 1024
"""What the virtio-mem device can grow to."""
_DISK_SLOTS: Final = (4, 6)
APIC_IDS: Final = 64
"""Ids 0 to 63 can be started on `pc`."""
_PHYSICAL: Final = 9
"""With room for so many CPUs the kernel addresses each by its own id, and not by a bit of a mask.

QEMU 7.2 loses what is sent to a mask when ids are missing below the addressed one, and the guest
stands still for seconds. So the kernel has room for more, and the module for what was asked for.
"""
_BUS: Final = ("virtio_ring", "virtio")
_DRIVERS: Final = (
    "virtio_blk",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "vsockmon",
)


@dataclass(frozen=True, slots=True)
class LabMachine:
    """A machine that QEMU can be; `modules` are the stock kernel's, in the order to load them."""

    name: str
    modules: tuple[str, ...]
    default_cpus: int
    most_cpus: int


MICROVM: Final = LabMachine("microvm", (*_BUS, "virtio_mmio", *_DRIVERS), 1, 1)
PC: Final = LabMachine(
    "pc",
    (*_BUS, "virtio_mmio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
     "virtio_mem", *_DRIVERS),
    4,
    64,
)  # fmt: skip
MACHINES: Final = {machine.name: machine for machine in (MICROVM, PC)}
MODULES: Final = tuple(dict.fromkeys(MICROVM.modules + PC.modules))


@dataclass(frozen=True, slots=True)
class Boot:
    """What is booted on a machine.

    `cpus` is how many CPUs there is room for: `pc` starts with one of them. With `own_kernel` the
    kernel is a user's, with upcall built in, and brings all of its CPUs and none of our modules.
    """

    machine: LabMachine
    kernel: Path
    initramfs: Path
    cpus: int
    own_kernel: bool = False
    own_initramfs: bool = False
    dump: bool = False
    """Whether the guest's agent sends what vsockmon sees."""
    accelerator: str = "tcg,thread=multi"


def transport(number: int) -> Window:
    """The window of a virtio-mmio transport of `microvm`."""
    role = {0: "vsock"}.get(number, "blk" if number <= _TRANSPORT_DISKS else "")
    base = TRANSPORT_BASE + number * TRANSPORT_SIZE
    return Window(base, TRANSPORT_SIZE, FIRST_IRQ + number, role)


def hidden_disks() -> tuple[Window, ...]:
    """Disks of `microvm` that the guest does not know until it is told."""
    return tuple(transport(number) for number in range(2, 1 + _TRANSPORT_DISKS))


def world(boot: Boot) -> World:
    """What the stock kernel knows on this machine when it is ready."""
    if boot.machine is MICROVM:
        known = (transport(0), transport(1))
        return World(kernel="6.1", mmio=known, mmio_hidden=hidden_disks())
    roles = {VSOCK_SLOT: "vsock", MEMORY_SLOT: "mem", **dict.fromkeys(_DISK_SLOTS, "blk")}
    chipset = [PciDevice(0, 0), PciDevice(0, 1), PciDevice(0, 1, 1), PciDevice(0, 1, 3)]
    devices = [PciDevice(0, slot, 0, role) for slot, role in roles.items()]
    return World(kernel="6.1", nr_cpu_ids=boot.cpus, pci=tuple(sorted([*chipset, *devices])))


def command_line(boot: Boot) -> str:
    """The kernel's command line; words with `lab_` are for the guest's init."""
    # A panic reboots at once, and by a triple fault, which every machine has: so QEMU ends.
    words = ["console=ttyS0", "panic=-1", "reboot=t", "printk.devkmsg=on"]
    # What a guest for one short use can do without; it boots a fifth sooner.
    words += ["mitigations=off", "cryptomgr.notests", "audit=0", f"lab_shell={SHELL_PORT}"]
    if boot.dump:
        words.append(f"lab_dump={DUMP_PORT}")
    if boot.accelerator.startswith("tcg"):
        # Measuring this on each new CPU costs 100 ms under emulation; Kata waits for 250 in all.
        words.append("lpj=5000000")
    if boot.machine is MICROVM:
        # The clock's driver would hold IRQ 8; without a clock at all the kernel waits two seconds.
        words.append("initcall_blacklist=cmos_init")
    if boot.own_kernel:
        if boot.machine is MICROVM:
            first = transport(0)
            words.append(f"virtio_mmio.device={first.size}@{first.base:#x}:{first.irq}")
        else:
            words.append(f"possible_cpus={boot.cpus}")
        return " ".join(words)
    words += [f"lab_modules={','.join(boot.machine.modules)}", f"lab_cpus={boot.cpus}"]
    if boot.machine is MICROVM:
        windows = [f"{w.base:#x},{w.size:#x},{w.irq}" for w in world(boot).mmio]
        words.append(f"lab_mmio={','.join(windows)}")
    else:
        # Masked, the guest does not notice by itself what QEMU plugs: only upcall tells it.
        words += [f"acpi_mask_gpe={gpe:#04x}" for gpe in (1, 2, 3)]
        words.append(f"possible_cpus={max(boot.cpus, _PHYSICAL)}")
        # Movable, so that nothing the kernel keeps for itself stands in the way of shrinking.
        words.append("memhp_default_state=online_movable")
    return " ".join(words)


def qemu_arguments(boot: Boot, vhost: Path, console: Path, log: Path, monitor: Path) -> list[str]:
    """QEMU's arguments; `vhost` is the vsock backend's socket, the others are made by QEMU."""
    kept = f"logfile={_escaped(log)},logappend=on"
    arguments = [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", boot.accelerator, "-cpu", "max"),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
        *("-chardev", f"socket,id=vsock,path={_escaped(vhost)}"),
        *("-chardev", f"socket,id=console,path={_escaped(console)},server=on,wait=off,{kept}"),
        *("-serial", "chardev:console"),
        *("-qmp", f"unix:{_escaped(monitor)},server=on,wait=off"),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)),
        *("-append", command_line(boot)),
    ]
    return arguments + (_microvm(boot) if boot.machine is MICROVM else _pc(boot))


def _microvm(boot: Boot) -> list[str]:
    options = "acpi=off,auto-kernel-cmdline=off,rtc=on,pit=on,pic=on,isa-serial=on"
    arguments = [
        *("-M", f"microvm,{options},memory-backend=memory"),
        *("-smp", str(boot.cpus), "-m", str(MEMORY_MIB)),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-device", "vhost-user-vsock-device,chardev=vsock,bus=virtio-mmio-bus.0"),
    ]  # fmt: skip
    for number in range(1, 1 + _TRANSPORT_DISKS):
        arguments += _disk(f"disk{number}", f"virtio-blk-device,bus=virtio-mmio-bus.{number}")
    return arguments


def _pc(boot: Boot) -> list[str]:
    most = MEMORY_MIB + GROWN_MEMORY_MIB
    arguments = [
        *("-M", "pc,memory-backend=memory"),
        *("-smp", f"{boot.cpus if boot.own_kernel else 1},maxcpus={APIC_IDS}"),
        *("-m", f"{MEMORY_MIB},maxmem={most}M,slots=2"),
        # QEMU reads `addr` as hexadecimal.
        *("-device", f"vhost-user-vsock-pci,chardev=vsock,addr={VSOCK_SLOT:x}"),
        *("-object", f"memory-backend-memfd,id=grown,size={GROWN_MEMORY_MIB}M,share=on"),
        *("-device", f"virtio-mem-pci,id={MEMORY_ID},memdev=grown,addr={MEMORY_SLOT:x}"),
    ]
    for slot in _DISK_SLOTS:
        arguments += _disk(disk_id(slot), f"virtio-blk-pci,id={disk_id(slot)},addr={slot:x}")
    return arguments


def _escaped(path: Path) -> str:
    """A path as a value in QEMU's lists, where a comma ends a value."""
    return str(path).replace(",", ",,")


def disk_id(slot: int) -> str:
    """What QEMU calls the disk in a PCI slot of bus 0."""
    return f"slot{slot}"


def _disk(name: str, device: str) -> list[str]:
    blank = f"driver=null-co,node-name={name},size={DISK_SIZE},read-zeroes=on"
    return ["-blockdev", blank, "-device", f"{device},drive={name}"]
