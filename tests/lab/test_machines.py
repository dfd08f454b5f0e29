"""The lab's machines: QEMU's arguments, the kernel's command line and the world are of one mind."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import Request, cpu_request, decode_reply, mmio_request, pci_request
from tests.kernel.recordings import worlds
from upcall_trace.kernel.model import Guest
from upcall_trace.kernel.world import PciDevice, Window, World
from upcall_trace.lab import machines
from upcall_trace.lab.machines import (
    APIC_IDS,
    DISK_SIZE,
    GROWN_MEMORY_MIB,
    MACHINES,
    MEMORY_MIB,
    MICROVM,
    MODULES,
    PC,
    Boot,
    LabMachine,
    booted_world,
    command_line,
    hidden_disks,
    qemu_arguments,
    series_of,
    transport,
    world,
)

KERNEL, INITRAMFS = Path("/pieces/vmlinuz"), Path("/pieces/initramfs")
BOOTS = {machine.name: Boot(machine, KERNEL, INITRAMFS, machine.default_cpus)
         for machine in MACHINES.values()}  # fmt: skip
OWN = {name: replace(boot, own_kernel=True) for name, boot in BOOTS.items()}
GUEST_INIT = files("upcall_trace.lab").joinpath("guest", "init").read_text("utf-8")

each_boot = pytest.mark.parametrize(
    "boot",
    [*BOOTS.values(), *OWN.values()],
    ids=[*BOOTS, *(f"{name}-own" for name in OWN)],
)


def arguments(boot: Boot) -> list[tuple[str, str]]:
    """Every option with its value."""
    listed = qemu_arguments(
        boot, Path("/lab/vhost"), Path("/lab/terminal"), Path("/lab/log"), Path("/lab/qmp")
    )
    options: list[tuple[str, str]] = []
    for word in listed:
        if word.startswith("-"):
            options.append((word, ""))
        else:
            option, nothing = options.pop()
            assert nothing == "", f"{option} has two values"
            options.append((option, word))
    return options


def values(boot: Boot, option: str) -> list[str]:
    return [value for name, value in arguments(boot) if name == option]


def keys(value: str) -> dict[str, str]:
    """`virtio-blk-pci,id=slot4` with the driver under the empty key."""
    pairs = (word.rpartition("=") for word in value.split(","))
    return {key: text for key, _, text in pairs}


def devices(boot: Boot) -> list[dict[str, str]]:
    return [keys(value) for value in values(boot, "-device")]


def role(device: dict[str, str]) -> str:
    """The role, in a world's words, of what QEMU is asked for."""
    words = {"vhost-user-vsock": "vsock", "virtio-blk": "blk", "virtio-mem": "mem"}
    (found,) = {words[name] for name in words if device[""].startswith(name)}
    return found


def words(boot: Boot) -> dict[str, list[str]]:
    """The command line: what each key is set to, in order."""
    found: dict[str, list[str]] = {}
    for word in command_line(boot).split(" "):
        key, _, value = word.partition("=")
        found.setdefault(key, []).append(value)
    return found


def lab_windows(boot: Boot) -> list[tuple[int, ...]]:
    """What the guest's init is told to register at boot."""
    numbers = [int(number, 0) for number in words(boot)["lab_mmio"][0].split(",")]
    return [tuple(numbers[at : at + 3]) for at in range(0, len(numbers), 3)]


def ret(booted: World, request: Request) -> int:
    """What the model of the kernel answers first after boot."""
    reply = Guest(booted).connect().receive(request.encode()).reply
    assert reply is not None
    return decode_reply(reply).ret


def test_the_machines_are_those_of_the_recordings() -> None:
    recorded = worlds()
    windows = [(w.base, w.size, w.irq) for w in world(BOOTS["microvm"]).mmio]
    assert windows == [(w.base, w.size, w.irq) for w in recorded["microvm"].mmio]
    pc = world(BOOTS["pc"])
    # The disk in slot 16 was plugged in the course of a recording's story.
    assert {(d.bus, d.slot) for d in recorded["pc"].pci} - {(d.bus, d.slot) for d in pc.pci} == {
        (0, 16)
    }
    assert pc.cpus_online == recorded["pc"].cpus_online


# microvm.


def test_the_guest_is_told_every_window_that_the_model_has_and_no_other() -> None:
    booted = world(BOOTS["microvm"])
    assert booted.mmio
    assert lab_windows(BOOTS["microvm"]) == [(w.base, w.size, w.irq) for w in booted.mmio]


