"""Clients that stall, vanish, trickle and talk nonsense, by a seed: nobody else notices them."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from dissectors.constants import Arch, MessageType
from dissectors.messages import hello, mmio_request
from tests.fuzz import samples
from tests.fuzz.mutating import mutated
from tests.vantage.test_proxy import Recorded
from tests.vmm import Upcall, descriptors_as_before
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.trace.opening import load

ADD = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    with descriptors_as_before():
        yield Recorded(tmp_path)


def bad_peer(path: Path, chance: random.Random) -> socket.socket | None:
    """A client that does something wrong; its socket, where it is still there."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(30)
    stream.connect(str(path))
    way = chance.choice(["stall", "leave", "reset", "trickle", "garbage", "half", "flood", "early"])
    if way == "leave":
        stream.close()
        return None
    if way == "garbage":
        _send(stream, mutated([b"CONNECT 219\n", *samples.messages()[:20]], chance))
    elif way == "trickle":
        for byte in b"CONNECT 219\nd"[: chance.randint(1, 13)]:
            _send(stream, bytes([byte]))
    elif way in ("half", "reset", "flood", "early"):
        _send(stream, b"CONNECT 219\nd" if way == "early" else b"CONNECT 219\n")
        if way != "early":
            stream.recv(64)
            _send(stream, b"d" + ADD.encode()[: chance.randint(1, 1024)])
        if way == "flood":
            _send(stream, ADD.encode() * chance.randint(2, 30))  # and reads nothing of the answers
        elif way == "half":
            stream.shutdown(socket.SHUT_WR)
        elif way == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.close()
            return None
    return stream


def _send(stream: socket.socket, sent: bytes) -> None:
    try:
        stream.sendall(sent)
    except OSError:
        pass  # it was thrown out, as it deserves


def beside_bad_peers(recorded: Recorded, count: int, seed: int) -> None:
    chance = random.Random(seed)
    there: list[socket.socket] = []
    with Upcall(recorded.path) as good:
        for _ in range(count):
            peer = bad_peer(recorded.path, chance)
            there += [peer] if peer else []
            assert good.ask(ADD).ret == 0
            if len(there) > 20:
                there.pop(chance.randrange(20)).close()
    for stream in there:
        stream.close()
    capture = recorded.capture()
    assert capture.complete
    assert capture.gaps == 0
    first = [operation for operation in capture.operations if operation.conn == 1]
    assert [operation.ret for operation in first] == [0] * count
    with CaptureReader(recorded.file) as reader:
        assert list(reader)
    assert load(recorded.file).lost_bytes == 0


def test_a_good_client_beside_some_bad_ones(recorded: Recorded) -> None:
    beside_bad_peers(recorded, 25, 219)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(20))
def test_a_good_client_beside_hundreds_of_bad_ones(recorded: Recorded, seed: int) -> None:
    beside_bad_peers(recorded, 300, seed)


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.torture) for n in (2, 3))])
def test_the_simulated_guest_outlives_them_too(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with SimulatedGuest(kata_pod(Arch.X86_64), path=tmp_path / "g"):
        there = [bad_peer(tmp_path / "g", chance) for _ in range(20)]
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(30)
            stream.connect(str(tmp_path / "g"))
            stream.sendall(b"CONNECT 219\n")
            assert stream.recv(3) == b"OK "
            while stream.recv(1) != b"\n":
                pass
            stream.sendall(b"d")
            assert stream.recv(1024, socket.MSG_WAITALL) == hello().encode()
        for each in there:
            if each:
                each.close()
