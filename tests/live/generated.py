"""Random but safe scripts for a live guest: what is sent, and what the VMM does in between.

The model of the kernel is asked about each request before it goes in: one that would cut the
channel is left out, and those that cost time (a vCPU that does not start: 10 s; silence, which has
to be waited for) are rationed. What comes back is not taken from here: the script is played to
both guests.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

from dissectors.constants import MESSAGE_SIZE, MessageType
from dissectors.messages import (
    MmioRequest,
    Request,
    bare_request,
    cpu_request,
    decode_request,
    mmio_request,
    pci_request,
)
from upcall_trace import codes
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.outcome import Fate
from upcall_trace.kernel.world import PciDevice, World
from upcall_trace.lab.machines import TRANSPORT_SIZE, hidden_disks

SAFE_BASE = 0xD0000000
"""Nothing is behind the addresses from here on, on either machine."""
SAFE_END = SAFE_BASE + (1 << 20)
UNSTARTED = "UP201"
PAGE = 0x1000
DISK_SLOTS = (9, 10, 11)
PCI_SLOTS = (4, 6, 8, *DISK_SLOTS, 20)


@dataclass(frozen=True)
class Order:
    """One for the control socket."""

    order: dict[str, Any]


@dataclass(frozen=True)
class Send:
    """One write on a connection, and how many replies are due; 0 is silence."""

    conn: int
    raw: bytes
    replies: int


@dataclass
class Rations:
    """How often a script may do what costs time."""

    unstarted: int = 1
    silent: int = 3


class Writer:
    """Writes a script; `guest` is what the model makes of it so far."""

    def __init__(self, world: World, seed: int, rations: Rations) -> None:
        self.rng = random.Random(seed)
        self.rations = rations
        self.guest = Guest(world)
        self.steps: list[Order | Send] = []
        self.connections: dict[int, ServiceThread] = {}
        self.conn = 0
        self.has_pci = bool(world.pci)

    def write(self, requests: int) -> list[Order | Send]:
        """A script of that many requests."""
        written = 0
        while written < requests:
            if self.has_pci and self.rng.random() < 0.05:
                self.give_order()
            written += self.send(self.in_pieces(self.request().encode()))
        return self.steps

    def send(self, pieces: list[bytes]) -> int:
        """Add writes of what should be one request; how many of them were allowed."""
        if self.conn not in self.connections or self.rng.random() < 0.03:
            self.conn += 1
            self.connections[self.conn] = self.guest.connect()
        done = 0
        for raw in pieces:
            guest, connection = copy.deepcopy((self.guest, self.connections[self.conn]))
            connection._guest = guest
            outcomes, safe = [], True
            for begin in range(0, len(raw), MESSAGE_SIZE):
                outcomes.append(connection.receive(raw[begin : begin + MESSAGE_SIZE]))
                safe = safe and is_safe(decode_request(connection._request))
            unstarted = sum(UNSTARTED in outcome.causes for outcome in outcomes)
            fates = {outcome.fate for outcome in outcomes}
            silent = int(bool(fates - {Fate.ANSWERED}))
            if (
                not safe
                or Fate.CUT_OFF in fates
                or guest.lock.stuck
                # Of the stock kernel our module takes CPUs away without losing any.
                or any(codes.CPU_LOST_ITS_ID in outcome.causes for outcome in outcomes)
                or unstarted > self.rations.unstarted
                or silent > self.rations.silent
            ):
                break
            self.rations.unstarted -= unstarted
            self.rations.silent -= silent
            self.guest, self.connections[self.conn] = guest, connection
            for other in self.connections.values():
                other._guest = guest
            answered = sum(outcome.fate is Fate.ANSWERED for outcome in outcomes)
            self.steps.append(Send(self.conn, raw, answered if not silent else 0))
            done += 1
            if silent:
                del self.connections[self.conn]
                break
        return done

    def in_pieces(self, raw: bytes) -> list[bytes]:
        """As a whole mostly; else short, in two, too long, or twice at once."""
        match self.rng.randrange(20):
            case 0:
                return [raw[: self.rng.randrange(16, 64)]]
            case 1:
                cut = self.rng.randrange(1, MESSAGE_SIZE)
                return [raw[:cut], raw[cut:]]
            case 2:
                return [raw + self.rng.randbytes(self.rng.randrange(1, 600))]
            case 3:
                return [raw + raw]
        return [raw]

    def request(self) -> Request | Garbled:
        """Any request that is safe to send to this machine."""
        kinds = [self.cpus, self.mmio, self.mmio, self.pci, self.unknown]
        request = self.rng.choice(kinds)()
        if self.rng.random() < 0.07:
            return Garbled(request.encode(), self.rng)
        return request

    def cpus(self) -> Request:
        kind = self.rng.choice((MessageType.ADD_CPU, MessageType.DEL_CPU))
        ids = self.rng.choices((0, 1, 2, 3, 1, 2, 3, 7, 200), k=self.rng.randrange(5))
        return cpu_request(kind, ids)

    def mmio(self) -> Request:
        kind = self.rng.choice((MessageType.ADD_MMIO, MessageType.DEL_MMIO))
        known = [window for window in self.guest.windows if window.role != "vsock"]
        if known and self.rng.random() < 0.5:
            window = self.rng.choice(known)
            base, size, irq = window.base, window.size, window.irq
            if self.rng.random() < 0.3:
                base += self.rng.choice((-size, 1 - size, -1, 1, size - 1, size))
        elif not self.has_pci and self.rng.random() < 0.4:
            disk = self.rng.choice(hidden_disks())
            base, size, irq = disk.base, disk.size, disk.irq
        else:
            base = SAFE_BASE + self.rng.randrange(64) * TRANSPORT_SIZE
            size = self.rng.choice((0, 1, TRANSPORT_SIZE, 0x1000, 0x2000))
            irq = self.rng.choice((0, 5, 5, 5, 6, 9, 11, 4000))
        return mmio_request(kind, base, size, irq)

    def pci(self) -> Request:
        kind = self.rng.choice((MessageType.ADD_PCI, MessageType.DEL_PCI))
        bus = self.rng.choice((0, 0, 0, 0, 1, 255))
        function = self.rng.choice((0, 0, 0, 1, 7))
        return pci_request(kind, bus, self.rng.choice(PCI_SLOTS), function)

    def unknown(self) -> Request:
        return bare_request(self.rng.choice((0, 3, 4, 9, 77, 0xFFFFFFFF)))

    def give_order(self) -> None:
        """Something on the VMM's side that both guests can be told."""
        device = PciDevice(0, self.rng.choice(DISK_SLOTS))
        place = {"bus": 0, "slot": device.slot}
        match self.rng.randrange(3):
            case 0:
                cpu = self.rng.randrange(1, 4)
                self.guest.start_vcpu(cpu)
                self.steps.append(Order({"start_vcpu": cpu}))
            case 1:
                self.guest.plug_pci(device)
                self.steps.append(Order({"plug_pci": place}))
            case 2 if device not in self.guest.pci:  # a kernel that still uses it would not like it
                self.guest.unplug_pci(device)
                self.steps.append(Order({"unplug_pci": place}))


def is_safe(request: Request) -> bool:
    """True unless a window is added where something else may be, or where the driver crashes.

    What the guest sees of a short request is partly an earlier one, so this looks at the whole.
    """
    if not isinstance(request, MmioRequest) or request.msg_type != MessageType.ADD_MMIO:
        return True
    first, last = request.mmio_base, request.mmio_base + request.mmio_size - 1
    if any((first, request.mmio_size) == (disk.base, disk.size) for disk in hidden_disks()):
        return True
    # The stock driver reads four bytes at the beginning. Beyond the window's last page nothing is
    # mapped, and the thread of any kernel would crash there; the model does not know that.
    readable = first % PAGE <= PAGE - 4 or last // PAGE > first // PAGE
    return SAFE_BASE - PAGE <= first <= last + 1 <= SAFE_END and readable


class Garbled:
    """A request with one header field changed."""

    def __init__(self, raw: bytes, rng: random.Random) -> None:
        offset = rng.choice((0, 4, 12))
        value = rng.choice((0, 1, 25, 0xFFFFFFFF))
        self._raw = raw[:offset] + value.to_bytes(4, "little") + raw[offset + 4 :]

    def encode(self) -> bytes:
        return self._raw
