"""The codes of findings: the one table of their numbers, names, severities and sides.

A code is used by its name here: `codes.MMIO_OVERLAP`. It is a text as well, its number, so that it
can be printed, sorted and written to JSON as it is. Numbers are stable for ever and never used
again for something else. What a code means is told by its rule in `upcall_trace/diagnose/rules/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, IntEnum, StrEnum
from typing import Any, Final


class Severity(IntEnum):
    """How bad it is; ordered."""

    NOTE = 1
    WARNING = 2
    ERROR = 3
    FATAL = 4

    @property
    def word(self) -> str:
        """The name that users see and write."""
        return self.name.lower()


class Side(StrEnum):
    """Where the fault is, as far as it is known. The values are the words of the JSON output."""

    VMM = "vmm"
    RUNTIME = "runtime"
    GUEST = "guest"
    CLIENT = "client"
    OPERATOR = "operator"
    UNKNOWN = "unknown"


class Family(Enum):
    """The first digit of a number, and what its codes are about."""

    CONNECTING = 1, "how a connection begins"
    CPUS = 2, "CPUs that do not come or go"
    MMIO = 3, "virtio-mmio devices"
    PCI = 4, "PCI devices"
    MESSAGES = 5, "requests and replies that are not what they seem"
    TIME = 6, "answers that come late or never, and how things ended"
    CONSEQUENCES = 7, "what the VMM and its user are left with"
    OUTSIDE = 8, "what is not upcall"
    OTHERS = 0, "codes of plugins"

    @property
    def title(self) -> str:
        return self.value[1]


_OURS: Final = re.compile(r"UP[1-8][0-9]{2}")
_FAMILIES: Final = {str(family.value[0]): family for family in Family}


class Code(str):
    """A code: its number as text, with what is the same wherever it is found.

    `side` is what a finding of the code says as long as it does not know better.
    """

    name: str
    severity: Severity
    side: Side
    family: Family
    """By the first digit; codes of plugins are a family of their own."""

    def __new__(cls, number: str, name: str, severity: Severity, side: Side) -> Code:
        code = super().__new__(cls, number)
        code.name, code.severity, code.side = name, severity, side
        code.family = _FAMILIES[number[2]] if _OURS.fullmatch(number) else Family.OTHERS
        return code

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (str(self), self.name, self.severity, self.side)

    def __repr__(self) -> str:
        return f"<{self} {self.name}>"


_BY_TEXT: Final[dict[str, Code]] = {}
"""The table's codes by their number, in the order of the numbers."""


def _row(number: str, name: str, severity: Severity, side: Side) -> Code:
    _BY_TEXT[number] = code = Code(number, name, severity, side)
    return code


def _restored(number: str, name: str, severity: Severity, side: Side) -> Code:
    """What was pickled: the table's own, or a plugin's."""
    return _BY_TEXT.get(number) or Code(number, name, severity, side)


def table() -> Iterator[Code]:
    """Every code of this table, in the order of the numbers."""
    return iter(_BY_TEXT.values())


_N, _W, _E, _F = Severity.NOTE, Severity.WARNING, Severity.ERROR, Severity.FATAL
_VMM, _GUEST, _CLIENT, _OPEN = Side.VMM, Side.GUEST, Side.CLIENT, Side.UNKNOWN

NO_LISTENER: Final = _row("UP101", "no-listener", _E, _GUEST)
CONNECT_REFUSED_LOOP: Final = _row("UP102", "connect-refused-loop", _E, _GUEST)
MALFORMED_CONNECT_LINE: Final = _row("UP103", "malformed-connect-line", _E, _CLIENT)
UNKNOWN_SERVICE: Final = _row("UP104", "unknown-service", _E, _CLIENT)
SERVICE_BYTE_TIMEOUT: Final = _row("UP105", "service-byte-timeout", _E, _CLIENT)
NO_HELLO: Final = _row("UP106", "no-hello", _E, _GUEST)
BAD_HELLO: Final = _row("UP107", "bad-hello", _E, _GUEST)
EARLY_SERVICE_BYTE: Final = _row("UP108", "early-service-byte", _W, _CLIENT)
CONNECT_UNANSWERED: Final = _row("UP109", "connect-unanswered", _E, _GUEST)
NOT_OK: Final = _row("UP110", "not-ok", _E, _OPEN)
HALF_CLOSED_EARLY: Final = _row("UP111", "half-closed-early", _E, _CLIENT)
NO_UPCALL: Final = _row("UP112", "no-upcall", _E, _OPEN)

VCPU_NOT_STARTED: Final = _row("UP201", "vcpu-not-started", _E, _VMM)
CPU_ALREADY_KNOWN: Final = _row("UP202", "cpu-already-known", _E, _VMM)
NO_CPU_NUMBER: Final = _row("UP203", "no-cpu-number", _E, _VMM)
REMOVE_ALL_CPUS: Final = _row("UP204", "remove-all-cpus", _E, _VMM)
REMOVE_BOOT_CPU: Final = _row("UP205", "remove-boot-cpu", _E, _VMM)
REMOVE_UNFINDABLE_CPU: Final = _row("UP206", "remove-unfindable-cpu", _F, _VMM)
REMOVAL_ORDER: Final = _row("UP207", "removal-order", _F, _VMM)
CPU_BUSY: Final = _row("UP208", "cpu-busy", _E, _GUEST)
PARTIAL_CPU_ADD: Final = _row("UP209", "partial-cpu-add", _W, _GUEST)
ADD_BEYOND_POSSIBLE: Final = _row("UP210", "add-beyond-possible", _F, _VMM)
CPU_REFUSED_BY_KERNEL: Final = _row("UP211", "cpu-refused-by-kernel", _E, _GUEST)
CPU_NEVER_AGAIN: Final = _row("UP212", "cpu-never-again", _E, _GUEST)
CPU_LOST_ITS_ID: Final = _row("UP213", "cpu-lost-its-id", _E, _GUEST)
CPU_ALREADY_OFFLINE: Final = _row("UP214", "cpu-already-offline", _W, _GUEST)

