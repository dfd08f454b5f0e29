"""`minimise`: a failing recording made as small as it can be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from dissectors.constants import Arch

from ..compare.matchers import parse_key
from ..errors import ExitCode, Interrupted, NothingRun, PeerDied, UserError, WrongUsage
from ..kernel.noted_world import noted_world, world_notes
from ..kernel.world import World, kata_pod
from ..replay.happening import Answered
from ..replay.plan import DANGERS
from ..replay.report import refusal_lines
from ..replay.run import Recording, Replay, Terms, read_recording
from ..replay.target import Target, look_at, own_guest
from ..replay.tempo import Patience
from ..simulated.machine import Habits
from ..simulated.on_socket import SimulatedGuest
from ..sockets.addresses import check_reachable, parse_address, socket_folder
from ..sources import open_source
from ..trace.script import Asked, Script
from ..trace.streams import all_records, distinct_connections
from ..transform.editing import EDITED_FROM, Edits
from ..transform.minimising import Answers, Minimiser, Part, Try, failed, first_failed, on_model
from ..views.messages import reply_text, request_text
from ..views.text import HEADING, operation_text
from .edit import write_edited
from .support.files import CAPTURE, check_output, open_capture, tell_losses
from .support.options import (
    color_option,
    given_world,
    overwrite_option,
    tell_lacking_world,
    world_options,
)
from .support.output import out, talk
from .support.signals import stop_on_signals
from .support.standard_output import STDOUT, named

_PATH = click.Path(path_type=Path)
_PROGRESS_S: Final = 1.0
_AT_ONCE: Final = Patience(reply_s=2.0, silence_s=0.3, simulated=True)
"""The simulated guest in this process answers without delay, or never."""


@click.command("minimise")
@click.argument("capture", type=CAPTURE)
@click.option("-o", "--output", type=CAPTURE, required=True, help="The capture to write.")
@click.option("--operation", metavar="C.R", help="The one that fails; else the first that does.")
@click.option("--to", "address", metavar="ADDRESS", help="The guest to try it on.")
@click.option("--control", type=_PATH, metavar="PATH", help="The socket of the VMM's side.")
@click.option("--allow", multiple=True, type=click.Choice(list(DANGERS)), metavar="CODE",
              help="Begin in spite of this danger, as the plan of replay names it.")  # fmt: skip
@world_options
@overwrite_option
@color_option
def minimise_command(
    capture: Path,
    output: Path,
    operation: str | None,
    address: str | None,
    control: Path | None,
    allow: tuple[str, ...],
    world_file: Path | None,
    machine: str | None,
    overwrite: bool,
) -> ExitCode:
    """Leave out everything that one operation of CAPTURE does not need to fail as recorded.

    It tries parts on a guest that is booted again each time, by its control socket: the one at
    --to, or a simulated one. The result ends with that operation, and has the answers that the
    guest gave. Ctrl-C writes the smallest part found so far. Ends with 1 if the operation does not
    fail like this on this guest, and with 6 if nothing in CAPTURE has failed.
    """
    if address is None and (control or allow):
        raise WrongUsage("--control and --allow are for the guest at --to")
    check_output(output, capture, overwrite=overwrite)
    recording = read_recording(
        capture, choose=lambda header: given_world(world_file, machine, header.notes)
    )
    asked = _failing(recording, operation)
    arch = Arch.named(recording.capture.header.arch) or Arch.X86_64
    notes = recording.capture.header.notes
    told = given_world(world_file, machine, notes)
    stands_in = told or noted_world(notes)
    if told is None:
        tell_lacking_world(capture, notes, "a default Kata pod stands in for it")
    stop = threading.Event()
    minimiser = Minimiser(recording.script, asked.key, _reporter(len(recording.script.asked)))
    port = recording.capture.header.port
    with _target(address, told, stands_in, control, arch, port) as target:
        simulated = address is None
        allowed = list(DANGERS) if simulated else allow
        terms = Terms(patience=_AT_ONCE if simulated else Patience(), reset=True, allow=allowed)
        refused = Replay(recording, target, minimiser.whole).plan.refused(allowed)
        if refused:
            for line in refusal_lines(refused):
                talk(line)
            return ExitCode.USAGE
        came: dict[str, str] = {}
        guest = _on_guest(recording, target, terms, allowed, stop.is_set, asked, came)
        ended: UserError | None = None
        put_back = stop_on_signals(stop)
        try:
            part = minimiser.run(guest, on_model(target.world, asked.key))
        except UserError as error:
            part, ended = minimiser.best, error
            if part is None:
                raise
        finally:
            put_back()
    if part is None:
        recorded = reply_text(asked.message, asked.reply)
        talk(f"{asked.name} {request_text(asked.message)} does not fail as recorded on this "
             f"guest: recorded {recorded}, now {came.get('it', 'not sent')}")  # fmt: skip
        return ExitCode.DIFFERENT
    _write(recording, output, asked, part, target, overwrite)
    talk(f"{named(output)}: {len(part)} of {len(recording.script.asked)} operations, "
         f"after {minimiser.tries} tries")  # fmt: skip
    if minimiser.refused:
        talk(f"{minimiser.refused} parts were not tried: they would be dangerous")
    if ended is not None:
        talk(f"ended early, it may not be the smallest: {ended}")
        return ExitCode.INTERRUPTED if isinstance(ended, Interrupted) else ExitCode.DIFFERENT
    return tell_losses(capture, recording.capture)


def _failing(recording: Recording, operation: str | None) -> Asked:
    script = recording.script
    if operation is None:
        found = first_failed(script)
        if found is None:
            raise NothingRun(f"nothing has failed in {recording.path}")
        return found
    named = script.asked.get(parse_key(operation))
    if named is None:
        raise WrongUsage(f"{recording.path} has no operation {operation}")
    if not failed(named):
        raise NothingRun(f"{operation} has not failed in {recording.path}")
    return named


@contextmanager
def _target(
    address: str | None,
    world: World | None,
    recorded: World | None,
    control: Path | None,
    arch: Arch,
    port: int,
) -> Iterator[Target]:
    """The guest at an address, or a simulated one."""
    if address is not None:
        target = look_at(parse_address(address), world, control, arch=arch, recorded=recorded)
        check_reachable(target.address)
        if target.control is None:
            raise WrongUsage("each try needs a guest that is booted anew: give --control")
        yield target
        return
    with socket_folder() as directory:
        path = Path(directory) / "guest"
        habits = Habits(port=port)
        with SimulatedGuest(
            recorded or kata_pod(arch), habits, path=path, control=Path(directory) / "control"
        ) as guest:
            yield own_guest(guest)


def _on_guest(
    recording: Recording,
    target: Target,
    terms: Terms,
    allowed: Collection[str],
    stopped: Callable[[], bool],
    asked: Asked,
    came: dict[str, str],
) -> Try:
    """A try on a guest; `came` gets what the operation was answered in the last one."""

    def try_(script: Script) -> Answers | None:
        if stopped():
            raise Interrupted("interrupted")
        replay = Replay(recording, target, script, terms=terms)
        if replay.plan.refused(allowed):
            return None
        answers: dict[tuple[int, int], bytes | None] = {}
        for happening in replay.play(stopped=stopped):
            if isinstance(happening, Answered):
                answers[happening.asked.key] = happening.got.raw or None
                if happening.asked.key == asked.key:
                    came["it"] = reply_text(asked.message, happening.got.reply)
        if replay.verdict.interrupted:
            raise Interrupted("interrupted")
        if replay.verdict.ended:
            raise PeerDied(replay.verdict.ended)
        return answers

    return try_


def _reporter(total: int) -> Callable[[Part], None]:
    last = time.monotonic()

    def report(part: Part) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_S:
            last = time.monotonic()
            talk(f"{len(part)} of {total} operations left")

    return report


def _write(
    recording: Recording,
    output: Path,
    asked: Asked,
    part: Part,
    target: Target,
    overwrite: bool,
) -> None:
    with open_source(recording.path) as source:
        records = distinct_connections(all_records(source))
        notes = source.header.notes | {
            EDITED_FROM: recording.path.name,
            "minimised": f"around {asked.name}",
        }
        if target.world_known:  # the answers are this guest's
            notes |= world_notes(target.world)
        header = replace(source.header, notes=notes)
    left_out = set(range(len(recording.script.actions))) - part.acts
    edits = Edits(kept=part.keys, answers=part.answers, without=left_out)
    write_edited(recording.path, output, header, records, edits, [], overwrite)
    if output == STDOUT:
        return
    out(HEADING)
    for operation in open_capture(output).operations:
        out(operation_text(operation), "red" if operation.failed else None)
