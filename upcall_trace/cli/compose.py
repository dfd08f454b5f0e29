"""`filter`, `merge`, `split` and `recover`: captures made from captures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from ..capture.unpacking import STDIN
from ..capture.writer import CaptureWriter
from ..errors import ExitCode, WrongUsage
from ..sources import open_source
from ..trace.filters import parse
from ..trace.opening import build_index
from ..trace.streams import all_records, keep_connections, with_dependencies
from ..transform.composing import keep_operations, merge
from .support.descriptors import outputs_at_once
from .support.files import (
    CAPTURE,
    open_capture,
    replacing,
    tell_damage,
    tell_losses,
    write_capture,
    write_whole,
)
from .support.options import overwrite_option
from .support.output import talk
from .support.standard_output import STDOUT, named

_OUTPUT = click.option("-o", "--output", type=CAPTURE, required=True, help="The capture to write.")


@click.command("filter")
@click.argument("capture", type=CAPTURE)
@click.argument("expression", metavar="EXPR")
@_OUTPUT
@overwrite_option
def filter_command(capture: Path, expression: str, output: Path, overwrite: bool) -> ExitCode:
    """Keep the operations of CAPTURE that match EXPR, as in show --filter.

    Connections and requests keep their numbers. An operation that the guest executed over the
    bytes of earlier requests brings those along.
    """
    wanted = parse(expression)
    opened = open_capture(capture)
    keys = with_dependencies(opened.operations, wanted.mask(opened.operations))
    if not keys:
        talk(f"no operation of {capture} matches; {named(output)} was not written")
        return ExitCode.NOTHING_RUN
    with open_source(capture) as source:
        header = dataclasses.replace(
            source.header, notes=source.header.notes | {"filter": expression}
        )
        kept = keep_operations(header, all_records(source), keys)
        write_capture(output, header, kept, capture, overwrite=overwrite)
    talk(f"{named(output)}: {len(keys)} of {len(opened.operations)} operations")
    return tell_losses(capture, opened)


@click.command("merge")
@click.argument("captures", type=CAPTURE, nargs=-1, required=True)
@_OUTPUT
@overwrite_option
def merge_command(captures: tuple[Path, ...], output: Path, overwrite: bool) -> ExitCode:
    """Put several captures together into one, by their wall clocks if they have one.

    Connections get new numbers, in the order in which they were opened.
    """
    code = ExitCode.EXPECTED
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(path)) for path in captures]
        header, records = merge([(s.header, all_records(s)) for s in sources])
        write_capture(output, header, records, *captures, overwrite=overwrite)
    for path in captures:
        code = max(code, tell_losses(path, open_capture(path)))
    return code


@click.command("split")
@click.argument("capture", type=CAPTURE)
@click.option("-o", "--output", type=CAPTURE, required=True, help="The directory to write to.")
@overwrite_option
def split_command(capture: Path, output: Path, overwrite: bool) -> ExitCode:
    """Write each connection of CAPTURE to a file of its own: NAME.conn1.upcap and so on."""
    if output == STDOUT:
        raise WrongUsage("several files do not fit into standard output: -o names a directory")
    opened = open_capture(capture)
    stem = "stdin" if capture == STDIN else capture.stem
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"{output} cannot be made: {error.strerror}") from None
    numbers = [connection.number for connection in opened.connections]
    at_once = outputs_at_once()
    for first in range(0, len(numbers), at_once):
        paths = {
            number: output / f"{stem}.conn{number}.upcap"
            for number in numbers[first : first + at_once]
        }
        _write_each(capture, paths, overwrite)
        for path in paths.values():
            talk(str(path))
    if not opened.connections:
        talk(f"{capture} has no connection to write")
        return ExitCode.NOTHING_RUN
    return tell_losses(capture, opened)


def _write_each(capture: Path, paths: Mapping[int, Path], overwrite: bool) -> None:
    """The connections of `capture` that have a path, each to its own, in one reading of it."""
    with ExitStack() as stack:
        source = stack.enter_context(open_source(capture))
        temporaries = [
            stack.enter_context(replacing(path, capture, overwrite=overwrite))
            for path in paths.values()
        ]
        with ExitStack() as open_files:
            writers = {
                number: open_files.enter_context(CaptureWriter(temporary, source.header))
                for number, temporary in zip(paths, temporaries, strict=True)
            }
            for record in keep_connections(all_records(source), set(paths)):
                conn = getattr(record, "conn", None)
                meant = [writers[conn]] if conn in writers else writers.values()
                for writer in meant:
                    writer.write(record)
        for temporary in temporaries:
            build_index(temporary)


@click.command("recover")
@click.argument("capture", type=CAPTURE)
@_OUTPUT
@overwrite_option
def recover_command(capture: Path, output: Path, overwrite: bool) -> ExitCode:
    """Save every whole record of a damaged or unfinished capture, with a new index.

    What is missing stays marked in the new capture, as a gap.
    """
    with open_source(capture) as source:
        if source.live:
            raise WrongUsage(f"{capture} is still being recorded; stop the recording first")
        with replacing(output, capture, overwrite=overwrite) as temporary:
            write_whole(temporary, source.header, all_records(source))
            saved = open_capture(temporary)
    talk(
        f"{named(output)}: {len(saved.operations)} operations saved, {saved.lost_bytes} bytes lost"
    )
    return ExitCode.LOST if tell_damage(capture, source.damage) else ExitCode.EXPECTED
