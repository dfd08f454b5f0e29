"""What every reader of packet captures offers, whichever library is behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from ..errors import UpcallError

NANOSECONDS: Final = 1_000_000_000
WALL_LIMIT: Final = (1 << 62) - 1
"""The latest time that a capture can hold; only a damaged packet is later."""
PACKET_LIMIT: Final = 0xFFFF * 4
"""The longest packet that is read; payload of one is at most 64 KiB."""


class NotPackets(UpcallError, ValueError):
    """The file is no packet capture, or its first block is torn."""


class CapturedPacket(NamedTuple):
    """One packet; `original_size` is its length on the wire, `offset` where its block begins."""

    offset: int
    linktype: int
    wall_ns: int
    raw: bytes
    original_size: int


class PacketFile(Protocol):
    """An open packet capture."""

    @property
    def linktypes(self) -> list[int]:
        """Of the interfaces that are known so far; of a pcap file its only one."""
        ...

    @property
    def resolution_ns(self) -> int:
        """The step of its clock, as far as interfaces are known."""
        ...

    @property
    def read_to(self) -> int:
        """Where the block begins that was not whole, or the end of the file."""
        ...

    @property
    def dropped(self) -> int:
        """Packets that the capturing program says it lost."""
        ...

    def packets(self) -> Iterator[CapturedPacket]:
        """The packets in order; it ends at the first block that is not whole."""
        ...

    def close(self) -> None: ...
