"""Options that several commands read the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from dissectors.constants import Arch

from ...errors import WrongUsage
from ...kernel.noted_world import MACHINE, lacking_world, noted_world, world_notes
from ...kernel.world import World, choose_world, kata_pod, load_worlds
from .output import talk

_Command = TypeVar("_Command", bound=Callable[..., Any])
# Whether it can be read is ours to find out and to tell, with the exit code that it has.
_FILE: Final = click.Path(path_type=Path, readable=False)
WORLD_HELP: Final = "Guests at boot, TOML; or a capture that notes its guest's."

world_option = click.option("--world", "world_file", type=_FILE, metavar="FILE", help=WORLD_HELP)
"""`--world FILE`, as the parameter `world_file`."""
machine_option = click.option(
    "--machine", metavar="NAME", help="Which of the file's tables; not needed for one."
)
"""`--machine NAME`."""
vmm_option = click.option(
    "--vmm",
    type=click.Choice(["dragonball", "other"]),
    default="dragonball",
    show_default=True,
    help="Who the client is: Dragonball hides failures, and keeps devices that were refused.",
)
"""`--vmm dragonball|other`."""


def world_options(command: _Command) -> _Command:
    """`--world FILE` and `--machine NAME`, for `given_world`."""
    return world_option(machine_option(command))


def given_world(
    file: Path | None, machine: str | None, notes: Mapping[str, str] | None = None
) -> World | None:
    """What `--world FILE --machine NAME` mean, None without them.

    A recording with `notes` need not be told which table is its own. Raises UnreadableInput and
    WrongUsage.
    """
    if file is None:
        if machine is not None:
            raise WrongUsage("--machine needs a file: give --world too")
        return None
    worlds = _worlds(file)
    noted = (notes or {}).get(MACHINE)
    return choose_world(worlds, machine or (noted if noted in worlds else None))


def tell_lacking_world(path: Path, notes: Mapping[str, str], instead: str) -> None:
    """Tell when a recording names a machine and has no world; `instead` goes on after "so"."""
    lacking = lacking_world(notes)
    if lacking:
        talk(f"{path}: {lacking}, so {instead}; --world FILE tells")


def _worlds(file: Path) -> dict[str, World]:
    """The worlds of a TOML file, or the one that a capture notes; raises UnreadableInput."""
    from ...capture.frames import MAGIC

    try:
        with file.open("rb") as opened:
            begins = opened.read(len(MAGIC))
    except OSError:
        begins = b""  # what is wrong with it, the reader of worlds says
    if begins != MAGIC:
        return load_worlds(file)
    from ...sources import open_source

    with open_source(file) as source:
        header = source.header
    lacking = lacking_world(header.notes)
    if lacking:
        raise WrongUsage(f"{file}: {lacking}; give a TOML file that has it")
    world = noted_world(header.notes)
    if world is None:
        talk(f"{file} notes no world: its guest is taken for a default Kata pod")
        world = kata_pod(Arch.named(header.arch) or Arch.X86_64)
    return {header.notes.get(MACHINE, "pod"): world}


def _set_colour(context: click.Context, _: click.Parameter, when: str) -> None:
    context.color = {"always": True, "never": False}.get(when)


color_option = click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    expose_value=False,
    callback=_set_colour,
    help="Use colours: on a terminal without NO_COLOR, always, or never.",
)
"""`--color auto|always|never`, for `output.wants_colour`."""
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the output when it exists."
)


class Named(click.types.StringParamType):
    """One of names that are not known before they are asked for, as those of plugins."""

    def __init__(self, kind: str, names: Callable[[], Iterable[str]]) -> None:
        self.name = kind
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        """The names that begin as what is typed, in upper or lower case."""
        typed = incomplete.lower()
        from click.shell_completion import CompletionItem  # only who completes needs it

        return [CompletionItem(name) for name in self._names() if name.lower().startswith(typed)]


def parse_notes(notes: tuple[str, ...]) -> dict[str, str]:
    """The KEY=TEXT notes of a command line; raises WrongUsage."""
    for note in notes:
        if not note.partition("=")[0] or "=" not in note:
            raise WrongUsage(f"a note is KEY=TEXT, not {note!r}")
    return {key: text for key, _, text in (note.partition("=") for note in notes)}


def target_notes(socket: Path) -> dict[str, str]:
    """The notes of a recording that is made at this socket, where the guest tells its world."""
    from ...control.target_note import read_target_note

    note = read_target_note(socket)
    if note is None or not note.tells_world:
        return {}
    return world_notes(note.world, note.name if note.kind == "lab" else None)


def world_given(file: Path | None, machine: str | None, notes: Mapping[str, str]) -> dict[str, str]:
    """The notes that keep the world that is given for a recording with these notes.

    Raises UnreadableInput and WrongUsage.
    """
    if file is None and machine is not None:
        raise WrongUsage("--machine needs a file: give --world too, or --note machine=NAME")
    if file is None:
        return {}
    worlds = _worlds(file)
    noted = notes.get(MACHINE)
    world = choose_world(worlds, machine or (noted if noted in worlds else None))
    name = machine or noted or next(name for name, each in worlds.items() if each is world)
    return world_notes(world, name)
