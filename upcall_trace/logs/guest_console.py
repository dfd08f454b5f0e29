"""A guest's console: its lines put together into the operations that they are about.

docs/log-texts.md lists the lines. Those of the device manager have no newline in the
kernel's source, so the last one of a log may be missing: from its absence nothing is concluded.
One `ConsoleReader` reads one boot after the other of one guest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dissectors.constants import (
    EBUSY,
    EINVAL,
    EIO,
    ENODEV,
    EPERM,
    MessageType,
)

from .. import codes
from ..codes import Code, Family
from . import guest_lines as said
from .console_operations import ConsoleOperation, Incident, is_open
from .lines import LogLine
from .meaning import Match, Speaker

_U64: Final = (1 << 64) - 1
_KEPT: Final = 200_000
"""Operations that a console may be about; a hostile one would go on for ever."""
_LINES: Final = 600
"""Lines that are kept of one operation."""
_REFUSED: Final = {
    said.CPU_KNOWN: (codes.CPU_ALREADY_KNOWN, EINVAL),
    said.NO_NUMBER: (codes.NO_CPU_NUMBER, EINVAL),
    said.REMOVE_ALL: (codes.REMOVE_ALL_CPUS, EINVAL),
    said.BOOT_CPU: (codes.REMOVE_BOOT_CPU, EINVAL),
    said.NOT_POSSIBLE: (codes.CPU_REFUSED_BY_KERNEL, EINVAL),
    said.NO_BUS: (codes.PCI_NO_SUCH_BUS, ENODEV),
    said.NO_SLOT: (codes.PCI_NOTHING_THERE, ENODEV),
}
_OF_ADDS: Final = (codes.CPU_ALREADY_KNOWN, codes.NO_CPU_NUMBER)
_AT_ONCE: Final = 7
"""CPU operations that are remembered as open, of as many connections."""
_LOST_ITS_ID: Final = -17
_BUSY: Final = -16
_OFFLINE_ALREADY: Final = 1
_OURS: Final = "db_dev_mgr"
_OF_CPUS: Final = ("cpuhp/", "swapper/")
_MMIO_WAYS: Final = frozenset(
    {"virtio_mmio_add_device", "virtio_mmio_del_device", "add_mmio_dev", "del_mmio_dev"}
)


class ConsoleReader:
    """Puts the lines of one guest together, fed one by one in their order."""

    def __init__(self) -> None:
        self.operations: list[ConsoleOperation] = []
        self.incidents: list[Incident] = []
        self.boots: list[LogLine] = []
        self.hung: list[LogLine] = []
        self.heard = 0
        """Lines of the device manager and the upcall server."""
        self._boot = 0
        self._forget()

    def _forget(self) -> None:
        """Another boot: what came before is of a guest that is gone."""
        self._devices: dict[str, ConsoleOperation] = {}
        self._drivers: dict[str, ConsoleOperation] = {}
        self._functions: dict[tuple[int, int], ConsoleOperation] = {}
        self._registered: ConsoleOperation | None = None
        self._current: ConsoleOperation | None = None
        self._oops: list[LogLine] = []
        self._dying: ConsoleOperation | None = None
        self._cpus_open: list[ConsoleOperation] = []
        self._last_refused: ConsoleOperation | None = None
        self._served = False
        self._next_boot: LogLine | None = None

    def feed(self, line: LogLine, matches: Iterable[Match]) -> None:
        """One line, with what it says."""
        for match in matches:
            if match.meaning.of_guest:
                self._said(line, match)

    def _said(self, line: LogLine, match: Match) -> None:
        row = match.meaning
        self._begin_boot()
        if row.speaker is Speaker.MANAGER:
            self.heard += 1
            self._oops.clear()
        if row in _REFUSED:
            self._refused(line, *_REFUSED[row])
            return
        handler = _HANDLERS.get(row)
        if handler is not None:
            handler(self, line, match)

    # The device manager.

    def _cpus(self, line: LogLine, match: Match) -> None:
        adding = match[2].lower().startswith("add")
        begun = self._begin(MessageType.ADD_CPU if adding else MessageType.DEL_CPU, line)
        begun.count = min(int(match[3]), 255)
        begun.arm = bool(match[1])
        self._cpus_open = [*self._cpus_open[-_AT_ONCE:], begun]

    def _cpu_id(self, line: LogLine, match: Match) -> None:
        if (current := self._open_cpus()) is not None:
            current.ids.append(int(match[1]) & 0xFF if int(match[1]) >= 0 else -1)
            self._keep(current, line)

    def _cpu_done(self, line: LogLine, match: Match) -> None:
        current = self._open_cpus(said=True)
        if current is not None:
            self._keep(current, line)
            if current.code is None:
                current.ret = 0

    def _refused(self, line: LogLine, code: Code, ret: int, cpu: int | None = None) -> None:
        """The line that refuses an operation; others may have begun since it did."""
        current = self._current
        if code.family is not Family.PCI:
            current = self._open_cpus(cpu)
        elif current is not None and (current.pci is None or current.oops):
            current = None
        if current is None:
            # Its first line is in an older part of the log.
            adding = code in _OF_ADDS or cpu is not None
            nameless = MessageType.ADD_CPU if adding else MessageType.DEL_CPU
            current = self._begin(None if code.family is Family.PCI else nameless, line)
        else:
            self._keep(current, line)
        self._last_refused = current
        if current.msg_type == MessageType.DEL_PCI:
            code = codes.PCI_NO_SUCH_DEVICE
        current.code, current.ret, current.decided_by = code, ret, line
        words = line.text
        if (
            code == codes.CPU_ALREADY_KNOWN
            and (known := said.CPU_KNOWN.pattern)
            and (found := known.search(words))
        ):
            current.ids.append(int(found[1]) & 0xFF)

    def _not_registered(self, line: LogLine, match: Match) -> None:
        error = int(match[2])
        self._refused(
            line,
            codes.CPU_LOST_ITS_ID if error == _LOST_ITS_ID else codes.CPU_REFUSED_BY_KERNEL,
            error or EINVAL,
            int(match[1]),
        )

    def _not_up(self, line: LogLine, match: Match) -> None:
        error = int(match[2])
        code = codes.VCPU_NOT_STARTED if error == EIO else codes.UNEXPLAINED_RESULT
        self._refused(line, code, error, int(match[1]))
        refused = self._last_refused
        if refused is not None and not refused.ids:
            refused.ids.append(int(match[1]) & 0xFF)

    def _del_failed(self, line: LogLine, match: Match) -> None:
        error = int(match[1])
        code = {_BUSY: codes.CPU_BUSY, _OFFLINE_ALREADY: codes.CPU_ALREADY_OFFLINE}.get(
            error, codes.UNEXPLAINED_RESULT
        )
        self._refused(line, code, error)

    def _pci(self, line: LogLine, match: Match) -> None:
        adding = match[1] == "add"
        begun = self._begin(MessageType.ADD_PCI if adding else MessageType.DEL_PCI, line)
        begun.pci = (int(match[2], 16), int(match[3], 16))
        self._functions[begun.pci] = begun
        if adding:
            self._registered = begun

    def _unknown_type(self, line: LogLine, match: Match) -> None:
        self._begin(None, line).ret = EPERM

    def _failed(self, line: LogLine, match: Match) -> None:
        """A failed command: the current one's end, or of one that had said nothing before."""
        ret = int(match[1])
        current = self._current
        refused, self._last_refused = self._last_refused, None
        if refused is not None and not refused.closed and refused.ret == ret:
            current = refused
        open_still = (
            current is not None
            and current.msg_type is not None
            and current.window is None
            and not (current.closed or current.oops)
            and (current.code is not None or current.ret is None)
            and (current.pci is None or current.code is not None)
        )
        if current is None or not open_still:
            current = self._begin(None, line)
        else:
            self._keep(current, line)
        current.ret, current.closed = ret, True
        if current.decided_by is None:
            current.decided_by = line

    def _incident(self, line: LogLine, match: Match) -> None:
        row = match.meaning
        once = row in (said.PANIC, said.NO_SERVER)
        if once and any(i.said is row and i.boot == self._boot for i in self.incidents):
            return
        self.incidents.append(
            Incident(row, (*self._oops, line), self._served, len(self.operations), self._boot)
        )

    # The kernel.

    def _registering(self, line: LogLine, match: Match) -> None:
        base, end, irq = int(match[2], 16), int(match[3], 16), int(match[4])
        at_boot = not self._served and bool(self.boots) and not self._manager_spoke()
        added = self._begin(MessageType.ADD_MMIO, line)
        added.window, added.device, added.ret = (base, end - base + 1 & _U64, irq), match[1], 0
        added.at_boot = at_boot
        if irq < 0:
            added.probe_failed = line
        self._devices[match[1]] = self._registered = added

    def _manager_spoke(self) -> bool:
        return any(not operation.at_boot for operation in self.operations[-1:]) and (
            self.operations[-1].boot == self._boot
        )

    def _mmio_probe(self, line: LogLine, match: Match) -> None:
        self._probe(self._devices.get(match[1] or match[2]), line)

    def _unclaimed(self, line: LogLine, match: Match) -> None:
        claimed = self._devices.get(match[1])
        if claimed is not None:
            claimed.ret, claimed.code, claimed.decided_by = EBUSY, codes.MMIO_RESOURCE_BUSY, line
            self._keep(claimed, line)

    def _pci_probe(self, line: LogLine, match: Match) -> None:
        bus, slot, function = (match[n] or match[n + 3] for n in (1, 2, 3))
        place = (int(bus, 16), int(slot, 16) << 3 | int(function))
        self._probe(self._functions.get(place), line)

    def _driver_line(self, line: LogLine, match: Match) -> None:
        if self._registered is not None:
            self._drivers.setdefault(match[1], self._registered)

    def _driver_probe(self, line: LogLine, match: Match) -> None:
        device = next(each for each in (match[n] for n in range(1, 5)) if each)
        self._probe(self._drivers.get(device, self._registered), line)

    def _no_memory(self, line: LogLine, match: Match) -> None:
        self._probe(self._drivers.get(match[1], self._registered), line)

    def _probe(self, operation: ConsoleOperation | None, line: LogLine) -> None:
        if operation is not None and operation.probe_failed is None and not operation.at_boot:
            operation.probe_failed = line

    def _boots(self, line: LogLine, match: Match) -> None:
        if self.boots or self.operations:
            self._next_boot = line
        else:
            self.boots.append(line)
            self._forget()

    def _begin_boot(self) -> None:
        """Another boot has begun, as no line that was told before came after its first one."""
        if self._next_boot is not None:
            self._boot += 1
            self._close_open()
            self.boots.append(self._next_boot)
            self._forget()

    def tells_again(self) -> None:
        """Lines that were told before are told again: it is no other boot that begins."""
        self._next_boot = None

    def _oopses(self, line: LogLine, match: Match) -> None:
        if len(self._oops) < 4:
            self._oops.append(line)
        self._dying = None

    def _comm(self, line: LogLine, match: Match) -> None:
        """An oops has an owner: it belongs to the request of the thread that it names."""
        if not self._oops:
            return  # a warning names its thread too
        lines, self._oops = [*self._oops, line], []
        name = match[2]
        current = self._current
        dying = current if current is not None and is_open(current) else self._open_cpus()
        if name != _OURS:
            if not (dying is not None and name.startswith(_OF_CPUS) and _may_be(dying, name)):
                return
        elif dying is None:
            dying = self._begin(None, lines[0])
            lines = lines[1:]
        assert dying is not None  # of upcall's thread, or of a CPU that comes up
        dying.oops, dying.comm, dying.decided_by = True, name, line
        for each in lines:
            self._keep(dying, each)
        self._dying = dying

    def _way(self, line: LogLine, match: Match) -> None:
        dying = self._dying
        if dying is None:
            return
        if match[1] in _MMIO_WAYS and dying.msg_type is not None and dying.window is None:
            # The thread died in an MMIO request, which has no line; what stood open was another.
            other = self._begin(None, dying.lines[-2] if len(dying.lines) > 1 else line)
            other.oops, other.comm, other.decided_by = True, dying.comm, dying.decided_by
            dying.oops, dying.comm, dying.decided_by = False, "", None
            self._dying = dying = other
        dying.ways.add(match[1])
        if len(dying.lines) < 12:
            self._keep(dying, line)

    def _hangs(self, line: LogLine, match: Match) -> None:
        if len(self.hung) < 64:
            self.hung.append(line)

    # What they share.

    def _open_cpus(self, cpu: int | None = None, said: bool = False) -> ConsoleOperation | None:
        """The CPU operation that a line is about: the last one that is open, or has this CPU.

        With `said` also one that was refused: its notification follows.
        """
        alive = [
            each
            for each in self._cpus_open
            if is_open(each) or (said and each.code is not None and not each.closed)
        ]
        having = [each for each in alive if cpu is not None and cpu in each.ids]
        chosen = having or alive
        return chosen[-1] if chosen else None

    def _keep(self, operation: ConsoleOperation, line: LogLine) -> None:
        if len(operation.lines) < _LINES:
            operation.lines.append(line)

    def _begin(self, msg_type: MessageType | None, line: LogLine) -> ConsoleOperation:
        self._close_open()
        if (before := self._current) is not None and before.ret == 0 and before.code is None:
            del before.lines[1:]  # of what went well one line is enough
        self._dying = None
        operation = ConsoleOperation(msg_type, [line], boot=self._boot)
        if len(self.operations) < _KEPT:
            self.operations.append(operation)
        self._current = operation
        self._served |= msg_type is None or msg_type != MessageType.ADD_MMIO
        return operation

    def _close_open(self) -> None:
        """PCI operations that nothing contradicts have worked, once something comes after them."""
        current = self._current
        if current is not None and current.pci is not None and is_open(current):
            current.ret = 0

    def lines_lost(self) -> None:
        """Lines are missing here: how what is open ended, and whose the next ones are, is lost."""
        if self._current is not None:
            self._current.gap = True
        self._cpus_open.clear()
        self._oops.clear()
        self._drivers.clear()
        self._current = self._registered = self._dying = self._last_refused = None

    def finish(self) -> None:
        """The log is over. An oops that does not say whose it is may be the open request's."""
        self._begin_boot()
        current = self._current
        if self._oops and current is not None and is_open(current) and current.pci is None:
            current.oops = True
            current.decided_by = self._oops[0]
            for each in self._oops:
                self._keep(current, each)
            self._oops = []


