"""The rows of what other VMMs say, and of what the host does to a VM.

From the sources of Kata Containers 4.1. Filled-in parts are in Rust's `Debug` and `Display` forms,
which differ between releases: words decide, and numbers are read where they stand.
"""

from __future__ import annotations

import re
from typing import Final

from .. import codes
from .meaning import Meaning, Speaker

_O: Final = Speaker.OTHER
_H: Final = Speaker.HOST

QEMU: Final = Meaning(
    _O, "qemu-system-|qemu-kvm|subsystem=qemu|QemuInner", "a command line of QEMU",
    "QEMU, which plugs CPUs through QMP and ACPI",
    "launching /opt/kata/bin/qemu-system-x86_64 with: [-name sandbox-pod-gamma]",
    codes=(codes.OTHER_VMM,),
    pattern=re.compile(r"qemu-system-\w|qemu-kvm|subsystem=qemu|QemuInner"),
    upcall=False,
)  # fmt: skip
QMP: Final = Meaning(
    _O, "subsystem=qmp|subsystem: qmp|QMP|hot add vCPUs failed|device_add",
    "lines of QEMU's control socket, hot add vCPUs failed",
    "QEMU, which plugs CPUs through QMP and ACPI",
    'level=error msg="hot add vCPUs failed" subsystem=qmp',
    codes=(codes.OTHER_VMM,),
    pattern=re.compile(
        r"subsystem=qmp|subsystem: qmp|\"QMP\"|hot add vCPUs failed|"
        r"\"execute\\{0,7}\": ?\\{0,7}\"device_add"
    ),
    upcall=False,
)  # fmt: skip
CLH: Final = Meaning(
    _O, "cloud-hypervisor|cloud_hypervisor|loudHypervisor",
    "cloud-hypervisor, in its own lines and in paths", "Cloud Hypervisor, which has no upcall",
    "cloud-hypervisor: 12.345678ms: <vmm> ERROR:vmm/src/lib.rs:500 -- VM failed to boot",
    codes=(codes.OTHER_VMM,),
    pattern=re.compile(r"cloud-hypervisor|cloud_hypervisor|CloudHypervisor|cloudHypervisor"),
    upcall=False,
)  # fmt: skip
CLH_SOCKET: Final = Meaning(
    _O, "clh.sock|clh-api.sock|subsystem=clh", "clh.sock, clh-api.sock",
    "Cloud Hypervisor, which has no upcall",
    "hvsock:///run/vc/vm/pod-alpha/clh.sock:1024", codes=(codes.OTHER_VMM,),
    pattern=re.compile(r"\bclh(?:-api)?\.sock|subsystem=clh"), upcall=False,
)  # fmt: skip
FIRECRACKER: Final = Meaning(
    _O, "firecracker|Firecracker v", "firecracker", "Firecracker, which has no upcall",
    "Running Firecracker v1.7.0", codes=(codes.OTHER_VMM,),
    pattern=re.compile(r"\bfirecracker\b|Firecracker v"), upcall=False,
)  # fmt: skip
KILLED: Final = Meaning(
    _H, "illed process", "Out of memory: Killed process {pid} ({name})",
    "the host killed the VMM or its shim",
    "Out of memory: Killed process 41017 (containerd-shim) total-vm:2000kB",
    codes=(codes.VM_DIED,), upcall=False,
    pattern=re.compile(r"[Kk]illed process (\d{1,10}),? \(?([\w.-]{1,64})"),
)  # fmt: skip

ROWS: Final = (
    QEMU, QMP, CLH, CLH_SOCKET, FIRECRACKER, KILLED,
)  # fmt: skip
"""In the order in which a line's rows are told."""
