"""How long a diagnosis takes, and whether its memory grows with the operations."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dissectors.constants import MessageType
from dissectors.messages import Request, cpu_request, hello, mmio_request, pci_request
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Begins, Chunk, Close, Header, Open, Record
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.diagnose.engine import Diagnosis
from upcall_trace.diagnose.run import diagnose
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.world import World, kata_pod

from .rows import Row

OPERATIONS = 100_000
_SETTLED = 30_000
"""Operations after which what is remembered of the past has reached its bounds."""
_PER_CONNECTION = 1_000
_REPEATS = 3


def records(operations: int, world: World, faulty: bool) -> Iterator[Record]:
    """Operations as a guest answers them; unless `faulty`, all work and none leaves anything.

    Every window is another one, and each thousand operations have a connection of their own.
    """
    guest = Guest(world)
    connection = guest.connect()
    for number in range(operations):
        t_ns = 1_000_000 * number
        conn = 1 + number // _PER_CONNECTION
        if number % _PER_CONNECTION == 0:
            if number:
                yield Close(t_ns, conn - 1, by_guest=False)
            connection = guest.connect()
            yield Open(t_ns, conn, Begins.SERVICE, 219, True)
            yield Chunk(t_ns, conn, True, b"d")
            yield Chunk(t_ns, conn, False, hello().encode())
        sent = (_faulty(number) if faulty else _good(number)).encode()
        yield Chunk(t_ns + 1, conn, True, sent)
        yield Chunk(t_ns + 400, conn, False, _reply(connection, sent))


def _reply(connection: ServiceThread, sent: bytes) -> bytes:
    reply = connection.receive(sent).reply
    assert reply is not None  # none of these kills the thread
    return reply


def _good(number: int) -> Request:
    """CPUs have connections of their own: the load of their replies stays, which is a finding."""
    if number // _PER_CONNECTION % 2:
        return cpu_request((MessageType.ADD_CPU, MessageType.DEL_CPU)[number % 2], [5])
    base = 0x100000000 + number // 4 * 0x2000
    return (
        mmio_request(MessageType.ADD_MMIO, base, 0x2000, 5),
        pci_request(MessageType.ADD_PCI, 0, 3),
        mmio_request(MessageType.DEL_MMIO, base, 0x2000, 5),
        pci_request(MessageType.DEL_PCI, 0, 3),
    )[number % 4]


def _faulty(number: int) -> Request:
    """Of the windows one in two is taken, so that later there is none to remove."""
    taken = mmio_request(MessageType.ADD_MMIO, 0xE0000000, 0x2000, 5)
    return taken if number % 4 == 0 and not number // _PER_CONNECTION % 2 else _good(number)


def run() -> Iterator[Row]:
    """Rows of the table."""
    world = kata_pod()
    with tempfile.TemporaryDirectory() as name:
        for faulty in (False, True):
            path = Path(name) / f"{faulty}.upcap"
            failed = _write(path, world, faulty)
            for known in (None, world):
                took, _ = _best(lambda: _by_runs(path, known))  # noqa: B023
                singly, _ = _best(lambda: _one_by_one(path, known))  # noqa: B023
                blind = "with" if known else "without"
                yield Row(
                    f"{failed:,} failed, {blind} the world", OPERATIONS / took, "operations/s",
                    singly / took, "one by one", size=OPERATIONS,
                )  # fmt: skip
    for known in (None, world):
        blind = "with" if known else "without"
        few, many = (_peak_kib(count, bool(known)) for count in (_SETTLED, OPERATIONS))
        name = f"memory after {OPERATIONS:,} operations, {blind} the world"
        yield Row(name, many / 1024, "MiB", many / few, f"after {_SETTLED:,}", size=OPERATIONS)


def _write(path: Path, world: World, faulty: bool) -> int:
    """A capture of them; returns how many failed."""
    failed = 0
    with CaptureWriter(path, Header("bench")) as writer:
        for record in records(OPERATIONS, world, faulty):
            writer.write(record)
            if isinstance(record, Chunk) and not record.to_guest:
                failed += record.data[16:20] != bytes(4)
    return failed


def _best(work: Callable[[], int]) -> tuple[float, int]:
    """Seconds of CPU time of the quickest of a few runs, and what came of it."""
    times = []
    found = 0
    for _ in range(_REPEATS):
        begun = time.process_time()
        found = work()
        times.append(time.process_time() - begun)
    return min(times), found


def _by_runs(path: Path, world: World | None) -> int:
    return len(diagnose(path, world).findings)


def _one_by_one(path: Path, world: World | None) -> int:
    with CaptureReader(path) as reader:
        return _diagnose(reader, world)


def _diagnose(ready: Iterable[Record], world: World | None) -> int:
    diagnosis = Diagnosis(Header("bench"), world)
    found = sum(len(diagnosis.feed(record)) for record in ready)
    return found + len(diagnosis.finish())


def _peak_kib(operations: int, with_world: bool) -> int:
    """The peak of a process that diagnoses so many operations and finds nothing.

    From /proc, because getrusage counts the process that it was forked from as well.
    """
    program = (
        "import sys\n"
        "from benchmarks.diagnosis import measured\n"
        "measured(int(sys.argv[1]), sys.argv[2] == 'True')\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    command = [sys.executable, "-c", program, str(operations), str(with_world)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measured(operations: int, with_world: bool) -> None:
    """What the process does whose memory is measured."""
    world = kata_pod()
    found = _diagnose(records(operations, world, faulty=False), world if with_world else None)
    if found:
        raise ValueError(f"{found} findings: their memory would count too")
