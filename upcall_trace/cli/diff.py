"""`diff`: two captures, operation by operation."""

from __future__ import annotations

from pathlib import Path

import click

from ..compare.aligned_report import diff_lines, diff_object
from ..compare.aligning import align
from ..compare.matchers import Matchers, parse_matcher
from ..errors import ExitCode, NothingRun
from ..sources import open_source
from ..trace.decoding import Session
from ..trace.opening import Capture, capture_of
from ..trace.operation_table import NoTable
from ..trace.script import Script
from ..trace.scripting import Scripter
from ..trace.streams import distinct_records
from .support.collecting import no_search_for_cycles
from .support.files import CAPTURE, tell_losses
from .support.options import color_option
from .support.output import out_all, out_json

_COLOURS = {"-": "red", "+": "green", "!": "yellow"}


@click.command("diff")
@click.argument("a", type=CAPTURE)
@click.argument("b", type=CAPTURE)
@click.option("--ignore", "ignored", multiple=True, metavar="FIELD",
              help="A field that does not count, such as mmio_irq or ret.")  # fmt: skip
@click.option("--match", "matchers", multiple=True, metavar="'C.R RULE…'",
              help="What B may have in A's place, such as '* latency<=2x'.")  # fmt: skip
@click.option("--bytes", "whole_bytes", is_flag=True, help="Compare all bytes, written or not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@color_option
def diff_command(
    a: Path,
    b: Path,
    ignored: tuple[str, ...],
    matchers: tuple[str, ...],
    whole_bytes: bool,
    as_json: bool,
) -> ExitCode:
    """Tell how the operations of B differ from those of A, whenever they were sent.

    Lines begin with - for what only A has, + for what only B has, and ! for requests of both with
    different answers. Of times it compares only the limits of 250 ms and 10 s, or what --match
    says. Bytes that nobody wrote do not count. Ends with 0 without a difference, and with 1 when
    there is one.
    """
    rules = Matchers()
    for place, told in map(parse_matcher, matchers):
        rules.add(place, told)
    with no_search_for_cycles():
        (one, first), (other, second) = _read(a), _read(b)
        conversations = list(align(one, other, ignored, whole_bytes, rules))
    if not conversations:
        raise NothingRun(f"neither {a} nor {b} has an operation")
    if as_json:
        out_json(diff_object(a, b, conversations))
    else:
        out_all((line, _COLOURS.get(line[0])) for line in diff_lines(conversations))
    lost = max(tell_losses(a, first), tell_losses(b, second))
    alike = all(pair.kind == "same" for each in conversations for pair in each.pairs)
    return lost if alike else ExitCode.DIFFERENT


def _read(path: Path) -> tuple[Script, Capture]:
    """The script of a recording; the capture tells what is missing, and has no operations."""
    with open_source(path) as source:
        session = Session(source.header, NoTable())
        scripter = Scripter(session, steps=False)
        for item in distinct_records(path, source):
            scripter.feed(item)
        return scripter.finish(), capture_of(session, source)
