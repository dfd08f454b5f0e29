"""The whole table of understood lines, and what finds them in a log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from functools import cache
from typing import Final

import re2

from . import client_lines, device_lines, guest_lines, lost_lines, other_lines, runtime_lines
from .entries import Finder, LogEntry, Scanner
from .lines import LogLine, lines_of
from .meaning import Match, Table, Understood
from .prose import Placed, Stands, place, settled

_HOST: Final = (
    *client_lines.ROWS, *device_lines.ROWS, *runtime_lines.ROWS, *other_lines.ROWS,
    *lost_lines.OF_HOST,
)  # fmt: skip
_KERNEL: Final = (*guest_lines.ROWS, *lost_lines.OF_KERNEL)
ROWS: Final = (*_HOST, *_KERNEL)
"""Every row there is."""
_VMM: Final = Table(_HOST)
_GUEST: Final = Table(_KERNEL)
_CONSOLE: Final = "dmesg"
_NUMBERS: Final = r'"MESSAGE"\s*:\s*\['
"""How a journal's message begins that is written as numbers; words cannot be found in it."""
_STRANGE_GUEST: Final = re.compile(r"db-(?:dev-mgr|upcall-srv)\b|db_devmgr_\w{1,32}(?!\+0x)\b ?:")
_STRANGE_VMM: Final = re.compile(
    r"(?<![\w./-])(?<!GSS )(?<!gssd )[Uu]pcall [a-z']|get vcpu event"
    r"|\bUpcall(?:Server|Client|Is)\w{0,64}"
)
_STRANGE_ANCHORS: Final = (
    "db-dev-mgr",
    "db-upcall-srv",
    "db_devmgr_",
    "upcall ",
    "get vcpu event",
    "UpcallServer",
    "UpcallClient",
    "UpcallIs",
)
_OURS: Final = ("kata", "dragonball", "containerd", "runtime-rs", "dbs")
_TOO_COMMON: Final = {
    # anchor: what stands for it when a whole log is searched
    "virtio": ("probe of virtio", "refuses features", "probe with driver virtio"),
    "virtio_": (),
    "0000:": (": BAR ", "probe of 0000:", "probe with driver", "not initialized correctly"),
    "virtio-mmio": ("virtio-mmio virtio-mmio.", "probe of virtio-mmio."),
    "MicroV": ("MicroVm(", "Microvm("),
    "is running": (),
    "already exists": (
        "' already exists",
        "; already exists",
        "\u2019 already exists",
        "device ID ",
    ),
}


class Aside(Enum):
    """A line about upcall that decides nothing."""

    STRANGE = auto()
    """In words that no row has: a newer release may say them."""
    MENTIONED = auto()
    """A sentence that quotes a line."""


@cache
def wanted() -> Finder:
    """One pattern for every anchor, of an engine that is linear."""
    anchors: dict[str, None] = {}
    for row in ROWS:
        for anchor in row.anchors:
            anchors.update(dict.fromkeys(_TOO_COMMON.get(anchor, (anchor,))))
    anchors.update(dict.fromkeys(_STRANGE_ANCHORS))
    words = "|".join(re2.escape(anchor) for anchor in anchors)
    pattern: Finder = re2.compile(f"{words}|{_NUMBERS}".encode())
    return pattern


def understand(line: LogLine) -> Sequence[Match]:
    """What a line says: rows of the guest's kernel for its console, of all others else."""
    bare = line.guest_ns is not None and not line.dressed
    if bare or line.subsystem == _CONSOLE:
        return _GUEST.matches(line.text)
    said = _VMM.matches(line.text)
    if line.subsystem is not None and (said or line.guest_ns is None):
        return said
    heard = _GUEST.matches(line.text)
    return [*said, *heard] if said and heard else said or heard


def understood(
    scanner: Scanner,
    blocks: Iterable[bytes],
    file: str | None,
    aside: Callable[[LogLine, Aside], object] | None = None,
) -> Iterator[Understood]:
    """The lines of a log that say something of the table, in their order.

    `aside` is told the others that speak of upcall.
    """
    for placed in settled(_found(scanner.entries(blocks), file, aside)):
        if (said := _said(placed)) is not None:
            yield said
        elif aside is not None:
            aside(placed.line, Aside.MENTIONED)


def understood_in(entry: LogEntry, file: str | None) -> Iterator[Understood]:
    """The same of one entry alone."""
    for line, matches in _found([entry], file, None):
        if (said := _said(place(line, matches))) is not None:
            yield said


def _found(
    entries: Iterable[LogEntry],
    file: str | None,
    aside: Callable[[LogLine, Aside], object] | None,
) -> Iterator[tuple[LogLine, Sequence[Match]]]:
    for entry in entries:
        for line in lines_of(entry, file):
            if matches := understand(line):
                yield line, matches
            elif aside is not None and _is_strange(line):
                aside(line, Aside.STRANGE)


def _said(placed: Placed) -> Understood | None:
    """None for a sentence."""
    if placed.stands is Stands.AS_A_LINE:
        return Understood(placed.line, placed.matches)
    if placed.stands is Stands.LOOSELY:
        return Understood(placed.line._replace(loose=True), placed.matches)
    return None


def _is_strange(line: LogLine) -> bool:
    """Whether a line is of upcall, in words that no row has. Other programs have upcalls, too."""
    if _STRANGE_GUEST.search(line.text):
        return True
    if line.guest_ns is not None or _STRANGE_VMM.search(line.text) is None:
        return False
    speakers = [name for name in (line.program, line.subsystem) if name is not None]
    return not speakers or any(name.startswith(_OURS) for name in speakers)
