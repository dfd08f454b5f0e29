"""`demo`: a simulated guest, the proxy, and a client that hotplugs and makes a few mistakes."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import click

from dissectors.constants import MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request

from .. import __version__
from ..capture.index import append_mark
from ..capture.records import COMMENT, Header, Mark
from ..diagnose.report import as_text
from ..diagnose.run import diagnose
from ..errors import ExitCode
from ..kernel.noted_world import world_notes
from ..kernel.world import kata_pod
from ..replay.plan import DANGERS
from ..replay.report import verdict_lines
from ..replay.run import Replay, Terms, read_recording
from ..replay.target import own_guest
from ..replay.tempo import Patience
from ..simulated.on_socket import SimulatedGuest
from ..sockets.addresses import UnixAddress, socket_folder
from ..sockets.client import UpcallClient
from ..sockets.listening import Listener
from ..trace.opening import load
from ..trace.samples import sample
from ..vantage.proxy import Proxy
from ..vantage.recorder import Recorder
from ..vantage.store import OnStoreError
from ..views.remarks import remarks_on
from ..views.text import HEADING
from .support.listing import show_comments, show_operation
from .support.options import color_option
from .support.output import out, talk

_T = MessageType
_DISK: Final = (0xE0006000, 0x2000, 5)
_PATIENCE_S: Final = 0.5
_WORLD: Final = kata_pod()
_WRONG_MAGIC: Final = dataclasses.replace(mmio_request(_T.ADD_MMIO, *_DISK), magic_version=0)
_SCRIPT: Final[tuple[tuple[tuple[Request, str], ...], ...]] = (
    (
        (cpu_request(_T.ADD_CPU, [1, 2]), "Two vCPUs come up."),
        (
            cpu_request(_T.ADD_CPU, [2]),
            "APIC id 2 is up already. Dragonball tells nobody: every later resize is rejected.",
        ),
        (mmio_request(_T.ADD_MMIO, *_DISK), "A virtio-mmio device, on the interrupt all share."),
        (
            mmio_request(_T.ADD_MMIO, *_DISK),
            "The same window again. Dragonball counts any answer to an add as done.",
        ),
        (
            mmio_request(_T.DEL_MMIO, 0xE0006000, 0x2000, 6),
            "Base, size and interrupt must all be those of the device; here the interrupt is not.",
        ),
        (mmio_request(_T.DEL_MMIO, *_DISK), "Now it goes."),
        (
            _WRONG_MAGIC,
            "A wrong magic_version: the guest does nothing, and the 0 is of the reply before.",
        ),
        (pci_request(_T.ADD_PCI, 0, 20), "Nothing answers in this slot."),
        (
            pci_request(_T.ADD_PCI, 0, 3),
            "This one was found. PCI success writes no result: the errno before it is still there.",
        ),
    ),
    (
        (
            cpu_request(_T.DEL_CPU, [77]),
            "The guest cannot find this CPU: its thread crashes. No answer will ever come.",
        ),
    ),
    ((bare_request(_T.ADD_MEM), "Another connection still answers; no kernel handles this type."),),
)
"""Connections, each with its requests and what they show."""


@click.command("demo")
@color_option
def demo_command() -> ExitCode:
    """Record a client that hotplugs against a simulated guest, and show what was recorded.

    It needs nothing but this package, and touches no VM. The capture stays on disk.
    """
    directory = Path(tempfile.mkdtemp(prefix="upcall-demo-"))
    path = directory / "demo.upcap"
    talk("a simulated guest, the recording proxy in front of it, and a client; this takes a second")
    _record(path)
    capture = load(path)
    out(HEADING)
    remarks = remarks_on(capture.marks)
    for operation in capture.operations:
        show_operation(operation)
        show_comments(remarks, operation)
    out("\nWhy, by upcall-trace diagnose:\n")
    for line in as_text([diagnose(path, _WORLD)]):
        out(line)
    out("\nAgain, against a second guest, by upcall-trace replay:\n")
    for line in _replayed(path):
        out(line)
    program = _program()
    out(
        f"\nThe capture is\n{path}\n\nTry:\n"
        f"  {program} tui {path}   # browse it, ? lists the keys\n"
        f"  {program} diagnose --all {path}\n"
        f"  {program} show --filter 'ret < 0' {path}\n"
        f"  {program} show --hex {path}\n"
        f"  {program} show {sample('cpu_lifecycle')}   # a real guest"
    )
    return ExitCode.EXPECTED


def _program() -> str:
    """How the shell finds this program: by its name, or else as it was called this time."""
    if shutil.which("upcall-trace"):
        return "upcall-trace"
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m upcall_trace"
    return shlex.quote(str(called))


def _replayed(path: Path) -> Iterator[str]:
    """The verdict on the same requests to a guest that has just booted."""
    with SimulatedGuest(_WORLD) as guest:
        begun = time.monotonic()
        terms = Terms(patience=Patience(silence_s=_PATIENCE_S, simulated=True), allow=DANGERS)
        with Replay(read_recording(path), own_guest(guest), terms=terms) as replay:
            for _ in replay.play():
                pass
        yield from verdict_lines(replay, time.monotonic() - begun)


def _record(path: Path) -> None:
    """Run the script through the proxy into a capture with remarks and an index."""
    header = Header(
        source="proxy",
        tool=f"upcall-trace {__version__}",
        wall_ns=time.time_ns(),
        notes=world_notes(_WORLD),
    )
    with (
        socket_folder() as folder,
        SimulatedGuest(_WORLD, path=Path(folder) / "guest") as guest,
        closing(Listener(Path(folder) / "proxy")) as listener,
        closing(Recorder(path, header, OnStoreError.STOP, threading.Event())) as recorder,
    ):
        proxy = Proxy(UnixAddress(guest.path), recorder, talk)
        proxy.listen(listener.socket)
        for requests in _SCRIPT:
            with UpcallClient(UnixAddress(listener.path)) as client:
                for request, _ in requests:
                    client.ask(request.encode(), _PATIENCE_S)
        proxy.stop()
    for conn, requests in enumerate(_SCRIPT, start=1):
        for number, (_, remark) in enumerate(requests):
            append_mark(path, Mark(time.time_ns(), conn, number, COMMENT, remark))
