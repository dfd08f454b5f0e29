"""The guest's console: its lines put together into the operations that they are about.

docs/protocol.md section 4 lists the lines. Those of the device manager have no newline in the
kernel's source, so the last one of a log may be missing: from its absence nothing is concluded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dissectors.constants import EBUSY, ENODEV, EPERM, Arch, MessageType

from .. import codes
from ..codes import Code
from .evidence import Evidence
from .lines import LogLine, read_lines

_WANTED: Final = re.compile(
    rb"db-dev-mgr|virtio-mmio|virtio-pci|platform virtio|\bpci 0000|Oops|BUG:|db_dev_mgr"
)
_MANAGER: Final = re.compile(r"db-dev-mgr: (.*)")
_CPU: Final = re.compile(
    r"(?:Current vcpu number: \d+, )?(add|del|Add|Delete) vcpu number ?: (\d{1,9})"
)
_CPU_ID: Final = re.compile(r"(?:adding vcpu apic_id|deleting vcpu|cannot be added: apci_id) (\d+)")
_CPU_DONE: Final = re.compile(r"cpu event notification: (?:apic ids index|cpu_id) (\d+)")
_PCI: Final = re.compile(
    r"(add|remove) pci device of busno: ([0-9a-f]{1,2}), devfn: ([0-9a-f]{1,2})\b"
)
_FAILED: Final = re.compile(r"Command run failed, err: (-?\d{1,9})\b")
_REGISTERING: Final = re.compile(
    r"virtio-mmio: Registering device (virtio-mmio\.\d+) "
    r"at 0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16}), IRQ (\d{1,9})\."
)
_MMIO_PROBE: Final = re.compile(
    r"virtio-mmio (virtio-mmio\.\d+): (?:Wrong magic value|Version \S+ not supported|"
    r"probe with driver \S+ failed)|virtio-mmio: probe of (virtio-mmio\.\d+) failed"
)
_UNCLAIMED: Final = re.compile(r"platform (virtio-mmio\.\d+): failed to claim resource")
_PCI_PROBE: Final = re.compile(
    r"(?:pci|virtio-pci) 0000:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7]): (?:BAR \d+.*(?:no space|"
    r"failed to assign|can't assign|can't reserve|not assigned|unassigned)|"
    r"probe with driver \S+ failed|.*not initialized correctly)"
    r"|virtio-pci: probe of 0000:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7]) failed"
)
_OOPS: Final = re.compile(r"BUG: unable to handle|Oops:|kernel BUG at|Internal error: Oops")
_REASONS: Final = (
    (re.compile(r"apci_id \d+ is already been used"), codes.CPU_ALREADY_KNOWN),
    (re.compile(r"generic processor info failed"), codes.NO_CPU_NUMBER),
    (re.compile(r"cpu up failed: -5"), codes.VCPU_NOT_STARTED),
    (re.compile(r"cannot remove all vcpus"), codes.REMOVE_ALL_CPUS),
    (re.compile(r"cannot del bootstrap processor"), codes.REMOVE_BOOT_CPU),
    (re.compile(r"Could not find PCI bus for busno"), codes.PCI_NO_SUCH_BUS),
    (re.compile(r"Could not find PCI device for slot"), codes.PCI_NOTHING_THERE),
)
_U64: Final = (1 << 64) - 1
_KEPT: Final = 200_000
"""Operations that a console may be about; a hostile one would go on for ever."""


@dataclass(slots=True)
class ConsoleOperation:
    """What the console says of one operation; `ret` is None when it does not say how it ended.

    `code` is the cause that a line names; `probe_failed` the line that says that the driver failed.
    """

    msg_type: MessageType | None
    lines: list[LogLine]
    count: int = 0
    arm: bool = False
    ids: list[int] = field(default_factory=list)
    window: tuple[int, int, int] | None = None
    pci: tuple[int, int] | None = None
    device: str = ""
    ret: int | None = None
    code: Code | None = None
    oops: bool = False
    closed: bool = False
    probe_failed: LogLine | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What it can be recognised by in a recording."""
        if self.window is not None:
            return ("mmio", self.window[0])
        if self.pci is not None:
            return (self.msg_type, *self.pci)
        return (self.msg_type, self.count)

    @property
    def evidence(self) -> list[Evidence]:
        """Its lines, at most a handful."""
        return [evidence_of(line) for line in self.lines[:6]]


def evidence_of(line: LogLine) -> Evidence:
    """One console line as evidence."""
    return Evidence("console", line.text.strip()[:160], line=line.number)


