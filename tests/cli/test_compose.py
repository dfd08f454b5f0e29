"""`filter`, `merge`, `split` and `recover` as commands; what they keep is in test_composing.py."""

from __future__ import annotations

import dataclasses
import fcntl
from pathlib import Path

import pytest

from tests.support import (
    DISK,
    TRANSCRIPTS,
    Outcome,
    ask,
    connect,
    golden,
    has_index,
    records_of,
    run,
    small_capture,
    write_capture,
)
from upcall_trace.capture.index import append_mark
from upcall_trace.capture.records import DAMAGED, End, Gap, Header, Mark, Open
from upcall_trace.cli import compose
from upcall_trace.errors import ExitCode
from upcall_trace.sources import Source, open_source
from upcall_trace.trace.opening import build_index, load
from upcall_trace.trace.operations import Operation


def said(operation: Operation) -> tuple[object, ...]:
    """What must not change of an operation when others are left out."""
    return (operation.op, operation.fields, operation.size, operation.ret, operation.reply)


def operations(path: Path) -> dict[tuple[int, int], tuple[object, ...]]:
    return {(op.conn, op.request): said(op) for op in load(path).operations}


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    assert build_index(path)
    return path


@pytest.mark.parametrize("golden", TRANSCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("expression", ["ret < 0", "failed or stale", "split-request", "conn == 1"])
def test_filter_writes_what_show_lists(golden: Path, expression: str, tmp_path: Path) -> None:
    output = tmp_path / "x.upcap"
    chosen = {
        (o["conn"], o["request"])
        for o in run("show", "--json", "--filter", expression, golden).objects
    }
    ended = run("filter", golden, expression, "-o", output)
    if not chosen:
        assert ended == Outcome(
            ExitCode.NOTHING_RUN,
            "",
            f"no operation of {golden} matches; {output} was not written\n",
        )
        assert not output.exists()
        return
    before, after = operations(golden), operations(output)
    assert ended == Outcome(0, "", f"{output}: {len(after)} of {len(before)} operations\n")
    assert chosen <= after.keys()
    assert after == {key: before[key] for key in after}
    for conn, number in after.keys() - chosen:  # only for the sake of the next one
        assert after[conn, number + 1][2] != 1024
    assert has_index(output)
    assert run("info", "--json", output).objects[0]["notes"]["filter"] == expression


def test_a_filtered_capture_says_that_it_is_complete(capture: Path, tmp_path: Path) -> None:
    output = tmp_path / "y.upcap"
    assert run("filter", capture, "ret < 0", "-o", output).code == 0
    ended = run("info", "--json", output)
    assert (ended.code, ended.objects[0]["complete"], ended.objects[0]["lost_bytes"]) == (
        0,
        True,
        0,
    )
    assert [(o["conn"], o["request"], o["ret"]) for o in run("show", "--json", output).objects] == [
        (1, 1, -17)
    ]


def test_filter_refuses_an_expression_that_is_none(capture: Path, tmp_path: Path) -> None:
    ended = run("filter", capture, "ret <", "-o", tmp_path / "y.upcap")
    assert ended == Outcome(
        ExitCode.USAGE,
        "",
        "upcall-trace: filter, at character 6 (''): something is missing at the end\n",
    )
    assert not (tmp_path / "y.upcap").exists()


def test_filtering_a_torn_capture_is_a_loss(capture: Path, tmp_path: Path) -> None:
    write_capture(capture, small_capture())
    capture.write_bytes(capture.read_bytes()[:-40])
    ended = run("filter", capture, "ret < 0", "-o", tmp_path / "y.upcap")
    assert ended.code == ExitCode.LOST
    assert "the end is torn" in ended.err
    assert len(operations(tmp_path / "y.upcap")) == 1


def test_merge_keeps_every_operation(tmp_path: Path) -> None:
    output = tmp_path / "x.upcap"
    names = ["cpu_lifecycle", "framing", "aarch64_lifecycle"]
    assert run("merge", *map(golden, names), "-o", output) == Outcome(0, "", "")
    before = [said(op) for name in names for op in load(golden(name)).operations]
    after = [said(op) for op in load(output).operations]
    assert sorted(map(repr, before)) == sorted(map(repr, after))
    merged = load(output)
    assert merged.complete
    assert merged.header.source == "merge"
    assert merged.header.arch is None
    assert [c.number for c in merged.connections] == list(range(1, 9))


def test_merge_of_the_same_capture_twice_and_of_one(capture: Path, tmp_path: Path) -> None:
    output = tmp_path / "y.upcap"
    assert run("merge", capture, "-o", output).code == 0
    assert operations(output) == operations(capture)
    assert run("merge", capture, capture, "-o", output, "--overwrite").code == 0
    assert len(operations(output)) == 2 * len(operations(capture))


def test_merge_by_wall_clocks(tmp_path: Path) -> None:
    paths = [
        write_capture(tmp_path / f"{n}.upcap", connect(t_ns=0), Header("test", wall_ns=wall))
        for n, wall in enumerate((2_000_000_000, 1_000_000_000))
    ]
    output = tmp_path / "x.upcap"
    assert run("merge", *paths, "-o", output).code == 0
    assert [c.opened_ns for c in load(output).connections] == [0, 1_000_000_000]
    assert run("info", "--json", output).objects[0]["started"] == "1970-01-01T00:00:01Z"


def test_merging_captures_with_many_notes_leaves_one_that_can_be_read(tmp_path: Path) -> None:
    paths = []
    for n in range(5):
        notes = {f"{n}-{m}": "x" * 3000 for m in range(100)}
        header = Header("test", notes=notes)
        paths.append(write_capture(tmp_path / f"{n}.upcap", connect(), header))
    output = tmp_path / "x.upcap"
    assert run("merge", *paths, "-o", output).code == 0
    assert len(load(output).header.notes) == 256


def test_merging_a_torn_capture_is_a_loss(capture: Path, tmp_path: Path) -> None:
    torn = write_capture(tmp_path / "torn.upcap", small_capture())
    torn.write_bytes(torn.read_bytes()[:-40])
    ended = run("merge", capture, torn, "-o", tmp_path / "y.upcap")
    assert ended.code == ExitCode.LOST
    assert f"{torn}: the end is torn" in ended.err


def test_merge_needs_something_to_merge(tmp_path: Path) -> None:
    assert run("merge", "-o", tmp_path / "y.upcap").code == ExitCode.USAGE


def test_split_writes_a_file_for_each_connection(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "down"
    path = golden("framing")
    ended = run("split", path, "-o", output)
    written = [output / f"framing.conn{n}.upcap" for n in range(1, 5)]
    assert ended == Outcome(0, "", "".join(f"{name}\n" for name in written))
    assert sorted(output.iterdir()) == written
    before = operations(path)
    for number, name in enumerate(written, start=1):
        assert operations(name) == {key: op for key, op in before.items() if key[0] == number}
        assert has_index(name)


def test_split_reads_its_input_once_however_many_connections_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record for conn in range(1, 301) for record in connect(conn, conn)]
    path = write_capture(tmp_path / "x.upcap", records)
    opened: list[Path] = []

    def open_and_note(given: Path) -> Source:
        opened.append(given)
        return open_source(given)

    monkeypatch.setattr(compose, "open_source", open_and_note)
    assert run("split", path, "-o", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").iterdir())) == 300
    assert opened == [path]


def test_split_of_nothing(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [])
    ended = run("split", path, "-o", tmp_path / "out")
    assert ended.code == ExitCode.NOTHING_RUN
    assert ended.err == f"{path} has no connection to write\n"


def test_split_into_a_file(capture: Path, tmp_path: Path) -> None:
    ended = run("split", capture, "-o", capture)
    assert ended.code == ExitCode.USAGE
    assert ended.err == f"upcall-trace: {capture} cannot be made: File exists\n"


def test_recover_saves_what_is_whole_of_a_torn_capture(capture: Path, tmp_path: Path) -> None:
    output = tmp_path / "y.upcap"
    write_capture(capture, small_capture())
    capture.write_bytes(capture.read_bytes()[:-30])
    torn = load(capture)
    ended = run("recover", capture, "-o", output)
    assert ended == Outcome(
        ExitCode.LOST,
        "",
        f"{output}: 2 operations saved, {torn.lost_bytes} bytes lost\n"
        f"{capture}: the end is torn at offset {torn.damage[0].offset}: "
        f"{torn.damage[0].size} bytes cannot be read\n",
    )
    good = load(output)
    assert (good.complete, good.damage) == (True, [])
    assert good.lost_bytes == torn.lost_bytes > 0
    assert operations(output) == operations(capture)
    assert run("show", output).code == ExitCode.LOST


def test_recover_marks_what_was_damaged_inside(capture: Path, tmp_path: Path) -> None:
    output = tmp_path / "y.upcap"
    write_capture(capture, [*small_capture(), Mark(5, 1, 1, "comment", "kept")])
    raw = bytearray(capture.read_bytes())
    place = raw.index(DISK.encode()[:16])
    raw[place] ^= 0xFF
    capture.write_bytes(raw)
    assert run("recover", capture, "-o", output).code == ExitCode.LOST
    recorded = records_of(output)[1]
    (gap,) = [record for record in recorded if isinstance(record, Gap)]
    assert (gap.conn, gap.reason) == (0, DAMAGED)
    assert recorded == records_of(capture)[1]
    assert operations(output) == operations(capture)
    assert load(output).marks == [Mark(5, 1, 1, "comment", "kept")]


def test_recover_of_a_recorder_that_was_killed(capture: Path, tmp_path: Path) -> None:
    write_capture(capture, small_capture())
    end = len(capture.read_bytes()) - 13
    capture.write_bytes(capture.read_bytes()[:end])
    ended = run("recover", capture, "-o", tmp_path / "y.upcap")
    assert ended.code == ExitCode.EXPECTED
    assert load(tmp_path / "y.upcap").complete
    assert operations(tmp_path / "y.upcap") == operations(capture)


def test_recover_makes_an_index_that_was_damaged_anew(capture: Path, tmp_path: Path) -> None:
    append_mark(capture, Mark(5, 1, 1, "later"))
    raw = bytearray(capture.read_bytes())
    raw[len(raw) * 3 // 4] ^= 0xFF
    capture.write_bytes(raw)
    ended = run("recover", capture, "-o", tmp_path / "y.upcap")
    assert ended.code == ExitCode.LOST
    assert has_index(tmp_path / "y.upcap")
    assert load(tmp_path / "y.upcap").marks == [Mark(5, 1, 1, "later")]


def test_a_capture_that_is_still_recorded_is_not_recovered(capture: Path, tmp_path: Path) -> None:
    with capture.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = run("recover", capture, "-o", tmp_path / "y.upcap")
    assert ended.code == ExitCode.USAGE
    assert ended.err == (
        f"upcall-trace: {capture} is still being recorded; stop the recording first\n"
    )


def test_many_connections_can_be_filtered_and_merged(tmp_path: Path) -> None:
    recorded = [Open(n, n) for n in range(1, 5000)]
    path = write_capture(
        tmp_path / "x.upcap", [*recorded, *connect(5000, 9999), ask(DISK, 10_000, 5000)]
    )
    output = tmp_path / "y.upcap"
    assert run("filter", path, "unanswered", "-o", output).code == 0
    assert [connection.number for connection in load(output).connections] == [5000]
    assert run("merge", path, path, "-o", output, "--overwrite").code == 0
    assert len(load(output).connections) == 10_000


def test_the_header_of_a_composed_capture_is_its_origins(capture: Path, tmp_path: Path) -> None:
    header = Header("proxy", "tool 1", "host", "aarch64", 5 << 60, 4, 300, {"pod": "x"})
    write_capture(capture, [*connect(port=300), ask(DISK, 9), End(10)], header)
    for arguments, changes in (
        (("filter", capture, "unanswered"), {"notes": {"pod": "x", "filter": "unanswered"}}),
        (("merge", capture), {"source": "merge"}),
        (("recover", capture), {}),
    ):
        output = tmp_path / "y.upcap"
        assert run(*arguments, "-o", output, "--overwrite").code == 0
        assert load(output).header == dataclasses.replace(header, **changes)
