"""`lab vmm`: what the VMM of a lab does on its side."""

from __future__ import annotations

import click

from ..errors import ExitCode, WrongUsage
from .support.lab_orders import found_lab, lab_name_option, order_lab
from .support.output import out_json, talk


@click.group("vmm")
def vmm_command() -> None:
    """The VMM's side: what it does before, or after, it asks the guest."""


@vmm_command.command("start-vcpu")
@lab_name_option
@click.argument("vcpu", type=click.IntRange(0, 255))
def start_vcpu_command(name: str | None, vcpu: int) -> ExitCode:
    """Run a vCPU from now on, so that it can come up."""
    lab = found_lab(name)
    order_lab(lab, {"start_vcpu": vcpu})
    talk(f"next: upcall-trace send --to {lab['address']} add-cpu {vcpu}")
    return ExitCode.EXPECTED


@vmm_command.command("plug-disk")
@lab_name_option
@click.argument("slot", type=click.IntRange(0, 31), required=False)
def plug_disk_command(name: str | None, slot: int | None) -> ExitCode:
    """Make a disk: in a PCI SLOT on pc, at the next virtio-mmio window on microvm."""
    lab = found_lab(name)
    answer = order_lab(lab, {"plug_disk": True if slot is None else slot})
    if "pci" in answer:
        operation = f"add-pci {answer['pci']['bus']} {answer['pci']['slot']}"
    else:
        window = answer["mmio"]
        operation = f"add-mmio {window['base']:#x} {window['size']:#x} {window['irq']}"
    talk(f"next: upcall-trace send --to {lab['address']} {operation}")
    return ExitCode.EXPECTED


@vmm_command.command("unplug-disk")
@lab_name_option
@click.argument("slot", type=click.IntRange(0, 31))
def unplug_disk_command(name: str | None, slot: int) -> ExitCode:
    """Take the disk in a PCI SLOT away; ask the guest to let go of it first."""
    order_lab(found_lab(name), {"unplug_disk": slot})
    return ExitCode.EXPECTED


@vmm_command.command("grow-memory")
@lab_name_option
@click.argument("size")
def grow_memory_command(name: str | None, size: str) -> ExitCode:
    """Plug SIZE more, such as 256M, into the virtio-mem device."""
    return _resize(name, size, 1)


@vmm_command.command("shrink-memory")
@lab_name_option
@click.argument("size")
def shrink_memory_command(name: str | None, size: str) -> ExitCode:
    """Take SIZE, such as 256M, out of the virtio-mem device; takes seconds."""
    return _resize(name, size, -1)


@vmm_command.command("reset")
@lab_name_option
def reset_command(name: str | None) -> ExitCode:
    """Boot the guest anew: connections end, and everything is as at the start."""
    order_lab(found_lab(name), {"reset": True})
    return ExitCode.EXPECTED


@vmm_command.command("state")
@lab_name_option
def state_command(name: str | None) -> ExitCode:
    """CPUs, disks, virtio devices and memory as JSON: what the guest's init saw last."""
    out_json(order_lab(found_lab(name), {"state": True})["state"])
    return ExitCode.EXPECTED


def _resize(name: str | None, size: str, sign: int) -> ExitCode:
    from ..lab.vmm import parse_size

    lab = found_lab(name)
    requested = order_lab(lab, {"state": True})["state"]["memory_requested"]
    wanted = requested + sign * parse_size(size)
    if wanted < 0:
        raise WrongUsage(f"only {requested >> 20} MiB are plugged")
    order_lab(lab, {"resize_memory": wanted})
    talk(f"virtio-mem is asked for {wanted >> 20} MiB; the guest follows within seconds")
    return ExitCode.EXPECTED
