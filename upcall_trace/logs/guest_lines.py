"""The rows of what the guest's kernel says, as its console shows it.

The device manager's lines, but those of PCI and arm, have no newline in the kernel's source: each
is seen when the next one is printed, and the last is missing. docs/log-texts.md.
"""

from __future__ import annotations

import re
from typing import Final

from .. import codes
from .meaning import Meaning, Speaker

_M, _K = Speaker.MANAGER, Speaker.KERNEL

NO_SERVER: Final = Meaning(
    _M, "db-upcall-srv: ", "db-upcall-srv: Server vsock create failed; bind failed; listen error; "
    "Server task create failed; Init server err: {e}",
    "no upcall in this boot", "db-upcall-srv: Init server err: -98", "3.1", (codes.NO_UPCALL,),
    re.compile(
        r"db-upcall-srv: .{0,40}?(?:vsock create failed|bind failed|listen error|"
        r"task create failed|Init server err)"
    ),
)  # fmt: skip
NO_SERVICE: Final = Meaning(
    _M, "Client connection closed, error code", "db-upcall-srv: Client connection closed, error "
    "code: {e}",
    "no service: an unknown service byte, none within 10 s, or the client is gone",
    "db-upcall-srv: Client connection closed, error code: -1", "3.1",
    (codes.UNKNOWN_SERVICE, codes.SERVICE_BYTE_TIMEOUT, codes.NO_HELLO),
)  # fmt: skip
NO_THREAD: Final = Meaning(
    _M, "Client process thread create failed", "db_devmgr_handler : Client process thread create "
    "failed, err: {e}",
    "OK and the service byte, but no thread",
    "db-dev-mgr: db_devmgr_handler : Client process thread create failed, err: -12", "3.1",
    (codes.NO_HELLO,),
)  # fmt: skip
NOT_SENT: Final = Meaning(
    _M, "Server send message failed", "db_devmgr_server : Server send message failed, err: {e}",
    "an answer could not be delivered; the connection is dead",
    "db-dev-mgr: db_devmgr_server : Server send message failed, err: -32", "3.1",
    (codes.RESET_WHILE_BUSY,),
)  # fmt: skip
CPUS: Final = Meaning(
    _M, "vcpu number", "add vcpu number: {n}; del vcpu number : {n}; Current vcpu number: {a}, Add "
    "vcpu number: {n}",
    "ADD_CPU or DEL_CPU begins", "db-dev-mgr: add vcpu number: 1", "3.1",
    pattern=re.compile(
        r"(Current vcpu number: \d{1,9}, )?(add|del|Add|Delete) vcpu number ?: (\d{1,9})"
    ),
)  # fmt: skip
CPU_ID: Final = Meaning(
    _M, "ing vcpu ", "adding vcpu apic_id {n}; deleting vcpu {n}",
    "one id of the list; with -1 the lookup lost an id, and the thread dies next with the lock "
    "held", "db-dev-mgr: adding vcpu apic_id 1", "3.1", (codes.REMOVAL_ORDER,),
    re.compile(r"(?:adding vcpu apic_id|deleting vcpu) (-?\d{1,9})"),
)  # fmt: skip
CPU_KNOWN: Final = Meaning(
    _M, "is already been used", "cpu cannot be added: apci_id {n} is already been used.",
    "no id of this list was touched",
    "db-dev-mgr: cpu cannot be added: apci_id 1 is already been used.", "3.1",
    (codes.CPU_ALREADY_KNOWN,),
    re.compile(r"cpu cannot be added: apci_id (\d{1,9}) is already been used"),
)  # fmt: skip
NO_NUMBER: Final = Meaning(
    _M, "generic processor info failed",
    "cpu (apic id {n}) cannot be added, generic processor info "
    "failed",
    "there is no CPU number for it; ids listed before it are up",
    "db-dev-mgr: cpu (apic id 77) cannot be added, generic processor info failed", "3.1",
    (codes.NO_CPU_NUMBER, codes.PARTIAL_CPU_ADD),
    re.compile(r"cpu \(apic id (\d{1,9})\) cannot be added, generic processor info failed"),
)  # fmt: skip
NOT_REGISTERED: Final = Meaning(
    _M, "register cpu failed", "cpu {n} cannot be added, register cpu failed {e}",
    "the kernel could not register it; ids before it are up. -17: it is online and has lost its id",
    "db-dev-mgr: cpu 2 cannot be added, register cpu failed -12", "3.1",
    (codes.CPU_REFUSED_BY_KERNEL, codes.CPU_LOST_ITS_ID),
    re.compile(r"cpu (\d{1,9}) cannot be added, register cpu failed:? ?(-?\d{1,9})"),
)  # fmt: skip
NOT_UP: Final = Meaning(
    _M, "cpu up failed", "cpu {n} cannot be added, cpu up failed: {e}",
    "-5: the VMM never ran that vCPU; ids before it are up",
    "db-dev-mgr: cpu 1 cannot be added, cpu up failed: -5", "3.1", (codes.VCPU_NOT_STARTED,
    codes.PARTIAL_CPU_ADD, codes.UNEXPLAINED_RESULT),
    re.compile(r"cpu (\d{1,9}) cannot be added, cpu up failed:? ?(-?\d{1,9})"),
)  # fmt: skip
REMOVE_ALL: Final = Meaning(
    _M, "cannot remove all vcpus", "cpu del parameter check error: cannot remove all vcpus",
    "it would leave the guest without a CPU; the notification after it is part of the refusal",
    "db-dev-mgr: cpu del parameter check error: cannot remove all vcpus", "3.1",
    (codes.REMOVE_ALL_CPUS,),
)  # fmt: skip
NOT_POSSIBLE: Final = Meaning(
    _M, "cpu not possible", "cpu {n} cannot be deleted: cpu not possible",
    "there is no such CPU; -1 for an id that is not found where the kernel survived that",
    "db-dev-mgr: cpu 9 cannot be deleted: cpu not possible", "3.1", (codes.CPU_REFUSED_BY_KERNEL,),
    re.compile(r"cpu (-?\d{1,9}) cannot be deleted: cpu not possible"),
)  # fmt: skip
BOOT_CPU: Final = Meaning(
    _M, "cannot del bootstrap processor", "cannot del bootstrap processor.",
    "the boot CPU is in the list; ids listed before it are gone",
    "db-dev-mgr: cannot del bootstrap processor.", "3.1", (codes.REMOVE_BOOT_CPU,),
)  # fmt: skip
DEL_FAILED: Final = Meaning(
    _M, "del vcpu failed", "del vcpu failed, err: {e}",
    "-16: the CPU could not be taken offline; 1: the guest had set it offline itself",
    "db-dev-mgr: del vcpu failed, err: -16", "3.1", (codes.CPU_BUSY, codes.CPU_ALREADY_OFFLINE,
    codes.UNEXPLAINED_RESULT),
    re.compile(r"del vcpu failed, err:? ?(-?\d{1,9})"),
)  # fmt: skip
CPU_DONE: Final = Meaning(
    _M, "cpu event notification", "cpu event notification: apic ids index {n}; cpu_id {n}",
    "success, unless a refusal stands before it",
    "db-dev-mgr: cpu event notification: apic ids index 1", "3.1",
    pattern=re.compile(r"cpu event notification: (?:apic ids index|cpu_id) (\d{1,9})"),
)  # fmt: skip
PCI: Final = Meaning(
    _M, "pci device of busno", "add pci device of busno: {xx}, devfn: {xx}; remove pci device …",
    "ADD_PCI or DEL_PCI begins; a success has no line",
    "db-dev-mgr: add pci device of busno: 00, devfn: 18", "3.1",
    pattern=re.compile(
        r"(add|remove) pci device of busno: ([0-9a-f]{1,2}), devfn: ([0-9a-f]{1,2})\b"
    ),
)  # fmt: skip
NO_BUS: Final = Meaning(
    _M, "Could not find PCI bus", "Could not find PCI bus for busno {xx}",
    "there is no such bus", "db-dev-mgr: Could not find PCI bus for busno 07", "3.1",
    (codes.PCI_NO_SUCH_BUS, codes.PCI_NO_SUCH_DEVICE),
)  # fmt: skip
NO_SLOT: Final = Meaning(
    _M, "Could not find PCI device", "Could not find PCI device for slot {xx}",
    "nothing answers there; xx is devfn in hex, no slot",
    "db-dev-mgr: Could not find PCI device for slot 48", "3.1", (codes.PCI_NOTHING_THERE,
    codes.PCI_NO_SUCH_DEVICE),
)  # fmt: skip
UNKNOWN_TYPE: Final = Meaning(
    _M, "Not found valid command", "db_devmgr_process : Not found valid command",
    "the guest has no handler for the request's type",
    "db-dev-mgr: db_devmgr_process : Not found valid command", "3.1", (codes.UNKNOWN_TYPE,
    codes.RESERVED_MEMORY_OP),
)  # fmt: skip
COMMAND_FAILED: Final = Meaning(
    _M, "Command run failed", "db_devmgr_process : Command run failed, err: {e}",
    "a request was refused: the one before, or one that has no line of its own, as MMIO requests",
    "db-dev-mgr: db_devmgr_process : Command run failed, err: -17", "3.1",
    (codes.MMIO_OVERLAP, codes.IRQ_CONFLICT, codes.MMIO_BAD_SIZE_FIELD, codes.MMIO_BAD_IRQ,
    codes.MMIO_RESOURCE_BUSY, codes.MMIO_NO_SUCH_DEVICE, codes.UNEXPLAINED_RESULT),
    re.compile(r"Command run failed, err:? ?(-?\d{1,9})\b"),
)  # fmt: skip

