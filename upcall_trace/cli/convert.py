"""`import` and `export`: between captures and foreign formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ..capture.reader import CaptureReader
from ..capture.records import Record
from ..capture.writer import CaptureWriter
from ..errors import ExitCode, WrongUsage
from ..exports.transcript import write as write_transcript
from ..sources import open_source
from ..trace.opening import build_index
from ..trace.streams import all_records
from .support.files import CAPTURE, open_capture, replacing, tell_damage, tell_losses
from .support.options import parse_notes
from .support.output import talk

EXPORTS = ("transcript",)


@click.command("import")
@click.argument("file", type=CAPTURE)
@click.option("-o", "--output", type=CAPTURE, required=True, help="The capture to write.")
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), help="The guest's, if known.")
@click.option("--port", type=click.IntRange(0, 0xFFFFFFFF), help="The upcall port, if not 219.")
@click.option("--note", "notes", multiple=True, metavar="KEY=TEXT", help="Kept in the capture.")
def import_command(
    file: Path, output: Path, arch: str | None, port: int | None, notes: tuple[str, ...]
) -> ExitCode:
    """Turn a transcript, or a pcap or pcapng file with link type VSOCK, into a capture.

    What FILE is, is told from its content. An existing output is replaced once the new one is
    whole.
    """
    added = parse_notes(notes)
    with open_source(file) as source:
        if isinstance(source, CaptureReader):
            raise WrongUsage(f"{file} is a capture already; use filter or merge to copy it")
        # The source reads its own header too: the port tells which connections are upcall.
        source.header = header = dataclasses.replace(
            source.header,
            arch=arch or source.header.arch,
            port=source.header.port if port is None else port,
            notes=source.header.notes | added,
        )
        with replacing(output, file) as temporary:
            with CaptureWriter(temporary, header) as writer:
                for record in all_records(source):
                    writer.write(record)
            build_index(temporary)
        opened = open_capture(output)
        damaged = tell_damage(file, source.damage)
        code = ExitCode.LOST if damaged else tell_losses(output, opened)
    talk(f"{output}: {len(opened.connections)} connections, {len(opened.operations)} operations")
    return code


@click.command("export")
@click.argument("capture", type=CAPTURE)
@click.option("--format", "name", type=click.Choice(EXPORTS), required=True, help="What to write.")
@click.option("-o", "--output", type=CAPTURE, required=True, help="The file to write.")
def export_command(capture: Path, name: str, output: Path) -> ExitCode:
    """Write a capture in another format."""
    with open_source(capture) as source, replacing(output, capture) as temporary:
        records: list[Record] = [record for _, record in source.records()]
        with temporary.open("w", encoding="ascii") as file:
            gaps, others = write_transcript(source.header, records, file)
    if others:
        talk(f"{output}: {others} marks and half-closes have no place in a {name}")
    if gaps:
        talk(f"{output}: {gaps} gaps have no place in a {name}; requests are numbered anew")
    code = tell_losses(capture, open_capture(capture))
    return ExitCode.LOST if gaps else code
