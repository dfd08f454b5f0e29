"""`import` and `export`: between captures and foreign formats."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from ..capture.reader import CaptureReader
from ..errors import ExitCode, WrongUsage
from ..exports import FORMATS, export_format, format_for, format_names, plugged_format
from ..plugins import BrokenPlugin, installed, note
from ..sources import open_source
from ..trace.streams import all_in_bulk
from .support.files import (
    CAPTURE,
    open_capture,
    open_whole,
    replacing,
    tell_damage,
    tell_losses,
    write_whole,
)
from .support.options import (
    Named,
    overwrite_option,
    parse_notes,
    world_given,
    world_options,
)
from .support.output import out, talk
from .support.standard_output import STDOUT, check_stdout, named


@click.command("import")
@click.argument("file", type=CAPTURE)
@click.option("-o", "--output", type=CAPTURE, required=True, help="The capture to write.")
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), help="The guest's, if known.")
@click.option("--port", type=click.IntRange(0, 0xFFFFFFFF), help="The upcall port, if not 219.")
@click.option("--note", "notes", multiple=True, metavar="KEY=TEXT", help="Kept in the capture.")
@world_options
@overwrite_option
def import_command(
    file: Path,
    output: Path,
    arch: str | None,
    port: int | None,
    notes: tuple[str, ...],
    world_file: Path | None,
    machine: str | None,
    overwrite: bool,
) -> ExitCode:
    """Turn a transcript, or a pcap or pcapng file with link type VSOCK, into a capture.

    The program detects the type of FILE from its content. With --world the capture keeps what the
    guest looked like at boot; a transcript that names its machine does not need --machine.
    """
    added = parse_notes(notes)
    with open_source(file) as source:
        added |= world_given(world_file, machine, source.header.notes | added)
        if isinstance(source, CaptureReader):
            raise WrongUsage(f"{file} is a capture already; use filter or merge to copy it")
        # The source reads its own header too: the port tells which connections are upcall.
        source.header = header = dataclasses.replace(
            source.header,
            arch=arch or source.header.arch,
            port=source.header.port if port is None else port,
            notes=source.header.notes | added,
        )
        with replacing(output, file, overwrite=overwrite) as temporary:
            write_whole(temporary, header, all_in_bulk(source))
            opened = open_capture(temporary)
        damaged = tell_damage(file, source.damage)
        code = ExitCode.LOST if damaged else tell_losses(output, opened)
    told = f"{len(opened.connections)} connections, {len(opened.operations)} operations"
    talk(f"{named(output)}: {told}")
    return code


def _list(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    rows = [*FORMATS]
    for plugin in installed("exports"):
        try:
            rows.append(plugged_format(plugin))
        except BrokenPlugin as trouble:
            note(trouble)
    for known in rows:
        out(f"{known.name:<12} {' '.join(known.suffixes):<18} {known.about}")
        if known.loses:
            out(f"{'':<31} loses {known.loses}")
    ctx.exit()


@click.command("export")
@click.argument("capture", type=CAPTURE)
@click.option(
    "--format",
    "name",
    type=Named("NAME", format_names),
    help="What to write; the suffix of the output tells it, too.",
)
@click.option("-o", "--output", type=CAPTURE, required=True, help="The file to write, - is stdout.")
@click.option(
    "--console",
    type=CAPTURE,
    multiple=True,
    metavar="FILE",
    help="The guest's console of that time, for findings and beside requests; repeatable.",
)
@click.option(
    "--vmm-log",
    type=CAPTURE,
    multiple=True,
    metavar="FILE",
    help="Dragonball's or Kata's log of that time; repeatable.",
)
@overwrite_option
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the formats with their suffixes, those of plugins too.",
)
def export_command(
    capture: Path,
    name: str | None,
    output: Path,
    console: tuple[Path, ...],
    vmm_log: tuple[Path, ...],
    overwrite: bool,
) -> ExitCode:
    """Write a capture in another format.

    Everything that the format has no place for is counted on stderr. `upcall-trace docs formats`
    has a table. With --console or --vmm-log, the findings are those of the capture and its logs
    together, and a report in HTML shows log lines beside the requests.
    """
    to_stdout = output == STDOUT
    if name is None and to_stdout:
        raise WrongUsage(f"give --format with one of {', '.join(format_names())}")
    known, write = export_format(name or format_for(output))
    whole = open_whole(capture, console, vmm_log)
    if to_stdout:
        if known.binary:
            check_stdout()
        losses = write(whole, sys.stdout.buffer)
    else:
        with (
            replacing(output, capture, overwrite=overwrite) as temporary,
            temporary.open("wb") as file,
        ):
            losses = write(whole, file)
    for loss in losses:
        talk(f"{named(output)}: {loss.what}")
    code = tell_losses(capture, whole.opened)
    return ExitCode.LOST if any(loss.serious for loss in losses) else code
