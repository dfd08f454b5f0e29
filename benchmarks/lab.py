"""The live guest: from `lab up` to the first answered request, and a round trip to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from dissectors.messages import bare_request
from upcall_trace.lab import pieces
from upcall_trace.lab.process import LiveGuest
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient

from .rows import Row, Skip

ROUNDS = 5
REQUESTS = 300
NO_SUCH_TYPE = bare_request(77).encode()


def run() -> Iterator[Row]:
    """Rows of the table; the machines take turns."""
    missing = [piece.name for piece in pieces.survey() if piece.where is None]
    if missing:
        raise Skip(f"{', '.join(missing)} missing, see upcall-trace lab setup")
    first: dict[str, list[float]] = {"microvm": [], "pc": []}
    later: dict[str, list[float]] = {"microvm": [], "pc": []}
    for _ in range(ROUNDS):
        for machine, times in first.items():
            begun = time.perf_counter()
            with LiveGuest("--machine", machine) as guest:
                with UpcallClient(UnixAddress(guest.address)) as client:
                    client.ask(NO_SUCH_TYPE, 5)
                    times.append(time.perf_counter() - begun)
                later[machine].append(_round_trip(UnixAddress(guest.address)))
    for machine, times in first.items():
        yield Row(f"{machine}, to the first answer", statistics.median(times), "s")
    with SimulatedGuest() as simulated:
        ours = _round_trip(UnixAddress(simulated.path))
    yield Row("a simulated guest, an answer", ours * 1000, "ms")
    for machine, times in later.items():
        middle = statistics.median(times)
        yield Row(f"{machine}, a later answer", middle * 1000, "ms", middle / ours, "simulated")


def _round_trip(address: UnixAddress) -> float:
    """The median of many, in seconds."""
    with UpcallClient(address) as client:
        times = []
        for _ in range(REQUESTS):
            answer = client.ask(NO_SUCH_TYPE, 5)
            assert answer is not None
            times.append(answer.latency_ns / 1e9)
    return statistics.median(times)
