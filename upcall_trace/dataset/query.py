"""Questions to a fleet's dataset: SQL of the user's, and ready ones. docs/fleet.md.

SQL runs in DuckDB. Files of this machine it reads itself, which is several times as fast; those of
any other place it gets as Arrow scans. It may open the dataset's own files and no other, and reach
no network, and nobody can change that: what a user writes is no way into the machine.

A ready question is asked in two steps, so that many machines can share it: `part` of some files,
`whole` of the parts together. On one machine there is one part.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..errors import UnreadableInput, WrongUsage
from .parquet import pyarrow_or_refuse
from .schema import FLEET, Row
from .stored import DataFile, Dataset, pieces_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow

_PIECES_A_PART: Final = 16
_ROW_DIGITS: Final = 16
"""Digits of the digest in a row's name."""
_ROW_SQL: Final = f"substr(digest, 1, {_ROW_DIGITS}) || ':' || conn || '.' || request AS row, "
_VIEWS: Final = {"operations": _ROW_SQL, "findings": _ROW_SQL}
_ROW: Final = re.compile(r"([0-9a-f]{8,64}):(\d{1,10})\.(\d{1,10})\Z")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
_ERROR: Final = "op || ' ' || coalesce(errno, ret::TEXT)"
MEMORY: Final = "1GB"
"""What DuckDB may take before it writes to a temporary file."""


@dataclass(frozen=True, slots=True)
class DayRange:
    """Days from the first to the last, both `2026-11-28` or None; rows without a day are in it."""

    since: str | None = None
    until: str | None = None

    def __contains__(self, piece: DataFile) -> bool:
        return (self.since is None or piece.day >= self.since) and (
            self.until is None or piece.day <= self.until or not piece.day[0].isdigit()
        )


@dataclass(frozen=True, slots=True)
class Question:
    """SQL of some files (`part`), and of the table `parts` that all of them gave (`whole`)."""

    part: str
    whole: str


def failures(by: Sequence[str]) -> Question:
    """How many operations there were and how many failed, most failures first."""
    keys = _keys("operations", by)
    return Question(
        f"SELECT {keys}, count(*) AS operations, "
        "count(*) FILTER (ret IS NULL) AS unanswered, count(*) FILTER (ret < 0) AS errors "
        f"FROM operations GROUP BY {keys}",
        f"SELECT {keys}, sum(operations)::BIGINT AS operations, sum(errors)::BIGINT AS errors, "
        "sum(unanswered)::BIGINT AS unanswered, "
        "round((sum(errors) + sum(unanswered)) / sum(operations), 6) AS share "
        f"FROM parts GROUP BY {keys} ORDER BY sum(errors) + sum(unanswered) DESC, {keys}",
    )


def latency(by: Sequence[str]) -> Question:
    """Quantiles of the latency of answered operations, each to three digits, the slowest first."""
    keys = _keys("operations", by)
    step = "pow(10, greatest(0, floor(log10(greatest(latency_ns, 1))) - 2))::BIGINT"
    ranked = (
        f"SELECT {keys}, ns, n, sum(n) OVER (PARTITION BY {keys}) AS total, "
        f"sum(n) OVER (PARTITION BY {keys} ORDER BY ns) AS upto FROM "
        f"(SELECT {keys}, ns, sum(n) AS n FROM parts GROUP BY {keys}, ns)"
    )
    quantiles = ", ".join(
        f"min(ns) FILTER (upto >= total * {share}) AS {name}_ns"
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1))
    )
    return Question(
        f"SELECT {keys}, latency_ns // ({step}) * ({step}) AS ns, count(*) AS n "
        f"FROM operations WHERE latency_ns IS NOT NULL GROUP BY {keys}, ns",
        f"SELECT {keys}, sum(n)::BIGINT AS answered, {quantiles} FROM ({ranked}) "
        f"GROUP BY {keys} ORDER BY p99_ns DESC, {keys}",
    )


def new(since: str, by: Sequence[str]) -> Question:
    """Findings and errors that were first seen on a day or later, and how often since."""
    keys = _keys("operations", by)
    told = "code AS what" if not by else f"code AS what, {keys}"
    days = "min(nullif(day, 'unknown')) AS first, max(nullif(day, 'unknown')) AS last"
    part = (
        f"SELECT {told}, {days}, count(*) AS times FROM "
        "(SELECT unnest(codes) AS code, * FROM operations WHERE len(codes) > 0) "
        f"GROUP BY ALL UNION ALL SELECT {told.replace('code', _ERROR)}"
        f", {days}, count(*) FROM operations WHERE ret < 0 GROUP BY ALL"
    )
    return Question(
        part,
        f"SELECT what, {keys + ', ' if by else ''}min(first) AS first, max(last) AS last, "
        f"sum(times)::BIGINT AS times FROM parts GROUP BY ALL HAVING min(first) >= '{_day(since)}' "
        f"ORDER BY first, times DESC, what{', ' + keys if by else ''}",
    )


def _keys(table: str, by: Sequence[str]) -> str:
    known = [column.name for column in FLEET[table]] + ["day"]
    for name in by:
        if name not in known:
            raise WrongUsage(f"{table} have no column {name!r}; they have {', '.join(known)}")
    return ", ".join(f'"{name}"' for name in by)


