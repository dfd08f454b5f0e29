"""`bundle`: one archive for an issue tracker, with or without what identifies people and hosts."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from ..bundle.archive import Inputs, Packed, pack
from ..bundle.redaction import Redactor
from ..codes import Severity
from ..errors import ExitCode, WrongUsage
from .support.files import CAPTURE, replacing, tell_losses
from .support.options import overwrite_option, world_options
from .support.output import out, progress, talk
from .support.standard_output import STDOUT, named

_CAUTION: Final = (
    "the bytes of the traffic are as they were recorded, and what they mean to you is not known "
    "here: look at the archive before you publish it"
)


@click.command("bundle")
@click.argument("captures", type=CAPTURE, nargs=-1)
@click.option("-o", "--output", type=CAPTURE, required=True, help="The tar.gz archive to write.")
@click.option(
    "--console", type=CAPTURE, metavar="FILE", help="The guest's console, dmesg or journal."
)
@click.option("--vmm-log", type=CAPTURE, metavar="FILE", help="Dragonball's or Kata's log.")
@world_options
@click.option("--redact", is_flag=True, help="Take out what identifies people and hosts.")
@click.option(
    "--keep-lines",
    is_flag=True,
    help="With --redact: keep log lines that are not about upcall, cleaned by patterns only.",
)
@click.option(
    "--redact-also",
    multiple=True,
    metavar="WORD",
    help="With --redact: a word to take out wherever it stands; repeatable.",
)
@overwrite_option
def bundle_command(
    captures: tuple[Path, ...],
    output: Path,
    console: Path | None,
    vmm_log: Path | None,
    world_file: Path | None,
    machine: str | None,
    redact: bool,
    keep_lines: bool,
    redact_also: tuple[str, ...],
    overwrite: bool,
) -> ExitCode:
    """Pack captures, logs and what was found in them into one archive for an issue.

    The archive holds a manifest, the findings as JSON and as a report, and counts of each capture.
    With --redact, of logs only what the diagnosis understands is packed, with placeholders for
    names, ids, paths and addresses, the same one for the same value. Of captures only the bytes of
    the traffic are packed. `upcall-trace docs redaction` has the details.
    """
    if not captures and console is None and vmm_log is None:
        raise WrongUsage("give a capture, or a log with --console or --vmm-log")
    inputs = Inputs(captures, console, vmm_log, world_file, machine)
    if (keep_lines or redact_also) and not redact:
        raise WrongUsage("--keep-lines and --redact-also go with --redact")
    redactor = Redactor([platform.node()], redact_also) if redact else None
    with (
        replacing(output, *inputs.paths, overwrite=overwrite) as temporary,
        tempfile.TemporaryDirectory(prefix=".upcall-bundle.", dir=temporary.parent) as workspace,
        progress(f"redacting for {output.name}", _size(inputs) if redact else 0) as report,
    ):
        packed = pack(inputs, temporary, Path(workspace), redactor, report, keep_lines)
    _tell(packed, talk if output == STDOUT else out)
    talk(f"{named(output)}: {len(packed.files)} files, {_errors(packed)} errors found")
    if redact:
        talk(_CAUTION)
    code = ExitCode.EXPECTED
    for path, capture in packed.captures:
        code = max(code, tell_losses(path, capture))
    for path in packed.cut:
        talk(f"{path} is too large: only its beginning is in the archive")
        code = ExitCode.LOST
    return code


def _size(inputs: Inputs) -> int:
    """Bytes of logs to go through, where that is known."""
    return sum(path.stat().st_size for _, _, path in inputs.logs if path.is_file())


def _tell(packed: Packed, out: Callable[[str], None]) -> None:
    for file in packed.files:
        out(f"{file['size']:>12}  {file['name']}: {file['what']}")
    for row in packed.redacted or ():
        if row["kind"] == "line":
            out(f"redacted: {row['what']}: {row['places']} lines")
            continue
        out(f"redacted: {row['what']}: {row['values']} values at {row['places']} places")


def _errors(packed: Packed) -> int:
    findings = (finding for each in packed.diagnosed for finding in each.findings)
    return sum(finding.severity >= Severity.ERROR for finding in findings)
