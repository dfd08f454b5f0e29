"""What a guest's console decides that the wire cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dissectors.constants import MAGIC_VERSION, MessageType

from .. import codes
from ..codes import Code
from .finding import Cause
from .situation import Situation

if TYPE_CHECKING:
    from ..logs.console_operations import ConsoleOperation
    from ..logs.evidence import Evidence
    from ..logs.lines import LogLine

_AFTER_SOME: frozenset[Code] = frozenset(
    {codes.VCPU_NOT_STARTED, codes.NO_CPU_NUMBER, codes.CPU_REFUSED_BY_KERNEL,
     codes.CPU_LOST_ITS_ID}
)  # fmt: skip
"""Refusals of one id of a list, when those before it are up."""
_DRIVERS_LIMIT_NS: Final = 10_000_000_000
"""A disk that is slow to answer its first read keeps its driver waiting, but not for so long."""
SEEN_IN_CONSOLE: Final = frozenset(
    {
        codes.VCPU_NOT_STARTED,
        codes.CPU_ALREADY_KNOWN,
        codes.NO_CPU_NUMBER,
        codes.REMOVE_ALL_CPUS,
        codes.REMOVE_BOOT_CPU,
        codes.REMOVE_UNFINDABLE_CPU,
        codes.REMOVAL_ORDER,
        codes.CPU_BUSY,
        codes.PARTIAL_CPU_ADD,
        codes.ADD_BEYOND_POSSIBLE,
        codes.CPU_NEVER_AGAIN,
        codes.CPU_REFUSED_BY_KERNEL,
        codes.CPU_LOST_ITS_ID,
        codes.CPU_ALREADY_OFFLINE,
        codes.GUEST_THREAD_DIED,
        codes.MMIO_RESOURCE_BUSY,
        codes.MMIO_WITHOUT_BOOT_DEVICE,
        codes.DRIVER_HANGS,
        codes.PCI_NO_SUCH_BUS,
        codes.PCI_NOTHING_THERE,
        codes.PCI_NO_SUCH_DEVICE,
        codes.STALE_ERROR,
    }
)
"""Codes whose findings show the console's lines on the operation."""


def decide(causes: list[Cause], at: Situation, said: ConsoleOperation) -> list[Cause]:
    """The causes of a reply or a silence, with what the console says of this operation."""
    if at.request.magic_version != MAGIC_VERSION:
        return causes
    if at.reply is None:
        return [Cause(killer(said))] if said.oops else _unanswered(causes, at, said)
    decided = causes
    if said.code is not None and at.ret is not None and at.ret != 0:
        decided = [Cause(_more_exact(said.code, causes))]
        if at.request.msg_type == MessageType.ADD_CPU and said.code in _AFTER_SOME:
            decided += [Cause(codes.PARTIAL_CPU_ADD)] if len(said.ids) > 1 else []
    elif at.is_pci and at.ret is not None and at.ret < 0 and said.ret == 0:
        decided = [Cause(codes.STALE_ERROR)]
    if said.probe_failed is not None and (at.is_mmio or at.is_pci):
        at.evidence.append(_evidence_of(said.probe_failed))
        failed = codes.MMIO_DRIVER_FAILED if at.is_mmio else codes.PCI_DRIVER_FAILED
        decided = [*decided, Cause(failed)]
    return decided


def _unanswered(causes: list[Cause], at: Situation, said: ConsoleOperation) -> list[Cause]:
    """Silence without an oops: the guest may have answered when nobody was there any more."""
    if at.request.msg_type == MessageType.ADD_CPU and said.code == codes.VCPU_NOT_STARTED:
        return [Cause(said.code, inferred=True)]
    registered = at.request.msg_type == MessageType.ADD_MMIO and said.window is not None
    if registered and at.waited_long:
        # It got the lock, and as far as the driver: neither a lock nor a death keeps it.
        at.evidence += [_evidence_of(line) for line in said.lines[:1]]
        return [Cause(codes.DRIVER_HANGS, inferred=said.gap or at.waited_ns < _DRIVERS_LIMIT_NS)]
    return causes


def _more_exact(code: Code, causes: list[Cause]) -> Code:
    """-EIO at once of an id that failed before has a code of its own, which the wire tells."""
    never = codes.CPU_NEVER_AGAIN
    if code == codes.VCPU_NOT_STARTED and any(cause.code == never for cause in causes):
        return never
    return code


def _evidence_of(line: LogLine) -> Evidence:
    from ..logs.console_operations import evidence_of  # there is a console, so it is loaded

    return evidence_of(line)


def killer(said: ConsoleOperation) -> Code:
    """Which of the known deaths an oops was, by its backtrace and by how far it had come."""
    if said.comm and said.comm != "db_dev_mgr":
        return codes.GUEST_THREAD_DIED
    if said.ways & {"virtio_mmio_add_device", "virtio_mmio_del_device"}:
        return codes.MMIO_WITHOUT_BOOT_DEVICE
    if said.msg_type == MessageType.ADD_CPU:
        return codes.ADD_BEYOND_POSSIBLE if said.arm else codes.GUEST_THREAD_DIED
    if said.msg_type == MessageType.DEL_CPU:
        if "device_offline" in said.ways or -1 in said.ids:
            return codes.REMOVAL_ORDER
        if "del_cpu_dev" in said.ways or not said.ids:
            return codes.REMOVE_UNFINDABLE_CPU
        return codes.REMOVAL_ORDER if said.count > 1 else codes.GUEST_THREAD_DIED
    return codes.GUEST_THREAD_DIED
