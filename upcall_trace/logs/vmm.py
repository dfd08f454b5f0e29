"""The VMM's and the runtime's log: what they say of their upcall channel.

docs/protocol.md section 5 lists the lines. Field formats differ between versions, so lines are
recognised by their words alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

from .evidence import Evidence
from .lines import LogLine, read_lines

_KEPT: Final = 100_000


class Said(Enum):
    """What a line is about."""

    INIT = auto()
    SERVER_CONNECTED = auto()
    SERVICE_CONNECTED = auto()
    CONNECT_FAILED = auto()
    GAVE_UP = auto()
    NOT_READY = auto()
    WEDGED = auto()
    TIMED_OUT = auto()
    RETRIES_SPENT = auto()
    ACTION_FAILED = auto()
    RESIZE = auto()
    CPU_ANSWER = auto()
    MMIO_CREATED = auto()


_WORDS: Final = (
    (Said.NOT_READY, "UpcallServerNotReady|[Uu]pcall server (?:is )?not ready"),
    (Said.WEDGED, "VcpuIsHotplugging|vcpu is in hotplug process"),
    (Said.GAVE_UP, "upcall server's max reconnect time exceed"),
    (Said.SERVICE_CONNECTED, "upcall connect service success"),
    (Said.SERVER_CONNECTED, "upcall connect server success"),
    (Said.CONNECT_FAILED, "upcall connect (?:server|service) check failed"),
    (Said.INIT, "VM upcall init|upcall client init success"),
    (Said.TIMED_OUT, "timed out waiting on channel"),
    (Said.RETRIES_SPENT, r"After \d+ attempts, it still doesn't work"),
    (Said.ACTION_FAILED, "vmm action error"),
    (Said.RESIZE, "resize vcpu: now"),
    (Said.CPU_ANSWER, "get vcpu event, cpu_index"),
    (Said.MMIO_CREATED, "create virtio mmio device 0x"),
)
_PATTERNS: Final = tuple((said, re.compile(words)) for said, words in _WORDS)
_WANTED: Final = re.compile("|".join(f"(?:{words})" for _, words in _WORDS).encode())


@dataclass(frozen=True, slots=True)
class VmmLine:
    """One line of the VMM's log that concerns upcall."""

    said: Said
    line: LogLine

    @property
    def evidence(self) -> Evidence:
        return Evidence("vmm-log", self.line.text.strip()[:160], line=self.line.number)


def read_vmm_log(path: Path) -> list[VmmLine]:
    """The lines that concern upcall, in their order; raises UnreadableInput."""
    found: list[VmmLine] = []
    for line in read_lines(path, _WANTED):
        said = next((said for said, words in _PATTERNS if words.search(line.text)), None)
        if said is not None and len(found) < _KEPT:
            found.append(VmmLine(said, line))
    return found
