"""The rows of what Kata's runtime says, and its agent in the guest.

From the sources of Kata Containers 4.1. Filled-in parts are in Rust's `Debug` and `Display` forms,
which differ between releases: words decide, and numbers are read where they stand.
"""

from __future__ import annotations

import re
from typing import Final

from .. import codes
from .meaning import Meaning, Speaker

_R: Final = Speaker.RUNTIME
_A: Final = Speaker.AGENT

ACTION_FAILED: Final = Meaning(
    _R, "vmm action error", "vmm action error: {error}",
    "the VMM refused; alone no proof that nothing was sent",
    "vmm action error: MachineConfig(InvalidVcpuCount(0))", codes=(codes.HOST_SIDE_FAILURE,),
    pattern=re.compile(r"vmm action error: ?(.{0,200})"),
)  # fmt: skip
SENT: Final = Meaning(
    _R, "success to send", "success to send {action} after retry {n}",
    "an insert was accepted by the VMM and its request is sent, not answered; the channel was not "
    "ready for n times 10 ms",
    'success to send InsertBlockDevice(BlockDeviceConfigInfo { drive_id: "drive-77" }) after '
    "retry 0",
    pattern=re.compile(r"success to send (\w{1,64})"),
)  # fmt: skip
RETRIES_SPENT: Final = Meaning(
    _R, "attempts, it still doesn", "After 500 attempts, it still doesn't work.",
    "the channel was not ready for 5 s: the lines before tell why",
    "After 500 attempts, it still doesn't work.", codes=(codes.NOT_READY,),
)  # fmt: skip
TIMED_OUT: Final = Meaning(
    _R, "timed out waiting on channel", "timed out waiting on channel",
    "no answer in 250 ms: late, refused or none, which the next `get vcpu event` or `send upcall "
    "result failed` decides",
    "resize vcpus Caused by: timed out waiting on channel", "3.19", (codes.LATE_REPLY,
    codes.UNANSWERED),
)  # fmt: skip
DISK_ADDED: Final = Meaning(
    _R, "add_block_device success", "add_block_device success: id={id}, guest_id=Some({slot})",
    "the slot is the device number of ADD_PCI: devfn = slot x 8",
    "add_block_device success: id=drive-77, guest_id=Some(3)", "4.0",
    pattern=re.compile(
        r"add_block_device success: id=([\w.-]{1,128})(?:, guest_id=Some\((\d{1,3})\))?"
    ),
)  # fmt: skip
DISK_FAILED: Final = Meaning(
    _R, "add_block_device failed", "add_block_device failed: id={id}, error={error}",
    "a disk's story by its id; its error decides",
    "add_block_device failed: id=drive-1, error=insert block device: After 500 attempts, it still "
    "doesn't work.", "4.0",
    pattern=re.compile(r"add_block_device failed: id=([\w.-]{1,128})"),
)  # fmt: skip
DISK_ADDING: Final = Meaning(
    _R, "add_block_device: id=", "add_block_device: id={id}, …, use_pci_bus={yes}",
    "a disk's story begins", "add_block_device: id=drive-77, path=/dev/vdb, use_pci_bus=true",
    "4.0", pattern=re.compile(r"add_block_device: id=([\w.-]{1,128})"),
)  # fmt: skip
INSERT_FAILED: Final = Meaning(
    _R, "nsert block device", "Failed to insert block device {info}",
    "adding a disk failed; the causes behind it decide",
    'Failed to insert block device BlockDeviceConfigInfo { drive_id: "drive-1" }',
    pattern=re.compile(r'[Ii]nsert block device(?:.{0,80}drive_id: \\?"([\w.-]{1,128}))?'),
)  # fmt: skip
REMOVE_FAILED: Final = Meaning(
    _R, "remove block device", "Failed to prepare remove block device {id}; Failed to remove block "
    "device {id}",
    "before, or after the guest was asked", 'Failed to remove block device "drive-4f2"',
    "3.21", (codes.NOT_READY, codes.DEVICE_LEAKED),
    re.compile(r'Failed to (prepare )?remove block device ?\\?"?([\w.-]{0,128})'),
)  # fmt: skip
HOST_REMOVE: Final = Meaning(
    _R, "remove host device", "Failed to remove host device {id}; prepare to remove host device",
    "a refusal with UpcallServerNotReady is mostly that of the DEL_PCI of this very removal",
    'Failed to remove host device "vfio-a"', "3.3", (codes.NOT_READY,),
    re.compile(r'(Failed to |[Pp]repare to )?remove host device ?\\?"?([\w.-]{0,128})'),
)  # fmt: skip
TOO_MANY_CPUS: Final = Meaning(
    _R, "Cannot allocate more vcpus", "Cannot allocate more vcpus than the max allowed …",
    "the resize goes on with the maximum",
    "Cannot allocate more vcpus than the max allowed number of vcpus 8", "3.2",
)  # fmt: skip
TOO_MUCH_MEMORY: Final = Meaning(
    _R, "memory size unchanged", "memory size unchanged, the request memory size {a} is greater "
    "than the max memory size {b}",
    "nothing is sent, and it is called a success",
    "memory size unchanged, the request memory size 8192 is greater than the max memory size 4096",
    "3.3", (codes.HOST_SIDE_FAILURE,),
    re.compile(r"memory size unchanged, the request memory size .{0,40}is greater"),
)  # fmt: skip
OWN_BALLOON: Final = Meaning(
    _R, "f_reporting balloon", "failed to insert f_reporting balloon device: {error}",
    "the balloon that is plugged by itself 5 s after the start; its error decides",
    "failed to insert f_reporting balloon device: vmm action error: UpcallServerNotReady", "3.9",
    (codes.NOT_READY, codes.IDLE_CHANNEL_LOST),
)  # fmt: skip
NO_CONFIG: Final = Meaning(
    _R, "dragonball hypervisor does not support", "dragonball hypervisor does not support {…}",
    "the configuration file was refused: no VM",
    "load config: dragonball hypervisor does not support PCI hotplug options", upcall=False,
)  # fmt: skip
UEVENT: Final = Meaning(
    _A, "waiting for uevent", "Timeout after {3s} waiting for uevent {matcher}",
    "a plugged device never appeared in the guest; the matcher names its PCI address",
    'Timeout after 3s waiting for uevent VirtioBlkPciMatcher { rex: Regex("^/devices/pci0000:00/'
    '0000:00:03.0/virtio[0-9]+/block/") }', codes=(codes.MISSING_IN_GUEST,),
    pattern=re.compile(r"[Tt]ime ?out after .{0,16}waiting for uevent(.{0,300})"),
)  # fmt: skip
NOT_ONLINE: Final = Meaning(
    _A, "to online", "failed to online {n} CPU(s) after 100 retries",
    "5 s after the VMM called the resize a success, the guest has fewer CPUs; every VMM's users "
    "see it", "failed to online 2 CPU(s) after 100 retries", codes=(codes.MISSING_IN_GUEST,),
    pattern=re.compile(r"failed to online (\d{1,6}) CPU"),
)  # fmt: skip

ROWS: Final = (
    ACTION_FAILED, SENT, RETRIES_SPENT, TIMED_OUT, DISK_ADDED, DISK_FAILED, DISK_ADDING,
    INSERT_FAILED, REMOVE_FAILED, HOST_REMOVE, TOO_MANY_CPUS, TOO_MUCH_MEMORY, OWN_BALLOON,
    NO_CONFIG, UEVENT, NOT_ONLINE,
)  # fmt: skip
"""In the order in which a line's rows are told."""