def test_behind_every_window_qemu_has_what_its_role_says() -> None:
    booted = world(BOOTS["microvm"])
    buses = {device["bus"]: role(device) for device in devices(BOOTS["microvm"])}
    assert buses == {
        f"virtio-mmio-bus.{(window.base - 0xFEB00000) // 0x200}": window.role
        for window in (*booted.mmio, *hidden_disks())
    }


def test_windows_share_neither_bytes_nor_interrupts() -> None:
    windows = [*world(BOOTS["microvm"]).mmio, *hidden_disks()]
    for one, other in combinations(windows, 2):
        assert one.end < other.base or other.end < one.base
        assert one.irq != other.irq


def test_the_clock_leaves_its_interrupt_to_a_disk() -> None:
    assert 8 in {disk.irq for disk in hidden_disks()}
    assert words(BOOTS["microvm"])["initcall_blacklist"] == ["cmos_init"]
    assert words(OWN["microvm"])["initcall_blacklist"] == ["cmos_init"]
    assert "initcall_blacklist" not in words(BOOTS["pc"])


def test_the_model_takes_each_hidden_disk_and_knows_the_other_windows_already() -> None:
    booted = world(BOOTS["microvm"])

    def add(window: Window) -> int:
        where = (window.base, window.size, window.irq)
        return ret(booted, mmio_request(MessageType.ADD_MMIO, *where))

    assert [add(window) for window in hidden_disks()] == [0, 0, 0, 0]
    assert {add(window) for window in booted.mmio} == {-17}


def test_a_kernel_of_ones_own_is_told_where_the_channel_is_and_of_no_disk() -> None:
    (told,) = words(OWN["microvm"])["virtio_mmio.device"]
    found = re.fullmatch(r"(\d+)@(0x[0-9a-f]+):(\d+)", told)
    assert found
    channel = transport(0)
    assert channel.role == "vsock"
    assert (int(found[1]), int(found[2], 16), int(found[3])) == (
        channel.size,
        channel.base,
        channel.irq,
    )
    assert "virtio_mmio.device" not in words(OWN["pc"])
    assert "virtio_mmio.device" not in words(BOOTS["microvm"])


# pc.


def slots(boot: Boot) -> dict[int, str]:
    """What QEMU puts where; QEMU reads `addr` as hexadecimal."""
    return {int(device["addr"], 16): role(device) for device in devices(boot)}


def test_qemu_has_every_pci_device_of_the_world_where_the_world_has_it() -> None:
    booted = world(BOOTS["pc"])
    assert slots(BOOTS["pc"]) == {d.slot: d.role for d in booted.pci if d.role}
    assert sorted(slots(BOOTS["pc"]).values()) == ["blk", "blk", "mem", "vsock"]
    assert {(d.bus, d.function) for d in booted.pci if d.role} == {(0, 0)}


def test_qemu_is_told_slots_in_hexadecimal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "VSOCK_SLOT", 10)
    monkeypatch.setattr(machines, "MEMORY_SLOT", 16)
    monkeypatch.setattr(machines, "_DISK_SLOTS", (27, 31))
    assert slots(BOOTS["pc"]) == {10: "vsock", 16: "mem", 27: "blk", 31: "blk"}
    assert {d.slot: d.role for d in world(BOOTS["pc"]).pci if d.role} == slots(BOOTS["pc"])


def test_the_chipset_answers_in_the_model_too() -> None:
    booted = world(BOOTS["pc"])
    chipset = [(d.bus, d.slot, d.function) for d in booted.pci if not d.role]
    assert chipset == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 1, 3)]
    assert ret(booted, pci_request(MessageType.ADD_PCI, 0, 1, 3)) == 0
    assert ret(booted, pci_request(MessageType.ADD_PCI, 0, 2)) == -19
    assert list(booted.pci) == sorted(booted.pci)


@pytest.mark.parametrize("cpus", [1, 2, 4, 9, 10, 64])
def test_there_is_room_for_as_many_cpus_as_were_asked_for(cpus: int) -> None:
    boot = replace(BOOTS["pc"], cpus=cpus)
    assert world(boot).nr_cpu_ids == cpus
    assert words(boot)["lab_cpus"] == [str(cpus)]
    (possible,) = words(boot)["possible_cpus"]
    # With fewer than nine the kernel addresses CPUs by the bits of a mask, which QEMU 7.2 loses.
    assert int(possible) == max(cpus, 9)
    assert words(replace(boot, own_kernel=True))["possible_cpus"] == [str(cpus)]
    assert keys(values(boot, "-smp")[0]) == {"": "1", "maxcpus": str(APIC_IDS)}
    own = keys(values(replace(boot, own_kernel=True), "-smp")[0])
    # Each CPU in a package of its own, or a new kernel takes those to come for a mistake.
    assert own == {
        "": "1", "sockets": str(cpus), "cores": "1", "threads": "1", "maxcpus": str(cpus)
    }  # fmt: skip


