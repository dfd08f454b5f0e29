"""The guest that a replay sends to: simulated, a lab, or possibly a real one."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dissectors.constants import Arch

from ..capture.records import Header
from ..control.target_note import TargetNote, read_target_note
from ..errors import UnreadableInput, WrongUsage
from ..kernel.world import World, kata_pod
from ..simulated.on_socket import SimulatedGuest
from ..sockets.addresses import Address, UnixAddress
from .plan import OTHER_TARGET, REAL_GUEST, Danger

TIED_TO = "tied-to"
"""The note of a recording that names its target's fingerprint."""
KEYS = ("arch", "backend", "name")


def arch_of(header: Header) -> Arch:
    """The guest's as far as a recording says it; x86-64 where it says nothing that is known."""
    return Arch.named(header.arch) or Arch.X86_64


@dataclass(frozen=True, slots=True)
class Target:
    """An address, and what is known of the guest behind it.

    `kind` is None for a guest that may be a real one. `guessed` is true when nobody said what the
    target looks like: `world` is then that of the recording's guest if `as_recorded`, or a default.
    `fingerprint` has what is known of `KEYS`. `control` reaches the VMM's side.
    """

    address: Address
    kind: str | None
    world: World
    guessed: bool
    fingerprint: Mapping[str, str]
    control: Path | None = None
    note: TargetNote | None = None
    """The note that says what it is, when there is one."""
    as_recorded: bool = False

    @property
    def world_known(self) -> bool:
        """Whether `world` is what this guest looks like, as far as somebody said so."""
        return not self.guessed and (self.note is None or self.note.tells_world)

    def is_still_there(self, stream: socket.socket) -> bool:
        """Whether who was connected to is what this was found out about: by the process, not by
        what is behind the path at the moment."""
        if self.note is None or not isinstance(self.address, UnixAddress):
            return True
        return read_target_note(self.address.path) == self.note and self.note.is_of(stream)


def look_at(
    address: Address,
    world: World | None = None,
    control: Path | None = None,
    told: Mapping[str, str] | None = None,
    arch: Arch = Arch.X86_64,
    recorded: World | None = None,
) -> Target:
    """What can be known without a connection; `told` is what the user says of it.

    `recorded` is what the recording's guest looked like, for a target of which nothing is known.
    Raises WrongUsage when that is not what the target says itself.
    """
    note: TargetNote | None = None
    if isinstance(address, UnixAddress):
        note = read_target_note(address.path)
    known: dict[str, str] = {}
    if note is not None:
        known = _fingerprint(note)
        if control is None and note.control:
            control = Path(note.control)
    elif world is not None:
        known = {"arch": world.arch.value}
    for key, value in (told or {}).items():
        if known.get(key, value) != value:
            raise WrongUsage(f"--target says {key} is {value}; the target says {known[key]}")
    guessed = world is None and note is None
    behind = world or (note.world if note else recorded or kata_pod(arch))
    kind = note.kind if note else None
    fingerprint = known | dict(told or {})
    as_recorded = guessed and recorded is not None
    return Target(address, kind, behind, guessed, fingerprint, control, note, as_recorded)


def own_guest(guest: SimulatedGuest) -> Target:
    """A simulated guest of this process: nothing has to be found out about it."""
    note = guest.note
    known = _fingerprint(note)
    control = Path(note.control) if note.control else None
    return Target(UnixAddress(guest.path), note.kind, note.world, False, known, control)


def _fingerprint(note: TargetNote) -> dict[str, str]:
    return {"arch": note.world.arch.value, "backend": note.backend, "name": note.name}


def dangers(target: Target, header: Header) -> list[Danger]:
    """What speaks against this target for a recording; raises UnreadableInput for a bad tie."""
    found = []
    if target.kind is None:
        why = f"{target.address} may be a real guest: nothing beside the socket says otherwise"
        found.append(Danger(REAL_GUEST, why))
    arch = target.fingerprint.get("arch")
    if Arch.named(header.arch) and arch and header.arch != arch:
        why = f"the recording is of an {header.arch} guest, and this one is {arch}"
        found.append(Danger(OTHER_TARGET, why))
    try:
        ties = parse_fingerprint(header.notes[TIED_TO]) if TIED_TO in header.notes else {}
    except WrongUsage as error:
        raise UnreadableInput(f"the recording is tied to what cannot be read: {error}") from None
    for key, wanted in ties.items():
        if target.fingerprint.get(key) != wanted:
            is_now = target.fingerprint.get(key, "not known")
            why = (
                f"the recording is tied to a target whose {key} is {wanted}; this one's is {is_now}"
            )
            found.append(Danger(OTHER_TARGET, why))
    return found


def parse_fingerprint(text: str) -> dict[str, str]:
    """`arch=x86_64,backend=dragonball,name=ci-3`, each part optional; raises WrongUsage."""
    parts = [part.partition("=") for part in text.split(",")]
    if any(key not in KEYS or not value for key, _, value in parts):
        raise WrongUsage(f"{text!r} is no fingerprint: arch=…,backend=…,name=…, each optional")
    return {key: value for key, _, value in parts}
