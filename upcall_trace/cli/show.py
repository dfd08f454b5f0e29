"""`show`: a capture's operations, or its frames, as text or JSON lines."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from ..capture.reader import CaptureReader
from ..capture.records import End, Header, Record
from ..errors import ExitCode, WrongUsage
from ..sources import open_source
from ..sources.spooled import plain
from ..trace.decoding import Session
from ..trace.opening import capture_of
from ..trace.operations import Operation, Operations
from ..views.json_objects import frame_object
from ..views.remarks import remarks_on
from ..views.text import (
    HEADING,
    LATE_NS,
    WIDTH,
    hex_lines,
    provenance_lines,
    seconds,
)
from .support.files import CAPTURE, open_capture, tell_losses
from .support.listing import Lines, show_comments, show_operation
from .support.many_files import each_of
from .support.options import color_option
from .support.output import out, out_json
from .support.times import WallMoment, in_span, span_options

if TYPE_CHECKING:
    from ..diagnose.finding import Finding
    from ..trace.filters import Filter

_POLL_S = 0.05
_VERDICT = "        = "
_FEW = 1 << 14


@click.command("show")
@click.argument("captures", type=CAPTURE, nargs=-1, required=True)
@click.option("--frames", "as_frames", is_flag=True, help="Everything that crossed, in order.")
@click.option("--hex", "with_hex", is_flag=True, help="Frames with their bytes and whose they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--filter", "expression", metavar="EXPR", help="Only operations that match.")
@span_options
@click.option("--verdicts", is_flag=True, help="Also what Dragonball makes of each answer.")
@click.option(
    "--sort",
    type=click.Choice(["time", "latency"]),
    default="time",
    show_default=True,
    help="With latency, what took longest comes first.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N of them only.")
@click.option("--tail", type=click.IntRange(1), metavar="N", help="The last N of them only.")
@click.option(
    "--time",
    "clock",
    type=click.Choice(["relative", "absolute"]),
    default="relative",
    show_default=True,
    help="Since the first record, or the time of day in UTC.",
)
@click.option("--follow", is_flag=True, help="Go on with what is recorded from now on.")
@color_option
def show_command(
    captures: tuple[Path, ...],
    as_frames: bool,
    with_hex: bool,
    as_json: bool,
    expression: str | None,
    since: WallMoment | None,
    until: WallMoment | None,
    verdicts: bool,
    sort: str,
    limit: int | None,
    tail: int | None,
    clock: str,
    follow: bool,
) -> ExitCode:
    """List a capture's operations, one line each, every request with its reply.

    A line gives connection.request, seconds since the capture's first record, the latency, the
    operation and what came back. A latency has * behind it when it is more than 50 ms, and ! when
    it is more than the 250 ms that Kata waits for most answers. With --follow, a request that has
    waited so long is shown before its answer comes. CAPTURES may also be transcripts or packet
    captures. If you give several, each is shown separately, and JSON objects name their file.
    """
    if follow:
        if len(captures) > 1:
            raise WrongUsage("--follow goes with one capture")
        if as_frames or with_hex:
            raise WrongUsage("--follow shows operations; leave --frames and --hex out")
        if sort != "time" or limit or tail:
            raise WrongUsage(
                "--follow shows what comes, as it comes: leave --sort, --limit and --tail out"
            )
        wanted = _wanted(captures[0], expression, since, until)
        return _follow(captures[0], wanted, as_json, clock == "absolute")

    def show(capture: Path, shown_as: str | None) -> ExitCode:
        wanted = _wanted(capture, expression, since, until)
        opened = open_capture(capture)
        if as_frames or with_hex:
            keys = None if wanted is None else _keys(opened.operations, wanted)
            _show_frames(capture, keys, with_hex, as_json, shown_as)
            return tell_losses(capture, opened)
        _heading(as_json)
        lines = Lines(opened.header, opened.first_ns, clock == "absolute")
        remarks = {} if as_json else remarks_on(opened.marks)
        codes = _codes(capture) if as_json else {}
        for operation in _chosen(opened.operations, wanted, sort, limit, tail):
            found = codes.get((operation.conn, operation.request), ())
            show_operation(operation, as_json, found, lines, shown_as)
            show_comments(remarks, operation)
            if verdicts and not as_json:
                _show_verdict(operation)
        return tell_losses(capture, opened)

    return each_of(captures, show, as_json)


def _wanted(
    capture: Path, expression: str | None, since: WallMoment | None, until: WallMoment | None
) -> Filter | None:
    """What is asked for of one capture; raises WrongUsage, also for what no capture has."""
    if expression is None and since is None and until is None:
        return None
    from ..trace.filters import parse  # who sees all waits for no filter language

    wanted = parse(expression) if expression is not None else None
    asked = in_span(capture, expression, since, until)
    return wanted if asked is None else parse(asked)


def _chosen(
    operations: Operations, wanted: Filter | None, sort: str, limit: int | None, tail: int | None
) -> Iterator[Operation]:
    """The operations to show, in their order."""
    if sort == "time" and tail is None:
        return islice(_matching(operations, wanted), limit)
    rows = _rows(operations, wanted, sort, limit, tail)
    if len(rows) > _FEW:  # whole columns take less than so many objects
        return map(operations.operation, rows)
    found: dict[int, Operation] = {}
    for piece in operations.pieces():
        here = range(piece.first_row, piece.first_row + len(piece))
        found |= {row: piece.operation(row - piece.first_row) for row in rows if row in here}
    return map(found.__getitem__, rows)


def _matching(operations: Operations, wanted: Filter | None) -> Iterator[Operation]:
    """Those that match, in the order of time: nothing of them is kept."""
    for piece in operations.pieces():
        rows = range(len(piece)) if wanted is None else np.flatnonzero(wanted.mask(piece)).tolist()
        yield from map(piece.operation, rows)


def _rows(
    operations: Operations, wanted: Filter | None, sort: str, limit: int | None, tail: int | None
) -> list[int]:
    """The rows to show where the first of them may be anywhere, in their order."""
    kept = np.zeros((2, 0), np.uint64)  # rows, and their latencies
    for piece in operations.pieces():
        mask = np.ones(len(piece), np.bool_) if wanted is None else wanted.mask(piece)
        rows = np.flatnonzero(mask)
        # What was never answered, -1, took longest.
        latency = piece.column("latency_ns")[rows].astype(np.uint64)
        kept = np.hstack((kept, (rows.astype(np.uint64) + np.uint64(piece.first_row), latency)))
        if tail is not None or limit is not None:
            kept = _first_or_last(kept, sort, limit, tail)
    shown: list[int] = _first_or_last(kept, sort, limit, tail)[0, :limit].tolist()
    return shown


def _first_or_last(
    kept: NDArray[np.uint64], sort: str, limit: int | None, tail: int | None
) -> NDArray[np.uint64]:
    if sort == "latency":
        kept = kept[:, np.argsort(~kept[1], kind="stable")]
    return kept[:, :limit] if tail is None else kept[:, -tail:]


def _codes(capture: Path) -> dict[tuple[int | None, int | None], list[str]]:
    """The codes of what was found at each operation."""
    from ..diagnose.judged import codes_by_place  # all of the rules come with it
    from ..diagnose.run import diagnose

    return codes_by_place(diagnose(plain(capture)).findings)


def _heading(as_json: bool) -> None:
    if not as_json:
        out(HEADING)


def _show_verdict(operation: Operation) -> None:
    """What the VMM and the runtime make of an operation, below its line."""
    from ..diagnose.verdict import verdict

    if operation.msg_type is not None:
        opinion = verdict(operation.msg_type, operation.ret, operation.latency_ns)
        for line in textwrap.wrap(f"Dragonball: {opinion}", WIDTH - len(_VERDICT)):
            out(_VERDICT + line)


def _keys(operations: Operations, wanted: Filter) -> set[tuple[int, int]]:
    keys: set[tuple[int, int]] = set()
    for piece in operations.pieces():
        rows = np.flatnonzero(wanted.mask(piece))
        conns, requests = piece.column("conn")[rows], piece.column("request")[rows]
        keys.update(zip(conns.tolist(), requests.tolist(), strict=True))
    return keys


def _show_frames(
    path: Path,
    keys: set[tuple[int, int]] | None,
    with_hex: bool,
    as_json: bool,
    shown_as: str | None,
) -> None:
    from ..views.frames import frames  # who lists operations needs none

    with open_source(path) as source:
        for frame in frames(source, with_provenance=with_hex):
            if keys is not None and (frame.conn, frame.request) not in keys:
                continue
            if as_json:
                told = frame_object(frame, with_provenance=with_hex)
                out_json(told if shown_as is None else told | {"file": shown_as})
                continue
            arrow = frame.direction or "-"
            out(f"{frame.number:>6} {seconds(frame.t_ns):>11} {frame.conn:>4} {arrow} {frame.text}")
            if with_hex:
                for line in hex_lines(frame.raw):
                    out(line)
                for line in provenance_lines(frame.runs, frame.conn, frame.direction):
                    out(line)


def _follow(path: Path, wanted: Filter | None, as_json: bool, absolute: bool) -> ExitCode:
    """Show operations as they are finished, until the recording is closed."""
    with open_source(path) as source:
        if not isinstance(source, CaptureReader):
            raise WrongUsage(f"{path} is not a capture: only captures grow")
        _heading(as_json)
        session = Session(source.header)
        finding = _Codes(source.header) if as_json else None
        waiting: set[int] = set()
        while True:
            live = source.live
            lines = Lines(source.header, session.first_ns or 0, absolute)
            for offset, record in source.grow():
                session.feed(record, offset)
                if finding is not None:  # at once: the codes are those that are known by then
                    finding.feed(record, offset)
                    _show_finished(session, wanted, finding, lines)
            if not live and not source.live:
                session.finish()
                if finding is not None:
                    finding.finish()
            lines = Lines(source.header, session.first_ns or 0, absolute)
            _show_finished(session, wanted, finding, lines)
            if live and not as_json:
                _show_waiting(session, wanted, lines, waiting)
            if not live and not source.live:
                return tell_losses(path, capture_of(session, source))
            sys.stdout.flush()
            time.sleep(_POLL_S)


class _Codes:
    """The codes of what was found so far at each operation of a recording."""

    def __init__(self, header: Header) -> None:
        from ..diagnose.engine import Diagnosis  # all of the rules come with it

        self._diagnosis = Diagnosis(header)
        self._finished = False
        self._found: dict[tuple[int | None, int | None], list[Finding]] = {}

    def feed(self, record: Record, offset: int) -> None:
        if not self._finished:
            self._take(self._diagnosis.feed(record, offset))
        if isinstance(record, End):
            self.finish()

    def finish(self) -> None:
        """No more comes: what has no answer never gets one."""
        if not self._finished:
            self._finished = True
            self._take(self._diagnosis.finish())

    def _take(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._found.setdefault((finding.conn, finding.request), []).append(finding)

    def taken(self, operation: Operation) -> list[str]:
        """Those of an operation that is shown now, and not again."""
        found = self._found.pop((operation.conn, operation.request), [])
        codes = (str(finding.code) for finding in sorted(found, key=lambda each: each.code))
        return list(dict.fromkeys(codes))


def _show_waiting(session: Session, wanted: Filter | None, lines: Lines, told: set[int]) -> None:
    """Requests that have waited for long, once each."""
    open_rows = set(session.unfinished_rows())
    told &= open_rows
    now_ns = time.time_ns() - (session.header.wall_ns or 0)
    if session.header.wall_ns is None or not open_rows - told:
        return
    first = min(open_rows)
    operations = Operations(session.table.columns(first), session.first_ns or 0)
    mask = None if wanted is None else wanted.mask(operations)
    for row in sorted(open_rows - told):
        operation = operations.operation(row - first)
        waited_ns = now_ns - operation.t_ns - (session.first_ns or 0)
        matches = mask is None or mask[row - first]
        if operation.latency_ns is None and waited_ns > LATE_NS and matches:
            told.add(row)
            lines.show_waiting(operation, waited_ns)


def _show_finished(
    session: Session, wanted: Filter | None, finding: _Codes | None, lines: Lines
) -> None:
    """What is finished: as JSON with the codes of what was `finding`, else as text."""
    finished = sorted(session.finished_rows)
    session.finished_rows.clear()
    if not finished:
        return
    first = finished[0]
    operations = Operations(session.table.columns(first), session.first_ns or 0)
    mask = None if wanted is None else wanted.mask(operations)
    for row in finished:
        operation = operations.operation(row - first)
        codes = [] if finding is None else finding.taken(operation)
        if mask is None or mask[row - first]:
            show_operation(operation, finding is not None, codes, lines)
