"""Whom a replay would send to: simulated, a lab, or for all we know a real guest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dissectors.constants import Arch

from ..capture.records import Header
from ..errors import WrongUsage
from ..kernel.world import World, kata_pod
from ..nameplate import Nameplate, read_nameplate
from ..transport import Address, UnixAddress
from .plan import OTHER_TARGET, REAL_GUEST, Danger

TIED_TO = "tied-to"
"""The note of a recording that names its target's fingerprint."""
KEYS = ("arch", "backend", "name")


def arch_of(header: Header) -> Arch:
    """The guest's as far as a recording says it; x86-64 where it says nothing that is known."""
    known = {arch.value: arch for arch in Arch}
    return known.get(header.arch or "", Arch.X86_64)


@dataclass(frozen=True, slots=True)
class Target:
    """An address, and what is known of the guest behind it.

    `kind` is None for a guest that may be a real one. `guessed` is true when `world` is only a
    default. `fingerprint` has what is known of `KEYS`. `control` reaches the VMM's side.
    """

    address: Address
    kind: str | None
    world: World
    guessed: bool
    fingerprint: Mapping[str, str]
    control: Path | None = None


def look_at(
    address: Address,
    world: World | None = None,
    control: Path | None = None,
    told: Mapping[str, str] | None = None,
    arch: Arch = Arch.X86_64,
) -> Target:
    """What can be known without a connection; `told` is what the user says of it."""
    plate: Nameplate | None = None
    if isinstance(address, UnixAddress):
        plate = read_nameplate(address.path)
    known: dict[str, str] = {}
    if plate is not None:
        known = {"arch": plate.world.arch.value, "backend": plate.backend, "name": plate.name}
        if control is None and plate.control:
            control = Path(plate.control)
    elif world is not None:
        known = {"arch": world.arch.value}
    guessed = world is None and plate is None
    behind = world or (plate.world if plate else kata_pod(arch))
    kind = plate.kind if plate else None
    return Target(address, kind, behind, guessed, known | dict(told or {}), control)


def dangers(target: Target, notes: Mapping[str, str]) -> list[Danger]:
    """What speaks against this target for a recording with these notes."""
    found = []
    if target.kind is None:
        why = f"{target.address} may be a real guest: nothing beside the socket says otherwise"
        found.append(Danger(REAL_GUEST, why))
    tie = notes.get(TIED_TO)
    for key, wanted in parse_fingerprint(tie).items() if tie else ():
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