def _may_be(operation: ConsoleOperation, comm: str) -> bool:
    """Whether a thread of a CPU that comes up can be of this operation."""
    return operation.msg_type == MessageType.ADD_CPU and comm.rpartition("/")[2].isdecimal()


_HANDLERS: Final = {
    said.CPUS: ConsoleReader._cpus,
    said.CPU_ID: ConsoleReader._cpu_id,
    said.CPU_DONE: ConsoleReader._cpu_done,
    said.NOT_REGISTERED: ConsoleReader._not_registered,
    said.NOT_UP: ConsoleReader._not_up,
    said.DEL_FAILED: ConsoleReader._del_failed,
    said.PCI: ConsoleReader._pci,
    said.UNKNOWN_TYPE: ConsoleReader._unknown_type,
    said.COMMAND_FAILED: ConsoleReader._failed,
    said.NO_SERVER: ConsoleReader._incident,
    said.NO_SERVICE: ConsoleReader._incident,
    said.NO_THREAD: ConsoleReader._incident,
    said.NOT_SENT: ConsoleReader._incident,
    said.PANIC: ConsoleReader._incident,
    said.REGISTERING: ConsoleReader._registering,
    said.MMIO_PROBE: ConsoleReader._mmio_probe,
    said.UNCLAIMED: ConsoleReader._unclaimed,
    said.PCI_PROBE: ConsoleReader._pci_probe,
    said.DRIVER_LINE: ConsoleReader._driver_line,
    said.DRIVER_PROBE: ConsoleReader._driver_probe,
    said.NO_MEMORY: ConsoleReader._no_memory,
    said.BOOT: ConsoleReader._boots,
    said.OOPS: ConsoleReader._oopses,
    said.COMM: ConsoleReader._comm,
    said.BACKTRACE: ConsoleReader._way,
    said.HUNG: ConsoleReader._hangs,
}
