"""`show`: a capture's operations, or its frames, as text or JSON lines."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np

from ..capture.reader import CaptureReader
from ..diagnose.judged import codes_by_place
from ..diagnose.run import diagnose
from ..diagnose.verdict import verdict
from ..errors import ExitCode, WrongUsage
from ..sources import open_source
from ..sources.spooled import plain
from ..trace.decoding import Session
from ..trace.filters import Filter, parse
from ..trace.opening import capture_of
from ..trace.operations import Operation, Operations
from ..views.frames import frames
from ..views.json_objects import frame_object
from ..views.text import (
    HEADING,
    WIDTH,
    hex_lines,
    provenance_lines,
    seconds,
)
from .support.files import CAPTURE, open_capture, tell_losses
from .support.listing import comments, show_comments, show_operation
from .support.output import out, out_json
from .support.times import WallMoment, in_span, span_options

_POLL_S = 0.05
_VERDICT = "        = "


@click.command("show")
@click.argument("capture", type=CAPTURE)
@click.option("--frames", "as_frames", is_flag=True, help="Everything that crossed, in order.")
@click.option("--hex", "with_hex", is_flag=True, help="Frames with their bytes and whose they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--filter", "expression", metavar="EXPR", help="Only operations that match.")
@span_options
@click.option("--verdicts", is_flag=True, help="Also what Dragonball makes of each answer.")
@click.option("--follow", is_flag=True, help="Go on with what is recorded from now on.")
def show_command(
    capture: Path,
    as_frames: bool,
    with_hex: bool,
    as_json: bool,
    expression: str | None,
    since: WallMoment | None,
    until: WallMoment | None,
    verdicts: bool,
    follow: bool,
) -> ExitCode:
    """List a capture's operations, one line each, every request with its reply.

    A line gives connection.request, seconds since the capture's first record, the latency, the
    operation and what came back. CAPTURE may also be a transcript or a packet capture.
    """
    wanted = parse(expression) if expression is not None else None
    if (asked := in_span(capture, expression, since, until)) is not None:
        wanted = parse(asked)
    if follow:
        if as_frames or with_hex:
            raise WrongUsage("--follow shows operations; leave --frames and --hex out")
        return _follow(capture, wanted, as_json)
    opened = open_capture(capture)
    if as_frames or with_hex:
        keys = None if wanted is None else _keys(opened.operations, wanted)
        _show_frames(capture, keys, with_hex, as_json)
    else:
        _heading(as_json)
        rows: Iterable[int] = range(len(opened.operations))
        if wanted is not None:
            rows = np.flatnonzero(wanted.mask(opened.operations)).tolist()
        remarks = {} if as_json else comments(opened.marks)
        codes = codes_by_place(diagnose(plain(capture)).findings) if as_json else {}
        for row in rows:
            operation = opened.operations.operation(row)
            show_operation(operation, as_json, codes.get((operation.conn, operation.request), ()))
            show_comments(remarks, operation)
            if verdicts and not as_json:
                _show_verdict(operation)
    return tell_losses(capture, opened)


def _heading(as_json: bool) -> None:
    if not as_json:
        out(HEADING)


def _show_verdict(operation: Operation) -> None:
    """What the VMM and the runtime make of an operation, below its line."""
    if operation.msg_type is not None:
        opinion = verdict(operation.msg_type, operation.ret, operation.latency_ns)
        for line in textwrap.wrap(f"Dragonball: {opinion}", WIDTH - len(_VERDICT)):
            out(_VERDICT + line)


def _keys(operations: Operations, wanted: Filter) -> set[tuple[int, int]]:
    rows = np.flatnonzero(wanted.mask(operations))
    conns, requests = operations.column("conn")[rows], operations.column("request")[rows]
    return set(zip(conns.tolist(), requests.tolist(), strict=True))


def _show_frames(
    path: Path, keys: set[tuple[int, int]] | None, with_hex: bool, as_json: bool
) -> None:
    with open_source(path) as source:
        for frame in frames(source, with_provenance=with_hex):
            if keys is not None and (frame.conn, frame.request) not in keys:
                continue
            if as_json:
                out_json(frame_object(frame, with_provenance=with_hex))
                continue
            arrow = frame.direction or "-"
            out(f"{frame.number:>6} {seconds(frame.t_ns):>11} {frame.conn:>4} {arrow} {frame.text}")
            if with_hex:
                for line in hex_lines(frame.raw):
                    out(line)
                for line in provenance_lines(frame.runs, frame.conn, frame.direction):
                    out(line)


def _follow(path: Path, wanted: Filter | None, as_json: bool) -> ExitCode:
    """Show operations as they are finished, until the recording is closed."""
    with open_source(path) as source:
        if not isinstance(source, CaptureReader):
            raise WrongUsage(f"{path} is not a capture: only captures grow")
        _heading(as_json)
        session = Session(source.header)
        while True:
            live = source.live
            for offset, record in source.grow():
                session.feed(record, offset)
            if not live and not source.live:
                session.finish()
            _show_finished(session, wanted, as_json)
            if not live and not source.live:
                return tell_losses(path, capture_of(session, source))
            sys.stdout.flush()
            time.sleep(_POLL_S)


def _show_finished(session: Session, wanted: Filter | None, as_json: bool) -> None:
    finished = sorted(session.finished_rows)
    session.finished_rows.clear()
    if not finished:
        return
    first = finished[0]
    operations = Operations(session.table.columns(first), session.first_ns or 0)
    mask = None if wanted is None else wanted.mask(operations)
    for row in finished:
        if mask is None or mask[row - first]:
            show_operation(operations.operation(row - first), as_json)
