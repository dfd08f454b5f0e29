"""How long each operation of a capture took, one line each, for a plotting program."""

from __future__ import annotations

from typing import BinaryIO

from upcall_trace.diagnose.whole_capture import WholeCapture
from upcall_trace.exports import ExportFormat, Loss

FORMAT = ExportFormat(
    name="latencies",
    about="seconds from request to reply, one operation a line",
    suffixes=(".latencies",),
    module=__name__,
    loses="everything but times and names; operations without a reply",
)


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write the lines; what has no place is returned, and told to the user."""
    unanswered = 0
    for operation in capture.operations:
        if operation.latency_ns is None:
            unanswered += 1
            continue
        line = f"{operation.t_ns / 1e9:.9f} {operation.op} {operation.latency_ns / 1e9:.9f}\n"
        out.write(line.encode("ascii", "backslashreplace"))
    return [Loss(f"{unanswered} operations have no reply, so no latency")] if unanswered else []
