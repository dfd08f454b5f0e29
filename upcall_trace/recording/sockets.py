"""The sockets of one recording: each with its proxy, all in one loop and with one recorder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Final

from ..capture.records import Origin
from ..errors import UserError, WrongUsage
from ..sockets.addresses import (
    Address,
    UnixAddress,
    check_reachable,
    check_socket_path,
    parse_address,
)
from ..sockets.listening import InPlace, Listener
from ..vantage.proxy import DESCRIPTORS_EACH, DESCRIPTORS_MOVING, Loop, Proxy
from ..vantage.recorder import Records
from ..vantage.relay_host import GuestRoute, Tamper

_QUIET_S: Final = 60.0

Tell = Callable[[str], None]


@dataclass(slots=True)
class Tapped:
    """One socket that is recorded: where clients connect, and where that goes on."""

    name: Path
    address: Address
    listeners: list[tuple[socket, GuestRoute | None]]
    place: InPlace | None = None
    proxies: list[Proxy] = field(default_factory=list)
    began_s: float = 0.0
    told_quiet: bool = False


class SocketRecording:
    """Listens for clients from the beginning on, and takes them in once it has a recorder.

    A context manager that gives every socket back. Raises UserError where one cannot be had.
    """

    def __init__(self, tell: Tell, port: int) -> None:
        self._tell = tell
        self._port = port
        self._stack = ExitStack()
        self.tapped: list[Tapped] = []
        self.loop: Loop | None = None
        self._recorder: Records | None = None
        self._tamper: Tamper | None = None

    def __enter__(self) -> SocketRecording:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def between(
        self, listen: Path | socket, upstream: str, guest_ports: Iterable[int] = ()
    ) -> None:
        """Clients connect to `listen`, which may be a socket that was handed to us."""
        address = parse_address(upstream)
        check_reachable(address)
        if isinstance(listen, socket):
            handed, path = listen, Path(listen.getsockname())
        else:
            path = listen
            handed = self._stack.enter_context(closing(Listener(listen))).socket
        listeners: list[tuple[socket, GuestRoute | None]] = [(handed, None)]
        for port in guest_ports:
            if not isinstance(address, UnixAddress):
                raise WrongUsage("--guest-port needs an upstream that is a Unix socket")
            ours = Listener(_suffixed(address.path, port))
            self._stack.enter_context(closing(ours))
            route = GuestRoute(port, check_socket_path(_suffixed(path, port)))
            listeners.append((ours.socket, route))
        self.tapped.append(Tapped(path, address, listeners))

    def in_place(self, path: Path, guest_ports: Iterable[int] = ()) -> Tapped:
        """Take the place of a VMM's socket."""
        place = self._take(path)
        listeners: list[tuple[socket, GuestRoute | None]] = [(place.listener.socket, None)]
        for port in guest_ports:
            guests = self._take(_suffixed(path, port))
            listeners.append((guests.listener.socket, GuestRoute(port, guests.aside)))
        tapped = Tapped(path, UnixAddress(place.aside), listeners, place)
        self.tapped.append(tapped)
        return tapped

    def _take(self, path: Path) -> InPlace:
        place = self._stack.enter_context(closing(InPlace(path)))
        if place.recovered:
            self._tell(f"{path}: put back what an earlier proxy had left aside")
        self._tell(f"if this process is killed, put the socket back with: {place.way_back}")
        return place

    def begin(self, recorder: Records, tamper: Tamper | None = None) -> None:
        """Take clients in from now on."""
        self.loop, self._recorder, self._tamper = Loop(), recorder, tamper
        for number, tapped in enumerate(self.tapped):
            if len(self.tapped) > 1:
                now = recorder.now()
                recorder.record(Origin(now, number + 1, "proxy", str(tapped.name)))
            self._begin(tapped, number + 1 if len(self.tapped) > 1 else 0)

    def _begin(self, tapped: Tapped, source: int) -> None:
        assert self._recorder is not None
        proxy = Proxy(
            tapped.address, self._recorder, self._tell, self._port, source, self.loop, self._tamper
        )
        for listener, route in tapped.listeners:
            proxy.listen(listener, route)
        tapped.proxies.append(proxy)
        tapped.began_s = time.monotonic()

    def look(self) -> None:
        """To be called now and then: a VMM may have come again, or never use its socket."""
        for number, tapped in enumerate(self.tapped):
            if tapped.place is not None and tapped.place.is_replaced():
                self._follow(tapped, number + 1 if len(self.tapped) > 1 else 0)
            quiet = tapped.began_s and time.monotonic() - tapped.began_s > _QUIET_S
            if quiet and tapped.place and not tapped.told_quiet:
                tapped.told_quiet = True
                if not any(proxy.counts.upcall for proxy in tapped.proxies):
                    self._tell(
                        f"{tapped.name} carried no upcall for {_QUIET_S:.0f} s; stock "
                        "Dragonball's own client never uses its socket: record --memory "
                        "watches that one"
                    )

    def _follow(self, tapped: Tapped, source: int) -> None:
        """The VMM made a new socket where ours was: take its place again."""
        assert tapped.place is not None
        tapped.place.close()
        try:
            place = self._take(tapped.name)
        except UserError as error:
            self._tell(f"{tapped.name}: {error}")
            tapped.place = None
            return
        self._tell(f"{tapped.name}: the VMM made a new socket; its place is taken too")
        tapped.place = place
        tapped.address = UnixAddress(place.aside)
        tapped.listeners = [(place.listener.socket, None)]
        self._begin(tapped, source)

    def stop(self, timeout_s: float) -> None:
        """Accept no more and end every connection."""
        if self.loop is None:
            return
        until = time.monotonic() + timeout_s
        for tapped in self.tapped:
            for proxy in tapped.proxies:
                proxy.stop(max(0.0, until - time.monotonic()))
        self.loop.stop(max(0.0, until - time.monotonic()))

    @property
    def capacity(self) -> str:
        """How much there is room for, in a sentence."""
        assert self.loop is not None
        return (
            f"room for {self.loop.room:,} connections: {DESCRIPTORS_EACH} descriptors each, and "
            f"{DESCRIPTORS_MOVING} more for each way in which bytes of another port wait; the "
            f"limit of open files is {self.loop.limit:,}"
        )


def _suffixed(path: Path, port: int) -> Path:
    return path.with_name(f"{path.name}_{port}")
