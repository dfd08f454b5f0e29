"""`guest`: the simulated guest on a socket."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from dissectors.constants import Arch

from ..errors import ExitCode, WrongUsage
from ..kernel.faults import parse_fault
from ..kernel.world import SERIES, World, kata_pod
from ..simulated.machine import Backend, Habits, Pace
from ..simulated.on_socket import SimulatedGuest
from .support.options import given_world, world_options
from .support.output import talk
from .support.signals import held_signals

_PATH: Final = click.Path(path_type=Path)
_OF_A_WORLD: Final = {
    "world_file": "--world", "machine": "--machine", "kernel": "--kernel", "arch": "--arch",
    "control": "--control", "faults": "--fault", "seed": "--seed", "echoes": "--echo",
    "backend": "--backend", "port": "--port",
}  # fmt: skip
_PORT: Final = click.IntRange(0, 0xFFFFFFFF)


@click.command("guest")
@click.option("--listen", type=_PATH, metavar="PATH", required=True, help="The socket to make.")
@world_options
@click.option("--kernel", type=click.Choice(SERIES), help="Series of the default Kata pod.")
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), help="And its architecture.")
@click.option(
    "--pace",
    type=click.Choice([p.value for p in Pace]),
    default="none",
    show_default=True,
    help="Answer at once, or wait as a guest does.",
)
@click.option("--control", type=_PATH, metavar="PATH", help="A socket for the VMM's side.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="SPEC",
    help="Such as add_cpu:ret=-16:when=2+, any:delay=300ms, del_mmio:drop.",
)
@click.option("--seed", default=0, show_default=True, help="For faults that use chance.")
@click.option(
    "--echo",
    "echoes",
    multiple=True,
    type=_PORT,
    metavar="PORT",
    help="Another port that answers, and echoes.",
)
@click.option(
    "--backend",
    type=click.Choice([b.value for b in Backend]),
    default="dragonball",
    show_default=True,
    help="Whose socket this behaves like.",
)
@click.option("--port", type=_PORT, default=219, show_default=True, help="The guest's upcall port.")
@click.option("--replay", "capture", type=_PATH, metavar="CAPTURE",
              help="Answer from this recording instead.")  # fmt: skip
@click.option("--matching", is_flag=True, help="In any order: by the first equal request left.")
@click.option("--allow-unused", is_flag=True, help="Not all of the recording has to be asked.")
@click.pass_context
def guest_command(
    context: click.Context,
    listen: Path,
    world_file: Path | None,
    machine: str | None,
    kernel: str | None,
    arch: str | None,
    pace: str,
    control: Path | None,
    faults: tuple[str, ...],
    seed: int,
    echoes: tuple[int, ...],
    backend: str,
    port: int,
    capture: Path | None,
    matching: bool,
    allow_unused: bool,
) -> ExitCode:
    """Answer upcall requests on a socket as a real guest kernel does, byte for byte.

    Without --world the guest is a default Kata pod. Stale bytes, silence after an oops and a
    stuck hotplug lock are part of it. Ends on SIGINT, SIGTERM or SIGHUP.

    With --replay it plays the guest of a recording: every connection and request must be the
    recorded one, and gets the recorded bytes. It then ends with 1 if something else was asked, or
    not everything was. It ends with 6 if nothing was asked.
    """
    if capture is not None:
        _only_with_a_world(context)
        from .guest_replay import answer  # what reads captures is not needed otherwise

        return answer(listen, capture, matching, allow_unused, Pace(pace))
    if matching or allow_unused:
        raise WrongUsage("--matching and --allow-unused are for --replay")
    habits = Habits(Backend(backend), Pace(pace), port, frozenset(echoes))
    rules = [parse_fault(text) for text in faults]
    booted = _world(world_file, machine, kernel, arch)
    with (
        held_signals() as wait,
        SimulatedGuest(booted, habits, rules, seed, listen, control, talk),
    ):
        talk(f"listening on {listen}")
        wait()
    return ExitCode.EXPECTED


def _only_with_a_world(context: click.Context) -> None:
    for name, option in _OF_A_WORLD.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise WrongUsage(f"{option} is not for a guest that answers from a recording")


def _world(file: Path | None, machine: str | None, kernel: str | None, arch: str | None) -> World:
    if file is not None and (kernel or arch):
        raise WrongUsage("--kernel and --arch are for the default pod; a world has its own")
    return given_world(file, machine) or kata_pod(Arch(arch or "x86_64"), kernel or "6.1")
