"""Captures as tables: what is in a row is what `show --json` and `diagnose --json` print."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from tests.support import each_recording, run
from upcall_trace.dataset.schema import FINDINGS, OPERATIONS


def exported(name: str, path: Path, tmp_path: Path) -> bytes:
    written = tmp_path / "written"
    outcome = run("export", path, "--format", name, "-o", written)
    assert outcome.code in (0, 3), outcome.err
    return written.read_bytes()


def shown(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("show", "--json", path).out.splitlines()]


def agrees(row: dict[str, Any], operation: dict[str, Any]) -> None:
    for name in ("conn", "request", "t_ns", "op", "ret", "errno", "latency_ns", "anomalies"):
        assert row[name] == operation[name], name
    load = {name: value for name, value in operation["fields"].items() if name in row}
    assert {name: row[name] for name in load} == load
    reply = operation["reply"] or {}
    assert row["reply_msg_size"] == reply.get("msg_size")
    for name in ("apic_index", "cpu_id"):
        assert row[name] == reply.get(name)


@each_recording
def test_ndjson_has_every_operation_and_finding(golden: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in exported("ndjson", golden, tmp_path).splitlines()]
    operations = [row for row in rows if row["kind"] == "operation"]
    findings = [row for row in rows if row["kind"] == "finding"]
    for row, operation in zip(operations, shown(golden), strict=True):
        assert [*row] == ["kind", *(column.name for column in OPERATIONS)]
        agrees(row, operation)
    said = json.loads(run("diagnose", "--json", golden).out)["findings"]
    for row, finding in zip(findings, said, strict=True):
        for column in FINDINGS:
            assert row[column.name] == finding[column.name], column.name
        if row["request"] is not None:
            (on,) = [
                o for o in operations if (o["conn"], o["request"]) == (row["conn"], row["request"])
            ]
            assert row["code"] in on["codes"]


@each_recording
def test_arrow_and_parquet_have_the_same_table(golden: Path, tmp_path: Path) -> None:
    arrow = pa.ipc.open_file(pa.BufferReader(exported("arrow", golden, tmp_path))).read_all()
    (tmp_path / "written").unlink()
    parquet = pq.read_table(pa.BufferReader(exported("parquet", golden, tmp_path)))
    assert arrow.to_pylist() == parquet.to_pylist()
    for row, operation in zip(arrow.to_pylist(), shown(golden), strict=True):
        agrees(row, operation)
    assert arrow.schema.field("ret").metadata[b"meaning"]


def test_csv_is_the_table_as_text(tmp_path: Path) -> None:
    path = Path("captures/cpu_lifecycle.upcap")
    rows = list(csv.DictReader(io.StringIO(exported("csv", path, tmp_path).decode())))
    for row, operation in zip(rows, shown(path), strict=True):
        assert row["op"] == operation["op"]
        assert row["ret"] == str(operation["ret"])
        assert row["apic_ids"] == " ".join(map(str, operation["fields"]["apic_ids"]))
        assert row["anomalies"] == " ".join(operation["anomalies"])


@each_recording
def test_a_perfetto_trace_has_a_slice_an_operation(golden: Path, tmp_path: Path) -> None:
    trace = Trace.FromString(exported("perfetto", golden, tmp_path))
    names = {
        packet.track_descriptor.uuid: packet.track_descriptor.name
        for packet in trace.packet
        if packet.HasField("track_descriptor")
    }
    begun: dict[int, list[Any]] = {}
    slices = []
    for packet in trace.packet:
        event = packet.track_event
        if not packet.HasField("track_event"):
            continue
        assert event.track_uuid in names
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            begun.setdefault(event.track_uuid, []).append(packet)
        elif event.type == TrackEvent.TYPE_SLICE_END:
            first = begun[event.track_uuid].pop()
            told = {a.name: a for a in first.track_event.debug_annotations}
            key = (told["conn"].uint_value, told["request"].uint_value)
            ret = told.get("ret") and (told["ret"].uint_value or told["ret"].int_value)
            duration = packet.timestamp - first.timestamp
            slices.append((*key, first.track_event.name.split()[0], first.timestamp, duration, ret))
    assert not any(begun.values())
    wanted = shown(golden)
    assert len(slices) == len(wanted)
    by_key = {each[:2]: each for each in slices}
    for operation in wanted:
        _, _, op, begin, duration, ret = by_key[operation["conn"], operation["request"]]
        assert (op, ret) == (operation["op"], operation["ret"])
        assert begin == max(0, operation["t_ns"])
        if operation["latency_ns"] is not None:
            assert duration == operation["latency_ns"]


def test_a_perfetto_trace_counts_what_the_guest_has(tmp_path: Path) -> None:
    trace = Trace.FromString(exported("perfetto", Path("captures/mmio_lifecycle.upcap"), tmp_path))
    names = {
        p.track_descriptor.uuid: p.track_descriptor.name
        for p in trace.packet
        if p.HasField("track_descriptor")
    }
    values = [
        int(p.track_event.counter_value)
        for p in trace.packet
        if p.HasField("track_event")
        and p.track_event.type == TrackEvent.TYPE_COUNTER
        and names[p.track_event.track_uuid] == "guest: virtio-mmio devices"
    ]
    assert values[:2] == [1, 2]  # two adds that succeeded


@pytest.mark.parametrize("name", ["arrow", "parquet", "perfetto"])
def test_without_its_library_a_format_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = "perfetto.trace_builder.proto_builder" if name == "perfetto" else "pyarrow"
    monkeypatch.setitem(sys.modules, library, None)
    outcome = run("export", "captures/framing.upcap", "--format", name, "-o", tmp_path / "x")
    assert outcome.code == 2
    assert "pip install 'upcall-trace[tables]'" in outcome.err
    assert not (tmp_path / "x").exists()