class _Reader:
    """Puts lines together."""

    def __init__(self) -> None:
        self.operations: list[ConsoleOperation] = []
        self._devices: dict[str, ConsoleOperation] = {}
        self._functions: dict[tuple[int, int], ConsoleOperation] = {}

    def line(self, line: LogLine) -> None:
        text = line.text
        if found := _MANAGER.search(text):
            self._manager(line, found[1])
        elif found := _REGISTERING.search(text):
            base, end, irq = int(found[2], 16), int(found[3], 16), int(found[4])
            added = self._begin(MessageType.ADD_MMIO, line)
            added.window, added.device, added.ret = (base, end - base + 1 & _U64, irq), found[1], 0
            self._devices[found[1]] = added
        elif found := _MMIO_PROBE.search(text):
            self._probe(self._devices.get(found[1] or found[2]), line)
        elif found := _UNCLAIMED.search(text):
            claimed = self._devices.get(found[1])
            if claimed is not None:
                claimed.ret, claimed.code = EBUSY, codes.MMIO_RESOURCE_BUSY
                claimed.lines.append(line)
        elif found := _PCI_PROBE.search(text):
            bus, slot, function = (found[n] or found[n + 3] for n in (1, 2, 3))
            place = (int(bus, 16), int(slot, 16) << 3 | int(function))
            self._probe(self._functions.get(place), line)
        elif _OOPS.search(text) and self.operations and self.operations[-1].ret is None:
            self.operations[-1].oops = True
            self.operations[-1].lines.append(line)

    def _probe(self, operation: ConsoleOperation | None, line: LogLine) -> None:
        if operation is not None and operation.probe_failed is None:
            operation.probe_failed = line

    def _begin(self, msg_type: MessageType | None, line: LogLine) -> ConsoleOperation:
        operation = ConsoleOperation(msg_type, [line])
        if len(self.operations) < _KEPT:
            self.operations.append(operation)
        return operation

    def _manager(self, line: LogLine, said: str) -> None:
        current = self.operations[-1] if self.operations else None
        if found := _CPU.match(said):
            adding = found[1].lower() == "add"
            begun = self._begin(MessageType.ADD_CPU if adding else MessageType.DEL_CPU, line)
            begun.count = min(int(found[2]), 255)
            begun.arm = said.startswith("Current")
        elif found := _PCI.match(said):
            adding = found[1] == "add"
            begun = self._begin(MessageType.ADD_PCI if adding else MessageType.DEL_PCI, line)
            begun.pci = (int(found[2], 16), int(found[3], 16))
            self._functions[begun.pci] = begun
        elif said.startswith("db_devmgr_process : Not found valid command"):
            self._begin(None, line).ret = EPERM
        elif found := _FAILED.search(said):
            self._failed(line, int(found[1]), current)
        elif current is not None and current.msg_type is not None:
            current.lines.append(line)
            if found := _CPU_ID.search(said):
                current.ids.append(int(found[1][:9]) & 0xFF)
            elif _CPU_DONE.match(said) and current.code is None:
                current.ret = 0
            for pattern, code in _REASONS:
                if pattern.search(said):
                    removing = current.msg_type == MessageType.DEL_PCI
                    current.code = codes.PCI_NO_SUCH_DEVICE if removing else code
                    if current.pci is not None:
                        current.ret = ENODEV

    def _failed(self, line: LogLine, ret: int, current: ConsoleOperation | None) -> None:
        """A failed command: the current one's end, or of one that had said nothing before."""
        open_still = (
            current is not None
            and current.msg_type is not None
            and not (current.closed or current.oops)
            and (current.code is not None or current.ret is None)
            and (current.pci is None or current.code is not None)
        )
        if current is None or not open_still:
            current = self._begin(None, line)
        else:
            current.lines.append(line)
        current.ret, current.closed = ret, True


def read_console(path: Path) -> list[ConsoleOperation]:
    """The operations that a console is about, in its order; raises UnreadableInput.

    PCI operations that nothing contradicts are taken to have worked, but for the last of all.
    """
    reader = _Reader()
    for line in read_lines(path, _WANTED):
        reader.line(line)
    operations = reader.operations
    for operation in operations[:-1]:
        if operation.pci is not None and operation.ret is None and not operation.oops:
            operation.ret = 0
    return operations


def arch_of(operations: Sequence[ConsoleOperation]) -> Arch:
    """The guest's architecture, as its console's CPU lines are worded."""
    return Arch.AARCH64 if any(operation.arm for operation in operations) else Arch.X86_64
