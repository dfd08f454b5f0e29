"""Questions to a fleet: the same answer from whoever works on it, and no way out of it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.dataset.fleets import captures
from upcall_trace.dataset.fleet import add, find_sources, workers
from upcall_trace.dataset.query import DayRange, ask, failures, find_row, latency, new, query
from upcall_trace.dataset.schema import FLEET
from upcall_trace.dataset.stored import Dataset
from upcall_trace.diagnose.whole_capture import WholeCapture
from upcall_trace.errors import Unreachable, UnreadableInput, WrongUsage


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return captures(tmp_path_factory.mktemp("nodes"), 9)


@pytest.fixture(scope="module")
def dataset(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    url = str(tmp_path_factory.mktemp("fleet") / "set")
    add(url, find_sources([str(paths[0].parent)]))
    return Dataset(url)


def by_plain_python(paths: list[Path]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(kernel, op) -> operations, errors, unanswered, counted one by one."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for path in paths:
        whole = WholeCapture(path)
        for operation in whole.operations:
            counted = counts.setdefault((whole.header.notes["kernel"], operation.op), Counter())
            counted["all"] += 1
            counted["errors"] += operation.ret is not None and operation.ret < 0
            counted["unanswered"] += operation.ret is None
    return {key: (c["all"], c["errors"], c["unanswered"]) for key, c in counts.items()}


def as_counts(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, int, int]]:
    return {
        (row["kernel"], row["op"]): (row["operations"], row["errors"], row["unanswered"])
        for row in rows
    }


def test_failures_are_those_that_are_counted_one_by_one(
    dataset: Dataset, paths: list[Path]
) -> None:
    answer = ask(dataset, failures(["kernel", "op"]), DayRange()).to_pylist()
    assert as_counts(answer) == by_plain_python(paths)


def test_a_cluster_of_two_processes_gives_the_same_answers(
    dataset: Dataset, paths: list[Path], tmp_path: Path
) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:  # type: ignore[no-untyped-call]
        address = cluster.scheduler_address
        url = str(tmp_path / "set")
        with workers(1, address) as executor:
            add(url, find_sources([str(paths[0].parent)]), executor)
            for question in (failures(["kernel", "op"]), latency(["op"]), new("2026-01-01", [])):
                there = ask(Dataset(url), question, DayRange(), executor)
                assert there.to_pylist() == ask(dataset, question, DayRange()).to_pylist()
            sql = "SELECT count(*) AS n FROM operations"
            assert query(Dataset(url), sql, executor).to_pylist() == (
                query(dataset, sql).to_pylist()
            )


def test_processes_of_this_machine_make_the_same_dataset(
    dataset: Dataset, paths: list[Path], tmp_path: Path
) -> None:
    url = str(tmp_path / "set")
    with workers(2, None) as executor:
        added = add(url, find_sources([str(paths[0].parent)]), executor)
    assert added.captures == len(paths)
    question = failures(["host"])
    assert ask(Dataset(url), question, DayRange()).to_pylist() == (
        ask(dataset, question, DayRange()).to_pylist()
    )


def test_nobody_at_the_scheduler_is_told() -> None:
    with pytest.raises(Unreachable, match="no Dask scheduler"), workers(1, "tcp://127.0.0.1:9"):
        pass


def test_latency_is_that_of_sorted_times_to_three_digits(
    dataset: Dataset, paths: list[Path]
) -> None:
    times: dict[str, list[int]] = {}
    for path in paths:
        for operation in WholeCapture(path).operations:
            if operation.latency_ns is not None:
                times.setdefault(operation.op, []).append(operation.latency_ns)
    for row in ask(dataset, latency(["op"]), DayRange()).to_pylist():
        ordered = sorted(times[row["op"]])
        assert row["answered"] == len(ordered)
        for name, share in (("p50_ns", 0.5), ("p99_ns", 0.99), ("max_ns", 1.0)):
            exact = next(t for n, t in enumerate(ordered, 1) if n >= share * len(ordered))
            assert row[name] <= exact <= row[name] * 1.01


def test_new_is_what_nobody_had_seen_before(dataset: Dataset) -> None:
    every = ask(dataset, new("2026-01-01", ["op"]), DayRange()).to_pylist()
    assert {row["first"] for row in every} == {"2026-09-21", "2026-09-22", "2026-09-23"}
    late = ask(dataset, new("2026-09-22", ["op"]), DayRange()).to_pylist()
    assert late == [row for row in every if row["first"] >= "2026-09-22"]


def test_a_span_of_days_looks_at_those_files_alone(dataset: Dataset) -> None:
    days = query(dataset, "SELECT day, count(*) AS n FROM operations GROUP BY day").to_pylist()
    for row in days:
        span = DayRange(row["day"], row["day"])
        (told,) = ask(dataset, failures(["day"]), span).to_pylist()
        assert (told["day"], told["operations"]) == (row["day"], row["n"])


def test_a_row_leads_back_to_its_capture(dataset: Dataset, paths: list[Path]) -> None:
    sql = "SELECT row, conn, request, digest FROM operations WHERE len(codes) > 0 LIMIT 1"
    (row,) = query(dataset, sql).to_pylist()
    found = find_row(dataset, row["row"])
    assert (found.operation["conn"], found.operation["request"]) == (row["conn"], row["request"])
    assert found.capture["url"].endswith(".upcap")
    assert {finding["code"] for finding in found.findings} == set(found.operation["codes"])
    with pytest.raises(WrongUsage, match="is no row"):
        find_row(dataset, "'; DROP TABLE operations")
    with pytest.raises(WrongUsage, match="0 captures"):
        find_row(dataset, "00000000:1.2")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('https://127.0.0.1:1/x.parquet')",
        "COPY operations TO '/tmp/out.csv'",
        "ATTACH '/tmp/other.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE t AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT * FROM secret",
        "SELEKT 1",
        "",
    ],
)
def test_sql_reads_no_file_and_changes_nothing(dataset: Dataset, sql: str) -> None:
    secret = [1, 2, 3]  # a variable of Python is no table either
    with pytest.raises(WrongUsage):
        query(dataset, sql)
    assert secret


def test_no_other_file_of_a_dataset_is_read_than_those_that_count(dataset: Dataset) -> None:
    for name in ("fleet.json", "operations/../fleet.json", "commits/*.json"):
        with pytest.raises(WrongUsage, match="disabled by configuration"):
            query(dataset, f"SELECT * FROM read_text('{dataset.url}/{name}')")


@pytest.mark.parametrize("place", ["it's", "day=1/set"])
def test_where_a_dataset_is_and_who_reads_its_files_change_no_answer(
    dataset: Dataset, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dataset.url, tmp_path / place)
    there = Dataset(str(tmp_path / place))
    asked = [f"SELECT * FROM {name} ORDER BY ALL" for name in FLEET]
    answers = [query(there, sql) for sql in asked]
    monkeypatch.setattr(Dataset, "local_files", lambda *_: [])  # all of it by Arrow's scans
    for sql, answer in zip(asked, answers, strict=True):
        assert answer == query(dataset, sql)
        assert answer.schema == query(there, sql).schema


def test_a_file_that_is_gone_is_told(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.url, tmp_path / "set")
    for path in (tmp_path / "set" / "operations").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(UnreadableInput, match="the dataset's operations cannot be read"):
        query(Dataset(str(tmp_path / "set")), "SELECT * FROM captures")


def test_a_column_that_is_none_is_told(dataset: Dataset) -> None:
    with pytest.raises(WrongUsage, match="no column 'kernal'; they have digest"):
        failures(["kernal"])


def test_an_empty_dataset_answers(tmp_path: Path) -> None:
    Dataset(str(tmp_path)).make()
    assert query(Dataset(str(tmp_path)), "SELECT * FROM operations").to_pylist() == []
    assert ask(Dataset(str(tmp_path)), failures(["op"]), DayRange()).to_pylist() == []
