"""Which processes of this machine hold a VM, and of which Kata sandbox it is.

Dragonball lives inside the shim, so the shim's command line names the sandbox; other VMMs are
processes of their own, and have the sandbox's name in theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import Unreachable, WrongUsage
from .processes import Mapping, command_name, guest_mappings

DRAGONBALL: Final = "Dragonball"
_SHIM: Final = re.compile(r"containerd-shim-kata\b.*|containerd-shim-.*kata.*|dragonball.*|dbs-.*")
_OTHERS: Final = (
    (re.compile(r"qemu(-system-.*|-kvm)?"), "QEMU"),
    (re.compile(r"cloud-hyperviso?r?.*"), "Cloud Hypervisor"),
    (re.compile(r"firecracker.*"), "Firecracker"),
)
_ID_OPTION: Final = re.compile(r"--?(?:id|sandbox-id)")
_ID_GIVEN: Final = re.compile(r"--?(?:id|sandbox-id)=([\w.-]+)")
_ID_INSIDE: Final = re.compile(r"(?:\bsandbox-|/vm/|/run/kata/)([\w.-]{8,})")
_ID: Final = re.compile(r"[\w.-]+")
_ID_LIMIT: Final = 256
_TOLD: Final = 8


@dataclass(frozen=True, slots=True)
class VmmProcess:
    """A process that holds a VM, or looks as if.

    `mappings` is None when they may not be looked at from here.
    """

    pid: int
    kind: str
    sandbox: str | None
    mappings: tuple[Mapping, ...] | None

    @property
    def holds_a_guest(self) -> bool:
        return bool(self.mappings)

    @property
    def size(self) -> int:
        """Bytes of address space that can be a guest's memory."""
        return sum(mapping.size for mapping in self.mappings or ())


def vmm_processes(proc: Path = Path("/proc")) -> list[VmmProcess]:
    """Every process that is known for a VMM by its program, by process id."""
    found: list[VmmProcess] = []
    for place in proc.iterdir() if proc.is_dir() else ():
        if not place.name.isdecimal():
            continue
        words = _words(place)
        kind = _kind(place, words)
        if kind is not None:
            mappings = _mappings(place)
            found.append(VmmProcess(int(place.name), kind, sandbox_of(words), mappings))
    return sorted(found, key=lambda each: each.pid)


def sandbox_of(words: list[str]) -> str | None:
    """The sandbox that a shim's or VMM's command line names."""
    for place, word in enumerate(words[1:], 1):
        given = _ID_GIVEN.fullmatch(word)
        if given:
            return given[1][:_ID_LIMIT]
        follows = words[place + 1] if place + 1 < len(words) else ""
        if _ID_OPTION.fullmatch(word) and _ID.fullmatch(follows):
            return follows[:_ID_LIMIT]
    for word in words[1:]:
        inside = _ID_INSIDE.search(word)
        if inside:
            return inside[1][:_ID_LIMIT]
    return None


def process_of(prefix: str, running: Iterable[VmmProcess]) -> VmmProcess:
    """The one process with the guest's memory of the sandbox whose id begins with `prefix`.

    Raises Unreachable when there is none, WrongUsage when several sandboxes begin so.
    """
    every = list(running)
    here = [each for each in every if each.sandbox and each.sandbox.startswith(prefix)]
    if not prefix or not here:
        known = sorted({each.sandbox for each in every if each.sandbox})
        told = f"known here: {', '.join(known[:_TOLD])}" if known else "none is known here"
        raise Unreachable(
            f"no sandbox {prefix!r} runs on this machine ({told}); upcall-trace doctor lists them, "
            "and in a container it needs the host's PID namespace"
        )
    names = sorted({each.sandbox for each in here if each.sandbox})
    if len(names) > 1 and prefix not in names:
        raise WrongUsage(f"{prefix!r} begins {len(names)} sandboxes: {', '.join(names[:_TOLD])}")
    if prefix in names:
        here = [each for each in here if each.sandbox == prefix]
    # A shim that starts a VMM of its own names the sandbox, too, but holds no guest.
    return max(here, key=lambda each: (each.holds_a_guest, each.mappings is None, each.size))


def _words(place: Path) -> list[str]:
    try:
        raw = (place / "cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode("utf-8", "backslashreplace").rstrip("\0").split("\0")


def _kind(place: Path, words: list[str]) -> str | None:
    program = words[0].rpartition("/")[2] if words else ""
    names = (program, command_name(place))
    if any(_SHIM.fullmatch(name) for name in names):
        return DRAGONBALL
    for pattern, kind in _OTHERS:
        if any(pattern.fullmatch(name) for name in names):
            return kind
    return None


def _mappings(place: Path) -> tuple[Mapping, ...] | None:
    try:
        maps = (place / "maps").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return tuple(guest_mappings(maps))
