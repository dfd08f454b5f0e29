"""The recorded transcripts, send by send."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

from dissectors.constants import Arch
from tests.dissectors.strategies import GOLDEN

TRANSCRIPTS = sorted(path.stem for path in GOLDEN.glob("*.jsonl"))

Conversation = list[tuple[bool, bytes]]
"""Whether it goes to the guest, and the bytes of one send or receive."""


def recorded(name: str) -> dict[int, Conversation]:
    """The sends and receives of each connection of a transcript, in order."""
    conversations: dict[int, Conversation] = defaultdict(list)
    for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "open":
            conversations[record["conn"]] = []
        elif record["kind"] == "bytes":
            sent = bytes.fromhex(record["hex"]) + bytes(record["zeros"])
            conversations[record["conn"]].append((record["dir"] == ">", sent))
    return dict(conversations)


def recorded_arch(name: str) -> Arch:
    """The architecture of the guest that a transcript was made with."""
    with (GOLDEN / f"{name}.jsonl").open() as file:
        return Arch(json.loads(file.readline())["arch"])


def stream(conversation: Iterable[tuple[bool, bytes]], to_guest: bool) -> bytes:
    """All bytes of one direction."""
    return b"".join(sent for way, sent in conversation if way is to_guest)
