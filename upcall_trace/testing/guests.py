"""The guest that a test talks to: a simulated one of its own, or the one that it was told of."""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dissectors.constants import UPCALL_PORT, Arch

from ..capture.records import Header
from ..control.order_socket import give_order
from ..control.orders import BadOrder
from ..errors import ExitCode, WrongUsage
from ..kernel.faults import parse_fault
from ..kernel.noted_world import MACHINE, lacking_world, noted_world
from ..kernel.world import World, choose_world, kata_pod, load_worlds
from ..replay.plan import DANGERS, Danger
from ..replay.target import Target, arch_of, look_at, own_guest
from ..simulated.machine import Habits
from ..simulated.on_socket import SimulatedGuest
from ..sockets.addresses import check_reachable, parse_address, socket_folder
from ..views.text import safe
from .failing import ReplayFailed

_RESET_S: Final = 60.0


class UnknownWorldWarning(UserWarning):
    """A recording is replayed on a default guest, though it was made on another one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a test, and whoever runs it, have said about the guest; all of it may be left out.

    `address` is the ADDRESS of a guest that is there, and `turn` a file to lock while it is used,
    where others want it at the same time. Else the guest is simulated: the world `machine` of
    `worlds`, or of `nearby` if that file exists. `allowed` are dangers that whoever runs the tests
    accepts, `allowed_here` those that the test accepts.
    """

    address: str | None = None
    turn: Path | None = None
    worlds: Path | None = None
    nearby: Path | None = None
    machine: str | None = None
    faults: tuple[str, ...] = ()
    allowed: frozenset[str] = frozenset()
    allowed_here: frozenset[str] = frozenset()

    def check(self, dangers: Iterable[Danger], target: Target) -> None:
        """Raises ReplayFailed with every danger that nobody accepted.

        What a test accepts was thought of for guests that may be experimented on; for one that
        may be real only whoever runs the tests can accept anything.
        """
        accepted = self.allowed | (self.allowed_here if target.kind else frozenset())
        unknown = sorted((self.allowed | self.allowed_here) - set(DANGERS))
        if unknown:
            raise WrongUsage(
                f"{unknown[0]!r} is no danger to allow; there are {', '.join(DANGERS)}"
            )
        refused = [danger for danger in dangers if danger.code not in accepted]
        if refused:
            codes = dict.fromkeys(danger.code for danger in refused)
            options = " ".join(f"--upcall-allow {code}" for code in codes)
            raise ReplayFailed(
                [*(f"refused: {safe(str(danger))}" for danger in refused),
                 f"nothing was sent; to do it all the same: {options}"],
                ExitCode.USAGE,
            )  # fmt: skip


def find_world(choice: Choice, notes: Mapping[str, str], arch: Arch) -> World:
    """The simulated guest's world, for a recording with these notes; raises UserError.

    A file that is named, or that stands nearby and has the machine, goes before what the recording
    notes. Warns when a recording names its machine and nothing says what that looks like.
    """
    noted = notes.get(MACHINE)
    name = choice.machine or noted
    file = choice.worlds
    recorded = noted_world(notes)
    if file is None and name is not None and choice.nearby is not None and choice.nearby.exists():
        chosen = choice.machine or recorded is None or noted in load_worlds(choice.nearby)
        file = choice.nearby if chosen else None
    if file is None:
        if choice.machine is not None:
            raise WrongUsage(f"the machine {choice.machine!r} needs a file of worlds")
        lacking = lacking_world(notes)
        if lacking:
            told = f"a recording has no world: {lacking}, so a default Kata pod stands in for it"
            warnings.warn(UnknownWorldWarning(safe(told)), stacklevel=2)
        return recorded or kata_pod(arch)
    worlds = load_worlds(file)
    if choice.machine is None and noted not in worlds and len(worlds) > 1:
        raise WrongUsage(f"{file} has several machines, and nothing says which: a test names it")
    return choose_world(worlds, choice.machine or (noted if noted in worlds else None))


@contextmanager
def simulated(
    world: World, faults: Iterable[str] = (), port: int = UPCALL_PORT
) -> Iterator[SimulatedGuest]:
    """A guest with a control socket, both in a short-lived directory; raises WrongUsage."""
    rules = [parse_fault(text) for text in faults]
    with (
        socket_folder() as directory,
        SimulatedGuest(
            world, Habits(port=port), rules,
            path=Path(directory) / "guest", control=Path(directory) / "control",
        ) as guest,
    ):  # fmt: skip
        yield guest


@contextmanager
def guest_for(choice: Choice, header: Header) -> Iterator[Target]:
    """The guest for the recording that has this header, as it is after its boot.

    One that is there is booted anew where its VMM's side can be reached and it is not a real one.
    Raises UserError.
    """
    arch, notes = arch_of(header), header.notes
    if choice.address is None:
        world = find_world(choice, notes, arch)
        with simulated(world, choice.faults, header.port) as guest:
            yield own_guest(guest)
        return
    if choice.faults:
        raise WrongUsage("faults need a simulated guest, and --upcall-target names another one")
    address = parse_address(choice.address)
    with _my_turn(choice.turn):
        check_reachable(address)
        target = look_at(address, arch=arch, recorded=noted_world(notes))
        if target.guessed and choice.worlds is not None:
            target = look_at(address, find_world(choice, notes, arch))
        if target.kind is not None and target.control is not None:
            try:
                give_order(target.control, {"reset": True}, _RESET_S)
            except BadOrder as error:
                raise WrongUsage(f"{address} could not be booted anew: {error}") from None
        yield target


@contextmanager
def _my_turn(file: Path | None) -> Iterator[None]:
    if file is None:
        yield
        return
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def told(target: Target) -> str:
    """What a report calls the guest."""
    if target.kind is None:
        return safe(str(target.address))
    name = target.fingerprint.get("name", target.kind)
    return "a simulated guest" if target.kind == "simulated" else f"the lab's {safe(name)}"
