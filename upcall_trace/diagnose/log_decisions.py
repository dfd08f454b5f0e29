"""What a guest's console decides that the wire cannot."""

from __future__ import annotations

from typing import Final

from dissectors.constants import EINVAL, EIO, MAGIC_VERSION, MessageType

from .. import codes
from ..codes import Code
from ..logs.guest_console import ConsoleOperation, evidence_of
from .finding import Cause
from .situation import Situation

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
        return [Cause(_killer(at, said))] if said.oops else causes
    decided = causes
    if said.code is not None and (at.ret is not None and at.ret < 0):
        decided = [Cause(said.code)]
        if at.ret in (EIO, EINVAL) and at.request.msg_type == MessageType.ADD_CPU:
            some_up = len(said.ids) > 1 and said.code in (
                codes.VCPU_NOT_STARTED,
                codes.NO_CPU_NUMBER,
            )
            decided += [Cause(codes.PARTIAL_CPU_ADD)] if some_up else []
    elif at.is_pci and at.ret is not None and at.ret < 0 and said.ret == 0:
        decided = [Cause(codes.STALE_ERROR)]
    if said.probe_failed is not None and (at.is_mmio or at.is_pci):
        at.evidence.append(evidence_of(said.probe_failed))
        decided = [
            *decided,
            Cause(codes.MMIO_DRIVER_FAILED if at.is_mmio else codes.PCI_DRIVER_FAILED),
        ]
    return decided


def _killer(at: Situation, said: ConsoleOperation) -> Code:
    """Which of the known deaths it was: with ids worked off, or before the first."""
    if at.request.msg_type == MessageType.ADD_CPU:
        return codes.ADD_BEYOND_POSSIBLE
    return codes.REMOVAL_ORDER if said.ids else codes.REMOVE_UNFINDABLE_CPU