def test_one_cpu_is_up_and_the_next_one_needs_the_vmm_first() -> None:
    booted = world(BOOTS["pc"])
    assert (booted.cpus_online, booted.vcpus_running) == ((0,), (0,))
    assert ret(booted, cpu_request(MessageType.ADD_CPU, [1])) == -5
    started = replace(booted, vcpus_running=(0, 1))
    assert ret(started, cpu_request(MessageType.ADD_CPU, [1])) == 0


def test_an_emulated_pc_says_to_a_users_kernel_that_it_is_virtual() -> None:
    emulated, virtual = OWN["pc"], replace(OWN["pc"], accelerator="kvm")
    assert values(emulated, "-cpu") == ["max,-hypervisor"]
    assert "vmport=on" in values(emulated, "-M")[0]
    assert values(emulated, "-smbios") == ["type=1,serial=VMware-lab"]
    for boot in (virtual, *BOOTS.values(), OWN["microvm"]):
        assert values(boot, "-cpu") == ["max"]
        assert "vmport" not in values(boot, "-M")[0]


def test_words_of_the_user_come_last() -> None:
    for boot in (*BOOTS.values(), *OWN.values()):
        assert command_line(replace(boot, append="a=1 b")).endswith(" a=1 b")
        assert command_line(boot) == command_line(boot).strip()


def test_a_disk_more_at_boot() -> None:
    boot = replace(BOOTS["pc"], disks=(16,))
    assert PciDevice(0, 16) in world(boot).pci
    assert any("addr=10" in value for value in values(boot, "-device"))  # hexadecimal


@pytest.mark.parametrize(("count", "own"), [(None, 1), (0, 0), (2, 2), (6, 6)])
def test_transports_that_are_known_at_boot(count: int | None, own: int) -> None:
    boot = replace(OWN["microvm"], boot_mmio=count)
    told = [f"{w.size}@{w.base:#x}:{w.irq}" for w in map(transport, range(own))]
    assert words(boot).get("virtio_mmio.device", []) == told
    assert world(boot).mmio == tuple(map(transport, range(own)))
    stock = replace(BOOTS["microvm"], boot_mmio=count)
    assert len(world(stock).mmio) == (2 if count is None else count)


@pytest.mark.parametrize(
    ("release", "series"),
    [((5, 4), "5.10"), ((5, 10), "5.10"), ((5, 15), "5.10"), ((6, 1), "6.1"), ((6, 6), "6.1"),
     ((6, 12), "6.12"), ((6, 17), "6.12"), ((6, 18), "6.18"), ((7, 2), "6.18")],
)  # fmt: skip
def test_a_kernel_behaves_as_the_newest_series_that_is_not_newer(
    release: tuple[int, int], series: str
) -> None:
    assert series_of(release) == series


def test_the_world_of_a_users_kernel_is_what_its_console_told() -> None:
    seen = booted_world(OWN["pc"], (6, 12), (0,))
    assert (seen.kernel, seen.nr_cpu_ids, seen.cpus_online, seen.boot_table) == (
        "6.12", 4, (0,), (0, 1, 2, 3)
    )  # fmt: skip
    assert seen.pci == world(OWN["pc"]).pci
    unknown = booted_world(replace(OWN["microvm"], cpus=2), None, ())
    assert (unknown.kernel, unknown.cpus_online) == ("6.1", (0, 1))  # microvm starts them all
    assert booted_world(BOOTS["pc"], (9, 9), (5,)) == world(BOOTS["pc"])


def test_only_upcall_tells_the_guest_what_was_plugged() -> None:
    for boot in (BOOTS["pc"], OWN["pc"]):
        assert words(boot)["acpi_mask_gpe"] == ["0x01", "0x02", "0x03"]
    assert "acpi=off" in values(BOOTS["microvm"], "-M")[0]


def test_memory_can_grow_by_what_virtio_mem_has() -> None:
    backends = {keys(value)["id"]: keys(value) for value in values(BOOTS["pc"], "-object")}
    assert backends["memory"]["size"] == f"{MEMORY_MIB}M"
    assert backends["grown"]["size"] == f"{GROWN_MEMORY_MIB}M"
    (memory,) = values(BOOTS["pc"], "-m")
    assert keys(memory)[""] == str(MEMORY_MIB)
    assert keys(memory)["maxmem"] == f"{MEMORY_MIB + GROWN_MEMORY_MIB}M"
    (mem,) = (device for device in devices(BOOTS["pc"]) if role(device) == "mem")
    assert (mem["id"], mem["memdev"]) == (machines.MEMORY_ID, "grown")
    # Only movable memory can always be given back.
    assert words(BOOTS["pc"])["memhp_default_state"] == ["online_movable"]


