"""The guest's memory that a command line names, and what is in it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dissectors.constants import UPCALL_PORT

from ...capture.records import NO_TIMES, TIMES, Header
from ...capture.unpacking import STDIN
from ...errors import NothingRun, WrongUsage
from ...sources.spooled import plain
from ...vantage.guest_memory.as_capture import SOURCE, as_records
from ...vantage.guest_memory.assembling import assemble
from ...vantage.guest_memory.conversations import Assembled
from ...vantage.guest_memory.images import Image
from ...vantage.guest_memory.locating import locate
from ...vantage.guest_memory.processes import RunningVmm
from ...vantage.guest_memory.sandboxes import process_of, vmm_processes
from ...vantage.recorder import live_header
from .files import write_capture
from .output import progress, talk

GuestMemory = RunningVmm | Image


@dataclass(frozen=True, slots=True)
class MemoryTarget:
    """What was named: a running VMM by its process or its sandbox, or an image."""

    pid: int | None = None
    sandbox: str | None = None
    image: Path | None = None

    @contextmanager
    def open(self) -> Iterator[GuestMemory]:
        """Its memory; raises Unreachable, UnreadableInput and WrongUsage."""
        if sum(each is not None for each in (self.pid, self.sandbox, self.image)) != 1:
            raise WrongUsage("give one of --pid N, --sandbox ID and an image")
        memory: GuestMemory
        if self.image is not None:
            memory = Image(plain(self.image) if self.image == STDIN else self.image)
        else:
            pid = self.pid
            if pid is None:
                pid = process_of(self.sandbox or "", vmm_processes()).pid
            memory = RunningVmm(pid)
        with memory:
            yield memory


def sandbox_in(memory: GuestMemory) -> str | None:
    """The sandbox whose VM this is, as far as command lines tell."""
    if not isinstance(memory, RunningVmm):
        return None
    return {each.pid: each.sandbox for each in vmm_processes()}.get(memory.pid)


def pid_or_image(text: str) -> MemoryTarget:
    """What one word names: a process id, else an image."""
    return MemoryTarget(pid=int(text)) if text.isdecimal() else MemoryTarget(image=Path(text))


@contextmanager
def memory_capture(named: str, port: int = UPCALL_PORT) -> Iterator[Path]:
    """What stands in a VM's memory, or in an image, as a capture for one command.

    Raises NothingRun when there is nothing, and as `MemoryTarget.open` does.
    """
    target = pid_or_image(named)
    with target.open() as memory, tempfile.TemporaryDirectory(prefix="upcall-memory-") as place:
        assembled = look_through(memory, port)
        if assembled.empty:
            raise NothingRun(nothing_in(memory, assembled))
        name = f"process-{named}" if target.image is None else Path(named).name
        path = Path(place) / f"{name}.upcap"
        records = as_records(assembled, time.time_ns(), port)
        write_capture(path, memory_header(memory, None, port), records, private=True)
        yield path


def look_through(memory: GuestMemory, port: int) -> Assembled:
    """Find everything in a memory, with a progress bar where it takes long."""
    if isinstance(memory, RunningVmm):
        memory.present()  # to know how much there is
    with progress(f"looking through {memory.name}", memory.size) as report:
        found = locate(memory.windows(), memory.aligned, port, report)
    assembled = assemble(found, memory.read, memory.ranges, port, memory.aligned)
    if isinstance(memory, Image) and memory.missing:
        talk(f"{memory.name} was cut off: what is missing of it cannot be looked at")
    return assembled


def memory_header(memory: GuestMemory, arch: str | None, port: int) -> Header:
    """The header of a capture of what stands in memory now."""
    notes = {TIMES: NO_TIMES, "memory": memory.name, "looked": now_text()}
    header = live_header(SOURCE, arch, port, notes)
    return replace(header, sandbox=sandbox_in(memory), wall_ns=None, resolution_ns=0)


def now_text() -> str:
    """The wall clock's time in UTC as RFC 3339."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def nothing_in(memory: GuestMemory, assembled: Assembled) -> str:
    """Why nothing may have been found."""
    looked = assembled.looked_at / (1 << 20)
    return (
        f"no upcall connection stands in the {looked:.1f} MiB of {memory.name}: nobody has "
        "connected yet, its kernel has no upcall, or this is not the memory of a guest (encrypted "
        "guests cannot be read)"
    )
