"""`demo`: a recording of a real guest, explained operation by operation."""

from __future__ import annotations

import click

from ..errors import ExitCode
from ..opening import load
from ..render import HEADING
from ..samples import sample
from .console import out
from .show import comments, show_operation

_SAMPLE = "cpu_lifecycle"


@click.command("demo")
def demo_command() -> ExitCode:
    """Open a bundled recording of a real guest and explain what is seen.

    Nothing is needed but this package, and nothing is changed.
    """
    path = sample(_SAMPLE)
    capture = load(path)
    out(
        "A VMM asks a Linux guest to plug and unplug vCPUs over upcall: one 1024-byte request,\n"
        "one 1024-byte reply, on vsock port 219. This was recorded from a real guest kernel:\n"
        f"{capture.header.notes.get('guest_kernel', 'Linux')}.\n"
    )
    out(HEADING)
    remarks = comments(capture.marks)
    for operation in capture.operations:
        show_operation(operation)
        for text in remarks.get((operation.conn, operation.request), ()):
            out(f"        {text}")
    failed = sum(operation.failed for operation in capture.operations)
    out(
        f"\n{len(capture.operations)} operations, {failed} of them refused by the guest. "
        "Of a refusal Dragonball reports\nnothing: its user sees a timeout, or a resize that is "
        "rejected from then on.\n\n"
        f"The capture is {path}. Try:\n"
        f"  upcall-trace show --filter 'ret < 0' {path}\n"
        f"  upcall-trace show --hex {path}\n"
        f"  upcall-trace info {path}"
    )
    return ExitCode.EXPECTED