# Both.


@each_boot
def test_guest_memory_is_shared_with_the_backend_of_the_channel(boot: Boot) -> None:
    (memory,) = (v for v in values(boot, "-object") if keys(v)["id"] == "memory")
    assert keys(memory)["share"] == "on"
    assert keys(memory)[""] == "memory-backend-memfd"
    assert keys(values(boot, "-M")[0])["memory-backend"] == "memory"
    chardevs = {keys(value)["id"]: keys(value) for value in values(boot, "-chardev")}
    (vsock,) = (device for device in devices(boot) if role(device) == "vsock")
    assert chardevs[vsock["chardev"]]["path"] == "/lab/vhost"


@each_boot
def test_every_disk_has_a_blank_of_its_own_behind_it(boot: Boot) -> None:
    blanks = [keys(value) for value in values(boot, "-blockdev")]
    drives = [device["drive"] for device in devices(boot) if role(device) == "blk"]
    assert drives
    assert [blank["node-name"] for blank in blanks] == drives
    assert len(set(drives)) == len(drives)
    assert {blank["size"] for blank in blanks} == {str(DISK_SIZE)}


@each_boot
def test_qemu_boots_what_it_is_given_and_says_it_where_it_is_told(boot: Boot) -> None:
    assert values(boot, "-kernel") == [str(KERNEL)]
    assert values(boot, "-initrd") == [str(INITRAMFS)]
    assert values(boot, "-append") == [command_line(boot)]
    assert values(boot, "-qmp") == ["unix:/lab/qmp,server=on,wait=off"]
    chardevs = {keys(value)["id"]: keys(value) for value in values(boot, "-chardev")}
    (serial,) = values(boot, "-serial")
    console = chardevs[serial.removeprefix("chardev:")]
    assert (console["path"], console["logfile"]) == ("/lab/terminal", "/lab/log")
    assert console["logappend"] == "on"  # a reset's console follows the one before
    assert ("-no-reboot", "") in arguments(boot)


@each_boot
def test_qemu_is_shut_in_before_anything_else(boot: Boot) -> None:
    """Who breaks out of the guest can start no program and gains no right."""
    assert arguments(boot)[0][0] == "-sandbox"
    (words,) = values(boot, "-sandbox")
    on, *denied = words.split(",")
    assert on == "on"
    assert set(denied) == {
        "obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny",
    }  # fmt: skip


def test_a_comma_in_a_path_is_no_end_of_a_value() -> None:
    paths = (Path("/a,b/vhost"), Path("/a,b/console"), Path("/a,b/log"), Path("/a,b/monitor"))
    given = qemu_arguments(BOOTS["pc"], *paths)
    assert sum(value.count("/a,,b/") for value in given) == 4
    assert not any("/a,b/" in value for value in given)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_the_stock_guest_loads_this_machines_modules_and_a_users_kernel_none(
    machine: LabMachine,
) -> None:
    stock, own = words(BOOTS[machine.name]), words(OWN[machine.name])
    assert stock["lab_modules"] == [",".join(machine.modules)]
    assert set(machine.modules) <= set(MODULES)
    assert len(set(MODULES)) == len(MODULES)
    assert [key for key in own if key.startswith("lab_")] == ["lab_shell"]


@each_boot
def test_the_guests_init_reads_every_word_that_is_for_it(boot: Boot) -> None:
    for key in words(replace(boot, dump=True)):
        if key.startswith("lab_"):
            assert re.search(rf"\${{?{key}\b", GUEST_INIT), key


@each_boot
def test_the_agent_dumps_only_when_somebody_records(boot: Boot) -> None:
    assert "lab_dump" not in words(boot)
    assert words(replace(boot, dump=True))["lab_dump"] == [str(machines.DUMP_PORT)]
    assert words(boot)["lab_shell"] == [str(machines.SHELL_PORT)]


@each_boot
def test_only_an_emulated_cpu_is_told_how_fast_it_is(boot: Boot) -> None:
    assert boot.accelerator.startswith("tcg")
    assert "lpj" in words(boot)
    real = replace(boot, accelerator="kvm")
    assert "lpj" not in words(real)
    assert values(real, "-accel") == ["kvm"]


def test_a_machine_starts_with_no_more_cpus_than_it_can_have() -> None:
    for machine in (MICROVM, PC):
        assert 1 <= machine.default_cpus <= machine.most_cpus
        assert world(BOOTS[machine.name]).nr_cpu_ids == machine.default_cpus
    assert PC.most_cpus <= APIC_IDS
