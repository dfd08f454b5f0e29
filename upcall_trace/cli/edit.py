"""`edit`: a capture changed into another one, and matchers added to one."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from ..capture.index import StillRecording, append_mark
from ..capture.reader import CaptureReader
from ..capture.records import Header, Mark, Record
from ..compare.matchers import (
    MARK,
    MatchRule,
    beside,
    parse_key,
    parse_matcher,
    read_matchers,
    write_matchers,
)
from ..errors import ExitCode, NothingRun, WrongUsage
from ..replay.target import TIED_TO, parse_fingerprint
from ..sources import open_source
from ..trace.opening import Capture
from ..trace.script import Key, Script
from ..trace.scripting import read_script
from ..trace.streams import all_records, distinct_connections
from ..transform.editing import EDITED_FROM, Edits, Move, edit, in_order
from ..transform.fields import parse_setting
from .support.files import CAPTURE, check_output, open_capture, tell_losses, write_capture
from .support.options import overwrite_option, world_given, world_options
from .support.output import talk
from .support.standard_output import STDOUT, named

_RANGE: Final = re.compile(r"([0-9.]+)(?:-|\.\.)([0-9.]+)")
_MOVE: Final = re.compile(r"([0-9.]+):(after|before):([0-9.]+)")
_PLACE: Final = re.compile(r"[0-9]+\.[0-9]+")
_Given = list[tuple[str, tuple[MatchRule, ...]]]


@click.command("edit")
@click.argument("capture", type=CAPTURE)
@click.option("-o", "--output", type=CAPTURE, help="The capture to write; not needed for --match.")
@click.option("--drop", "drops", multiple=True, metavar="C.R|C.R-C.R",
              help="Leave an operation out, or all from one to another.")  # fmt: skip
@click.option("--cut", metavar="C.R..C.R", help="Keep only those from one to another.")
@click.option("--move", "moves", multiple=True, metavar="C.R:after:C.R",
              help="Send an operation right after another one, or :before: it.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="'C.R FIELD=VALUE'",
              help="Write a field of the request or of its reply anew.")  # fmt: skip
@click.option("--match", "matchers", multiple=True, metavar="'C.R RULE…'",
              help="Say what may differ in a replay, such as '1.3 ret=any'.")  # fmt: skip
@click.option("--tie", metavar="FINGERPRINT", help="Replay it to such a target only.")
@click.option("--untie", is_flag=True, help="Replay it to any target again.")
@world_options
@overwrite_option
def edit_command(
    capture: Path,
    output: Path | None,
    drops: tuple[str, ...],
    cut: str | None,
    moves: tuple[str, ...],
    settings: tuple[str, ...],
    matchers: tuple[str, ...],
    tie: str | None,
    untie: bool,
    world_file: Path | None,
    machine: str | None,
    overwrite: bool,
) -> ExitCode:
    """Change CAPTURE into another capture; the numbers given are those in CAPTURE.

    With --world the new capture keeps what its guest looked like at boot; a CAPTURE that names its
    machine does not need --machine.

    CAPTURE itself is never changed, so there is nothing to undo. Only --match alone needs no
    output: it adds its rules to CAPTURE, or to the file beside it where CAPTURE is of another
    format, damaged, or not to be written. Put request. in front of the fields of the request's
    header.
    """
    given: _Given = [parse_matcher(text) for text in matchers]
    if tie is not None:
        parse_fingerprint(tie)
        if untie:
            raise WrongUsage("--tie and --untie exclude each other")
    changes = bool(drops or cut or moves or settings or tie or untie or world_file or machine)
    if not changes and not given:
        raise WrongUsage(
            "nothing to change: give --drop, --cut, --move, --set, --match, --tie or --world"
        )
    if output is None:
        if changes:
            raise WrongUsage("a change needs an output: give -o; only --match does without")
        return _match(capture, given)
    with open_source(capture) as source:
        records = distinct_connections(all_records(source))
        header = source.header
    opened = open_capture(capture)
    script = read_script(header, records)
    dropped = [key for text in drops for key in _range(script, text)]
    edits = Edits(
        dropped,
        _range(script, cut) if cut is not None else None,
        [_parse_move(text) for text in moves],
        [parse_setting(text) for text in settings],
        [(parse_key(place), rules) for place, rules in given if _PLACE.fullmatch(place)],
    )
    told = {
        "--drop": drops, "--cut": (cut,) if cut else (), "--move": moves, "--set": settings,
        "--match": matchers, "--tie": (tie,) if tie else (), "--untie": ("",) if untie else (),
        "--world": (world_file.name,) if world_file else (),
    }  # fmt: skip
    header = replace(header, notes=header.notes | world_given(world_file, machine, header.notes))
    header = _header(header, capture, told, tie, untie)
    left = write_edited(capture, output, header, records, edits, given, overwrite)
    talk(f"{named(output)}: {left} of {len(script.asked)} operations; {capture} is as it was")
    return tell_losses(capture, opened)


def write_edited(
    capture: Path,
    output: Path,
    header: Header,
    records: list[Record],
    edits: Edits,
    given: _Given,
    overwrite: bool,
) -> int:
    """Write what is left of `capture`, with its matchers; how many operations that are."""
    edited = edit(header, records, edits)
    if not edited.numbers:
        raise NothingRun(f"no operation of {capture} is left; {named(output)} was not written")
    rules = read_matchers(capture, ()).renumbered(edited.numbers)
    for place, of in given:
        if not _PLACE.fullmatch(place):
            rules.add(place, of)
    if rules and output == STDOUT:
        raise WrongUsage("matchers go into a file beside the capture: give -o FILE")
    if rules:
        check_output(beside(output), overwrite=overwrite)
    write_capture(output, header, edited.records, capture, overwrite=overwrite)
    for remark in edited.remarks:
        talk(remark)
    if rules:
        write_matchers(beside(output), rules)
        talk(f"{beside(output)}: its matchers")
    return len(edited.numbers)


def _header(
    header: Header, capture: Path, told: dict[str, tuple[str, ...]], tie: str | None, untie: bool
) -> Header:
    words = [word for name, values in told.items() for value in values for word in (name, value)]
    notes = header.notes | {EDITED_FROM: capture.name, "edits": shlex.join(filter(None, words))}
    if tie is not None:
        notes[TIED_TO] = tie
    if untie:
        notes.pop(TIED_TO, None)
    return replace(header, notes=notes)


def _range(script: Script, text: str) -> list[Key]:
    found = _RANGE.fullmatch(text)
    first, last = (found[1], found[2]) if found else (text, text)
    return in_order(script, parse_key(first), parse_key(last))


def _parse_move(text: str) -> Move:
    found = _MOVE.fullmatch(text)
    if not found:
        raise WrongUsage(f"{text!r} moves nothing: C.R:after:C.R or C.R:before:C.R")
    return Move(parse_key(found[1]), parse_key(found[3]), found[2] == "before")


def _match(capture: Path, given: _Given) -> ExitCode:
    """Add rules where a replay looks for them."""
    opened = open_capture(capture)
    known = set(zip(*(opened.operations.column(n).tolist() for n in ("conn", "request")),
                    strict=True))  # fmt: skip
    for place, _ in given:
        if _PLACE.fullmatch(place) and parse_key(place) not in known:
            raise WrongUsage(f"{capture} has no operation {place}")
    if not _mark(capture, opened, given):
        rules = read_matchers(capture, ())
        for place, of in given:
            rules.add(place, of)
        write_matchers(beside(capture), rules)
        talk(f"{beside(capture)}: {_count(given)}")
    else:
        talk(f"{capture}: {_count(given)}")
    return tell_losses(capture, opened)


def _mark(
    capture: Path, opened: Capture, given: Iterable[tuple[str, tuple[MatchRule, ...]]]
) -> bool:
    """Add them to the capture as marks; False where that cannot be."""
    with open_source(capture) as source:
        ours = isinstance(source, CaptureReader) and source.is_one_file
    one_each = all(_PLACE.fullmatch(place) for place, _ in given)
    if opened.live:
        raise WrongUsage(f"{capture} is still being recorded; stop the recording first")
    if not ours or not one_each or not opened.complete or opened.damage:
        return False
    try:
        for place, rules in given:
            conn, request = parse_key(place)
            told = " ".join(map(str, rules))
            append_mark(capture, Mark(time.time_ns(), conn, request, MARK, told))
    except (OSError, StillRecording):
        return False
    return True


def _count(given: _Given) -> str:
    rules = sum(len(of) for _, of in given)
    return f"{rules} {'rule' if rules == 1 else 'rules'} added"
