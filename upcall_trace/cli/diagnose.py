"""`diagnose`: why the hotplug failed, what the VMM does with it, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import click

from ..codes import Severity
from ..diagnose.choosing import FindingChoice, choose
from ..diagnose.finding import Finding
from ..diagnose.headline import rfc3339, short
from ..diagnose.report import as_text, in_full
from ..diagnose.run import Diagnosed, diagnose, diagnose_logs, follow
from ..diagnose.told_by_logs import LogInput, Logs, Span
from ..errors import ExitCode, NothingRun, UnreadableInput, WrongUsage
from ..kernel.world import World
from ..sources.spooled import SpooledPath, plain
from .support.files import CAPTURE, tell_damage
from .support.inputs import by_kind, sandboxes
from .support.options import Named, color_option, given_world, vmm_option, world_options
from .support.output import out, out_json, progress, talk
from .support.times import WallMoment, span_options

_FORMATS = ("text", "json", "markdown", "junit", "github", "gitlab", "sarif")
_SEVERITIES = [severity.word for severity in Severity]
_GUESTS_TOLD = 5


def _code_words() -> Iterable[str]:
    from .support.explaining import code_words

    return code_words()


@click.command("diagnose")
@click.argument("files", type=CAPTURE, nargs=-1)
@click.option(
    "--console",
    type=CAPTURE,
    multiple=True,
    metavar="FILE",
    help="The guest's console, dmesg or journal; several for a rotated one.",
)
@click.option(
    "--vmm-log",
    type=CAPTURE,
    multiple=True,
    metavar="FILE",
    help="Dragonball's or Kata's log; several for a rotated one.",
)
@click.option("--journal", is_flag=True, help="Read this machine's own journal.")
@click.option(
    "--memory", metavar="PID|IMAGE", help="A running VMM's memory, or an image of a guest's."
)
@click.option(
    "--sandbox",
    metavar="ID",
    shell_complete=sandboxes,
    help="Only this guest of the logs; a prefix is enough.",
)
@span_options
@world_options
@vmm_option
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="text",
    show_default=True,
    help="How to tell it.",
)
@click.option("--json", "as_json_too", is_flag=True, help="The same as --format json.")
@click.option(
    "--json-version",
    type=click.Choice(["1", "2"]),
    default="2",
    show_default=True,
    help="The shape of the JSON.",
)
@click.option("--all", "everything", is_flag=True, help="Tell every finding in full, as text.")
@click.option("--select", multiple=True, metavar="CODE", help="Only these codes: UP604, UP2*.")
@click.option("--ignore", multiple=True, metavar="CODE", help="All but these codes.")
@click.option(
    "--baseline",
    type=CAPTURE,
    metavar="FILE",
    help="Only what is new since this output of --json.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Diagnose so many captures at once.",
)  # fmt: skip
@click.option("--fail-on", type=click.Choice(_SEVERITIES), help="End with 1 from here on.")
@click.option("--follow", "as_it_grows", is_flag=True, help="Tell findings as they come.")
@click.option(
    "--explain",
    "word",
    type=Named("CODE", _code_words),
    help="Show the page of a code or a name instead.",
)
@color_option
def diagnose_command(
    files: tuple[Path, ...],
    console: tuple[Path, ...],
    vmm_log: tuple[Path, ...],
    journal: bool,
    memory: str | None,
    sandbox: str | None,
    since: WallMoment | None,
    until: WallMoment | None,
    world_file: Path | None,
    machine: str | None,
    vmm: str,
    form: str,
    as_json_too: bool,
    json_version: str,
    everything: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    baseline: Path | None,
    jobs: int,
    fail_on: str | None,
    as_it_grows: bool,
    word: str | None,
) -> ExitCode:
    """Say why operations failed, what the VMM makes of it, and what to do next.

    Give captures, logs, or both; the program detects the type of each file. A guest's console shows
    which of several causes it was, and can replace a missing capture. With the guest's world
    (--world) causes that the wire cannot decide become certain. Without, such findings say
    "possibly". A code in place of a file, such as UP201, shows the code's page.
    """
    words = [word] if word is not None else _codes_in(files)
    if words:
        from .support.explaining import explain

        for each in words:
            explain(each)
        return ExitCode.EXPECTED
    form = "json" if as_json_too else form
    choice = FindingChoice.of(select, ignore, baseline)
    span = Span(since.ns if since else None, until.ns if until else None)
    if journal:
        if files or console or vmm_log or memory:
            raise WrongUsage("--journal reads this machine's journal: give no files with it")
        return _journal(sandbox, since, until, as_it_grows, form, everything, choice, fail_on)
    captures, found = by_kind(files)
    if memory is not None:
        if as_it_grows:
            raise WrongUsage("--memory tells what stands there now; record --memory watches it")
        from .support.memory_target import memory_capture  # the searchers of images come with it

        captures = [*captures, click.get_current_context().with_resource(memory_capture(memory))]
    if not (captures or found or console or vmm_log):
        raise WrongUsage("give a capture or a log, --journal for this machine's, or --explain CODE")
    world = given_world(world_file, machine)
    if as_it_grows:
        if len(captures) != 1 or form not in ("text", "json"):
            raise WrongUsage("--follow takes one capture, and tells it as text or JSON lines")
        logs = _read(console, vmm_log, found, sandbox, span)
        findings = follow(captures[0], world, vmm == "dragonball", logs)
        return _follow(findings, form == "json", everything, choice, fail_on)
    logs = _read(console, vmm_log, found, sandbox, span)
    several = len(captures) > 1
    if several and jobs > 1:
        diagnosed = _diagnose_all(captures, world, vmm == "dragonball", jobs)
    else:
        diagnosed = [
            _diagnose(path, world, vmm == "dragonball", Logs() if several else logs)
            for path in captures
        ]
    if not captures or (several and logs):
        diagnosed.append(diagnose_logs(logs))
    diagnosed = [choose(each, choice, span) for each in diagnosed]
    _tell_inputs(diagnosed, logs)
    nothing = None if captures else _nothing(logs, diagnosed)
    _print(diagnosed, logs.inputs, form, everything, int(json_version), nothing)
    return _exit_code(diagnosed, fail_on, nothing)


def _codes_in(files: Sequence[Path]) -> list[str]:
    """The codes that were given in place of files; raises WrongUsage when files are among them."""
    lacking = [str(path) for path in files if path.name == str(path) and not path.exists()]
    if not lacking:
        return []
    from .support.explaining import is_code

    codes = [word for word in lacking if is_code(word)]
    if codes and len(codes) < len(files):
        raise WrongUsage(f"{codes[0]} is a code and no file; explain it without the files")
    return codes


def _read(
    console: Sequence[Path],
    vmm_log: Sequence[Path],
    found: Sequence[Path],
    sandbox: str | None,
    span: Span,
) -> Logs:
    paths = dict.fromkeys([*console, *vmm_log, *found])
    if not paths and sandbox is None:
        return Logs()
    from ..diagnose.log_inputs import read_logs  # who gives none waits for nothing of it

    size = sum(path.stat().st_size for path in paths if path.is_file())
    name = paths and next(iter(paths)).name
    with progress(f"reading {name}", size) as report:
        return read_logs(console, vmm_log, found, sandbox=sandbox, span=span, progress=report)


def _tell_inputs(diagnosed: Sequence[Diagnosed], logs: Logs) -> None:
    """What was read of each log, in a line each, and how a console fitted a capture."""
    for told in logs.inputs:
        talk(_read_line(told))
    whose = {guest.sandbox for guest in logs.guests if not guest.is_other}
    if logs and whose == {None} and any(told.unnamed > 1 for told in logs.inputs):
        talk("these lines do not name their guest: what joins several of them is only possible")
    for each in diagnosed:
        if each.matched:
            talk(f"{each.name}: {each.matched}")
        if each.lacks and any(finding.inferred for finding in each.findings):
            talk(f"{each.name}: {each.lacks}; --world FILE tells, and makes causes certain")


def _read_line(told: LogInput) -> str:
    parts = [f"{told.kind}, {told.lines} lines, {told.understood} concern upcall"]
    if told.seems:
        parts = [f"{told.lines} lines; it is {told.seems}"]
    if told.unknown:
        parts.append(
            f"{told.unknown} about upcall in words that are not known, the first is line "
            f"{told.first_unknown}"
        )
    if told.mentioned:
        parts.append(
            f"{told.mentioned} sentences mention a line and decide nothing, the first is line "
            f"{told.first_mentioned}"
        )
    if told.lost:
        parts.append(
            f"lines are missing at {told.lost} places, the first is line {told.first_lost}"
        )
    if told.sandboxes:
        names = ", ".join(short(each) for each in islice(told.sandboxes, _GUESTS_TOLD))
        more = len(told.sandboxes) - _GUESTS_TOLD
        parts.append(f"guests {names}" + (f" and {more} more" if more > 0 else ""))
    if told.vmms:
        parts.append(f"VMM {', '.join(told.vmms)}")
    if told.from_ns is not None and told.to_ns is not None:
        parts.append(f"from {rfc3339(told.from_ns)} to {rfc3339(told.to_ns)}")
    if told.torn:
        parts.append("its archive ends early")
    return f"{told.file}: {'; '.join(parts)}"


def _nothing(logs: Logs, diagnosed: Sequence[Diagnosed]) -> NothingRun | None:
    """Why nothing can be said, where nothing concerned upcall."""
    told = [f for each in diagnosed for f in each.findings if f.severity > Severity.NOTE]
    if told or logs.concerns_upcall:
        return None
    from ..diagnose.log_inputs import nothing_understood

    return nothing_understood(logs)


def _print(
    diagnosed: Sequence[Diagnosed],
    inputs: Sequence[LogInput],
    form: str,
    everything: bool,
    version: int,
    nothing: NothingRun | None,
) -> None:
    if form == "text":
        if nothing is None or any(each.findings for each in diagnosed):
            for line in as_text(diagnosed, everything):
                out(line)
        return
    from ..diagnose import code_quality, report_formats  # who reads text needs none of them

    match form:
        case "json":
            out_json(report_formats.json_object(diagnosed, inputs, version))
        case "markdown":
            out("\n".join(report_formats.as_markdown(diagnosed)))
        case "junit" if nothing is None:
            out(report_formats.as_junit(diagnosed))
        case "sarif":
            out(code_quality.as_sarif(diagnosed))
        case "gitlab":
            out(code_quality.as_gitlab(diagnosed))
        case "github":
            out("\n".join(report_formats.as_github(diagnosed)))


def _diagnose(path: Path, world: World | None, dragonball: bool, logs: Logs) -> Diagnosed:
    try:
        path = plain(path)
        size = path.stat().st_size
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}") from None
    with progress(f"diagnosing {path.name}", size) as report:
        return diagnose(path, world, dragonball, logs, report)


def _diagnose_all(
    paths: Sequence[Path], world: World | None, dragonball: bool, jobs: int
) -> list[Diagnosed]:
    """Several captures, each in a process of its own; the progress counts the bytes done."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # What was unpacked is a descriptor of this process: it stays the one that reads it.
    own = {path for path in paths if isinstance(plain(path), SpooledPath)}
    others = [path for path in paths if path not in own]
    context = multiprocessing.get_context("spawn")
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in others}
    told: dict[Path, Diagnosed] = {}
    with (
        ProcessPoolExecutor(min(jobs, max(len(others), 1)), context) as pool,
        progress(f"diagnosing {len(others)} captures", sum(sizes.values())) as report,
    ):
        futures = {pool.submit(diagnose, path, world, dragonball): path for path in others}
        done = 0
        for future in as_completed(futures):
            done += sizes[futures[future]]
            if report is not None:
                report(done)
        told |= {path: future.result() for future, path in futures.items()}
    told |= {path: _diagnose(path, world, dragonball, Logs()) for path in own}
    return [told[path] for path in paths]


