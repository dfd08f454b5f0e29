"""The JSON objects that scripts rely on, each with its version `v`. docs/json.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..trace.opening import Capture
from ..trace.operations import Operation
from ..trace.statistics import statistics_of

if TYPE_CHECKING:
    from .frames import Frame

VERSION: Final = 1


def operation_object(operation: Operation, codes: Sequence[str] = ()) -> dict[str, Any]:
    """One line of `show --json`."""
    return {
        "v": VERSION,
        "conn": operation.conn,
        "request": operation.request,
        "t_ns": operation.t_ns,
        "op": operation.op,
        "fields": dict(operation.fields),
        "ret": operation.ret,
        "errno": operation.errno,
        "latency_ns": operation.latency_ns,
        "reply": None if operation.reply is None else dict(operation.reply),
        "anomalies": list(operation.anomalies),
        "codes": list(codes),
    }


def frame_object(frame: Frame, with_provenance: bool = False) -> dict[str, Any]:
    """One line of `show --frames --json`; `bytes` is hexadecimal."""
    shown: dict[str, Any] = {
        "v": VERSION,
        "frame": frame.number,
        "t_ns": frame.t_ns,
        "conn": frame.conn,
        "dir": frame.direction or None,
        "request": frame.request,
        "text": frame.text,
        "bytes": frame.raw.hex(),
    }
    if with_provenance:
        shown["provenance"] = [run._asdict() for run in frame.runs] or None
    return shown


def info_object(capture: Capture) -> dict[str, Any]:
    """`info --json`: counts, times, latencies and completeness of a capture."""
    counted = statistics_of(capture.operations)
    started = capture.started
    return {
        "v": VERSION,
        "connections": len(capture.connections),
        "requests": counted.requests,
        "replies": counted.replies,
        "bytes": sum(connection.payload for connection in capture.connections),
        "started": started.isoformat().replace("+00:00", "Z") if started else None,
        "duration_ns": capture.duration_ns,
        "complete": capture.complete,
        "lost_bytes": capture.lost_bytes,
        "recording": capture.live,
        "source": capture.header.source,
        "tool": capture.header.tool,
        "host": capture.header.host,
        "arch": capture.header.arch,
        "resolution_ns": capture.header.resolution_ns,
        "notes": capture.header.notes,
        "errors": counted.errors,
        "unanswered": counted.unanswered,
        "latency_ns": counted.latency_ns,
        "operations": {name: asdict(kind) for name, kind in counted.by_operation.items()},
        "anomalies": counted.anomalies,
        "marks": len(capture.marks),
        "vmm": len(capture.vmm),
        "damage": [
            {
                "offset": damage.offset,
                "size": damage.size,
                "at_end": damage.at_end,
                "to": str(damage.to),
            }
            for damage in capture.damage
        ],
    }
