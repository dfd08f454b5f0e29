"""What a lab guest's console says: its STATE lines, and why it did not come up."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

_STATE: Final = re.compile(
    r"STATE cpus=([\d,-]{1,1024}) present=([\d,-]{1,1024}) blk=(\S*) virtio=(\S*) mem=(\d{1,15})\b",
    re.ASCII,
)
_READY: Final = re.compile(r"READY vsock=(yes|no) upcall=(yes|no)")
_VERSION: Final = re.compile(r"Linux version (\d{1,4})\.(\d{1,4})")
_INIT: Final = re.compile(r"Run /\S+ as init process")
_MOST_CPUS: Final = 8192
_PANIC: Final = re.compile(r"Kernel panic - not syncing: (.*)\n")
_NEWEST: Final = 256 << 10
"""Bytes at a console's end in which the newest state is looked for first."""


@dataclass(frozen=True, slots=True)
class SeenState:
    """What the guest's init saw: CPU numbers, names of disks and virtio devices, MemTotal."""

    cpus_online: tuple[int, ...]
    cpus_present: tuple[int, ...]
    disks: tuple[str, ...]
    virtio: tuple[str, ...]
    memory_kib: int

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


class Console:
    """A console's log while it grows; `mark` says from where on it is of the current boot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = 0

    def mark(self) -> None:
        """What comes from now on belongs to a new boot."""
        self._mark = self.path.stat().st_size if self.path.exists() else 0

    def text(self) -> str:
        """Everything of this boot."""
        return self._read(self._mark)

    def state(self) -> SeenState | None:
        """The newest STATE, None before the first."""
        end = self.path.stat().st_size if self.path.exists() else 0
        for begin in (max(self._mark, end - _NEWEST), self._mark):
            newest = deque(states(self._read(begin)), maxlen=1)
            if newest:
                return newest[0]
        return None

    def first_state(self) -> SeenState | None:
        """The first STATE of this boot, None before it."""
        return next(states(self.text()), None)

    def _read(self, begin: int) -> str:
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""


def states(text: str) -> Iterator[SeenState]:
    """Every STATE line of a console, in order."""
    for line in text.split("\n")[:-1]:  # what follows the last newline may be half a line
        found = _STATE.search(line)
        if found:
            cpus, present, disks, virtio, memory = found.groups()
            yield SeenState(
                _numbers(cpus), _numbers(present), _names(disks), _names(virtio), int(memory)
            )


def is_ready(text: str) -> bool:
    """True once the guest's init is done and the upcall server listens."""
    found = _READY.search(text)
    return found is not None and found.groups() == ("yes", "yes")


def release_of(text: str) -> tuple[int, int] | None:
    """The version of the kernel that booted, `(6, 12)`; None when its console does not tell."""
    found = _VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else None


def has_begun(text: str) -> bool:
    """True once the kernel has started the guest's init."""
    return _INIT.search(text) is not None


def trouble(text: str) -> str | None:
    """Why this guest will never answer, as far as its console has told; None while it may."""
    panic = _PANIC.search(text)
    if panic:
        return f"the guest's kernel panicked: {panic[1].strip()}"
    if "LAB module upcall_lab failed" in text:
        return "the lab's module did not load; the guest's console says why"
    ready = _READY.search(text)
    if ready and ready[1] == "no":
        return (
            "the kernel came up, but has no virtio vsock device: it needs CONFIG_VIRTIO_VSOCKETS"
            " and the driver of the machine's bus, CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES on microvm"
        )
    if ready and ready[2] == "no":
        return (
            "the kernel came up, but has no upcall server: it needs CONFIG_DRAGONBALL_DRIVERS and"
            " CONFIG_DRAGONBALL_UPCALL_SRV, or its console says why the server did not start"
        )
    return None


def last_words(text: str) -> str:
    """How far a guest came that says nothing more."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return (
            "its console printed nothing: is it an x86-64 kernel, with the driver of a serial port?"
        )
    return f"its console ends with: {lines[-1]}"


def _numbers(ranges: str) -> tuple[int, ...]:
    """`0,2-3` as 0, 2, 3."""
    numbers: list[int] = []
    for part in ranges.split(","):
        first, _, end = part.partition("-")
        if first.isdecimal() and (not end or end.isdecimal()):
            room = _MOST_CPUS - len(numbers)  # a guest may print anything
            numbers += range(int(first), min(int(end or first) + 1, int(first) + room))
    return tuple(numbers)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name for name in listed.split(",") if name)
