"""The machines that the lab boots: QEMU's arguments, the kernel's command line, and the world.

One table for each machine, so that what QEMU is given, what the guest is told and what the model
is told cannot differ. docs/lab.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..kernel.world import SERIES, PciDevice, Window, World

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
    kernel is a user's, with upcall built in, and needs none of our modules.
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
    append: str = ""
    """More words for the kernel's command line."""
    disks: tuple[int, ...] = ()
    """PCI slots of `pc` with a disk at boot, beside the usual ones."""
    boot_mmio: int | None = None
    """How many transports of `microvm` the guest is told of at boot; None for the usual ones."""

    @property
    def transports(self) -> int:
        """How many transports of `microvm` the guest is told of at boot."""
        if self.machine is not MICROVM:
            return 0
        return self.boot_mmio if self.boot_mmio is not None else 1 if self.own_kernel else 2


def transport(number: int) -> Window:
    """The window of a virtio-mmio transport of `microvm`."""
    role = {0: "vsock"}.get(number, "blk" if number <= _TRANSPORT_DISKS else "")
    base = TRANSPORT_BASE + number * TRANSPORT_SIZE
    return Window(base, TRANSPORT_SIZE, FIRST_IRQ + number, role)


def hidden_disks(transports: int = 2) -> tuple[Window, ...]:
    """Disks of `microvm` that the guest does not know until it is told."""
    return tuple(transport(number) for number in range(transports, 1 + _TRANSPORT_DISKS))


def world(boot: Boot) -> World:
    """What the stock kernel knows on this machine when it is ready."""
    if boot.machine is MICROVM:
        known = tuple(map(transport, range(boot.transports)))
        return World(kernel="6.1", mmio=known, mmio_hidden=hidden_disks(boot.transports))
    slots = (*_DISK_SLOTS, *boot.disks)
    roles = {VSOCK_SLOT: "vsock", MEMORY_SLOT: "mem", **dict.fromkeys(slots, "blk")}
    chipset = [PciDevice(0, 0), PciDevice(0, 1), PciDevice(0, 1, 1), PciDevice(0, 1, 3)]
    devices = [PciDevice(0, slot, 0, role) for slot, role in roles.items()]
    return World(kernel="6.1", nr_cpu_ids=boot.cpus, pci=tuple(sorted([*chipset, *devices])))


def booted_world(boot: Boot, release: tuple[int, int] | None, online: tuple[int, ...]) -> World:
    """What a user's kernel looked like when it was ready, by what its console told.

    `release` is the kernel's version, `online` the CPUs that its init saw; both may be unknown.
    """
    stock = world(boot)
    if not boot.own_kernel:
        return stock
    on_pc = boot.machine is PC
    cpus = tuple(range(boot.cpus))
    return replace(
        stock,
        kernel=series_of(release) if release else stock.kernel,
        nr_cpu_ids=boot.cpus,
        boot_table=cpus,
        cpus_online=online or (cpus[:1] if on_pc else cpus),
        vcpus_running=online or (cpus[:1] if on_pc else cpus),
    )


def series_of(release: tuple[int, int]) -> str:
    """The series with upcall patches that a kernel of this version behaves as."""
    known = [tuple(map(int, series.split("."))) for series in SERIES]
    fitting = [series for series, version in zip(SERIES, known, strict=True) if version <= release]
    return fitting[-1] if fitting else SERIES[0]


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
    if boot.machine is PC:
        # Masked, a guest with ACPI does not notice by itself what QEMU plugs: only upcall tells it.
        words += [f"acpi_mask_gpe={gpe:#04x}" for gpe in (1, 2, 3)]
    if boot.own_kernel:
        if boot.machine is PC:
            words.append(f"possible_cpus={boot.cpus}")
        for window in map(transport, range(boot.transports)):
            words.append(f"virtio_mmio.device={window.size}@{window.base:#x}:{window.irq}")
        return " ".join([*words, boot.append]).rstrip()
    words += [f"lab_modules={','.join(boot.machine.modules)}", f"lab_cpus={boot.cpus}"]
    if boot.machine is MICROVM:
        windows = [f"{w.base:#x},{w.size:#x},{w.irq}" for w in world(boot).mmio]
        words.append(f"lab_mmio={','.join(windows)}")
    else:
        words.append(f"possible_cpus={max(boot.cpus, _PHYSICAL)}")
        # Movable, so that nothing the kernel keeps for itself stands in the way of shrinking.
        words.append("memhp_default_state=online_movable")
    return " ".join([*words, boot.append]).rstrip()


def qemu_arguments(boot: Boot, vhost: Path, console: Path, log: Path, monitor: Path) -> list[str]:
    """QEMU's arguments; `vhost` is the vsock backend's socket, the others are made by QEMU."""
    kept = f"logfile={_escaped(log)},logappend=on"
    arguments = [
        # A guest that breaks out of QEMU can neither start programs nor gain privileges.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", boot.accelerator, "-cpu", "max,-hypervisor" if _posing(boot) else "max"),
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
    # 5.10 knows nothing of memory that must not be read before it is plugged.
    readable = ",unplugged-inaccessible=off" if boot.own_kernel else ""
    arguments = [
        *("-M", f"pc,memory-backend=memory{',vmport=on' if _posing(boot) else ''}"),
        *(("-smbios", "type=1,serial=VMware-lab") if _posing(boot) else ()),
        *("-smp", _cpus(boot)),
        *("-m", f"{MEMORY_MIB},maxmem={most}M,slots=2"),
        # QEMU reads `addr` as hexadecimal.
        *("-device", f"vhost-user-vsock-pci,chardev=vsock,addr={VSOCK_SLOT:x}"),
        *("-object", f"memory-backend-memfd,id=grown,size={GROWN_MEMORY_MIB}M,share=on"),
        *("-device", f"virtio-mem-pci,id={MEMORY_ID},memdev=grown,addr={MEMORY_SLOT:x}{readable}"),
    ]
    for slot in (*_DISK_SLOTS, *boot.disks):
        arguments += _disk(disk_id(slot), f"virtio-blk-pci,id={disk_id(slot)},addr={slot:x}")
    return arguments


def _posing(boot: Boot) -> bool:
    """Whether the machine says that it is virtual, in the one way that QEMU's emulation can.

    A kernel of 2026 takes CPUs that are yet to come for a mistake of the firmware, unless it knows
    the hypervisor: under KVM it does, and QEMU's emulator it takes for bare metal.
    """
    return boot.own_kernel and boot.machine is PC and boot.accelerator.startswith("tcg")


def _cpus(boot: Boot) -> str:
    """One CPU, and room for more.

    A user's kernel may size its tables by what the firmware lists, so it gets no more than was
    asked for; and from 6.9 on it ignores what is missing in a package that is there, so that each
    has a package of its own.
    """
    if not boot.own_kernel:
        return f"1,maxcpus={APIC_IDS}"
    return f"1,sockets={boot.cpus},cores=1,threads=1,maxcpus={boot.cpus}"


def _escaped(path: Path) -> str:
    """A path as a value in QEMU's lists, where a comma ends a value."""
    return str(path).replace(",", ",,")


def disk_id(slot: int) -> str:
    """What QEMU calls the disk in a PCI slot of bus 0."""
    return f"slot{slot}"


def _disk(name: str, device: str) -> list[str]:
    blank = f"driver=null-co,node-name={name},size={DISK_SIZE},read-zeroes=on"
    return ["-blockdev", blank, "-device", f"{device},drive={name}"]
