"""`peek`: what upcall's connections in a VM's memory last asked and were told."""

from __future__ import annotations

import time
from pathlib import Path

import click

from dissectors.constants import Arch

from ..errors import ExitCode, NothingRun, WrongUsage
from ..vantage.guest_memory.as_capture import as_records
from .support.files import CAPTURE, check_output, write_capture
from .support.memory_target import MemoryTarget, look_through, memory_header, nothing_in, sandbox_in
from .support.memory_views import memory_lines, memory_object
from .support.options import color_option, overwrite_option
from .support.output import out, out_json, talk
from .support.standard_output import STDOUT, named


@click.command("peek")
@click.argument("image", type=CAPTURE, required=False)
@click.option("--pid", type=click.IntRange(1), metavar="N", help="A running VMM's process.")
@click.option("--sandbox", metavar="ID", help="A running Kata sandbox; its beginning is enough.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.option("-o", "--output", type=CAPTURE, help="Also write what is in order as a capture.")
@overwrite_option
@click.option("--port", default=219, show_default=True, help="The guest's upcall port.")
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), help="The guest's, if known.")
@color_option
def peek_command(
    image: Path | None,
    pid: int | None,
    sandbox: str | None,
    as_json: bool,
    output: Path | None,
    overwrite: bool,
    port: int,
    arch: str | None,
) -> ExitCode:
    """Look for upcall in the memory of a running VM, or in an image of it.

    It stops and writes nothing, and makes nothing larger: it does not touch pages that were never
    used. IMAGE is a raw image or an ELF core, also compressed by gzip, xz or zstd. For each
    connection it prints the last request and reply, whether it waits for an answer, and the packets
    before.
    """
    if as_json and output == STDOUT:
        raise WrongUsage("--json and -o - both take standard output: give -o FILE")
    target = MemoryTarget(pid, sandbox, image)
    if output is not None:
        check_output(output, *([image] if image else []), overwrite=overwrite)
    with target.open() as memory:
        assembled = look_through(memory, port)
        known = Arch(arch) if arch else Arch.X86_64
        if output == STDOUT:
            pass  # the capture goes there
        elif as_json:
            out_json(memory_object(memory, assembled, known, sandbox_in(memory)))
        elif not assembled.empty:
            for line, colour in memory_lines(memory, assembled, known):
                out(line, colour)
        if assembled.empty:
            raise NothingRun(nothing_in(memory, assembled))
        if output is not None:
            header = memory_header(memory, arch, port)
            records = as_records(assembled, time.time_ns(), port)
            inputs = [image] if image else []
            write_capture(output, header, records, *inputs, overwrite=overwrite, private=True)
            talk(
                f"{named(output)}: what is in order; gaps stand for what is not in memory any more"
            )
    return ExitCode.EXPECTED