def _follow(
    findings: Iterable[Finding],
    as_json: bool,
    everything: bool,
    choice: FindingChoice,
    fail_on: str | None,
) -> ExitCode:
    """Each finding as it comes: errors in full, others when everything is wanted."""
    limit = Severity[fail_on.upper()] if fail_on else None
    code = ExitCode.EXPECTED
    for finding in findings:
        if finding not in choice:
            continue
        if as_json:
            from ..diagnose.report_formats import finding_object

            out_json(finding_object(finding))
        elif everything or finding.severity >= Severity.ERROR:
            out("\n".join(in_full(finding)))
        sys.stdout.flush()
        if limit is not None and finding.severity >= limit:
            code = ExitCode.DIFFERENT
    return code


def _journal(
    sandbox: str | None,
    since: WallMoment | None,
    until: WallMoment | None,
    as_it_grows: bool,
    form: str,
    everything: bool,
    choice: FindingChoice,
    fail_on: str | None,
) -> ExitCode:
    from ..diagnose.journal import follow_journal, read_journal

    span = [each.text if each else None for each in (since, until)]
    if as_it_grows:
        if form not in ("text", "json"):
            raise WrongUsage("--follow tells what it finds as text or JSON lines")
        findings = follow_journal(sandbox, *span)
        return _follow(findings, form == "json", everything, choice, fail_on)
    logs = read_journal(sandbox, *span)
    diagnosed = [choose(diagnose_logs(logs), choice, Span())]
    _tell_inputs(diagnosed, logs)
    nothing = _nothing(logs, diagnosed)
    _print(diagnosed, logs.inputs, form, everything, 2, nothing)
    return _exit_code(diagnosed, fail_on, nothing)


def _exit_code(
    diagnosed: Sequence[Diagnosed], fail_on: str | None, nothing: NothingRun | None
) -> ExitCode:
    if nothing is not None:
        raise nothing
    if fail_on is not None:
        limit = Severity[fail_on.upper()]
        if any(f.severity >= limit for each in diagnosed for f in each.findings):
            return ExitCode.DIFFERENT
    torn = [each for each in diagnosed if not each.complete]
    for each in torn:
        if each.path is not None:
            tell_damage(each.path, list(each.damage))
        talk(f"{each.name} is not complete: what is missing in it cannot be judged")
    return ExitCode.LOST if torn else ExitCode.EXPECTED
