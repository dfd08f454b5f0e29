"""The memory of a running VMM: through /proc/PID, reading only, stopping nothing.

Only pages that `pagemap` says are there are read: touching a never-used page of a shared mapping
would allocate it, and make the VM bigger.
"""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ...errors import Unreachable
from .windows import OVERLAP, REACH, WINDOW_SIZE, Stretch

LEAST_MAPPING: Final = 64 << 20
"""A guest's memory is in mappings of this size and more."""
_PROC: Final = Path("/proc")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PRESENT: Final = np.uint64(1 << 63)
_SWAPPED: Final = np.uint64(1 << 62)
_ENTRY: Final = 8
_SMALL_WINDOW: Final = 256 << 10
_ENTRIES_READ: Final = 1 << 20
_MAP_LINE: Final = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (....) [0-9a-f]+ [0-9a-f:]+ (\d+)(?: +(.*))?"
)
_GONE: Final = (errno.ESRCH, errno.EIO, errno.ENOENT)


class VmmGone(Unreachable):
    """The process whose memory was read has ended."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of a process's addresses."""

    begin: int
    end: int
    inode: int
    name: str

    @property
    def size(self) -> int:
        return self.end - self.begin


def guest_mappings(maps: str) -> list[Mapping]:
    """The mappings of /proc/PID/maps that can be a guest's memory.

    Pieces side by side count as one: a VMM that gives advice on a part of it splits it.
    """
    joined: list[Mapping] = []
    for line in maps.splitlines():
        found = _MAP_LINE.fullmatch(line)
        if found is None:
            continue
        begin, end, rights, inode, name = found.groups()
        if not rights.startswith("rw-") or (name or "").startswith("["):
            continue
        mapping = Mapping(int(begin, 16), int(end, 16), int(inode), name or "")
        last = joined[-1] if joined else None
        if (
            last
            and last.end == mapping.begin
            and (last.inode, last.name)
            == (
                mapping.inode,
                mapping.name,
            )
        ):
            joined[-1] = Mapping(last.begin, mapping.end, last.inode, last.name)
        else:
            joined.append(mapping)
    return [mapping for mapping in joined if mapping.size >= LEAST_MAPPING]


