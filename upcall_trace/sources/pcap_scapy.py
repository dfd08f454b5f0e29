"""Packet captures read with scapy: this package's only scapy import."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapNgReader, RawPcapReader

from .packets import NANOSECONDS, PACKET_LIMIT, WALL_LIMIT, CapturedPacket, NotPackets

_PACKET_HEADER_SIZE = 16

# Torn files are ours to report, in our words.
logging.getLogger("scapy").setLevel(logging.CRITICAL)


class ScapyFile:
    """A `PacketFile`; raises OSError and NotPackets."""

    dropped = 0  # scapy passes over the blocks that say so

    def __init__(self, path: Path) -> None:
        file = path.open("rb")
        try:
            # scapy picks the reader by the file's magic and returns it from either constructor.
            # It takes open files too, and would not close one that it cannot read.
            self._reader: Any = RawPcapReader(file)  # type: ignore[arg-type]
        except (Scapy_Exception, EOFError) as error:
            file.close()
            raise NotPackets(str(error)) from None
        self._is_pcapng = isinstance(self._reader, RawPcapNgReader)
        self._size = path.stat().st_size
        self.read_to = 0

    @property
    def linktypes(self) -> list[int]:
        if self._is_pcapng:
            return [link for link, _, _ in self._reader.interfaces]
        return [self._reader.linktype]

    @property
    def resolution_ns(self) -> int:
        if self._is_pcapng:
            resolutions = [options["tsresol"] for _, _, options in self._reader.interfaces]
            return max(1, NANOSECONDS // int(max(resolutions, default=NANOSECONDS)))
        return 1 if self._reader.nano else 1000

    def packets(self) -> Iterator[CapturedPacket]:
        reader = self._reader
        # The public iterators would cut packets at scapy's MTU.
        step = reader._read_block if self._is_pcapng else reader._read_packet
        while True:
            self.read_to = reader.f.tell()
            try:
                found = step(PACKET_LIMIT)
            except (Scapy_Exception, EOFError, OverflowError):
                return
            if found is None:
                continue  # a block that is no packet
            raw, meta = found
            if self._is_pcapng:
                linktype = meta.linktype
            else:
                linktype = reader.linktype
                if self.read_to + _PACKET_HEADER_SIZE + meta.caplen > self._size:
                    return  # scapy gives what there is of a torn packet
            yield CapturedPacket(self.read_to, linktype, self._wall_ns(meta), raw, meta.wirelen)

    def close(self) -> None:
        self._reader.close()

    def _wall_ns(self, meta: Any) -> int:
        if self._is_pcapng:
            ticks = (meta.tshigh or 0) << 32 | (meta.tslow or 0)
            return min(ticks * NANOSECONDS // int(meta.tsresol), WALL_LIMIT)
        return int(meta.sec * NANOSECONDS + meta.usec * self.resolution_ns)
