"""A real guest's memory: while it is talked to, after a thread died in it, and as an image."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dissectors.constants import MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    hello,
    mmio_request,
    pci_request,
)
from tests.live.conftest import Start
from tests.support import records_of, run
from upcall_trace.capture.records import Chunk, Gap, Header
from upcall_trace.errors import ExitCode
from upcall_trace.lab.process import LiveGuest
from upcall_trace.sockets.addresses import UnixAddress, connect_unix
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.trace.opening import load
from upcall_trace.trace.operations import Operation

REQUESTS = 500


def qemu(guest: LiveGuest) -> str:
    return str(guest.status["pids"]["qemu"])


@contextmanager
def recording(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`record` as a process of its own; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "upcall_trace", "record", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "recording" in process.stderr.readline()
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def mixed(count: int) -> list[Request]:
    """Requests of every kind that leave the guest as it is, and some in the same bytes again."""
    chance = random.Random(11)
    choices: list[Callable[[int], Request]] = [
        lambda k: pci_request(MessageType.ADD_PCI, 1, k % 32),
        lambda k: pci_request(MessageType.DEL_PCI, 0, 20 + k % 4),
        lambda _: pci_request(MessageType.ADD_PCI, 1, 3),
        lambda _: cpu_request(MessageType.DEL_CPU, [0]),
        lambda k: mmio_request(MessageType.ADD_MMIO, 0xD000_0000 + 0x1000 * (k % 7), 0x1000, 0),
        lambda k: bare_request(77 + k % 3),
        lambda _: bare_request(MessageType.ADD_MEM),
        lambda k: Request(0x1234, 0, 7 + k % 2, 0, bytes(1008)),  # a wrong magic
    ]
    return [chance.choice(choices)(k) for k in range(count)]


def told(operation: Operation) -> tuple[Any, ...]:
    """An operation, field for field."""
    return (
        operation.op, dict(operation.fields), operation.size, operation.ret,
        operation.reply and dict(operation.reply),
    )  # fmt: skip


def peeked(*words: str | Path) -> dict[str, Any]:
    outcome = run("peek", *words, "--json")
    assert outcome.code == ExitCode.EXPECTED, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_a_proxy_and_the_memory_tell_the_same_operations(live_guest: Start, tmp_path: Path) -> None:
    guest = live_guest("--machine", "pc")
    socket = guest.address.parent / "front"
    through, inside = tmp_path / "proxy.upcap", tmp_path / "memory.upcap"
    words = ("--listen", socket, "--upstream", guest.address, "-o", through)
    with (
        recording(*words),
        UpcallClient(UnixAddress(socket)) as client,
        recording("--memory", qemu(guest), "-o", inside),
    ):
        for request in mixed(REQUESTS):
            answer = client.ask(request.encode(), 10)
            assert answer is not None
            time.sleep(0.001)
        time.sleep(0.2)
    crossed = {each.request: told(each) for each in load(through).operations}
    seen = list(load(inside).operations)
    assert len(crossed) == REQUESTS
    for operation in seen:
        expected = crossed[operation.request]
        if operation.ret is None:  # its reply crossed between two looks, and is a gap
            assert told(operation)[:3] == expected[:3]
        else:
            assert told(operation) == expected
    # What is not seen is counted, by the guest's own counts, to the byte.
    _, records = records_of(inside)
    missed = sum(each.size for each in records if isinstance(each, Gap) and each.to_guest)
    assert len(seen) + missed // 1024 == REQUESTS
    # Requests of a millisecond on a busy machine, where the watcher gives way to all others: those
    # of real hotplug take ten times as long.
    assert len(seen) >= REQUESTS // 2
    _check_moments(through, inside)


def _check_moments(through: Path, inside: Path) -> None:
    """Nothing is first seen before it was sent, and its span begins before its reply came."""
    (outer, sent), (inner, seen) = records_of(through), records_of(inside)
    times = [_wall(outer, each) for each in sent if isinstance(each, Chunk) and each.to_guest]
    looks = [_wall(inner, each) for each in seen if isinstance(each, Chunk) and each.to_guest]
    assert min(looks[1:]) >= min(times[2:]) - 1_000_000
    spans = [each.uncertainty_ns for each in seen if isinstance(each, Chunk)][2:]
    assert all(0 <= span < 2_000_000_000 for span in spans)
    assert sorted(spans)[len(spans) // 2] < 20_000_000


def _wall(header: Header, chunk: Chunk) -> int:
    assert header.wall_ns is not None
    return header.wall_ns + chunk.t_ns


@contextmanager
def waiting(guest: LiveGuest, request: Request) -> Iterator[None]:
    """A connection on which a request has no answer yet, after two that had."""
    with connect_unix(guest.address) as stream:
        stream.settimeout(8)
        stream.sendall(b"CONNECT 219\n")
        assert stream.recv(7) == b"OK 219\n"
        stream.sendall(b"d")
        assert stream.recv(1024, 0x100) == hello().encode()
        for slot in (1, 2):
            stream.sendall(pci_request(MessageType.ADD_PCI, 1, slot).encode())
            assert len(stream.recv(1024, 0x100)) == 1024
        stream.sendall(request.encode())
        time.sleep(0.2)
        yield


def assert_waiting(found: dict[str, Any], op: str, apic_ids: list[int]) -> None:
    """The request is the one that waits, it is certain, and what was before is there."""
    (connection,) = [each for each in found["connections"] if each["unanswered"]]
    assert connection["state"] == "waiting"
    assert connection["certain"]
    request = connection["request"]
    assert (request["op"], request["fields"]["apic_ids"], request["request"]) == (op, apic_ids, 2)
    before = {
        each["request"]: each["fields"]["slot"]
        for each in connection["history"]
        if each["op"] == "add_pci" and each["fields"]
    }
    assert before == {0: 1, 1: 2}


def test_after_a_dead_thread_the_request_that_killed_it_is_named(
    live_guest: Start, tmp_path: Path
) -> None:
    guest = live_guest("--machine", "pc")
    guest.order({"start_vcpu": 1})
    with UpcallClient(UnixAddress(guest.address)) as client:
        answer = client.ask(cpu_request(MessageType.ADD_CPU, [1]).encode(), 20)
        assert answer is not None
        assert answer.reply.ret == 0
    output = tmp_path / "found.upcap"
    with waiting(guest, cpu_request(MessageType.DEL_CPU, [77])):
        assert_waiting(peeked("--pid", qemu(guest)), "del_cpu", [77])
        assert run("peek", "--pid", qemu(guest), "-o", output).code == ExitCode.EXPECTED
    findings = json.loads(run("diagnose", output, "--json").out)["findings"]
    named = [(each["code"], each["request"]) for each in findings if each["code"] == "UP206"]
    assert named == [("UP206", 2)]


_CLIENT = """
import sys, time
from dissectors.constants import MessageType
from dissectors.messages import pci_request
from pathlib import Path
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient
client = UpcallClient(UnixAddress(Path(sys.argv[1])))
for slot in range(1, 8):
    client.ask(pci_request(MessageType.ADD_PCI, 1, slot).encode(), 5)
print("asked", flush=True)
time.sleep(60)
"""


def test_after_a_killed_client_the_last_conversation_is_there(live_guest: Start) -> None:
    guest = live_guest("--machine", "pc")
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, guest.address], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "asked\n"
    client.kill()
    client.communicate()
    time.sleep(0.5)
    found = peeked("--pid", qemu(guest))
    packets = [each for one in found["connections"] for each in one["history"]]
    packets += found["unplaced"]
    slots = {each["request"]: each["fields"]["slot"] for each in packets if each.get("fields")}
    assert len(slots) >= 4  # what is left of seven: a page that is used again is lost
    assert all(slot == request + 1 for request, slot in slots.items())
    assert 6 in slots  # the last one


@pytest.mark.parametrize("kind", ["raw", "elf"])
def test_an_image_taken_in_mid_request_names_it(
    kind: str, live_guest: Start, tmp_path: Path
) -> None:
    guest = live_guest("--machine", "pc")
    image = tmp_path / "image"
    # Nobody started this vCPU: the answer comes after ten seconds.
    with waiting(guest, cpu_request(MessageType.ADD_CPU, [1])):
        guest.order({"save_memory": {"file": str(image), "format": kind}})
    assert_waiting(peeked(image), "add_cpu", [1])
