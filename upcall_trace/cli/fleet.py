"""`fleet`: the captures of many hosts as one dataset, and questions to it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ExitCode, NothingRun, UserError
from ..views.json_objects import operation_object
from .support.files import CAPTURE, replacing
from .support.listing import show_operation
from .support.options import color_option, overwrite_option
from .support.output import out, out_json, talk
from .support.standard_output import STDOUT, check_stdout

if TYPE_CHECKING:
    import pyarrow

    from ..dataset.fleet import Added, Found
    from ..dataset.query import Question
    from ..trace.operations import Operation

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FORMATS = ("table", "json", "csv", "parquet", "html")
_SUFFIXES = {".json": "json", ".csv": "csv", ".parquet": "parquet", ".html": "html"}


class _DayType(click.ParamType[str]):
    name = "day"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return date.fromisoformat(str(value)).isoformat()
        except ValueError:
            self.fail(f"{value!r} is no day: write 2026-11-28", param, ctx)


_scheduler = click.option(
    "--scheduler", metavar="ADDRESS", help="Work on the Dask cluster of this scheduler."
)
_jobs = click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), default=lambda: os.cpu_count() or 1,
    help="Processes of this machine; as many as it has processors, if not given.",
)  # fmt: skip


def _answer_options(command: _Command) -> _Command:
    form = click.option(
        "--format", "form", type=click.Choice(_FORMATS),
        help="How to tell it: a table, or what the suffix of the output says.",
    )  # fmt: skip
    output = click.option(
        "-o", "--output", type=CAPTURE, default=STDOUT, help="The file to write; - is stdout."
    )
    return form(output(overwrite_option(command)))


def _span_options(command: _Command) -> _Command:
    since = click.option("--since", type=_DayType(), metavar="DAY", help="Nothing before.")
    until = click.option("--until", type=_DayType(), metavar="DAY", help="Nothing after.")
    return since(until(command))


def _by(default: str) -> Callable[[_Command], _Command]:
    return click.option(
        "--by", default=default, show_default=True, metavar="COLUMN,…", help="Grouped by these."
    )


@click.group("fleet")
def fleet_command() -> None:
    """The captures of many hosts as one dataset: which kernels, which operation, since when.

    DATASET and SOURCE are paths, or URLs of any kind that fsspec knows: s3://, https://. Needs
    `pip install 'upcall-trace[fleet]'`.
    """


@fleet_command.command("add")
@click.argument("dataset")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@_jobs
@_scheduler
def add_command(
    dataset: str, sources: tuple[str, ...], jobs: int, scheduler: str | None
) -> ExitCode:
    """Convert captures that DATASET does not have yet; it is made when there is none.

    SOURCE is a capture, a folder with captures, or a pattern. A source that cannot be read becomes
    a row of the table `problems`. After an interruption, give the same command again.
    """
    from ..dataset.fleet import find_sources

    return _add(dataset, find_sources(sources), jobs, scheduler, update=False)


@fleet_command.command("update")
@click.argument("dataset")
@click.argument("sources", nargs=-1, metavar="[SOURCE…]")
@_jobs
@_scheduler
def update_command(
    dataset: str, sources: tuple[str, ...], jobs: int, scheduler: str | None
) -> ExitCode:
    """As add, and convert again what has changed since; without SOURCE what DATASET knows of."""
    from ..dataset.fleet import find_sources, known_sources

    found = find_sources(sources) if sources else known_sources(dataset)
    return _add(dataset, found, jobs, scheduler, update=True)


def _add(
    dataset: str, found: Sequence[Found], jobs: int, scheduler: str | None, update: bool
) -> ExitCode:
    from ..dataset.fleet import add, workers

    if not found:
        raise NothingRun("no capture was found there")

    def told(added: Added) -> None:
        if sys.stderr.isatty():
            talk(f"{added.captures + added.known + added.problems} of {added.sources} sources")

    with workers(jobs, scheduler, dataset, *(source.url for source in found)) as executor:
        added = add(dataset, found, executor, update, told)
    talk(
        f"{dataset}: {added.captures} captures with {added.operations} operations added, "
        f"{added.known} known already, {added.problems} with problems"
    )
    return ExitCode.LOST if added.problems else ExitCode.EXPECTED


@fleet_command.command("query")
@click.argument("dataset")
@click.argument("sql")
@_answer_options
@_scheduler
def query_command(
    dataset: str, sql: str, form: str | None, output: Path, overwrite: bool, scheduler: str | None
) -> ExitCode:
    """Ask one SELECT of the tables operations, findings, connections, captures and problems."""
    from ..dataset.fleet import workers
    from ..dataset.query import query
    from ..dataset.stored import Dataset

    with workers(1, scheduler) as executor:
        answer = query(Dataset(dataset), sql, executor)
    return _tell(answer, sql, form, output, overwrite)


@fleet_command.command("failures")
@click.argument("dataset")
@_by("kernel,op")
@_span_options
@_answer_options
@_scheduler
def failures_command(dataset: str, by: str, **options: Any) -> ExitCode:
    """How many operations failed, of how many."""
    from ..dataset.query import failures

    return _ask(dataset, failures(_names(by)), f"failures by {by}", **options)


@fleet_command.command("latency")
@click.argument("dataset")
@_by("op")
@_span_options
@_answer_options
@_scheduler
def latency_command(dataset: str, by: str, **options: Any) -> ExitCode:
    """Quantiles of the time to the answer, to three digits."""
    from ..dataset.query import latency

    return _ask(dataset, latency(_names(by)), f"latency by {by}", **options)


@fleet_command.command("new")
@click.argument("dataset")
@click.option("--since", type=_DayType(), metavar="DAY", required=True, help="First seen then.")
@_by("op")
@_answer_options
@_scheduler
def new_command(dataset: str, since: str, by: str, **options: Any) -> ExitCode:
    """Errors and codes of findings that nobody had seen before a day."""
    from ..dataset.query import new

    question = new(since, _names(by))
    return _ask(dataset, question, f"new since {since}", None, None, **options)


@fleet_command.command("show")
@click.argument("dataset")
@click.argument("row")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@color_option
def show_row_command(dataset: str, row: str, as_json: bool) -> ExitCode:
    """Lead from a row of operations or findings to its recording and request.

    ROW is what the column `row` has, for example 019da1fa009e7d96:1.4.
    """
    from ..dataset.query import find_row
    from ..dataset.stored import Dataset

    found = find_row(Dataset(dataset), row)
    return _show_row(found.capture, found.operation, found.findings, as_json)


def _show_row(
    capture: dict[str, Any], row: dict[str, Any], findings: list[dict[str, Any]], as_json: bool
) -> ExitCode:
    from ..dataset.answers import as_text, plain
    from ..dataset.fleet import fetched
    from ..dataset.parquet import pyarrow_or_refuse
    from ..trace.opening import load

    url: str = capture["url"]
    operation: Operation | None = None
    trouble = ""
    try:
        with fetched(url) as (path, digest):
            if digest != capture["digest"]:
                trouble = f"{url} has changed since it was added"
            else:
                operations = load(path).operations
                at = (operations.column("conn") == row["conn"]) & (
                    operations.column("request") == row["request"]
                )
                operation = operations.operation(int(at.argmax()))
    except UserError as error:
        trouble = str(error)
    name = url.removeprefix("file://")
    lead = f"upcall-trace show {name} --filter 'conn == {row['conn']} and request == "
    lead += f"{row['request']}' --hex"
    if as_json:
        told = None if operation is None else operation_object(operation)
        out_json(
            {"v": 1, "row": plain(row), "recording": url, "operation": told,
             "findings": [plain(each) for each in findings], "command": lead}
        )  # fmt: skip
    else:
        out(f"recording  {name}")
        out(f"kernel     {row['kernel'] or 'unknown'}, host {row['host'] or 'unknown'}")
        if operation is not None:
            show_operation(operation)
        else:
            out("\n".join(as_text(pyarrow_or_refuse().Table.from_pylist([row]))))
        for finding in findings:
            out(f"{finding['code']} {finding['name']}: {finding['what']} {finding['next']}")
        out(f"next: {lead}")
    if trouble:
        talk(f"{trouble}; this is what the dataset has of it")
        return ExitCode.LOST
    return ExitCode.EXPECTED


@fleet_command.command("drop")
@click.argument("dataset")
@click.option("--before", type=_DayType(), metavar="DAY", required=True, help="Older rows go.")
def drop_command(dataset: str, before: str) -> ExitCode:
    """Drop what was recorded before a day; the recordings stay as they are."""
    from ..dataset.fleet import drop

    talk(f"{dataset}: {drop(dataset, before)} operations dropped")
    return ExitCode.EXPECTED


def _names(by: str) -> list[str]:
    return [name.strip() for name in by.split(",") if name.strip()]


def _ask(
    dataset: str,
    question: Question,
    title: str,
    since: str | None,
    until: str | None,
    form: str | None,
    output: Path,
    overwrite: bool,
    scheduler: str | None,
) -> ExitCode:
    from ..dataset.fleet import workers
    from ..dataset.query import DayRange, ask
    from ..dataset.stored import Dataset

    with workers(1, scheduler) as executor:
        answer = ask(Dataset(dataset), question, DayRange(since, until), executor)
    return _tell(answer, title, form, output, overwrite)


def _tell(
    answer: pyarrow.Table, title: str, form: str | None, output: Path, overwrite: bool
) -> ExitCode:
    from ..dataset.answers import as_csv, as_object, as_page, as_parquet, as_text

    form = form or _SUFFIXES.get(output.suffix, "table")
    if form == "parquet":
        if output == STDOUT:
            check_stdout()
        content = as_parquet(answer)
    elif form == "table":
        content = ("\n".join(as_text(answer)) + "\n").encode("utf-8", "backslashreplace")
    elif form == "csv":
        content = as_csv(answer).encode("utf-8", "backslashreplace")
    elif form == "html":
        content = as_page(answer, title).encode("utf-8", "backslashreplace")
    else:
        content = (json.dumps(as_object(answer)) + "\n").encode("ascii")
    if output == STDOUT:
        sys.stdout.buffer.write(content)
    else:
        with replacing(output, overwrite=overwrite) as temporary:
            temporary.write_bytes(content)
    return ExitCode.EXPECTED
