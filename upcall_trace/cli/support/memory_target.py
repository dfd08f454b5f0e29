"""The guest's memory that a command line names, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ...capture.records import NO_TIMES, TIMES, Header
from ...errors import WrongUsage
from ...vantage.guest_memory.as_capture import SOURCE
from ...vantage.guest_memory.conversations import Assembled, assemble
from ...vantage.guest_memory.images import Image
from ...vantage.guest_memory.locating import locate
from ...vantage.guest_memory.processes import RunningVmm
from ...vantage.guest_memory.sandboxes import process_of, vmm_processes
from ...vantage.recorder import live_header
from .output import progress, talk


@dataclass(frozen=True, slots=True)
class MemoryTarget:
    """What was named: a running VMM by its process or its sandbox, or an image."""

    pid: int | None = None
    sandbox: str | None = None
    image: Path | None = None

    @contextmanager
    def open(self) -> Iterator[RunningVmm | Image]:
        """Its memory; raises Unreachable, UnreadableInput and WrongUsage."""
        if sum(each is not None for each in (self.pid, self.sandbox, self.image)) != 1:
            raise WrongUsage("give one of --pid N, --sandbox ID and an image")
        memory: RunningVmm | Image
        if self.image is not None:
            memory = Image(self.image)
        else:
            pid = self.pid
            if pid is None:
                pid = process_of(self.sandbox or "", vmm_processes()).pid
            memory = RunningVmm(pid)
        with memory:
            yield memory


def sandbox_in(memory: RunningVmm | Image) -> str | None:
    """The sandbox whose VM this is, as far as command lines tell."""
    if not isinstance(memory, RunningVmm):
        return None
    return {each.pid: each.sandbox for each in vmm_processes()}.get(memory.pid)


def pid_or_image(text: str) -> MemoryTarget:
    """What one word names: a process id, else an image."""
    return MemoryTarget(pid=int(text)) if text.isdecimal() else MemoryTarget(image=Path(text))


def look_through(memory: RunningVmm | Image, port: int) -> Assembled:
    """Find everything in a memory, with a progress bar where it takes long."""
    if isinstance(memory, RunningVmm):
        memory.present()  # to know how much there is
    with progress(f"looking through {memory.name}", memory.size) as report:
        found = locate(memory.windows(), memory.aligned, port, report)
    assembled = assemble(found, memory.read)
    if isinstance(memory, Image) and memory.missing:
        talk(f"{memory.name} was cut off: what is missing of it cannot be looked at")
    return assembled


def memory_header(memory: RunningVmm | Image, arch: str | None, port: int) -> Header:
    """The header of a capture of what stands in memory now."""
    notes = {TIMES: NO_TIMES, "memory": memory.name}
    return replace(live_header(SOURCE, arch, port, notes), sandbox=sandbox_in(memory))


def nothing_in(memory: RunningVmm | Image, assembled: Assembled) -> str:
    """Why nothing may have been found."""
    looked = assembled.looked_at / (1 << 20)
    return (
        f"no upcall connection stands in the {looked:.1f} MiB of {memory.name}: nobody has "
        "connected yet, its kernel has no upcall, or this is not the memory of a guest (encrypted "
        "guests cannot be read)"
    )
