"""A capture as a Perfetto trace: operations as slices, findings as instants, state as counters.

Written by the perfetto package, which comes with the extra `tables`. docs/tables.md.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Final

from ..diagnose.finding import Finding
from ..diagnose.state_over_time import COUNTED, counts_over_time
from ..diagnose.whole_capture import WholeCapture
from ..errors import WrongUsage
from ..trace.operations import Operation
from ..views.text import fields_text, result_text, safe
from . import Loss

_SEQUENCE: Final = 219
_COUNTERS: Final = {name: uuid for uuid, name in enumerate(COUNTED, start=1)}
_FINDINGS_TRACK: Final = 9
_FIRST_CONNECTION: Final = 1 << 32
"""Tracks of a connection are numbered from here: its number times `_LANES`, plus the lane."""
_LANES: Final = 1 << 8


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write a binary trace that ui.perfetto.dev and trace_processor open."""
    try:
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
    except ImportError:
        raise WrongUsage("this format needs perfetto: pip install 'upcall-trace[tables]'") from None
    trace = _Trace(StreamingTraceProtoBuilder(out))
    trace.clock(capture.header.wall_ns)
    trace.track(_FINDINGS_TRACK, "findings")
    for name, uuid in _COUNTERS.items():
        trace.track(uuid, f"guest: {name}", counter=True)
    lanes: dict[int, list[int]] = {}
    for operation in capture.operations:
        _slice(trace, operation, lanes, capture.opened.duration_ns)
    times = {(o.conn, o.request): o.t_ns + (o.latency_ns or 0) for o in capture.operations}
    for finding in capture.findings:
        _instant(trace, finding, times)
    for t_ns, counts in counts_over_time(capture.header, capture.records()):
        for name, value in counts.items():
            trace.count(max(0, t_ns), _COUNTERS[name], value)
    return []


def _slice(trace: _Trace, operation: Operation, lanes: dict[int, list[int]], end_ns: int) -> None:
    """One operation; requests that overlap get a lane each, since slices of a track must nest."""
    begin = max(0, operation.t_ns)
    finish = (
        begin + operation.latency_ns if operation.latency_ns is not None else max(end_ns, begin)
    )
    busy = lanes.setdefault(operation.conn, [])
    lane = next((lane for lane, until in enumerate(busy) if until <= begin), len(busy))
    lane = min(lane, _LANES - 1)
    uuid = _FIRST_CONNECTION + operation.conn * _LANES + lane
    if lane == len(busy):
        busy.append(finish)
        more = f", overlapping {lane}" if lane else ""
        trace.track(uuid, f"connection {operation.conn}{more}")
    busy[lane] = finish
    arguments: dict[str, Any] = {
        "conn": operation.conn,
        "request": operation.request,
        "result": safe(result_text(operation)),
        **{safe(name): value for name, value in operation.fields.items()},
    }
    if operation.ret is not None:
        arguments["ret"] = operation.ret
    if operation.anomalies:
        arguments["anomalies"] = " ".join(operation.anomalies)
    title = f"{safe(operation.op)} {fields_text(operation.fields)}".rstrip()
    trace.slice(begin, finish, uuid, title, arguments)


def _instant(trace: _Trace, finding: Finding, times: dict[tuple[int, int], int]) -> None:
    at = times.get((finding.conn or 0, -1 if finding.request is None else finding.request), 0)
    sure = "possibly " if finding.inferred else ""
    arguments = {
        "code": str(finding.code), "severity": finding.severity.word, "what": safe(finding.what),
        "why": safe(finding.why), "so": safe(finding.so), "next": safe(finding.next),
    }  # fmt: skip
    trace.instant(max(0, at), _FINDINGS_TRACK, f"{sure}{finding.code} {finding.name}", arguments)


class _Trace:
    """The packets of a trace, in the words used above."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

        self._kinds = TrackEvent
        self._begun = False

    def clock(self, wall_ns: int | None) -> None:
        """Time 0 of the trace as a wall-clock time."""
        packet = self._packet(0)
        for clock_id, now in ((6, 0), (1, wall_ns or 0)):  # boot time, real time
            clock = packet.clock_snapshot.clocks.add()
            clock.clock_id, clock.timestamp = clock_id, now
        self._builder.write_packet(packet)

    def track(self, uuid: int, name: str, counter: bool = False) -> None:
        packet = self._packet(0)
        packet.track_descriptor.uuid = uuid
        packet.track_descriptor.name = name
        if counter:
            packet.track_descriptor.counter.SetInParent()
        self._builder.write_packet(packet)

    def slice(
        self, begin: int, finish: int, uuid: int, name: str, arguments: dict[str, Any]
    ) -> None:
        self._event(begin, uuid, self._kinds.TYPE_SLICE_BEGIN, name, arguments)
        self._event(finish, uuid, self._kinds.TYPE_SLICE_END)

    def instant(self, at: int, uuid: int, name: str, arguments: dict[str, Any]) -> None:
        self._event(at, uuid, self._kinds.TYPE_INSTANT, name, arguments)

    def count(self, at: int, uuid: int, value: int) -> None:
        packet = self._packet(at)
        packet.track_event.type = self._kinds.TYPE_COUNTER
        packet.track_event.track_uuid = uuid
        packet.track_event.counter_value = value
        self._builder.write_packet(packet)

    def _event(
        self, at: int, uuid: int, kind: int, name: str = "", arguments: dict[str, Any] | None = None
    ) -> None:
        packet = self._packet(at)
        event = packet.track_event
        event.type, event.track_uuid = kind, uuid
        if name:
            event.name = name
        for key, value in (arguments or {}).items():
            annotation = event.debug_annotations.add()
            annotation.name = key
            if type(value) is int and 0 <= value < 1 << 64:
                annotation.uint_value = value
            elif type(value) is int and -(1 << 63) <= value < 0:
                annotation.int_value = value
            else:
                annotation.string_value = safe(str(value))
        self._builder.write_packet(packet)

    def _packet(self, at: int) -> Any:
        packet = self._builder.create_packet()
        packet.timestamp = at
        packet.trusted_packet_sequence_id = _SEQUENCE
        if not self._begun:
            self._begun = True
            packet.sequence_flags = packet.SEQ_INCREMENTAL_STATE_CLEARED
        return packet
