"""`diagnose`: why the hotplug failed, what the VMM does with it, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from ..codes import Severity
from ..diagnose.finding import Finding
from ..diagnose.report import (
    as_github,
    as_json,
    as_junit,
    as_markdown,
    as_text,
    finding_object,
    in_full,
)
from ..diagnose.run import Diagnosed, Logs, diagnose, diagnose_logs, follow, read_logs
from ..errors import ExitCode, UnreadableInput, WrongUsage
from ..kernel.world import World
from .support.explaining import code_words, explain
from .support.files import CAPTURE, tell_damage
from .support.options import Named, given_world, vmm_option, world_options
from .support.output import out, out_json, progress, talk

_FORMATS = ("text", "json", "markdown", "junit", "github")
_SEVERITIES = [severity.word for severity in Severity]


@click.command("diagnose")
@click.argument("captures", type=CAPTURE, nargs=-1)
@click.option(
    "--console", type=CAPTURE, metavar="FILE", help="The guest's console, dmesg or journal."
)
@click.option("--vmm-log", type=CAPTURE, metavar="FILE", help="Dragonball's or Kata's log.")
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
@click.option("--all", "everything", is_flag=True, help="Tell every finding in full, as text.")
@click.option("--fail-on", type=click.Choice(_SEVERITIES), help="End with 1 from here on.")
@click.option("--follow", "as_it_grows", is_flag=True, help="Tell findings as they are recorded.")
@click.option(
    "--explain", "word", type=Named("CODE", code_words), help="Show a code's page instead."
)
def diagnose_command(
    captures: tuple[Path, ...],
    console: Path | None,
    vmm_log: Path | None,
    world_file: Path | None,
    machine: str | None,
    vmm: str,
    form: str,
    as_json_too: bool,
    everything: bool,
    fail_on: str | None,
    as_it_grows: bool,
    word: str | None,
) -> ExitCode:
    """Say why operations failed, what the VMM makes of it, and what to do next.

    Give captures, logs, or both: a guest's console tells which of several causes it was, and
    stands in for a capture that there is not. With the guest's world (--world) causes that the
    wire cannot decide become certain. Without, such findings say "possibly".
    """
    if word is not None:
        explain(word)
        return ExitCode.EXPECTED
    if not captures and console is None and vmm_log is None:
        raise WrongUsage("give a capture, a log (--console, --vmm-log), or --explain CODE")
    if len(captures) > 1 and (console or vmm_log):
        raise WrongUsage("a log belongs to one capture: give one capture with it")
    world = given_world(world_file, machine)
    logs = read_logs(console, vmm_log)
    if as_it_grows:
        if len(captures) != 1 or form not in ("text", "json"):
            raise WrongUsage("--follow takes one capture, and tells it as text or JSON lines")
        findings = follow(captures[0], world, vmm == "dragonball", logs)
        return _follow(findings, as_json_too or form == "json", everything, fail_on)
    diagnosed = [_diagnose(path, world, vmm == "dragonball", logs) for path in captures]
    if not captures:
        diagnosed = [diagnose_logs(console or vmm_log or Path(), logs)]
    for each in diagnosed:
        if each.matched:
            talk(f"{each.path}: {each.matched}")
        if each.lacks and any(finding.inferred for finding in each.findings):
            talk(f"{each.path}: {each.lacks}; --world FILE tells, and makes causes certain")
    match "json" if as_json_too else form:
        case "json":
            out(as_json(diagnosed))
        case "markdown":
            out("\n".join(as_markdown(diagnosed)))
        case "junit":
            out(as_junit(diagnosed))
        case "github":
            out("\n".join(as_github(diagnosed)))
        case _:
            for line in as_text(diagnosed, everything):
                out(line)
    return _exit_code(diagnosed, fail_on)


def _diagnose(path: Path, world: World | None, dragonball: bool, logs: Logs) -> Diagnosed:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}") from None
    with progress(f"diagnosing {path.name}", size) as report:
        return diagnose(path, world, dragonball, logs, report)


def _follow(
    findings: Iterable[Finding], as_json: bool, everything: bool, fail_on: str | None
) -> ExitCode:
    """Each finding as it comes: errors in full, others when everything is wanted."""
    limit = Severity[fail_on.upper()] if fail_on else None
    code = ExitCode.EXPECTED
    for finding in findings:
        if as_json:
            out_json(finding_object(finding))
        elif everything or finding.severity >= Severity.ERROR:
            out("\n".join(in_full(finding)))
        sys.stdout.flush()
        if limit is not None and finding.severity >= limit:
            code = ExitCode.DIFFERENT
    return code


def _exit_code(diagnosed: list[Diagnosed], fail_on: str | None) -> ExitCode:
    if fail_on is not None:
        limit = Severity[fail_on.upper()]
        if any(f.severity >= limit for each in diagnosed for f in each.findings):
            return ExitCode.DIFFERENT
    torn = [each for each in diagnosed if not each.complete]
    for each in torn:
        tell_damage(each.path, each.damage)
        talk(f"{each.path} is not complete: what is missing in it cannot be judged")
    return ExitCode.LOST if torn else ExitCode.EXPECTED
