"""The rows of what Dragonball says of devices, and of the VM as a whole.

From the sources of Kata Containers 4.1. Filled-in parts are in Rust's `Debug` and `Display` forms,
which differ between releases: words decide, and numbers are read where they stand.
"""

from __future__ import annotations

import re
from typing import Final

from .. import codes
from .meaning import Meaning, Speaker

_D: Final = Speaker.DEVICES

MMIO_CREATED: Final = Meaning(
    _D, "create virtio mmio device", "create virtio mmio device 0x{size}@0x{base}, irq: 0x{irq}",
    "joins with ADD_MMIO by its base; printed at boot for every device too, so no proof of a "
    "request", "create virtio mmio device 0x2000@0xe0006000, irq: 0x5",
    pattern=re.compile(
        r"create virtio mmio device 0x([0-9a-f]{1,16})@0x([0-9a-f]{1,16}), irq: 0x([0-9a-f]{1,8})"
    ),
)  # fmt: skip
MEMORY: Final = Meaning(
    _D, "memory device:", "hot-add memory device: {id}, size: 0x{x}MB.; update memory device: …",
    "ADD_MMIO follows; for an update nothing is sent",
    "hot-add memory device: virtio-mem-0, size: 0x200MB.", "3.2",
    pattern=re.compile(r"(hot-add|update) memory device: ?([\w.-]{0,64})"),
)  # fmt: skip
BALLOON: Final = Meaning(
    _D, "hotplug balloon device|resize virtio balloon",
    "hotplug balloon device: {id}; resize virtio balloon size to {n}",
    "ADD_MMIO follows; for a resize nothing is sent", "hotplug balloon device: balloon0", "3.2",
    pattern=re.compile(r"hotplug balloon device: ?([\w.-]{0,64})|resize virtio balloon size to"),
)  # fmt: skip
HOT_ADD_FAILED: Final = Meaning(
    _D, "failed to hot-add",
    "failed to hot-add pci virtio block device {id}, {error}; failed to hot-add "
    "virtio block device; failed to hot-add virtio-mem device; hotplug balloon device {id} error",
    "the send itself failed",
    "failed to hot-add pci virtio block device drive-4f2, "
    "HotplugDevice(SendRequest(Kind(ConnectionReset)))", codes=(codes.IDLE_CHANNEL_LOST,),
    pattern=re.compile(
        r"failed to hot-add (?:pci )?virtio[ -](?:block|mem) device ?([\w.-]{0,64})"
    ),
)  # fmt: skip
REMOVING_DISK: Final = Meaning(
    _D, "prepare remove block device", "prepare remove block device",
    "DEL_PCI or DEL_MMIO follows", "prepare remove block device", "3.21",
    pattern=re.compile(r"(?<!to )prepare remove block device"),
)  # fmt: skip
REMOVING_VFIO: Final = Meaning(
    _D, "prepare remove VFIO device", "prepare remove VFIO device",
    "DEL_PCI follows, and nobody waits for its answer", "prepare remove VFIO device", "3.3",
)  # fmt: skip
NOBODY_WAITS: Final = Meaning(
    _D, "send upcall result failed", "send upcall result failed, due to SendError { .. }!",
    "for a disk that timed out: the answer came late; with a VFIO device it comes with every "
    "removal and means nothing",
    "send upcall result failed, due to SendError { .. }!", "3.3", (codes.LATE_REPLY,
    codes.DEVICE_LEAKED),
)  # fmt: skip
REMOVED: Final = Meaning(
    _D, "remove drive|mmio virtio device|pci virtio device",
    "remove drive {id}; unregister mmio virtio device; unregister pci virtio device",
    "the VMM has let go of it", "remove drive drive-4f2",
    pattern=re.compile(r"remove drive ([\w.-]{1,64})|unregister (?:mmio|pci) virtio device"),
)  # fmt: skip
IN_LIST: Final = Meaning(
    _D, "already exists|is already in use|PathAlreadyExists|DeviceIDAlreadyExist",
    "block device path '{p}' already exists; the device ID {id} already exists; device "
    "'{bdf}' is already in use",
    "refused before any request; after a time-out it is the retry of an add that the VMM kept",
    "block device path '/dev/mapper/vg-x' already exists", codes=(codes.HOST_SIDE_FAILURE,),
    pattern=re.compile(
        r"(?:block device path '[^'\n]{0,256}'|device ID \S{1,128}) already exists"
        r"|device '[^'\n]{0,64}' is already in use|BlockDevicePathAlreadyExists"
        r"|DeviceIDAlreadyExist"
    ),
)  # fmt: skip
INVALID_DISK: Final = Meaning(
    _D, "invalid block device|InvalidBlockDevice|Block(InvalidDeviceId",
    "invalid block device path '{p}'; invalid block device id '{id}'",
    "refused before any request: there is no such file, or no such disk",
    "invalid block device path '/dev/mapper/gone'", codes=(codes.HOST_SIDE_FAILURE,),
    pattern=re.compile(
        r"invalid block device (?:path|id) '[^'\n]{0,256}'|InvalidBlockDevice(?:Path|Id)"
        r"|Block\(InvalidDeviceId"
    ),
)  # fmt: skip
VFIO_REFUSED: Final = Meaning(
    _D, "InvalidOperation", "VfioDeviceMgr(InvalidOperation)",
    "refused before any request; before 3.3 it was said of every VFIO device",
    "failed to add VFIO passthrough device: VfioDeviceMgr(InvalidOperation)", "3.3",
    (codes.HOST_SIDE_FAILURE,),
    re.compile(r"VfioDeviceMgr\(InvalidOperation\)|VFIO device, InvalidOperation"),
)  # fmt: skip
FS_REFUSED: Final = Meaning(
    _D, "shared-fs device hotplug|FsDevice(UpdateNot",
    "no support of shared-fs device hotplug; FsDevice(UpdateNotAllowedPostBoot)",
    "refused before any request", "vmm action error: FsDevice(UpdateNotAllowedPostBoot)",
    codes=(codes.HOST_SIDE_FAILURE,),
    pattern=re.compile(
        r"no support of shared-fs device hotplug|FsDevice\(UpdateNotAllowedPostBoot\)"
    ),
)  # fmt: skip
LATE_REFUSAL: Final = Meaning(
    _D, "UpdateNotAllowedPostBoot", "Block(UpdateNotAllowedPostBoot)",
    "under `Failed to remove block device` any error of the second step wears this name; with "
    "upcall it is UpcallServerNotReady, and the guest was asked before",
    'Failed to remove block device "drive-4f2" vmm action error: Block(UpdateNotAllowedPostBoot)',
    codes=(codes.NOT_READY, codes.DEVICE_LEAKED),
    pattern=re.compile(r"(?<!FsDevice\()UpdateNotAllowedPostBoot"),
)  # fmt: skip
VSOCK_LIMIT: Final = Meaning(
    _D, "connection limit reached", "vsock: connection limit reached; refusing new host connection",
    "the VMM refused a CONNECT, not the guest",
    "vsock: connection limit reached; refusing new host connection", "3.2", (codes.NO_LISTENER,),
)  # fmt: skip
SHUTDOWN: Final = Meaning(
    _D, "KVM_EXIT_SHUTDOWN|Vmm is stopping|terminated VMM control",
    "Received KVM_EXIT_SHUTDOWN signal; Vmm is stopping.; Gracefully terminated VMM "
    "control loop",
    "the VM ends; before the channel was ever ready the guest died while booting",
    "Received KVM_EXIT_SHUTDOWN signal", codes=(codes.VM_DIED,),
    pattern=re.compile(
        r"Received (KVM_EXIT_SHUTDOWN) signal|Vmm is stopping|"
        r"Gracefully terminated VMM control loop"
    ),
)  # fmt: skip
RESTORED: Final = Meaning(
    _D, "restored from snapshot", "VM restored from snapshot",
    "not booting: the guest holds its old connection, and the first CONNECT may go unanswered "
    "for 2 s", "VM restored from snapshot", "4.1", (codes.CONNECT_UNANSWERED, codes.NOT_READY),
)  # fmt: skip
START_REFUSED: Final = Meaning(
    _D, "StartMicroVm(|StartMicrovm(|SaveMicrovm(|SaveMicroVm(",
    "StartMicroVm(..); SaveMicrovm(..)",
    "the VM did not start, or was not saved: no hotplug",
    "vmm action error: StartMicroVm(LoadKernel)", codes=(codes.HOST_SIDE_FAILURE, codes.NO_UPCALL),
    pattern=re.compile(r"(Start|Save)Micro[Vv][Mm]\((\w{0,64})"),
)  # fmt: skip

ROWS: Final = (
    MMIO_CREATED, MEMORY, BALLOON, HOT_ADD_FAILED, REMOVING_DISK, REMOVING_VFIO, NOBODY_WAITS,
    REMOVED, IN_LIST, INVALID_DISK, VFIO_REFUSED, FS_REFUSED, LATE_REFUSAL, VSOCK_LIMIT, SHUTDOWN,
    RESTORED, START_REFUSED,
)  # fmt: skip
"""In the order in which a line's rows are told."""
