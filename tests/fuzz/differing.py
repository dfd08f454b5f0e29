"""Four statements of one format: `struct`, construct, scapy, and Lua in a real tshark."""

from __future__ import annotations

import random
import struct
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from scapy.config import conf

from dissectors.constants import Arch
from dissectors.layouts import DEVICE_MANAGER_TABLE
from tests.dissectors.strategies import Sample
from tests.dissectors.test_lua import Tshark, compare
from tests.dissectors.test_wire_formats import by_construct, by_scapy, by_struct
from tests.fuzz import samples
from tests.fuzz.mutating import mutated
from tests.support import connect
from upcall_trace.capture.records import Chunk, Header, Record
from upcall_trace.exports.pcapng import write_packets
from upcall_trace.exports.wireshark import dissector

_BLANK = bytes(1024)


def _message(chance: random.Random) -> bytes:
    raw = mutated(samples.messages(), chance)[:1024]
    return raw + _BLANK[len(raw) :]


def compare_three(seed: int, most: int, until: float) -> int:
    """How many messages `struct`, construct and scapy read alike; an AssertionError else."""
    chance = random.Random(seed)
    before = dict(conf.contribs["upcall"])
    count = 0
    try:
        while count < most and time.monotonic() < until:
            sample = Sample(_message(chance), chance.random() < 0.5, chance.choice(list(Arch)))
            assert by_struct(sample) == by_construct(sample) == by_scapy(sample), sample
            count += 1
    finally:
        conf.contribs["upcall"].update(before)
    return count


def _of_x86(chance: random.Random) -> bytes:
    """Lua learns the architecture from requests that tell it, and we are told it beforehand."""
    while True:
        raw = _message(chance)
        msg_size, msg_type = struct.unpack_from("<II", raw, 4)
        if DEVICE_MANAGER_TABLE.told_arch(msg_type, msg_size) is not Arch.AARCH64:
            return raw


def _conversation(chance: random.Random, length: int) -> list[Record]:
    """Requests, whole and in pieces, and replies to them, most of them not as they should be."""
    records = connect()
    for number in range(length):
        t_ns = 1_000_000 * (number + 1)
        request = _of_x86(chance)
        if chance.random() < 0.1:
            request = request[: chance.randint(1, 1023)]
        records.append(Chunk(t_ns, 1, True, request))
        if chance.random() < 0.9:
            records.append(
                Chunk(t_ns + chance.randrange(1000, 900_000), 1, False, _message(chance))
            )
    return records


def compare_with_lua(seed: int, rounds: int, until: float) -> int:
    """How many operations tshark shows as we do, in so many files; an AssertionError else."""
    chance = random.Random(seed)
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        script, capture = Path(folder) / "upcall.lua", Path(folder) / "x.pcapng"
        script.write_text(dissector(), "utf-8")
        for _ in range(rounds):
            if time.monotonic() > until:
                break
            header = replace(Header("test"), arch=Arch.X86_64.value)
            with capture.open("wb") as file:
                write_packets(header, _conversation(chance, 100), file, {})
            count += compare(Tshark("tshark", script), capture)
    return count
