"""A process with a guest's memory for the memory benchmark: `python -m benchmarks.memory_writer`.

`MIB SHARE` says how large it is and how much of it was used, in runs of pages here and there.
Each line on standard input is `COUNT SERVICE_US PAUSE_US`: so many requests are written into a
connection object, each answered after that long; out come the times of each, as JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import sys
import time

from dissectors.constants import MessageType
from dissectors.messages import hello, pci_request

PAGE = 4096
AT = 0x10010
TASK, SOCKET = 0xFFFF888001234000, 0xFFFF888005678A40


def main() -> None:
    """Serve until standard input ends."""
    size, share = int(sys.argv[1]) << 20, float(sys.argv[2])
    descriptor = os.memfd_create("guest-memory")
    os.ftruncate(descriptor, size)
    memory = mmap.mmap(descriptor, size)
    _use(memory, size, share)
    memory[AT - 16 : AT] = struct.pack("<QQ", TASK, SOCKET)
    memory[AT : AT + 1024] = bytes(1024)
    memory[AT + 1024 : AT + 2048] = hello().encode()
    print("ready", flush=True)
    for line in sys.stdin:
        count, service_us, pause_us = map(int, line.split())
        print(json.dumps(_converse(memory, count, service_us / 1e6, pause_us / 1e6)), flush=True)


def _use(memory: mmap.mmap, size: int, share: float) -> None:
    block = os.urandom(1 << 20)
    if share >= 1:
        for at in range(0, size, len(block)):
            memory[at : at + len(block)] = block
        return
    chance = random.Random(1)
    left = int(size * share)
    while left > 0:
        length = chance.randint(1, 64) * PAGE
        at = chance.randrange(size // PAGE - 64) * PAGE
        memory[at : at + length] = block[:length]
        left -= length


def _converse(
    memory: mmap.mmap, count: int, service_s: float, pause_s: float
) -> list[tuple[list[int], int, int]]:
    """(type, bus and devfn, when the request stood there, when its reply did), monotonic ns."""
    times = []
    for number in range(count):
        slot = number % 31 + 1
        kind = MessageType.ADD_PCI if number % 2 else MessageType.DEL_PCI
        request = pci_request(kind, number // 31 % 256, slot)
        asked, told = request.encode(), request.reply(-(number % 40) - 1).encode()
        memory[AT : AT + 1024] = asked
        begun = time.monotonic_ns()
        time.sleep(service_s)
        memory[AT + 1024 : AT + 2048] = told
        times.append(([asked[8], asked[16], asked[17]], begun, time.monotonic_ns()))
        time.sleep(pause_s)
    return times


if __name__ == "__main__":
    main()
