"""The simulated guest and the live guest give the same answers, byte for byte."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Start
from tests.live.generated import Order, Rations, Send, Writer
from tests.live.playing import receive
from tests.support import HELLO
from upcall_trace.lab.machines import MACHINES, Boot, world
from upcall_trace.simulated.machine import Backend, Habits
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import connect_unix

REQUESTS = 300
PATIENCE_S = 20.0
SILENCE_S = 0.3


def play(
    script: list[Order | Send], address: Path, order: Callable[[dict[str, Any]], object]
) -> list[tuple[int, bytes]]:
    """What came back: the connection and the bytes, for each write."""
    streams: dict[int, socket.socket] = {}
    came: list[tuple[int, bytes]] = []
    for step in script:
        if isinstance(step, Order):
            order(step.order)
            continue
        if step.conn not in streams:
            streams[step.conn] = stream = connect_unix(address)
            stream.sendall(b"CONNECT 219\n")
            assert receive(stream, len(b"OK 219\n"), PATIENCE_S) == b"OK 219\n"
            stream.sendall(b"d")
            assert receive(stream, len(HELLO), PATIENCE_S) == HELLO
        stream = streams[step.conn]
        stream.sendall(step.raw)
        size = step.replies * 1024
        patience_s = PATIENCE_S if size else SILENCE_S
        came.append((step.conn, receive(stream, size or 1, patience_s)))
    for stream in streams.values():
        stream.close()
    return came


def agree(machine: str, live_guest: Start, seed: int, rations: Rations) -> None:
    booted = world(Boot(MACHINES[machine], Path(), Path(), MACHINES[machine].default_cpus))
    script = Writer(booted, seed, rations).write(REQUESTS)
    with SimulatedGuest(booted, Habits(Backend.VHOST)) as simulated:
        expected = play(script, simulated.path, simulated.control)
    guest = live_guest("--machine", machine)
    came = play(script, guest.address, guest.order)
    guest.close()
    sent = [step for step in script if isinstance(step, Send)]
    assert len(sent) >= REQUESTS
    for step, ours, theirs in zip(sent, expected, came, strict=True):
        assert theirs == ours, (step.conn, step.raw[:48].hex())


@pytest.mark.parametrize("machine", ["pc", "microvm"])
def test_the_simulated_and_the_live_guest_agree_on_300_requests(
    machine: str, live_guest: Start
) -> None:
    # A vCPU that does not start takes 10 s each: the recordings and the long run have those.
    agree(machine, live_guest, 1, Rations(unstarted=0, silent=3))


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(2, 22))
@pytest.mark.parametrize("machine", ["pc", "microvm"])
def test_they_agree_on_many_more(machine: str, seed: int, live_guest: Start) -> None:
    agree(machine, live_guest, seed, Rations(unstarted=3, silent=10))
