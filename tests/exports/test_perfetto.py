"""Traces in Perfetto's own trace processor: what SQL finds is what `show --json` prints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

from tests.support import PCAPS, TRANSCRIPTS, records_of, run
from upcall_trace.diagnose.state_over_time import counts_over_time

# `make` puts it there. The perfetto package would download a trace processor of its own.
ENGINE = Path(".venv/trace-processor")
SCRIPT = Path(__file__).with_name("trace_processor.mjs")
pytestmark = pytest.mark.skipif(
    not shutil.which("node") or not (ENGINE / "trace_processor.wasm").exists(),
    reason="there is no trace processor here: `make perfetto` gets it",
)

SLICES = """
    select slice.ts, slice.dur, slice.name, track.name as track,
           extract_arg(slice.arg_set_id, 'debug.conn') as conn,
           extract_arg(slice.arg_set_id, 'debug.request') as request,
           extract_arg(slice.arg_set_id, 'debug.ret') as ret
    from slice join track on slice.track_id = track.id where track.name like 'connection %'
"""
INSTANTS = """
    select slice.ts, slice.dur, slice.name,
           extract_arg(slice.arg_set_id, 'debug.code') as code,
           extract_arg(slice.arg_set_id, 'debug.what') as what
    from slice join track on slice.track_id = track.id where track.name = 'findings'
"""
COUNTERS = """
    select counter.ts, counter.value, counter_track.name
    from counter join counter_track on counter.track_id = counter_track.id
    order by counter.ts, counter.id
"""
COMPLAINTS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"


def rows_of(traces: Iterable[Path], queries: list[str]) -> list[list[list[dict[str, Any]]]]:
    """The rows of each query on each trace, from one process."""
    protos = ProtoFactory(PlatformDelegate())
    rpc = protos.TraceProcessorRpc
    asked = protos.TraceProcessorRpcStream()

    def ask(kind: int) -> Any:
        return asked.msg.add(seq=len(asked.msg) + 1, request=kind)

    for trace in traces:
        ask(rpc.TPM_RESET_TRACE_PROCESSOR)
        ask(rpc.TPM_APPEND_TRACE_DATA).append_trace_data = trace.read_bytes()
        ask(rpc.TPM_FINALIZE_TRACE_DATA)
        for query in queries:
            ask(rpc.TPM_QUERY_STREAMING).query_args.sql_query = query
    ended = subprocess.run(
        ["node", SCRIPT, ENGINE], input=asked.SerializeToString(), capture_output=True,
        check=True, timeout=100,
    )  # fmt: skip
    answers: list[list[Any]] = []
    for message in protos.TraceProcessorRpcStream.FromString(ended.stdout).msg:
        assert not message.fatal_error, message.fatal_error
        if message.response == rpc.TPM_QUERY_STREAMING:
            result = message.query_result
            assert not result.error, result.error
            if result.column_names:
                answers.append([])
            answers[-1].append(result)
    tables = [_rows(batches) for batches in answers]
    return [tables[at : at + len(queries)] for at in range(0, len(tables), len(queries))]


def _rows(results: list[Any]) -> list[dict[str, Any]]:
    names = results[0].column_names
    batches = [batch for result in results for batch in result.batch]
    return [dict(row.__dict__) for row in QueryResultIterator(names, batches)]


def exported(recording: Path, folder: Path) -> Path:
    written = folder / f"{recording.name}.pftrace"
    assert run("export", recording, "-o", written).code in (0, 3)
    return written


def test_sql_finds_every_operation_finding_and_count(tmp_path: Path) -> None:
    recordings = [*TRANSCRIPTS, *PCAPS]
    traces = [exported(each, tmp_path) for each in recordings]
    answers = rows_of(traces, [SLICES, INSTANTS, COUNTERS, COMPLAINTS])
    for recording, (slices, instants, counts, complaints) in zip(recordings, answers, strict=True):
        assert complaints == [], recording
        operations = run("show", "--json", recording).objects
        same_slices(slices, operations)
        findings = json.loads(run("diagnose", "--json", recording).out)["findings"]
        told = [(each["code"], each["what"]) for each in instants]
        assert Counter(told) == Counter((each["code"], each["what"]) for each in findings)
        assert {each["dur"] for each in instants} <= {0}
        same_state(counts, recording)


def same_slices(slices: list[dict[str, Any]], operations: list[dict[str, Any]]) -> None:
    found = {(each["conn"], each["request"]): each for each in slices}
    assert len(found) == len(slices) == len(operations)
    for operation in operations:
        each = found[operation["conn"], operation["request"]]
        assert each["name"].split()[0] == operation["op"]
        assert each["ts"] == max(0, operation["t_ns"])
        assert each["ret"] == operation["ret"]
        assert each["track"].split(",")[0] == f"connection {operation['conn']}"
        if operation["latency_ns"] is not None:
            assert each["dur"] == operation["latency_ns"]


def same_state(counts: list[dict[str, Any]], recording: Path) -> None:
    header, records = records_of(recording)
    wanted = [
        (max(0, at_ns), f"guest: {name}", value)
        for at_ns, counted in counts_over_time(header, records)
        for name, value in counted.items()
    ]
    assert [(each["ts"], each["name"], each["value"]) for each in counts] == wanted


def test_the_query_of_the_page_answers(tmp_path: Path) -> None:
    page = Path("docs/tables.md").read_text("utf-8")
    (query,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    capture = Path("captures/cpu_lifecycle.upcap")
    (((*rows,),),) = rows_of([exported(capture, tmp_path)], [query])
    operations = run("show", "--json", capture).objects
    late = [each for each in operations if each["latency_ns"] and each["latency_ns"] > 250_000_000]
    assert sorted(row["ms"] for row in rows) == sorted(each["latency_ns"] / 1e6 for each in late)
    assert len(rows) == len(late) > 0