MMIO_OVERLAP: Final = _row("UP301", "mmio-overlap", _E, _VMM)
IRQ_CONFLICT: Final = _row("UP302", "irq-conflict", _E, _VMM)
MMIO_BAD_SIZE_FIELD: Final = _row("UP303", "mmio-bad-size-field", _E, _CLIENT)
MMIO_BAD_IRQ: Final = _row("UP304", "mmio-bad-irq", _E, _VMM)
MMIO_RESOURCE_BUSY: Final = _row("UP305", "mmio-resource-busy", _E, _VMM)
MMIO_NO_SUCH_DEVICE: Final = _row("UP306", "mmio-no-such-device", _E, _VMM)
MMIO_DRIVER_FAILED: Final = _row("UP307", "mmio-driver-failed", _E, _OPEN)
CHANNEL_REMOVED: Final = _row("UP308", "channel-removed", _F, _VMM)
MMIO_WITHOUT_BOOT_DEVICE: Final = _row("UP309", "mmio-without-boot-device", _F, _VMM)
DRIVER_HANGS: Final = _row("UP310", "driver-hangs", _F, _VMM)

PCI_NO_SUCH_BUS: Final = _row("UP401", "pci-no-such-bus", _E, _VMM)
PCI_NOTHING_THERE: Final = _row("UP402", "pci-nothing-there", _E, _VMM)
PCI_NO_SUCH_DEVICE: Final = _row("UP403", "pci-no-such-device", _E, _VMM)
PCI_DRIVER_FAILED: Final = _row("UP404", "pci-driver-failed", _E, _OPEN)

STALE_SUCCESS: Final = _row("UP501", "stale-success", _E, _GUEST)
STALE_ERROR: Final = _row("UP502", "stale-error", _E, _GUEST)
STALE_LOAD: Final = _row("UP503", "stale-load", _N, _GUEST)
UNKNOWN_TYPE: Final = _row("UP504", "unknown-type", _E, _CLIENT)
SPLIT_REQUEST: Final = _row("UP505", "split-request", _E, _CLIENT)
SHORT_REQUEST: Final = _row("UP506", "short-request", _W, _CLIENT)
OVERLAPPING_REQUESTS: Final = _row("UP507", "overlapping-requests", _W, _CLIENT)
OVER_LONG_REQUEST: Final = _row("UP508", "over-long-request", _E, _CLIENT)
REPLY_MISMATCH: Final = _row("UP509", "reply-mismatch", _E, _OPEN)
UNSOLICITED_REPLY: Final = _row("UP510", "unsolicited-reply", _E, _OPEN)
RESERVED_MEMORY_OP: Final = _row("UP511", "reserved-memory-op", _E, _CLIENT)
BAD_MAGIC: Final = _row("UP512", "bad-magic", _E, _CLIENT)
REPLY_IN_PIECES: Final = _row("UP513", "reply-in-pieces", _E, _VMM)
UNEXPLAINED_RESULT: Final = _row("UP599", "unexplained-result", _E, _GUEST)

LATE_REPLY: Final = _row("UP601", "late-reply", _W, _GUEST)
UNANSWERED: Final = _row("UP602", "unanswered", _E, _OPEN)
HOTPLUG_LOCK_STUCK: Final = _row("UP603", "hotplug-lock-stuck", _F, _GUEST)
NOT_READY: Final = _row("UP604", "not-ready", _E, _OPEN)
RESET_WHILE_BUSY: Final = _row("UP605", "reset-while-busy", _E, _OPEN)
IDLE_CHANNEL_LOST: Final = _row("UP606", "idle-channel-lost", _E, _GUEST)
GUEST_THREAD_DIED: Final = _row("UP607", "guest-thread-died", _F, _GUEST)
GUEST_REBOOTED: Final = _row("UP608", "guest-rebooted", _E, _GUEST)
GUEST_STOOD_STILL: Final = _row("UP609", "guest-stood-still", _W, _OPEN)

DEVICE_SILENTLY_LOST: Final = _row("UP701", "device-silently-lost", _W, _VMM)
RESIZE_WEDGED: Final = _row("UP702", "resize-wedged", _W, _VMM)
HOST_SIDE_FAILURE: Final = _row("UP703", "host-side-failure", _E, _VMM)
DEVICE_LEAKED: Final = _row("UP704", "device-leaked", _W, _VMM)
MISSING_IN_GUEST: Final = _row("UP705", "missing-in-guest", _E, _OPEN)

OTHER_VMM: Final = _row("UP801", "other-vmm", _N, _OPEN)
VM_DIED: Final = _row("UP802", "vm-died", _E, _OPEN)
