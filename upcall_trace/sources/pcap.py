"""pcap and pcapng files with LINKTYPE_VSOCK, read with scapy: this package's only scapy import."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapNgReader, RawPcapReader

from ..capture.reader import Damage
from ..capture.records import Header, Record
from ..errors import UnreadableInput
from .vsock_records import PacketRecords

LINKTYPE_VSOCK = 271
_PACKET_HEADER_SIZE = 16
_PACKET_LIMIT = 0xFFFF * 4
"""As much of one packet as scapy ever reads; its own default would cut the largest ones."""
_NANOSECONDS = 1_000_000_000
_WALL_LIMIT = (1 << 62) - 1
"""The latest time that a capture can hold; only a damaged packet is later."""

# Torn files are ours to report, in our words.
logging.getLogger("scapy").setLevel(logging.CRITICAL)


class _Packet(NamedTuple):
    offset: int
    wall_ns: int
    raw: bytes
    original_size: int


class PcapSource:
    """A packet capture made inside a guest as a `Source`.

    `t_ns` counts from the first packet. A torn end and packets too short for their own headers
    are `damage`; packets of other link types beside vsock ones are left out.
    """

    live = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[Damage] = []
        self.complete = False
        file = path.open("rb")
        try:
            # scapy picks the reader by the file's magic and returns it from either constructor.
            # It takes open files too, and would not close one that it cannot read.
            self._reader: Any = RawPcapReader(file)  # type: ignore[arg-type]
        except (Scapy_Exception, EOFError) as error:
            file.close()
            raise UnreadableInput(f"{path} is not a whole packet capture: {error}") from None
        self._is_pcapng = isinstance(self._reader, RawPcapNgReader)
        self._size = os.fstat(file.fileno()).st_size
        self._read_to = 0
        self._other_linktype: int | None = None
        if not self._is_pcapng and self._reader.linktype != LINKTYPE_VSOCK:
            self._other_linktype = self._reader.linktype
        self._packets = self._read_packets()
        self._first = next(self._packets, None)
        if self._first is None and self._other_linktype is not None:
            self._reader.close()
            raise UnreadableInput(
                f"{path} has link type {self._other_linktype}, not VSOCK ({LINKTYPE_VSOCK}): "
                "capture on a vsockmon interface inside the guest"
            )
        self.header = Header(
            source="vsockmon",
            wall_ns=self._first.wall_ns if self._first else None,
            resolution_ns=self._resolution_ns(),
        )

    def records(self) -> Iterator[tuple[int, Record]]:
        converter = PacketRecords(self.header.port)
        begin_ns = self._first.wall_ns if self._first else 0
        packet = self._first
        while packet is not None:
            t_ns = packet.wall_ns - begin_ns
            malformed = converter.malformed
            for record in converter.packet(t_ns, packet.raw, packet.original_size):
                yield 0, record
            if converter.malformed > malformed:
                self.damage.append(Damage(packet.offset, len(packet.raw), at_end=False))
            packet = next(self._packets, None)
        for record in converter.finish():
            yield 0, record
        torn = self._size - self._read_to
        if torn > 0:
            self.damage.append(Damage(self._read_to, torn, at_end=True))
        self.complete = torn <= 0

    def _read_packets(self) -> Iterator[_Packet]:
        reader = self._reader
        # The public iterators would cut packets at scapy's MTU.
        step = reader._read_block if self._is_pcapng else reader._read_packet
        while True:
            self._read_to = reader.f.tell()
            try:
                found = step(_PACKET_LIMIT)
            except (Scapy_Exception, EOFError, OverflowError):
                return
            if found is None:
                continue  # a block that is no packet
            raw, meta = found
            if self._is_pcapng:
                linktype = meta.linktype
            else:
                linktype = reader.linktype
                if self._read_to + _PACKET_HEADER_SIZE + meta.caplen > self._size:
                    return  # scapy gives what there is of a torn packet
            if linktype != LINKTYPE_VSOCK:
                self._other_linktype = linktype
                continue
            yield _Packet(self._read_to, self._wall_ns(meta), raw, meta.wirelen)

    def _wall_ns(self, meta: Any) -> int:
        if self._is_pcapng:
            ticks = (meta.tshigh or 0) << 32 | (meta.tslow or 0)
            return min(ticks * _NANOSECONDS // int(meta.tsresol), _WALL_LIMIT)
        return int(meta.sec * _NANOSECONDS + meta.usec * self._resolution_ns())

    def _resolution_ns(self) -> int:
        if self._is_pcapng:
            resolutions = [options["tsresol"] for _, _, options in self._reader.interfaces]
            return max(1, _NANOSECONDS // int(max(resolutions, default=_NANOSECONDS)))
        return 1 if self._reader.nano else 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def read(path: Path) -> PcapSource:
    """Open the packet capture at `path`; raises OSError and UnreadableInput."""
    return PcapSource(path)
