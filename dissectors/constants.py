"""Every number of the upcall protocol, by its name in docs/protocol.md.

Nothing here does anything; a new message type starts as one row of `MessageType`.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final

# Hybrid vsock, docs/protocol.md section 2.
UPCALL_PORT: Final = 0xDB
HOST_CID: Final = 2
"""The vsock address of the host, in every guest."""
CONNECT_LINE_LIMIT: Final = 32
"""Bytes that Dragonball reads at most while it looks for the end of a CONNECT line."""
OK_LINE_LIMIT: Final = 50
"""Bytes that Dragonball's client reads at most of the answer to its CONNECT line."""

# Device-manager messages, docs/protocol.md section 3.
MAGIC_VERSION: Final = 0x444D0100
MESSAGE_SIZE: Final = 0x400
HEADER_SIZE: Final = 16
RET_OFFSET: Final = 16
REPLY_LOAD_OFFSET: Final = 20
APIC_IDS_SIZE: Final = 256


class MessageType(IntEnum):
    """`msg_type` of a device-manager message; docs/protocol.md section 3."""

    CONNECT = 0
    ADD_CPU = 1
    DEL_CPU = 2
    ADD_MEM = 3
    DEL_MEM = 4
    ADD_MMIO = 5
    DEL_MMIO = 6
    ADD_PCI = 7
    DEL_PCI = 8


CPU_TYPES: Final = frozenset({MessageType.ADD_CPU, MessageType.DEL_CPU})
MMIO_TYPES: Final = frozenset({MessageType.ADD_MMIO, MessageType.DEL_MMIO})
PCI_TYPES: Final = frozenset({MessageType.ADD_PCI, MessageType.DEL_PCI})
RESERVED_TYPES: Final = frozenset({MessageType.ADD_MEM, MessageType.DEL_MEM})
HANDLED_TYPES: Final = frozenset(MessageType) - RESERVED_TYPES - {MessageType.CONNECT}
"""Requests that the guest has a handler for."""
ADDING_TYPES: Final = frozenset({MessageType.ADD_CPU, MessageType.ADD_MMIO, MessageType.ADD_PCI})
"""Requests after which the guest has something more."""

SHAREABLE_IRQ: Final = 5
"""The one interrupt that several virtio-mmio devices of a guest may have (section 4)."""


class Arch(Enum):
    """Guest architecture; it decides the layout of CPU messages (section 3)."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"

    @classmethod
    def named(cls, name: str | None) -> Arch | None:
        """The architecture of that name, as headers of captures have it; None for another text."""
        return _ARCHES.get(name or "")


_ARCHES: Final = {arch.value: arch for arch in Arch}


CPU_MSG_SIZE: Final = {Arch.X86_64: 258, Arch.AARCH64: 1}
"""`msg_size` of a CPU request: 258 tells x86-64, 1 tells aarch64 (section 3)."""
MMIO_MSG_SIZE: Final = 24
PCI_MSG_SIZE: Final = 2
CPU_REPLY_MSG_SIZE: Final = 4

# The guest's and the VMM's time limits, docs/protocol.md sections 4 and 5.
CONNECT_LIMIT_NS: Final = 2_000_000_000
"""How long Dragonball's multiplexer waits for the guest to answer a request to connect."""
SERVICE_BYTE_LIMIT_NS: Final = 10_000_000_000
CALLER_TIMEOUT_NS: Final = 250_000_000
RECONNECT_DELAY_NS: Final = 10_000_000
RECONNECT_LIMIT: Final = 501

# asm-generic errno numbers, the same on every architecture that Dragonball runs on.
_ERRNO_1_TO_34: Final = (
    "EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT "
    "ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG "
    "ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE"
).split()
ERRNO_NAMES: Final[dict[int, str]] = dict(enumerate(_ERRNO_1_TO_34, start=1)) | {
    38: "ENOSYS", 61: "ENODATA", 62: "ETIME", 71: "EPROTO", 75: "EOVERFLOW", 95: "EOPNOTSUPP",
    103: "ECONNABORTED", 104: "ECONNRESET", 105: "ENOBUFS", 107: "ENOTCONN", 110: "ETIMEDOUT",
    121: "EREMOTEIO", 125: "ECANCELED",
}  # fmt: skip

EINVAL: Final = -22
EBUSY: Final = -16
EEXIST: Final = -17
ENODEV: Final = -19
EIO: Final = -5
EPERM: Final = -1

NOT_A_RESULT: Final = "not a known result"
RESULT_MEANINGS: Final[dict[tuple[int, int], str]] = {
    (MessageType.ADD_CPU, EINVAL): "id known, not listed, or none free",
    (MessageType.ADD_CPU, EIO): "vCPU did not start, VMM never ran it",
    (MessageType.ADD_CPU, EEXIST): "CPU is online, and lost its id",
    (MessageType.ADD_CPU, EBUSY): "CPU hotplug is off for now",
    (MessageType.ADD_CPU, 1): "CPU was already online",
    (MessageType.DEL_CPU, EINVAL): "would remove all, or the boot CPU",
    (MessageType.DEL_CPU, EBUSY): "CPU could not be taken offline",
    (MessageType.DEL_CPU, 1): "CPU was already offline",
    (MessageType.ADD_MMIO, EINVAL): "msg_size not 24, or bad IRQ",
    (MessageType.ADD_MMIO, EEXIST): "window or IRQ already taken",
    (MessageType.ADD_MMIO, EBUSY): "window is empty or claimed",
    (MessageType.DEL_MMIO, EINVAL): "msg_size not 24, or bad IRQ",
    (MessageType.DEL_MMIO, ENODEV): "no such device registered",
    (MessageType.ADD_PCI, ENODEV): "no such bus or empty slot",
    (MessageType.DEL_PCI, ENODEV): "no such device",
}
"""What a reply's `ret` says in a few words, by request type and value (section 4)."""


def errno_name(ret: int) -> str | None:
    """The name of a negative `ret`, `"EEXIST"` for -17; None for success or an unknown number."""
    return ERRNO_NAMES.get(-ret)


def op_name(msg_type: int) -> str:
    """The message's name in lower case, `"add_mmio"`; `"type_77"` for one that has no name."""
    return _OP_NAMES.get(msg_type) or f"type_{msg_type}"


_OP_NAMES: Final[dict[int, str]] = {int(t): t.name.lower() for t in MessageType}


def result_meaning(msg_type: int, ret: int) -> str:
    """A few words on what `ret` means as the answer to `msg_type`; empty for plain success."""
    if ret == 0:
        return ""
    if ret == EPERM and (msg_type not in HANDLED_TYPES):
        return "the guest has no handler for it"
    return RESULT_MEANINGS.get((msg_type, ret), NOT_A_RESULT)