def _day(text: str) -> str:
    if not _DAY.match(text):
        raise WrongUsage(f"{text!r} is no day: write 2026-11-28")
    return text


def ask(
    dataset: Dataset, question: Question, span: DayRange, executor: Executor | None = None
) -> pyarrow.Table:
    """The answer to a ready question, by everybody of the executor."""
    pa = pyarrow_or_refuse()
    dataset.check()
    pieces = [piece for piece in pieces_of(dataset.commits()) if piece in span]
    pieces = [piece for piece in pieces if piece.table == "operations"]
    if executor is None:
        parts = [_part(dataset.url, question.part, pieces)]
    else:
        shares = [
            pieces[begin : begin + _PIECES_A_PART]
            for begin in range(0, len(pieces), _PIECES_A_PART)
        ] or [[]]
        futures = [executor.submit(_part, dataset.url, question.part, each) for each in shares]
        parts = [future.result() for future in futures]
    with tempfile.TemporaryDirectory(prefix="upcall-fleet-") as folder:
        connection = _locked({"parts": pa.concat_tables(parts)}, folder)
        return _answer(connection, question.whole)


def _part(url: str, sql: str, pieces: Sequence[DataFile]) -> pyarrow.Table:
    return _run(Dataset(url), sql, pieces)


def query(dataset: Dataset, sql: str, executor: Executor | None = None) -> pyarrow.Table:
    """The answer to one SELECT over the tables of a fleet; raises WrongUsage for anything else.

    With an executor it is asked there, in one piece.
    """
    dataset.check()
    pieces = list(pieces_of(dataset.commits()))
    _only_select(sql)
    if executor is not None:
        return executor.submit(_part, dataset.url, sql, pieces).result()
    return _run(dataset, sql, pieces)


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A row of operations, the capture that it came from, and what was found on it."""

    capture: Row
    operation: Row
    findings: list[Row]


def find_row(dataset: Dataset, name: str) -> FoundRow:
    """The row of a name as the column `row` has it; raises WrongUsage where there is none."""
    found = _ROW.match(name)
    if not found:
        raise WrongUsage(f"{name!r} is no row: the column `row` has 019da1fa009e7d96:1.4")
    of_it = f"digest LIKE '{found[1]}%'"
    captures = query(dataset, f"SELECT * FROM captures WHERE {of_it}").to_pylist()
    if len(captures) != 1:
        raise WrongUsage(f"{name}: {len(captures)} captures of {dataset.url} begin so")
    at = f"{of_it} AND conn = {int(found[2])} AND request = {int(found[3])}"
    rows = query(dataset, f"SELECT * FROM operations WHERE {at}").to_pylist()
    if not rows:
        raise WrongUsage(f"{name}: its capture has no request {found[2]}.{found[3]}")
    findings = query(dataset, f"SELECT * FROM findings WHERE {at} ORDER BY code").to_pylist()
    return FoundRow(captures[0], rows[0], findings)


def _run(dataset: Dataset, sql: str, pieces: Sequence[DataFile]) -> pyarrow.Table:
    with tempfile.TemporaryDirectory(prefix="upcall-fleet-") as folder:
        files = {name: dataset.local_files(name, pieces) for name in FLEET}
        tables = {name: dataset.table(name, pieces) for name, paths in files.items() if not paths}
        return _answer(_locked(tables, folder, files), sql)


def _only_select(sql: str) -> None:
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise WrongUsage(f"the SQL cannot be read: {error}") from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise WrongUsage("give one SELECT: a dataset is asked, and not changed, by SQL")


def _locked(
    tables: Mapping[str, Any], folder: str, files: Mapping[str, Sequence[str]] | None = None
) -> duckdb.DuckDBPyConnection:
    """A database in memory that sees these tables, and those in these files, and nothing else."""
    try:
        import duckdb
    except ImportError:
        raise WrongUsage("fleet needs pip install 'upcall-trace[fleet]'") from None
    connection = duckdb.connect(
        ":memory:",
        config={"temp_directory": folder, "memory_limit": MEMORY, "threads": 2},
    )
    sources = {name: f"_{name}" for name in tables}
    for name, table in tables.items():
        connection.register(f"_{name}", table)
    allowed: list[str] = []
    for name, paths in (files or {}).items():
        if paths:
            sources[name] = (
                f"read_parquet({_text_list(paths)}, hive_partitioning = true, "
                "hive_types_autocast = false)"
            )
            allowed += paths
    for name, source in sources.items():
        view = f"CREATE VIEW {name} AS SELECT {_VIEWS.get(name, '')}* FROM {source}"
        try:
            connection.execute(view)
        except duckdb.Error as error:
            raise UnreadableInput(f"the dataset's {name} cannot be read: {error}") from None
    for setting in (
        f"allowed_paths = {_text_list(allowed)}",
        "python_enable_replacements = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def _text_list(texts: Sequence[str]) -> str:
    """Texts as SQL has a list of them."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def _answer(connection: duckdb.DuckDBPyConnection, sql: str) -> pyarrow.Table:
    import duckdb

    with connection:
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise WrongUsage(f"the SQL failed: {error}") from None
