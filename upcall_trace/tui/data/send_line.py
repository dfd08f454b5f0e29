"""An operation as the `send` command that would repeat it."""

from __future__ import annotations

import shlex
from typing import Final

from dissectors.constants import Arch
from dissectors.tables import Layout

from ...errors import WrongUsage
from ...trace.operations import Operation
from ...trace.rows import table_of
from ...views.asking import words_of

ANYBODY: Final = "ADDRESS"
"""Stands where the user has to say whom to send it to."""


def send_line(operation: Operation, layout: Layout, msg_size: int, address: str = ANYBODY) -> str:
    """The command line; `layout` and `msg_size` are those of the request.

    Raises WrongUsage for a request that the command would put together in another way.
    """
    table = table_of(operation.service)
    words = words_of(layout, operation.fields)
    whole = operation.size == table.request_size and "bad-magic" not in operation.anomalies
    sized = not table.size_field or msg_size == table.load_size(layout)
    if not whole or not sized or not words or operation.op not in table.by_name:
        raise WrongUsage(
            f"{operation.conn}.{operation.request} is not a request that send puts together"
        )
    arm = layout.arch is Arch.AARCH64
    with_arch = ["--arch", Arch.AARCH64.value] if arm else []
    name = operation.op.replace("_", "-")
    return shlex.join(["upcall-trace", "send", "--to", address, *with_arch, name, *words])
