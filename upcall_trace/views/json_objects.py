"""The JSON objects that scripts rely on, each with its version `v`. docs/json.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dissectors.constants import op_name

from ..trace.opening import Capture
from ..trace.operations import ANOMALY_BIT, Operation

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
    operations = capture.operations
    answered = operations.column("answered") == 1
    ret = operations.column("ret")
    started = capture.started
    return {
        "v": VERSION,
        "connections": len(capture.connections),
        "requests": len(operations),
        "replies": int(answered.sum()),
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
        "errors": int((answered & (ret < 0)).sum()),
        "unanswered": int((~answered).sum()),
        "latency_ns": _quantiles(operations.column("latency_ns")[answered]),
        "operations": _by_operation(capture),
        "anomalies": _anomalies(capture),
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


def _quantiles(latencies: Any) -> dict[str, int] | None:
    if not len(latencies):
        return None
    p50, p90, p99 = np.percentile(latencies, (50, 90, 99), method="nearest")
    return {
        "min": int(latencies.min()),
        "p50": int(p50),
        "p90": int(p90),
        "p99": int(p99),
        "max": int(latencies.max()),
    }


def _by_operation(capture: Capture) -> dict[str, dict[str, int]]:
    operations = capture.operations
    answered = operations.column("answered") == 1
    errors = answered & (operations.column("ret") < 0)
    ours = operations.ours()
    # One group for each type, and -1 for other services; types may be as many as operations.
    groups, group = np.unique(
        np.where(ours, operations.column("msg_type").astype(np.int64), -1), return_inverse=True
    )
    counts = np.bincount(group, minlength=len(groups))
    failures = np.bincount(group[errors], minlength=len(groups))
    missing = np.bincount(group[~answered], minlength=len(groups))
    counted = {
        "other services" if msg_type < 0 else op_name(msg_type): {
            "count": int(counts[place]),
            "errors": int(failures[place]),
            "unanswered": int(missing[place]),
        }
        for place, msg_type in enumerate(groups.tolist())
    }
    if "other services" in counted:
        counted["other services"] = counted.pop("other services")
    return counted


def _anomalies(capture: Capture) -> dict[str, int]:
    bits = capture.operations.column("anomalies")
    counts = {name: int(((bits & bit) != 0).sum()) for name, bit in ANOMALY_BIT.items()}
    return {name: count for name, count in counts.items() if count}
