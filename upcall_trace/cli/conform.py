"""`conform`: does this guest answer as the model of Kata's kernel says?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from dissectors.constants import UPCALL_PORT

from ..conform.asking import Asker
from ..conform.cases import DANGERS, Step, recorded_case
from ..conform.report import as_junit, as_object, text
from ..conform.run import Conformity, Wish, refused, run
from ..errors import ExitCode, NothingRun
from ..kernel.noted_world import noted_world
from ..replay.run import read_recording
from ..replay.target import look_at
from ..sockets.addresses import check_reachable, parse_address
from .support.files import CAPTURE
from .support.options import given_world, world_options
from .support.output import SECONDS, out, out_json, talk
from .support.signals import stop_on_signals

_PATH = click.Path(path_type=Path)
_PROGRESS_S: Final = 1.0


@click.command("conform")
@click.option("--to", "address", required=True, metavar="ADDRESS", help="The guest to ask.")
@click.option("--control", type=_PATH, metavar="PATH",
              help="The socket of the VMM's side: it boots the guest anew.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Another seed, other requests.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), default=2000, show_default=True, metavar="N",
              help="How many requests to ask.")  # fmt: skip
@click.option("--allow", multiple=True, type=click.Choice(list(DANGERS)), metavar="CODE",
              help="Ask this too, which is dangerous.")  # fmt: skip
@click.option("--recording", type=CAPTURE, help="Ask what this capture asked, and nothing else.")
@world_options
@click.option("--port", type=click.IntRange(0, 0xFFFFFFFF), default=UPCALL_PORT,
              show_default=True, help="Port in the CONNECT line.")  # fmt: skip
@click.option("--deadline", type=SECONDS, default=15.0, show_default=True, metavar="SECONDS",
              help="For each reply, beside what the model says it takes.")  # fmt: skip
@click.option("--silence", type=SECONDS, default=1.0, show_default=True, metavar="SECONDS",
              help="How long nothing has to come where nothing should.")  # fmt: skip
@click.option("--resume", type=_PATH, metavar="FILE",
              help="Keep the place in FILE, and go on there next time.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json", "junit"]), default="text",
              show_default=True, help="How to tell the result.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def conform_command(
    address: str,
    control: Path | None,
    seed: int,
    count: int,
    allow: tuple[str, ...],
    recording: Path | None,
    world_file: Path | None,
    machine: str | None,
    port: int,
    deadline: float,
    silence: float,
    resume: Path | None,
    form: str,
    as_json: bool,
) -> ExitCode:
    """Ask a guest made-up requests and compare every byte with the model of the kernel.

    The guest should be fresh. With --control it is booted again for every 200 requests, and a
    difference is made as short as possible. By default no request kills a thread, loses the hotplug
    lock, takes seconds or removes a device of the boot. Ends with 1 when an answer differs.
    """
    steps: tuple[Step, ...] = ()
    source = ""
    if recording is None:
        given = given_world(world_file, machine)
    else:
        read = read_recording(
            recording, choose=lambda header: given_world(world_file, machine, header.notes)
        )
        notes = read.capture.header.notes
        given = given_world(world_file, machine, notes) or noted_world(notes)
        steps, source = tuple(recorded_case(read.script)), recording.name
    target = look_at(parse_address(address), given, control)
    check_reachable(target.address)
    if not target.world_known:
        talk("the guest is taken for a default Kata pod: --world FILE says what it looks like")
    wish = Wish(target.world, seed, count, frozenset(allow), steps, source)
    if steps and (dangers := refused(wish)):
        for code in dangers:
            talk(f"refused: {DANGERS[code]} ({code})")
        talk("to do it all the same: " + " ".join(f"--allow {code}" for code in dangers))
        return ExitCode.USAGE
    if target.control is None and not steps:
        talk("without --control the guest has to be fresh, and is left as it is then")
    stop = threading.Event()
    asker = Asker(
        target.address, target.world, port, target.control, deadline, silence, stop.is_set
    )
    put_back = stop_on_signals(stop)
    try:
        ran = run(wish, asker, resume, _reporter(count if not steps else 0))
    finally:
        put_back()
    for refusal in asker.told:
        talk(f"the VMM's side refused an order: {refusal}")
    if "json" in (form, "json" if as_json else ""):
        out_json(as_object(wish, ran, target.world_known))
    elif form == "junit":
        out(as_junit(wish, ran, asker.can_reset))
    else:
        for line in text(wish, ran, asker.can_reset):
            out(line)
    if ran.interrupted:
        return ExitCode.INTERRUPTED
    if not ran.agrees:
        return ExitCode.DIFFERENT
    if not ran.cases:
        raise NothingRun("nothing was asked")
    return ExitCode.EXPECTED


def _reporter(count: int) -> Callable[[Conformity, int | None], None]:
    last = time.monotonic()

    def report(ran: Conformity, left: int | None) -> None:
        nonlocal last
        if time.monotonic() - last < _PROGRESS_S:
            return
        last = time.monotonic()
        of = f" of {count}" if count else ""
        talk(f"{ran.asked}{of} requests, {len(ran.differing)} cases differ"
             if left is None else f"a difference of {left} steps is made shorter")  # fmt: skip

    return report
