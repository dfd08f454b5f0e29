"""Pages of real guests' memory, right after a conversation, and what crossed in it.

`tests/memory/NAME.img` is pages of 4096 bytes one after the other, `NAME.json` where each stood,
and the conversation, in order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from dissectors.constants import MessageType
from dissectors.messages import pci_request
from upcall_trace.vantage.guest_memory.assembling import assemble
from upcall_trace.vantage.guest_memory.conversations import Assembled
from upcall_trace.vantage.guest_memory.locating import locate
from upcall_trace.vantage.guest_memory.windows import Stretch

MEMORY = Path(__file__).parents[2] / "memory"
KERNELS = ("lab", "kata_5_10", "kata_6_1", "kata_6_12")
_POINTERS = Struct("<QQ")
_VIRTIO = Struct("<QQIIIHHIII")
TASK, SOCKET = 0xFFFF888001234000, 0xFFFF888005678A40
ASKED = pci_request(MessageType.ADD_PCI, 0, 4).encode()
TOLD = pci_request(MessageType.ADD_PCI, 0, 4).reply(-19).encode()
CODE = bytes.fromhex("48c7430800014d4489ef89e8000002e84889c5c3") * 4
"""Instructions that hold the magic as an immediate."""


@dataclass(frozen=True)
class Crossed:
    """A request as far as the truth has it, and its reply; None where the guest never answered."""

    conn: int
    request: bytes
    reply: bytes | None


def image(kernel: str) -> Path:
    return MEMORY / f"{kernel}.img"


def conversation(kernel: str, conn: int) -> list[Crossed]:
    """What crossed on one connection of a cut-out, in order."""
    told = json.loads((MEMORY / f"{kernel}.json").read_text())
    return [
        Crossed(each["conn"], bytes.fromhex(each["request"]),
                each["reply"] and bytes.fromhex(each["reply"]))
        for each in told["conversation"] if each["conn"] == conn
    ]  # fmt: skip


def found_in(raw: bytes, aligned: bool = False) -> Assembled:
    """Everything in one contiguous piece of memory that begins at address 0."""
    located = locate([Stretch(raw, [0], [0], len(raw))], aligned)
    return assemble(located, lambda at, size: raw[at : at + size] if at >= 0 else b"")


def held(
    request: bytes = ASKED, reply: bytes = TOLD, task: int = TASK, socket: int = SOCKET
) -> bytes:
    """A connection object as the guest's server keeps it."""
    return _POINTERS.pack(task, socket) + request + reply


def packet(payload: bytes, fwd_cnt: int, peer_port: int = 1024, to_guest: bool = True) -> bytes:
    """A packet with its header, as it stands in a guest's memory."""
    ends = (2, 3, peer_port, 219) if to_guest else (3, 2, 219, peer_port)
    return _VIRTIO.pack(*ends, len(payload), 1, 5, 0, 65536, fwd_cnt) + payload


def page(raw: bytes, at: int = 0x10) -> bytes:
    """A page with something at an offset of it, and zeros around."""
    return raw.rjust(at + len(raw), b"\0").ljust(4096, b"\0")
