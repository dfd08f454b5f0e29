"""An operation as the `send` command that would repeat it."""

from __future__ import annotations

import shlex
from typing import Final

from dissectors.constants import (
    CPU_MSG_SIZE,
    CPU_TYPES,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    MMIO_TYPES,
    PCI_MSG_SIZE,
    PCI_TYPES,
    Arch,
)

from ...errors import WrongUsage
from ...trace.operations import Operation

ANYBODY: Final = "ADDRESS"
"""Stands where the user has to say whom to send it to."""


def send_line(operation: Operation, msg_size: int, arm: bool, address: str = ANYBODY) -> str:
    """The command line; `msg_size` is that of the request.

    Raises WrongUsage for a request that the command would put together in another way.
    """
    fields, msg_type = operation.fields, operation.msg_type
    words: list[str] = []
    arch = Arch.AARCH64 if arm else Arch.X86_64
    wanted = -1
    if msg_type in CPU_TYPES:
        ids = fields.get("apic_ids")
        words = [str(fields["count"])] if ids is None else [str(number) for number in ids]
        wanted = CPU_MSG_SIZE[arch]
    elif msg_type in MMIO_TYPES:
        words = [hex(fields["mmio_base"]), hex(fields["mmio_size"]), str(fields["mmio_irq"])]
        wanted = MMIO_MSG_SIZE
    elif msg_type in PCI_TYPES:
        words = [str(fields["busno"]), f"{fields['slot']}.{fields['function']}"]
        wanted = PCI_MSG_SIZE
    whole = operation.size == MESSAGE_SIZE and "bad-magic" not in operation.anomalies
    if not whole or msg_size != wanted:
        raise WrongUsage(
            f"{operation.conn}.{operation.request} is not a request that send puts together"
        )
    with_arch = ["--arch", arch.value] if arm and msg_type in CPU_TYPES else []
    name = operation.op.replace("_", "-")
    return shlex.join(["upcall-trace", "send", "--to", address, *with_arch, name, *words])
