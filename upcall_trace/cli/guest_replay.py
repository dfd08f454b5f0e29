"""`guest --replay`: the guest of a recording on a socket."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import ExitCode, NothingRun
from ..simulated.from_recording import RecordedMachine, recorded_connections
from ..simulated.machine import Pace
from ..simulated.on_socket import GuestSocket
from ..sources import open_source
from ..trace.streams import all_records
from .support.files import open_capture, tell_losses
from .support.output import talk
from .support.signals import held_signals

_UNUSED_TOLD: Final = 20


def answer(listen: Path, capture: Path, matching: bool, allow_unused: bool, pace: Pace) -> ExitCode:
    """Be the guest of a recording until a signal comes; the exit code that this deserves."""
    opened = open_capture(capture)
    with open_source(capture) as source:
        connections = recorded_connections(source.header, all_records(source))
    if not any(each.asked for each in connections):
        raise NothingRun(f"{capture} has no operation to answer with")
    lost = tell_losses(capture, opened)
    machine = RecordedMachine(opened.header, connections, matching, pace, talk)
    with held_signals() as wait, GuestSocket(machine, listen):
        talk(f"listening on {listen}")
        wait()
    if not machine.asked and not machine.faults:
        talk("nothing was asked")
        return ExitCode.NOTHING_RUN
    unused = [] if allow_unused else list(machine.unused())
    for told in unused[:_UNUSED_TOLD]:
        talk(told)
    if len(unused) > _UNUSED_TOLD:
        talk(f"and {len(unused) - _UNUSED_TOLD} more were never asked")
    return ExitCode.DIFFERENT if machine.faults or unused else lost
