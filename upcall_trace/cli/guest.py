"""`guest`: the simulated guest on a socket."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import click

from dissectors.constants import Arch

from ..errors import ExitCode, WrongUsage
from ..guest import SimulatedGuest
from ..kernel.faults import parse_fault
from ..kernel.world import SERIES, World, find_world, kata_pod
from ..machine import Backend, Habits, Pace
from .console import talk

_PATH: Final = click.Path(path_type=Path)
_ENDING: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_PORT: Final = click.IntRange(0, 0xFFFFFFFF)


@click.command("guest")
@click.option("--listen", type=_PATH, metavar="PATH", required=True, help="The socket to make.")
@click.option("--world", type=_PATH, metavar="FILE", help="A TOML file of guests at boot.")
@click.option("--machine", metavar="NAME", help="Which of its tables; not needed for one.")
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
def guest_command(
    listen: Path,
    world: Path | None,
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
) -> ExitCode:
    """Answer upcall requests on a socket as a real guest kernel does, byte for byte.

    Without --world the guest is a default Kata pod. Stale bytes, silence after an oops and a
    stuck hotplug lock are part of it. Ends on SIGINT, SIGTERM or SIGHUP.
    """
    habits = Habits(Backend(backend), Pace(pace), port, frozenset(echoes))
    rules = [parse_fault(text) for text in faults]
    booted = _world(world, machine, kernel, arch)
    # Blocked and waited for: a handler that sets an Event can meet its own thread in Event.wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with SimulatedGuest(booted, habits, rules, seed, listen, control, talk):
            talk(f"listening on {listen}")
            signal.sigwait(_ENDING)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ExitCode.EXPECTED


def _world(file: Path | None, machine: str | None, kernel: str | None, arch: str | None) -> World:
    if file is not None and (kernel or arch):
        raise WrongUsage("--kernel and --arch are for the default pod; a world has its own")
    return find_world(file, machine) or kata_pod(Arch(arch or "x86_64"), kernel or "6.1")
