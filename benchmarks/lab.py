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

ROUNDS = 5
REQUESTS = 300
NO_SUCH_TYPE = bare_request(77).encode()


def run() -> Iterator[str]:
    """Rows of the table; the machines take turns."""
    missing = [piece.name for piece in pieces.survey() if piece.where is None]
    if missing:
        yield f"skipped: {', '.join(missing)} missing, see upcall-trace lab setup"
        return
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
        yield f"{machine:<8} to the first answer {_of(times, 1, 's')}"
    for machine, times in later.items():
        yield f"{machine:<8} a later answer      {_of(times, 1000, 'ms')}"
    with SimulatedGuest() as simulated:
        ours = _round_trip(UnixAddress(simulated.path))
    yield f"a simulated guest          {ours * 1000:6.2f} ms"
    yield f"ratio microvm: {statistics.median(later['microvm']) / ours:.1f}"


def _round_trip(address: UnixAddress) -> float:
    """The median of many, in seconds."""
    with UpcallClient(address) as client:
        times = []
        for _ in range(REQUESTS):
            answer = client.ask(NO_SUCH_TYPE, 5)
            assert answer is not None
            times.append(answer.latency_ns / 1e9)
    return statistics.median(times)


def _of(times: list[float], factor: int, unit: str) -> str:
    middle, worst = statistics.median(times) * factor, max(times) * factor
    return f"median {middle:6.2f} {unit}, worst {worst:6.2f} {unit}"
