"""`record`: the capture proxy on the VMM's socket, or a vsockmon interface inside a guest."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import click

from ..capture.records import Header
from ..errors import ExitCode, SomethingLost, WrongUsage
from ..sockets.addresses import (
    Address,
    UnixAddress,
    check_reachable,
    check_socket_path,
    parse_address,
)
from ..sockets.listening import InPlace, Listener
from ..vantage.apart import ApartRecorder
from ..vantage.interface import dropped_packets, open_interface, record_packets
from ..vantage.proxy import Proxy
from ..vantage.recorder import live_header
from ..vantage.relay_host import GuestRoute
from ..vantage.store import OnStoreError
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
from .support.output import talk
from .support.signals import stop_on_signals

# A forwarding thread that becomes ready must not wait Python's default 5 ms for its turn.
_SWITCH_INTERVAL_S = 0.0005
_LOOK_UP_S = 0.05


@click.command("record")
@click.option("--listen", type=CAPTURE, metavar="PATH", help="Where clients connect from now on.")
@click.option("--upstream", metavar="ADDRESS", help="The VMM's socket, or vsock://CID[:PORT].")
@click.option("--in-place", type=CAPTURE, metavar="SOCKET", help="Take this socket's place.")
@click.option("--interface", metavar="NAME", help="Capture inside a guest from vsockmon.")
@memory_options
@click.option("-o", "--output", type=CAPTURE, required=True, help="The capture to write.")
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
@click.option("--note", "notes", multiple=True, metavar="KEY=TEXT", help="Kept in the capture.")
@world_options
def record_command(
    listen: Path | None,
    upstream: str | None,
    in_place: Path | None,
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
) -> ExitCode:
    """Record upcall traffic into a capture until SIGINT, SIGTERM or SIGHUP.

    With --listen and --upstream a proxy stands between the client and the VMM's socket. With
    --in-place SOCKET it takes the place of a running VMM's socket and gives it back at the end.
    With --interface it listens on a vsockmon interface, inside a guest. With --memory it watches
    a running VM's memory from outside, where stock Dragonball's own requests stand.
    Connections to other ports pass untouched, and only their beginning and end are noted.

    What the guest looked like at boot is kept in the capture: from --world, or from the note that
    a simulated guest or a lab leaves beside its socket.
    """
    if memory is not None:
        if listen or upstream or in_place or interface or guest_ports:
            raise WrongUsage("--memory watches a running VM, and takes no socket or interface")
        kept = parse_notes(notes)
        kept |= world_given(world_file, machine, kept)
        policy = OnStoreError(on_store_error)
        span_ns = parse_interval(interval)
        wish = MemoryWish(span_ns, cpu_share / 100, port, arch, kept, policy, overwrite)
        if watch is not None:
            if memory != EVERY:
                raise WrongUsage("--watch takes every VM of this machine: give --memory alone")
            return record_node(output, wish)
        if memory == EVERY:
            raise WrongUsage("--memory needs the VMM's process id or sandbox, or --watch")
        return record_memory(memory, output, wish)
    if watch is not None:
        raise WrongUsage("--watch needs --memory")
    given = [listen is not None and upstream is not None, in_place is not None, bool(interface)]
    if sum(given) != 1 or (listen is None) != (upstream is None):
        raise WrongUsage("give --listen and --upstream, or --in-place, or --interface")
    stop = threading.Event()
    stop_on_signals(stop)
    _raise_descriptor_limit()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    source = "vsockmon" if interface else "proxy"
    known = parse_notes(notes)
    known |= world_given(world_file, machine, known)
    behind = in_place or (Path(upstream) if upstream else None)
    header = live_header(source, arch, port, (target_notes(behind) if behind else {}) | known)
    recording = _recording(output, header, OnStoreError(on_store_error), overwrite, stop)
    if interface:
        with open_interface(interface) as packets, recording as recorder:
            talk(f"recording {interface} into {output}")
            record_packets(packets, recorder, stop, dropped_packets, port)
        return ExitCode.EXPECTED
    with ExitStack() as stack:
        address: Address
        if in_place is not None:
            place = _take_place(stack, in_place)
            listener, name, address = place.listener, in_place, UnixAddress(place.aside)
            guests = [_guest_in_place(stack, in_place, p) for p in guest_ports]
        else:
            assert listen is not None
            assert upstream is not None
            name, address = listen, parse_address(upstream)
            check_reachable(address)
            listener = stack.enter_context(closing(Listener(listen)))
            guests = [_guest(stack, address, listen, p) for p in guest_ports]
        with recording as recorder:
            proxy = Proxy(address, recorder, talk, port)
            proxy.listen(listener.socket)
            for guest_listener, route in guests:
                proxy.listen(guest_listener.socket, route)
            talk(f"recording {name} -> {upstream or address} into {output}")
            while not stop.wait(_LOOK_UP_S):
                pass
            proxy.stop()
    return ExitCode.EXPECTED


@contextmanager
def _recording(
    output: Path, header: Header, policy: OnStoreError, overwrite: bool, stop: threading.Event
) -> Iterator[ApartRecorder]:
    """A recorder; at the end the capture is closed, summed up and given its index.

    Raises SomethingLost when traffic crossed that is not in it.
    """
    recorder = ApartRecorder(output, header, policy, stop, overwrite, tell=talk)
    try:
        yield recorder
    finally:
        recorder.close()
    account = recorder.account
    if account.stopped:
        raise SomethingLost(
            f"{output} could not be written ({account.failure}), so the recording ended; "
            f"{account.lost} bytes of traffic went by unrecorded; --on-store-error pass would "
            "have let the traffic go on"
        )
    talk(
        f"{output}: {account.connections} connections, {account.operations} operations"
        + ("" if account.indexed else ", no index")
    )
    if account.failure or account.lost:
        raise SomethingLost(f"{output}: {account.lost} bytes of traffic were not recorded")


def _take_place(stack: ExitStack, path: Path) -> InPlace:
    place = stack.enter_context(closing(InPlace(path)))
    if place.recovered:
        talk(f"{path}: put back what an earlier proxy had left aside")
    talk(f"if this process is killed, put the socket back with: {place.way_back}")
    return place


def _guest_in_place(stack: ExitStack, path: Path, port: int) -> tuple[Listener, GuestRoute]:
    place = _take_place(stack, _suffixed(path, port))
    return place.listener, GuestRoute(port, place.aside)


def _guest(
    stack: ExitStack, upstream: Address, listen: Path, port: int
) -> tuple[Listener, GuestRoute]:
    """What the VMM connects to for a guest's connection to `port`, and where that goes on."""
    if not isinstance(upstream, UnixAddress):
        raise WrongUsage("--guest-port needs an upstream that is a Unix socket")
    listener = stack.enter_context(closing(Listener(_suffixed(upstream.path, port))))
    return listener, GuestRoute(port, check_socket_path(_suffixed(listen, port)))


def _suffixed(path: Path, port: int) -> Path:
    return path.with_name(f"{path.name}_{port}")


def _raise_descriptor_limit() -> None:
    """A VMM's socket has up to 1023 connections, and each costs us up to six descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
