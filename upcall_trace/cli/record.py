"""`record`: the capture proxy on VMMs' sockets, a vsockmon interface, or a VM's memory."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import click

from ..errors import ExitCode, WrongUsage
from ..vantage.interface import dropped_packets, open_interface, record_packets
from ..vantage.recorder import live_header
from ..vantage.store import OnStoreError
from .support.descriptors import raise_descriptor_limit
from .support.files import CAPTURE
from .support.memory_recording import (
    EVERY,
    MemoryWish,
    memory_options,
    parse_interval,
    record_memory,
    record_node,
)
from .support.options import parse_notes, target_notes, world_given, world_options
from .support.recording_options import RunOptions, parse_sync, run_options
from .support.signals import stop_on_signals
from .support.socket_recording import (
    Keeping,
    WantedSockets,
    record_sockets,
    recorded,
    watch_sockets,
)
from .support.standard_output import STDOUT, check_stdout, named

IN_PLACE = ""
# A thread that becomes ready must not wait Python's default 5 ms for its turn.
_SWITCH_INTERVAL_S = 0.0005


@click.command("record")
@click.option(
    "--listen",
    type=CAPTURE,
    multiple=True,
    metavar="PATH",
    help="Where clients connect from now on; once for each --upstream.",
)
@click.option(
    "--upstream", multiple=True, metavar="ADDRESS", help="The VMM's socket, or vsock://CID[:PORT]."
)
@click.option(
    "--in-place",
    type=CAPTURE,
    multiple=True,
    is_flag=False,
    flag_value=IN_PLACE,
    metavar="SOCKET",
    help="Take this socket's place; with --watch, of all it finds.",
)
@click.option("--interface", metavar="NAME", help="Capture inside a guest from vsockmon.")
@memory_options
@click.option(
    "-o",
    "--output",
    type=CAPTURE,
    required=True,
    help="The capture to write; - is standard output.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing capture.")
@click.option(
    "--on-store-error",
    type=click.Choice([policy.value for policy in OnStoreError]),
    default="pass",
    show_default=True,
    help="When the disk fails: end the proxy, or let traffic pass unrecorded.",
)
@click.option(
    "--guest-port",
    "guest_ports",
    type=click.IntRange(0, 0xFFFFFFFF),
    multiple=True,
    metavar="P",
    help="Also relay guest-initiated connections to this port.",
)
@click.option("--port", default=219, show_default=True, help="The guest's upcall port.")
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), help="The guest's, if known.")
@click.option(
    "--note", "notes", multiple=True, metavar="KEY=TEXT", help="A note to keep in the capture."
)
@world_options
@run_options
def record_command(
    listen: tuple[Path, ...],
    upstream: tuple[str, ...],
    in_place: tuple[Path, ...],
    interface: str | None,
    memory: str | None,
    interval: str,
    cpu_share: float,
    watch: str | None,
    output: Path,
    overwrite: bool,
    on_store_error: str,
    guest_ports: tuple[int, ...],
    port: int,
    arch: str | None,
    notes: tuple[str, ...],
    world_file: Path | None,
    machine: str | None,
    **running: Any,
) -> ExitCode:
    """Record upcall traffic into a capture until SIGINT or SIGTERM.

    With --listen and --upstream a proxy stands between the client and the VMM's socket. With
    --in-place SOCKET it takes the place of a running VMM's socket and gives it back at the end.
    With --interface it listens on a vsockmon interface, inside a guest. With --memory it watches a
    running VM's memory from outside, where stock Dragonball's own requests are. Connections to
    other ports pass untouched, and only their beginning and end are noted.

    --rotate-size, --rotate-time and --rotate-count divide a long recording into files in the
    directory -o, which every command reads as one capture. SIGHUP begins a new file, and without
    a ring does so once the old one was renamed. In a service of systemd, sockets that it hands
    over take the place of --listen.

    With -o - it goes to standard output while it grows, for example into `upcall-trace show -` or
    over ssh into a file. A reader that is gone ends nothing: the traffic passes, and is counted.

    What the guest looked like at boot is kept in the capture: from --world, or from the note that
    a simulated guest or a lab leaves beside its socket.
    """
    if output == STDOUT:
        ring = RunOptions(**running).rotation() or running["snapshot"]
        if ring or watch is not None:
            raise WrongUsage("several files do not fit into standard output: -o names a directory")
        check_stdout()
    if memory is not None:
        if listen or upstream or in_place or interface or guest_ports:
            raise WrongUsage("--memory watches a running VM, and takes no socket or interface")
        kept = parse_notes(notes)
        kept |= world_given(world_file, machine, kept)
        policy = OnStoreError(on_store_error)
        span_ns = parse_interval(interval)
        sync_s = parse_sync(running["sync"])
        wish = MemoryWish(span_ns, cpu_share / 100, port, arch, kept, policy, overwrite, sync_s)
        if watch is not None:
            if memory != EVERY:
                raise WrongUsage("--watch takes every VM of this machine: give --memory alone")
            return record_node(output, wish)
        if memory == EVERY:
            raise WrongUsage("--memory needs the VMM's process id or sandbox, or --watch")
        return record_memory(memory, output, wish)
    stop = threading.Event()
    raise_descriptor_limit()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    known = parse_notes(notes)
    known |= world_given(world_file, machine, known)
    policy = OnStoreError(on_store_error)
    ways = RunOptions(**running)
    given = [bool(listen) or bool(upstream), bool(in_place) and watch is None, bool(interface)]
    if watch is not None:
        if any(given) or watch == "*":
            raise WrongUsage("--watch GLOB needs --in-place, or --memory, and no other source")
        wanted = WantedSockets((), (), (), guest_ports, port)
        recording = Keeping(
            output, overwrite, policy, live_header("proxy", arch, port, known), ways
        )
        return watch_sockets(watch, wanted, recording, stop)
    if sum(given) != 1:
        raise WrongUsage("give --listen and --upstream, or --in-place, or --interface")
    for socket in [*in_place, *map(Path, upstream)]:
        known = target_notes(socket) | known
    source = "vsockmon" if interface else "proxy"
    recording = Keeping(output, overwrite, policy, live_header(source, arch, port, known), ways)
    if interface:
        stop_on_signals(stop)
        with open_interface(interface) as packets, recorded(recording, stop) as running_recorder:
            running_recorder.say(f"recording {interface} into {named(output)}")
            record_packets(packets, running_recorder.recorder, stop, dropped_packets, port)
        return ExitCode.EXPECTED
    return record_sockets(
        WantedSockets(listen, upstream, in_place, guest_ports, port), recording, stop
    )
