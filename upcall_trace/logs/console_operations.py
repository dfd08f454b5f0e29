"""What a guest's console says of operations, and of what is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dissectors.constants import Arch, MessageType

from ..codes import Code
from .evidence import Evidence
from .lines import LogLine
from .meaning import Meaning, quote


@dataclass(slots=True)
class ConsoleOperation:
    """What the console says of one operation; `ret` is None when it does not say how it ended.

    `code` is the cause that a line names; `probe_failed` the line that says that the driver failed;
    `comm` the thread of an oops in it, and `ways` the functions of that oops' backtrace.
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
    comm: str = ""
    ways: set[str] = field(default_factory=set)
    closed: bool = False
    gap: bool = False
    """Lines are missing right after its own."""
    probe_failed: LogLine | None = None
    decided_by: LogLine | None = None
    """The line that says how it ended."""
    boot: int = 0
    """Which boot of the guest it belongs to, counted from 0."""
    at_boot: bool = False
    """A device of the guest's command line: no request asked for it."""

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
        """Its lines, at most a handful, and the one that decides it."""
        shown = self.lines[:6]
        if self.decided_by is not None and self.decided_by not in shown:
            shown = [*shown[:5], self.decided_by]
        return [evidence_of(line) for line in shown]


class Incident(NamedTuple):
    """What the console tells of no operation: `said` is the row, `lines` are what says it."""

    said: Meaning
    lines: Sequence[LogLine]
    ready: bool
    """Whether the guest had served a request before."""
    after: int
    """Operations that stand before it."""
    boot: int


def evidence_of(line: LogLine) -> Evidence:
    """One console line as evidence."""
    return Evidence("console", quote(line.text.strip()), line=line.number, file=line.file)


def is_open(operation: ConsoleOperation) -> bool:
    """Whether it may still be under way: CPU and PCI operations that have not ended."""
    return operation.ret is None and not (operation.closed or operation.oops)


def arch_of(operations: Sequence[ConsoleOperation]) -> Arch:
    """The guest's architecture, as its console's CPU lines are worded."""
    return Arch.AARCH64 if any(operation.arm for operation in operations) else Arch.X86_64


def waiting(operations: Sequence[ConsoleOperation]) -> Iterator[ConsoleOperation]:
    """CPU operations whose end the console does not show."""
    for operation in operations:
        if is_open(operation) and operation.pci is None and operation.msg_type is not None:
            yield operation
