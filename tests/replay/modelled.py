"""Recordings of what the model of the kernel answers to requests of ours."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from dissectors.constants import MessageType
from dissectors.messages import Request, bare_request, cpu_request, mmio_request, pci_request
from tests.support import ask, connect, write_capture
from upcall_trace.capture.records import Chunk, Close, Header, Record, Vmm
from upcall_trace.kernel.model import Guest
from upcall_trace.kernel.vmm_actions import order_of
from upcall_trace.kernel.world import World, kata_pod
from upcall_trace.trace.operations import Operation
from upcall_trace.trace.script import Key, Script
from upcall_trace.trace.scripting import read_script

T = MessageType
STEP_NS = 1_000_000
TWO_CPUS = kata_pod(cpus=2)
"""Where a request can be for one CPU less without being for all."""
Asking = Request | bytes | tuple[int, Request | bytes] | str
"""A request on connection 1 or on another one; a text is what the VMM does."""


def disk(place: int, irq: int = 5, gone: bool = False) -> Request:
    """A window of its own for each place."""
    what = T.DEL_MMIO if gone else T.ADD_MMIO
    return mmio_request(what, 0xD0000000 + place * 0x10000, 0x2000, irq)


def overlapping(place: int) -> Request:
    """A window that begins in the middle of that of `place`."""
    return mmio_request(T.ADD_MMIO, 0xD0001000 + place * 0x10000, 0x2000, 5)


def recorded(asking: Iterable[Asking], world: World | None = None) -> list[Record]:
    """What a proxy would record; connections are opened first and closed last."""
    told = [(1, each) if isinstance(each, Request | bytes) else each for each in asking]
    guest = Guest(world or kata_pod())
    conns = sorted({each[0] for each in told if isinstance(each, tuple)})
    records: list[Record] = []
    connections = {}
    now = 0
    for conn in conns:
        records += connect(conn, now)
        connections[conn] = guest.connect()
        assert connections[conn].service(ord("d"))
    for each in told:
        now += STEP_NS
        if isinstance(each, str):
            records.append(Vmm(now, each))
            guest.start_vcpu((order_of(each) or {})["start_vcpu"])
            continue
        conn, request = each
        sent = ask(request, now, conn)
        records.append(sent)
        reply = connections[conn].receive(sent.data).reply
        if reply:
            records.append(Chunk(now + STEP_NS // 10, conn, False, reply))
    return [*records, *(Close(now + STEP_NS, conn, by_guest=False) for conn in conns)]


def script_of(records: Sequence[Record]) -> Script:
    """As a replay reads it."""
    return read_script(Header("test"), records)


def file_of(path: Path, *asking: Asking, world: World | None = None) -> Path:
    """A capture of it."""
    return write_capture(path, recorded(asking, world))


def words(operations: Iterable[Operation]) -> list[str]:
    """What matters of each: number, name, result."""
    return [f"{each.conn}.{each.request} {each.op} {each.ret}" for each in operations]


def last(script: Script) -> Key:
    """The operation that was sent last."""
    return list(script.asked)[-1]


def harmless(count: int, seed: int = 1) -> list[Request]:
    """Requests that all succeed on a default pod, and hold no place below 100."""
    chance = random.Random(seed)
    made: list[Request] = []
    windows: list[int] = []
    cpu = 1
    while len(made) < count:
        match chance.randrange(5):
            case 0 if windows:
                made.append(disk(windows.pop(), gone=True))
            case 1 if cpu < 20:
                made.append(cpu_request(T.ADD_CPU, [cpu]))
                cpu += 1
            case 2:
                made.append(pci_request(T.ADD_PCI, 0, chance.randrange(1, 9)))
            case _:
                windows.append(100 + len(made))
                made.append(disk(windows[-1]))
    return made


ADD_MEM = bare_request(T.ADD_MEM)
