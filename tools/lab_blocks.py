"""Blocks of docs/lab.md, made from the machines and from what the VMM's side can be told."""

from __future__ import annotations

import json
from pathlib import Path

from tools.markdown import code, fenced, table
from upcall_trace.lab.console import SeenState
from upcall_trace.lab.machines import MACHINES, MICROVM, PC, Boot, hidden_disks, transport, world
from upcall_trace.lab.vmm import ORDERS

_VALUES = {
    "start_vcpu": 1,
    "plug_disk": True,
    "unplug_disk": 9,
    "plug_pci": {"bus": 0, "slot": 9},
    "unplug_pci": {"bus": 0, "slot": 9},
    "resize_memory": 256 << 20,
    "save_memory": {"file": "/srv/guest.ram", "format": "raw"},
    "reset": True,
    "state": True,
}
_WHAT = {"vsock": "the channel", "blk": "a disk", "mem": "virtio-mem", "": "the chipset"}


def machines() -> str:
    """What the guest has at boot, and what can be plugged."""
    pc = world(_boot(PC.name))
    slots = [(f"slot {d.slot}", _WHAT[d.role]) for d in pc.pci if not d.function]
    windows = [
        (f"{w.base:#x} size {w.size:#x} irq {w.irq}", what)
        for w, what in (
            (transport(0), "the channel"),
            (transport(1), "a disk"),
            *((disk, "a disk that the guest does not know at boot") for disk in hidden_disks()),
        )
    ]
    rows = [
        *((code(PC.name), "CPUs", f"1 of {PC.default_cpus}; more with `--cpus`"),),
        *((code(PC.name), place, what) for place, what in slots),
        (code(PC.name), "slots 9 to 31", "free for disks"),
        *((code(MICROVM.name), place, what) for place, what in windows),
    ]
    return table(("machine", "where", "what is there"), rows)


def orders() -> str:
    """The orders of the lab's control socket."""
    return table(
        ("order", "what it does"),
        [(code(json.dumps({name: _VALUES[name]})), text) for name, text in ORDERS.items()],
    )


def state() -> str:
    """What `lab vmm state` prints, a line for each key."""
    seen = SeenState((0, 1), (0, 1), ("vda", "vdb"), ("virtio0", "virtio1"), 413188)
    plugged = {
        "vcpus_running": [0, 1],
        "pci_plugged": [{"bus": 0, "slot": 3}],
        "memory_requested": 0,
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in (seen.as_json() | plugged).items()]
    return fenced("{\n" + ",\n".join(lines) + "\n}", "json")


def _boot(name: str) -> Boot:
    return Boot(MACHINES[name], Path(), Path(), MACHINES[name].default_cpus)
