"""`replay`: a recording sent again, after a plan, with a verdict on every reply."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..compare.matchers import beside, parse_key, parse_matcher, read_matchers, write_matchers
from ..control.order_socket import check_control
from ..errors import ExitCode, NothingRun, WrongUsage
from ..kernel.noted_world import noted_world
from ..kernel.world import World
from ..replay.happening import Answered, NotSent
from ..replay.learn import learn
from ..replay.plan import DANGERS
from ..replay.rebase import Rebase, read_map, work_out
from ..replay.report import plan_lines, plan_object, verdict_lines, verdict_object
from ..replay.run import Replay, Terms, patience_with, read_recording, select
from ..replay.target import arch_of, look_at, parse_fingerprint
from ..replay.tempo import Tempo, parse_speed
from ..sockets.addresses import check_reachable, parse_address
from ..trace.filters import parse
from ..trace.script import Asked, Script
from ..views.messages import reply_text, request_text
from .support.collecting import no_search_for_cycles
from .support.files import CAPTURE, tell_losses
from .support.options import color_option, given_world, tell_lacking_world, world_options
from .support.output import SECONDS, has_terminal, out, out_all, out_json, say, talk
from .support.signals import stop_on_signals
from .support.standard_output import STDOUT

_PATH = click.Path(path_type=Path)
_PROGRESS_S = 1.0


@click.command("replay")
@click.argument("capture", type=CAPTURE)
@click.option("--to", "address", metavar="ADDRESS", required=True, help="The guest to send it to.")
@click.option("--live", is_flag=True, help="Send it; without this there is only the plan.")
@click.option("--allow", multiple=True, type=click.Choice(list(DANGERS)), metavar="CODE",
              help="Begin in spite of this danger, as the plan names it.")  # fmt: skip
@click.option("--control", type=_PATH, metavar="PATH", help="The socket of the VMM's side.")
@click.option("--reset", is_flag=True, help="Have the VMM boot the guest anew before each round.")
@world_options
@click.option("--target", "told", metavar="FINGERPRINT",
              help="What the target is: arch=…,backend=…,name=…")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 0xFFFFFFFF), help="Port in the CONNECT lines.")
@click.option("--filter", "expression", metavar="EXPR", help="Only operations that match.")
@click.option("--start", metavar="C.R", help="The first operation, as show numbers them.")
@click.option("--until", metavar="C.R", help="The last operation.")
@click.option("--rebase", is_flag=True, help="Move windows, IRQs, CPUs and slots to free ones.")
@click.option("--map", "map_file", type=_PATH, metavar="FILE", help="Move them as this file says.")
@click.option("--speed", default="max", show_default=True, metavar="max|recorded|2x",
              help="How fast.")  # fmt: skip
@click.option("--max-gap", type=SECONDS, metavar="SECONDS",
              help="Shorten every longer pause.")  # fmt: skip
@click.option("--keep-splits", is_flag=True, help="The recorded writes, with their gaps.")
@click.option("--step", is_flag=True, help="One key for each request.")
@click.option("--loop", "rounds", type=click.IntRange(1), default=1, metavar="N",
              help="Replay it so many times.")  # fmt: skip
@click.option("--deadline", type=SECONDS, default=15.0, show_default=True, metavar="SECONDS",
              help="For each reply, or twice as long as it took.")  # fmt: skip
@click.option("--silence", type=SECONDS, metavar="SECONDS",
              help="For a reply that the recording does not have; default: as long as it waited, "
              "1 for a simulated guest.")  # fmt: skip
@click.option("--keep-going", is_flag=True,
              help="After a difference too, on a guest that may be real.")  # fmt: skip
@click.option("--bytes", "whole_bytes", is_flag=True, help="Compare all bytes, written or not.")
@click.option("--match", "matchers", multiple=True, metavar="'C.R RULE…'",
              help="What may differ, such as '1.3 ret=any'.")  # fmt: skip
@click.option("--match-file", type=_PATH, metavar="FILE", help="Instead of the one beside CAPTURE.")
@click.option("--learn", "learning", is_flag=True,
              help="Replay twice and write rules for what varies beside CAPTURE.")  # fmt: skip
@click.option("-o", "--output", type=CAPTURE, help="A capture of what happens.")
@click.option("--overwrite", is_flag=True, help="Replace an existing one.")
@click.option("--json", "as_json", is_flag=True, help="The plan or the verdict as one JSON object.")
@color_option
def replay_command(
    capture: Path,
    address: str,
    live: bool,
    allow: tuple[str, ...],
    control: Path | None,
    reset: bool,
    world_file: Path | None,
    machine: str | None,
    told: str | None,
    port: int | None,
    expression: str | None,
    start: str | None,
    until: str | None,
    rebase: bool,
    map_file: Path | None,
    speed: str,
    max_gap: float | None,
    keep_splits: bool,
    step: bool,
    rounds: int,
    deadline: float,
    silence: float | None,
    keep_going: bool,
    whole_bytes: bool,
    matchers: tuple[str, ...],
    match_file: Path | None,
    learning: bool,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> ExitCode:
    """Send a recording's requests again and compare every reply.

    Without --live it only shows the plan: what each request would do to the guest, what the kernel
    model predicts, how to undo it and what is dangerous. It refuses a plan with dangers that you
    did not allow, and sends nothing. Ends with 1 when a reply differs, and with 6 when there was
    nothing to send.
    """
    wanted = parse(expression) if expression is not None else None
    given = [parse_matcher(text) for text in matchers]
    first, last = (parse_key(text) if text else None for text in (start, until))
    gap_ns = None if max_gap is None else round(max_gap * 1e9)
    pace = Tempo(parse_speed(speed), gap_ns, keep_splits)
    if rebase and map_file:
        raise WrongUsage("--rebase works out what --map says: give one of them")
    if learning and (not live or step or rounds > 1 or as_json):
        raise WrongUsage("--learn goes with --live, and neither with --step, --loop nor --json")
    if step and (as_json or not sys.stdin.isatty()):
        raise WrongUsage("--step needs a terminal to read keys from, and goes not with --json")
    if output == STDOUT:
        raise WrongUsage("standard output has the comparison: give -o FILE")
    if output is not None and output.exists() and capture.exists() and output.samefile(capture):
        raise WrongUsage(f"{output} is the input; give another name for the output")
    with no_search_for_cycles():
        recording = read_recording(
            capture, keep_splits, port, match_file,
            lambda header: given_world(world_file, machine, header.notes),
        )  # fmt: skip
    for place, rules in given:
        recording.matchers.add(place, rules)
    idle = recording.matchers.idle(recording.script.asked.values())
    if wrong := [place for place, _ in given if place in idle]:
        raise WrongUsage(f"{capture} has no operation {wrong[0]} to match")
    for place in idle:
        talk(f"no operation {place} for its rules")
    header = recording.capture.header
    target_world = given_world(world_file, machine, header.notes)
    check_reachable(parse_address(address))
    target = look_at(
        parse_address(address), target_world, control, parse_fingerprint(told) if told else None,
        arch_of(header), target_world or noted_world(header.notes),
    )  # fmt: skip
    if target_world is None and (target.note is None or target.world_known):
        tell_lacking_world(capture, header.notes, "nobody can say whether the target is like it")
    terms = Terms(
        pace, patience_with(target, deadline, silence), whole_bytes, reset, output, overwrite,
        allow, keep_going, 2 if learning else rounds,
    )  # fmt: skip
    script = select(recording, wanted, first, last)
    if not script.asked and not script.steps:
        raise NothingRun(f"{capture} has no operation to replay")
    moved = _moved(script, target.world, rebase, map_file)
    with no_search_for_cycles():
        replay = Replay(recording, target, script, moved, terms)
    refused = replay.plan.refused(allow)
    if not live or refused:
        _show_plan(replay, allow, as_json)
        lost = tell_losses(capture, recording.capture)
        return ExitCode.USAGE if refused else lost
    if target.control is not None:
        check_control(target.control)
    if not reset and replay.is_as_booted() is False:
        talk(f"{address} was used since it booted; --reset boots it again first")
    stop = threading.Event()
    put_back = stop_on_signals(stop)
    try:
        with replay:
            if learning:
                return _learn(replay, capture, stop)
            code = _play(replay, rounds, step, as_json, stop)
    finally:
        put_back()
    return code or tell_losses(capture, recording.capture)


def _moved(script: Script, world: World, rebase: bool, file: Path | None) -> Rebase | None:
    if file is not None:
        return read_map(file)
    return work_out(script, world) if rebase else None


def _show_plan(replay: Replay, allow: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        out_json(plan_object(replay, allow))
        return
    out_all(
        (line, "red" if line.startswith("refused") or "DANGER" in line else None)
        for line in plan_lines(replay, allow)
    )


def _learn(replay: Replay, capture: Path, stop: threading.Event) -> ExitCode:
    learnt, always = learn(replay, stop.is_set)
    if stop.is_set():
        return ExitCode.INTERRUPTED
    path = beside(capture)
    if learnt:
        kept = read_matchers(capture, ())
        kept.update(learnt)
        write_matchers(path, kept)
        talk(f"{path}: rules for what varied")
    else:
        talk("nothing varied between two replays")
    for key in always:
        talk(f"{key[0]}.{key[1]} is answered otherwise than recorded each time: no rule was made")
    return ExitCode.DIFFERENT if always else ExitCode.EXPECTED


def _play(
    replay: Replay, rounds: int, step: bool, as_json: bool, stop: threading.Event
) -> ExitCode:
    before = _stepper(stop) if step else _nothing
    code = ExitCode.EXPECTED
    for number in range(1, rounds + 1):
        begun = time.monotonic()
        with _progress(len(replay.script.asked)) as advance:
            for happening in replay.play(before, stop.is_set):
                if isinstance(happening, Answered | NotSent):
                    advance()
                if step and isinstance(happening, Answered):
                    out(f"    {reply_text(happening.asked.message, happening.got.reply)}")
        took = time.monotonic() - begun
        if as_json:
            out_json(verdict_object(replay, took))
        else:
            if rounds > 1:
                out(f"round {number} of {rounds}")
            for line in verdict_lines(replay, took):
                out(line, "red" if replay.verdict.exit_code else None)
        code = max(code, replay.verdict.exit_code)
        if stop.is_set() or replay.verdict.ended:
            break
    return code


def _nothing(_: Asked) -> None:
    return None


def _stepper(stop: threading.Event) -> Callable[[Asked], None]:
    """Show each request and wait for a key; c sends the rest, q ends the replay."""
    free_running = False
    talk("any key sends the next request, c all that are left, q ends the replay")

    def before(asked: Asked) -> None:
        nonlocal free_running
        out(f"{asked.name}  {request_text(asked.message)}")
        if free_running:
            return
        try:
            key = click.getchar()
        except (KeyboardInterrupt, EOFError):
            key = "q"
        if key == "q":
            stop.set()
        free_running = key == "c"

    return before


@contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's stderr once it takes longer than a moment; elsewhere nothing."""
    if not has_terminal():
        yield lambda: None
        return
    begun, done = time.monotonic(), 0
    shown = False

    def advance() -> None:
        nonlocal done, shown
        done += 1
        if time.monotonic() - begun > _PROGRESS_S and (done % 64 == 0 or done == count):
            say(f"\r{done} of {count} requests")
            shown = True

    try:
        yield advance
    finally:
        if shown:
            say("\n")