REGISTERING: Final = Meaning(
    _K, "virtio-mmio: Registering device", "virtio-mmio: Registering device virtio-mmio.{n} at "
    "0x{first}-0x{last}, IRQ {n}.",
    "ADD_MMIO, or a device of the boot; IRQ -1: the number cannot be used",
    "virtio-mmio: Registering device virtio-mmio.4 at 0xe0008000-0xe0009fff, IRQ 5.", "3.1",
    (codes.MMIO_DRIVER_FAILED, codes.DRIVER_HANGS),
    re.compile(
        r"virtio-mmio: Registering device (virtio-mmio\.\d{1,9}) "
        r"at 0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16}), IRQ (-?\d{1,9})"
    ),
)  # fmt: skip
MMIO_PROBE: Final = Meaning(
    _K, "virtio-mmio", "virtio-mmio virtio-mmio.{n}: Wrong magic value …; Version … not supported; "
    "virtio-mmio: probe of virtio-mmio.{n} failed",
    "no virtio device answers in that window",
    "virtio-mmio virtio-mmio.2: Wrong magic value 0x00000000!", "3.1", (codes.MMIO_DRIVER_FAILED,),
    re.compile(
        r"virtio-mmio (virtio-mmio\.\d{1,9}): (?:Wrong magic value|Version \S{1,32} not supported|"
        r"probe with driver \S{1,64} failed)|virtio-mmio: probe of (virtio-mmio\.\d{1,9}) failed"
    ),
)  # fmt: skip
UNCLAIMED: Final = Meaning(
    _K, "failed to claim resource", "platform virtio-mmio.{n}: failed to claim resource {n}",
    "the window is taken", "platform virtio-mmio.4: failed to claim resource 0", "3.1",
    (codes.MMIO_RESOURCE_BUSY,),
    re.compile(r"platform (virtio-mmio\.\d{1,9}): failed to claim resource"),
)  # fmt: skip
PCI_PROBE: Final = Meaning(
    _K, "0000:",
    "pci 0000:{bb:ss.f}: BAR {n}: no space; virtio-pci: probe of 0000:{bb:ss.f} failed",
    "the function was found, but its driver cannot use it",
    "virtio-pci 0000:00:05.0: probe with driver virtio-pci failed with error -28", "3.1",
    (codes.PCI_DRIVER_FAILED,),
    re.compile(
        r"(?:pci|virtio-pci) 0000:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7]): (?:BAR \d{1,2}.{0,120}"
        r"(?:no space|failed to assign|can't assign|can't reserve|not assigned|unassigned)|"
        r"probe with driver \S{1,64} failed|.{0,80}not initialized correctly)"
        r"|virtio-pci: probe of 0000:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7]) failed"
    ),
)  # fmt: skip
DRIVER_PROBE: Final = Meaning(
    _K, "virtio_|virtio", "{driver}: probe of virtio{n} failed with error {e}; {driver} virtio{n}: "
    "probe with driver {driver} failed with error {e}; virtio{n}: device refuses features",
    "virtio{n} is the one made by the registration just before; its driver does not work",
    "virtio_net virtio6: probe with driver virtio_net failed with error -12", "3.1",
    (codes.MMIO_DRIVER_FAILED, codes.PCI_DRIVER_FAILED),
    re.compile(
        r"virtio_\w{1,32}: probe of (virtio\d{1,9}) failed"
        r"|virtio_\w{1,32} (virtio\d{1,9}): (?:probe with driver \S{1,64} failed|"
        r"virtio: device refuses features|probe .{0,40}failed)"
        r"|(?<![\w-])virtio (virtio\d{1,9}): device refuses features"
        r"|(virtio\d{1,9}): virtio: device refuses features"
    ),
)  # fmt: skip
DRIVER_LINE: Final = Meaning(
    _K, "virtio_blk virtio|virtio_net virtio|virtio_mem virtio|virtio_balloon virtio",
    "{driver} virtio{n}: {…}",
    "a driver took the device that was registered just before",
    "virtio_blk virtio4: [vda] 20480 512-byte logical blocks (10.5 MB/10.0 MiB)", "3.1",
    pattern=re.compile(r"virtio_\w{1,32} (virtio\d{1,9}): (?!probe with|virtio: device refuses)"),
    upcall=False,
)  # fmt: skip
NO_MEMORY: Final = Meaning(
    _K, "adding memory failed", "virtio_mem virtio{n}: adding memory failed: {e}",
    "the driver works, but no memory came of it",
    "virtio_mem virtio4: adding memory failed: -17", "3.1", (codes.MMIO_DRIVER_FAILED,
    codes.PCI_DRIVER_FAILED),
    re.compile(r"virtio_mem (virtio\d{1,9}): adding memory failed"),
)  # fmt: skip
OOPS: Final = Meaning(
    _K, "BUG: |Oops|general protection fault|Unable to handle kernel|Internal error: |"
    "kernel BUG at",
    "BUG: …; Oops: …; general protection fault, …; Unable to handle kernel …; Internal error: …",
    "an oops begins; the line with `Comm:` says whose it is",
    "BUG: unable to handle page fault for address: ffffffffa1ad3480", "3.1",
    (codes.REMOVE_UNFINDABLE_CPU, codes.REMOVAL_ORDER, codes.ADD_BEYOND_POSSIBLE,
    codes.MMIO_WITHOUT_BOOT_DEVICE, codes.GUEST_THREAD_DIED),
    re.compile(
        r"BUG: (?:unable to handle|kernel NULL|Bad |scheduling|stack guard|sleeping)|kernel BUG at|"
        r"Oops: |Oops - |general protection fault|Unable to handle kernel|Internal error: "
    ),
    upcall=False,
)  # fmt: skip
COMM: Final = Meaning(
    _K, " Comm: ", "CPU: {c} PID: {p} Comm: {name}",
    "whose oops it is: `db_dev_mgr` is upcall's thread; while a CPU comes up `cpuhp/{n}` or "
    "`swapper/{n}` of that CPU",
    "CPU: 0 PID: 109 Comm: db_dev_mgr Not tainted 6.1.90 #1", "3.1",
    (codes.REMOVE_UNFINDABLE_CPU, codes.REMOVAL_ORDER, codes.ADD_BEYOND_POSSIBLE,
    codes.MMIO_WITHOUT_BOOT_DEVICE, codes.GUEST_THREAD_DIED),
    re.compile(r"CPU: (\d{1,5})(?: UID: \d{1,10})? PID: \d{1,10} Comm: (\S{1,32})"), upcall=False,
)  # fmt: skip
BACKTRACE: Final = Meaning(
    _K, "virtio_mmio_add_device+|virtio_mmio_del_device+|del_cpu_dev+|device_offline+|"
    "add_cpu_dev+|device_online+|add_mmio_dev+|del_mmio_dev+",
    "functions of an oops' backtrace: virtio_mmio_add_device, virtio_mmio_del_device, del_cpu_dev, "
    "device_offline, add_cpu_dev",
    "which way the thread went in", "? virtio_mmio_add_device+0x2f/0x6a", "3.1",
    (codes.REMOVE_UNFINDABLE_CPU, codes.REMOVAL_ORDER, codes.ADD_BEYOND_POSSIBLE,
    codes.MMIO_WITHOUT_BOOT_DEVICE),
    re.compile(
        r"(virtio_mmio_add_device|virtio_mmio_del_device|del_cpu_dev|device_offline|add_cpu_dev|"
        r"device_online|add_mmio_dev|del_mmio_dev)\+0x"
    ),
    upcall=False,
)  # fmt: skip
HUNG: Final = Meaning(
    _K, "blocked for more than", "INFO: task db_dev_mgr:{p} blocked for more than {s} seconds.",
    "a request waits for ever: a vCPU that does not start ends after 10 s, a lock does not",
    "INFO: task db_dev_mgr:112 blocked for more than 122 seconds.", "3.1",
    (codes.HOTPLUG_LOCK_STUCK, codes.DRIVER_HANGS),
    re.compile(r"task db_dev_mgr:\d{1,10} blocked for more than (\d{1,9}) seconds"),
)  # fmt: skip
PANIC: Final = Meaning(
    _K, "Kernel panic - not syncing", "Kernel panic - not syncing: {…}",
    "the guest is dead, and what was open stays unanswered",
    "Kernel panic - not syncing: Fatal exception", "3.1", (codes.VM_DIED,),
    re.compile(r"(?<!end )Kernel panic - not syncing:? ?(.{0,120})"), upcall=False,
)  # fmt: skip
PANIC_END: Final = Meaning(
    _K, "end Kernel panic", "---[ end Kernel panic - not syncing: {…} ]---",
    "the same panic again", "---[ end Kernel panic - not syncing: Fatal exception ]---", "3.1",
    upcall=False,
)  # fmt: skip
BOOT: Final = Meaning(
    _K, "Linux version ", "Linux version {…}",
    "a new boot; a time that steps back is none",
    "Linux version 6.1.90 (builder@example) #1 SMP", "3.0", (codes.GUEST_REBOOTED,),
    re.compile(r"(?:^|\] |: )Linux version (\S{1,64})"), upcall=False,
)  # fmt: skip

ROWS: Final = (
    NO_SERVER, NO_SERVICE, NO_THREAD, NOT_SENT, CPUS, CPU_ID, CPU_KNOWN, NO_NUMBER, NOT_REGISTERED,
    NOT_UP, REMOVE_ALL, NOT_POSSIBLE, BOOT_CPU, DEL_FAILED, CPU_DONE, PCI, NO_BUS, NO_SLOT,
    UNKNOWN_TYPE, COMMAND_FAILED, REGISTERING, MMIO_PROBE, UNCLAIMED, PCI_PROBE, DRIVER_PROBE,
    DRIVER_LINE, NO_MEMORY, OOPS, COMM, BACKTRACE, HUNG, PANIC_END, PANIC, BOOT,
)  # fmt: skip
"""In the order in which a line's rows are told."""
