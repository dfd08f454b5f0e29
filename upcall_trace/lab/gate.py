"""With `lab up --auto`: does on the VMM's side what a request needs, just before it passes.

So do VMMs: Dragonball starts a vCPU's threads, or makes a device, and then asks the guest.
docs/protocol.md section 5.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dissectors.constants import MAGIC_VERSION, MESSAGE_SIZE, UPCALL_PORT, MessageType
from dissectors.hvsock import line_end, parse_connect
from dissectors.messages import CpuRequestX86, PciRequest, decode_request

from ..control.orders import BadOrder
from ..errors import UserError
from ..sockets.addresses import connect_unix, is_hung_up, shut_down

_BULK: Final = 64 << 10


class Gate:
    """Relays one connection at a time to `upstream`; give `serve` to a Server."""

    def __init__(
        self,
        upstream: Path,
        follow: Callable[[dict[str, Any]], object],
        talk: Callable[[str], None],
    ) -> None:
        self._upstream = upstream
        self._follow = follow
        self._talk = talk

    def serve(self, client: socket.socket) -> None:
        """Relay until both directions are over."""
        with connect_unix(self._upstream) as guest:
            back = threading.Thread(target=_copy, args=(guest, client), daemon=True)
            back.start()
            try:
                if self._settle(client, guest):
                    self._pass_requests(client, guest)
                else:
                    _copy(client, guest)
            finally:
                shut_down(guest, socket.SHUT_RDWR if is_hung_up(client) else socket.SHUT_WR)
                back.join()

    def _settle(self, client: socket.socket, guest: socket.socket) -> bool:
        """Pass the first line and an upcall connection's service byte; True for upcall."""
        line = b""
        while (end := line_end(line)) == 0:
            received = client.recv(1)
            if not received:
                guest.sendall(line)
                return False
            line += received
        guest.sendall(line)
        if end < 0 or parse_connect(line) != UPCALL_PORT:
            return False
        service = client.recv(1)
        guest.sendall(service)
        return bool(service)

    def _pass_requests(self, client: socket.socket, guest: socket.socket) -> None:
        seen = bytes(MESSAGE_SIZE)
        while received := client.recv(MESSAGE_SIZE):
            # As the guest sees it: laid over the bytes of the request before.
            seen = received + seen[len(received) :]
            for order in needs(seen):
                try:
                    self._follow(order)
                except (BadOrder, UserError) as error:
                    self._talk(f"cannot do {order} for a request: {error}")
            guest.sendall(received)


def needs(request: bytes) -> list[dict[str, Any]]:
    """The orders that make a request possible; most need none."""
    message = decode_request(request)
    if message.magic_version != MAGIC_VERSION:
        return []
    match message:
        case CpuRequestX86(msg_type=MessageType.ADD_CPU):
            ids = message.apic_ids[: message.count]
            return [{"start_vcpu": cpu} for cpu in ids]
        case PciRequest(msg_type=MessageType.ADD_PCI, busno=0, function=0):
            return [{"plug_pci": {"bus": 0, "slot": message.slot}}]
    return []


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while received := source.recv(_BULK):
            sink.sendall(received)
    except OSError:
        pass  # one of them is gone, and so is the other soon
    shut_down(sink, socket.SHUT_WR)
