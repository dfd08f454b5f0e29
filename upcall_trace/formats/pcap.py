"""pcap and pcapng files with LINKTYPE_VSOCK, read with scapy: this package's only scapy import."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapNgReader, RawPcapReader

from ..capture.reader import Damage
from ..capture.records import Header, Record
from ..errors import UnreadableInput
from .vsock_records import PacketRecords

LINKTYPE_VSOCK = 271
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_PCAP_HEADER_SIZE = 24
_PACKET_HEADER_SIZE = 16
_PACKET_LIMIT = 0xFFFF * 4
"""As much of one packet as scapy ever reads; its own default would cut the largest ones."""
_NANOSECONDS = 1_000_000_000

# Torn files are ours to report, in our words.
logging.getLogger("scapy").setLevel(logging.CRITICAL)


class _Packet(NamedTuple):
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
        try:
            # scapy picks the reader by the file's magic and returns it from either constructor.
            self._reader: Any = RawPcapReader(str(path))
        except (Scapy_Exception, EOFError) as error:
            raise UnreadableInput(f"{path} is not a whole packet capture: {error}") from None
        self._is_pcapng = isinstance(self._reader, RawPcapNgReader)
        self._other_linktype: int | None = None
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
            for record in converter.packet(t_ns, packet.raw, packet.original_size):
                yield 0, record
            packet = next(self._packets, None)
        for record in converter.finish():
            yield 0, record
        if converter.malformed:
            self.damage.append(Damage(0, converter.malformed, at_end=False))
        with self.path.open("rb") as file:
            torn = _torn_bytes(file, self._is_pcapng)
            if torn:
                offset = os.fstat(file.fileno()).st_size - torn
                self.damage.append(Damage(offset, torn, at_end=True))
        self.complete = not torn

    def _read_packets(self) -> Iterator[_Packet]:
        while True:
            try:
                # The public iterator would cut packets at scapy's MTU.
                raw, meta = self._reader._read_packet(_PACKET_LIMIT)
            except (Scapy_Exception, EOFError, OverflowError):
                return  # what could not be read any more is counted as torn
            linktype = meta.linktype if self._is_pcapng else self._reader.linktype
            if linktype != LINKTYPE_VSOCK:
                self._other_linktype = linktype
                continue
            yield _Packet(self._wall_ns(meta), raw, meta.wirelen)

    def _wall_ns(self, meta: Any) -> int:
        if self._is_pcapng:
            ticks = (meta.tshigh or 0) << 32 | (meta.tslow or 0)
            return ticks * _NANOSECONDS // int(meta.tsresol)
        return int(meta.sec * _NANOSECONDS + meta.usec * self._resolution_ns())

    def _resolution_ns(self) -> int:
        if self._is_pcapng:
            resolutions = [options["tsresol"] for _, _, options in self._reader.interfaces]
            return max(1, _NANOSECONDS // int(max(resolutions, default=_NANOSECONDS)))
        return 1 if self._reader.nano else 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()


def _torn_bytes(file: IO[bytes], is_pcapng: bool) -> int:
    """How many bytes at the file's end are no whole packet or block."""
    size = os.fstat(file.fileno()).st_size
    position = 0
    order = ">" if file.read(4)[:1] == b"\xa1" else "<"
    if not is_pcapng:
        position = _PCAP_HEADER_SIZE
    while position < size:
        file.seek(position)
        head = file.read(_PACKET_HEADER_SIZE)
        if len(head) < 12:
            return size - position
        if is_pcapng:
            if head[:4] == _PCAPNG:
                order = "<" if head[8:12] == b"\x4d\x3c\x2b\x1a" else ">"
            (length,) = unpack(f"{order}I", head[4:8])
        else:
            (captured,) = unpack(f"{order}I", head[8:12])
            length = _PACKET_HEADER_SIZE + captured
        if length < 12 or position + length > size:
            return size - position
        position += length
    return 0


def read(path: Path) -> PcapSource:
    """Open the packet capture at `path`; raises OSError and UnreadableInput."""
    return PcapSource(path)