class RunningVmm:
    """The guest's memory in the VMM with process id `pid`; a context manager.

    Addresses are those of the VMM's process. Raises Unreachable, in one sentence with the way out,
    when there is no such process, it is no VMM, or its memory may not be read.
    """

    aligned = True

    def __init__(self, pid: int, proc: Path = _PROC) -> None:
        self.pid = pid
        self._place = proc / str(pid)
        self.command = command_name(self._place)
        self.name = f"process {pid} ({self.command})" if self.command else f"process {pid}"
        self._mem = self._pagemap = self._pidfd = -1
        self._buffer = bytearray(WINDOW_SIZE)
        self.size = 0
        try:
            self.mappings = guest_mappings((self._place / "maps").read_text())
            if not self.mappings and (self._place / "maps").read_text():
                raise Unreachable(
                    f"{self.name} is no VMM: it has no memory of {LEAST_MAPPING >> 20} MiB or "
                    "more that could be a guest's; upcall-trace doctor lists the VMMs here"
                )
            self._mem = os.open(self._place / "mem", os.O_RDONLY | os.O_CLOEXEC)
            self._pagemap = os.open(self._place / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._pidfd = os.pidfd_open(pid) if proc == _PROC else -1
            # What stands in the way of reading shows only when something is read.
            os.pread(self._pagemap, _ENTRY, self.mappings[0].begin // _PAGE * _ENTRY)
        except Unreachable:
            self.close()
            raise
        except (FileNotFoundError, ProcessLookupError):
            self.close()
            raise Unreachable(
                f"there is no process {pid}; upcall-trace doctor lists the VMMs here"
            ) from None
        except (OSError, IndexError) as error:
            self.close()
            raise Unreachable(_refused(self.name, error)) from None

    def close(self) -> None:
        for descriptor in (self._mem, self._pagemap, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._mem = self._pagemap = self._pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Begin and end of the guest's memory."""
        return [(mapping.begin, mapping.end) for mapping in self.mappings]

    def present(self) -> list[tuple[int, int]]:
        """Begin and end of every run of pages that are there; sets `size`. Raises VmmGone."""
        runs: list[tuple[int, int]] = []
        for mapping in self.mappings:
            for begin, entries in self._entries(mapping):
                runs += _runs(begin, entries)
        self.size = sum(end - begin for begin, end in runs)
        return runs

    def windows(self, small: bool = False) -> Iterator[Stretch]:
        """Every page that is there, with `small` a fraction of a MiB each time; raises VmmGone."""
        limit = _SMALL_WINDOW if small else WINDOW_SIZE
        view = memoryview(self._buffer)[:limit]
        offsets: list[int] = []
        addresses: list[int] = []
        used = 0
        for begin, end in self.present():
            while begin < end:
                if limit - used < 2 * OVERLAP:
                    yield Stretch(view, offsets, addresses, used, used)
                    offsets, addresses, used = [], [], 0
                size = min(end - begin, limit - used)
                got = self._read_into(view[used : used + size], begin)
                if got <= 0:  # unmapped meanwhile, or of a kind that cannot be read
                    break
                offsets.append(used)
                addresses.append(begin)
                used += got
                if begin + got >= end:
                    break
                # The next window begins a bit before this one's end.
                yield Stretch(view, offsets, addresses, used - REACH, used)
                offsets, addresses, used = [], [], 0
                begin += max(got - OVERLAP, _PAGE)
        if used:
            yield Stretch(view, offsets, addresses, used, used)

    def present_pages(self, step: int) -> Iterator[NDArray[np.uint64]]:
        """Addresses of the pages that are there, of `step` pages at a time; raises VmmGone."""
        for mapping in self.mappings:
            for begin, entries in self._entries(mapping, step):
                there = np.flatnonzero(entries & (_PRESENT | _SWAPPED))
                yield np.uint64(begin) + there.astype(np.uint64) * np.uint64(_PAGE)

    def slab_of(self, address: int, size: int) -> Mapping | None:
        """The aligned block of so many bytes, as the guest counts, that an address is in."""
        for whole in self.mappings:
            if whole.begin <= address < whole.end:
                begin = address - (address - whole.begin) % size
                return Mapping(begin, min(begin + size, whole.end), whole.inode, whole.name)
        return None

    def runs_of(self, part: Mapping) -> Iterator[tuple[int, bytes]]:
        """Address and bytes of every run of pages of a part that is there; raises VmmGone."""
        for begin, entries in self._entries(part):
            for first, end in _runs(begin, entries):
                yield first, self.look(first, end - first)

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address that is known to be there; raises VmmGone."""
        if not any(each.begin <= address < each.end for each in self.mappings):
            return b""
        if not self._is_there(address, size):
            return b""
        return self.look(address, size)

    def look(self, address: int, size: int) -> bytes:
        """As `read`, without asking whether the page is there: for what was read before."""
        try:
            return os.pread(self._mem, size, address)
        except OSError as error:
            self._gone(error)
            return b""

    def alive(self) -> bool:
        """Whether the process is still running."""
        if self._pidfd < 0:
            return self._has_maps()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def _has_maps(self) -> bool:
        try:
            return bool((self._place / "maps").read_text())
        except OSError:
            return False

    def _entries(
        self, mapping: Mapping, pages: int = _ENTRIES_READ
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        step = pages * _PAGE
        for begin in range(mapping.begin, mapping.end, step):
            count = (min(begin + step, mapping.end) - begin) // _PAGE
            try:
                raw = os.pread(self._pagemap, count * _ENTRY, begin // _PAGE * _ENTRY)
            except OSError as error:
                self._gone(error)
                return
            if not raw:  # a process that ended and was not waited for has no memory
                self._check_gone()
            yield begin, np.frombuffer(raw[: len(raw) // _ENTRY * _ENTRY], "<u8")

    def _is_there(self, address: int, size: int) -> bool:
        first = address // _PAGE
        count = (address + size - 1) // _PAGE - first + 1
        try:
            raw = os.pread(self._pagemap, count * _ENTRY, first * _ENTRY)
        except OSError as error:
            self._gone(error)
            return False
        entries = np.frombuffer(raw[: len(raw) // _ENTRY * _ENTRY], "<u8")
        return bool(len(entries) == count and np.all(entries & (_PRESENT | _SWAPPED)))

    def _read_into(self, view: memoryview, address: int) -> int:
        try:
            return os.preadv(self._mem, [view], address)
        except OSError as error:
            self._gone(error)
            return 0

    def _gone(self, error: OSError) -> None:
        """Raises VmmGone when the process is, and not only one of its pages."""
        if error.errno in _GONE:
            self._check_gone()

    def _check_gone(self) -> None:
        if not self._has_maps():
            raise VmmGone(f"{self.name} has ended") from None


def command_name(place: Path) -> str:
    """The program of a process, by its place in /proc; empty when there is none."""
    try:
        return (place / "comm").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _runs(begin: int, entries: NDArray[np.uint64]) -> list[tuple[int, int]]:
    there = (entries & (_PRESENT | _SWAPPED)) != 0
    edges = np.flatnonzero(np.diff(there.astype(np.int8), prepend=0, append=0))
    addresses = (begin + edges * _PAGE).tolist()
    return list(zip(addresses[::2], addresses[1::2], strict=True))


def _refused(name: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or "its memory is not shown"
    return (
        f"the memory of {name} may not be read ({reason}): run this as the VMM's user or root, "
        "with CAP_SYS_PTRACE, in its user and PID namespace; upcall-trace doctor says what stands "
        "in the way"
    )
