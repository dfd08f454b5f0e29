"""`filter`, `merge`, `split` and `recover`: captures made from captures."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import click

from ..errors import ExitCode, WrongUsage
from ..sources import open_source
from ..trace.filters import parse
from ..trace.streams import all_records, keep_connections, with_dependencies
from ..transform.composing import keep_operations, merge
from .support.files import CAPTURE, open_capture, tell_damage, tell_losses, write_capture
from .support.options import overwrite_option
from .support.output import talk

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
        talk(f"no operation of {capture} matches; {output} was not written")
        return ExitCode.NOTHING_RUN
    with open_source(capture) as source:
        header = dataclasses.replace(
            source.header, notes=source.header.notes | {"filter": expression}
        )
        kept = keep_operations(header, all_records(source), keys)
        write_capture(output, header, kept, capture, overwrite=overwrite)
    talk(f"{output}: {len(keys)} of {len(opened.operations)} operations")
    return tell_losses(capture, opened)


@click.command("merge")
@click.argument("captures", type=CAPTURE, nargs=-1, required=True)
@_OUTPUT
@overwrite_option
def merge_command(captures: tuple[Path, ...], output: Path, overwrite: bool) -> ExitCode:
    """Put several captures together into one, by their wall clocks where they have one.

    Connections are numbered anew, in the order in which they were opened.
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
    opened = open_capture(capture)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"{output} cannot be made: {error.strerror}") from None
    for connection in opened.connections:
        path = output / f"{capture.stem}.conn{connection.number}.upcap"
        with open_source(capture) as source:
            records = keep_connections(all_records(source), {connection.number})
            write_capture(path, source.header, records, capture, overwrite=overwrite)
        talk(str(path))
    if not opened.connections:
        talk(f"{capture} has no connection to write")
        return ExitCode.NOTHING_RUN
    return tell_losses(capture, opened)


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
        write_capture(output, source.header, all_records(source), capture, overwrite=overwrite)
        saved = open_capture(output)
    talk(f"{output}: {len(saved.operations)} operations saved, {saved.lost_bytes} bytes lost")
    return ExitCode.LOST if tell_damage(capture, source.damage) else ExitCode.EXPECTED
