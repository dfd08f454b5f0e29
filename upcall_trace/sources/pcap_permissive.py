"""Packet captures read without scapy, by dpkt (pcap) and python-pcapng (pcapng).

Slower than scapy, under permissive licences, and with what scapy passes over: comments and the
counts of packets that the capturing program lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpkt import pcap as dpkt_pcap  # type: ignore[import-untyped]  # ships no annotations
from pcapng import FileScanner, blocks  # type: ignore[import-untyped]  # ships no annotations

from .packets import NANOSECONDS, PACKET_LIMIT, WALL_LIMIT, CapturedPacket, NotPackets

_SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
_NANO_MAGICS = (dpkt_pcap.TCPDUMP_MAGIC_NANO, dpkt_pcap.PMUDPCT_MAGIC_NANO)
_DEFAULT_RESOLUTION = 6
_PACKETS = (blocks.EnhancedPacket, blocks.SimplePacket, blocks.ObsoletePacket)


class PcapFile:
    """A classic pcap file as a `PacketFile`; raises OSError and NotPackets."""

    dropped = 0

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        start = self._file.read(dpkt_pcap.FileHdr.__hdr_len__)
        if len(start) < dpkt_pcap.FileHdr.__hdr_len__:
            self._file.close()
            raise NotPackets("its header is torn")
        magic = int.from_bytes(start[:4], "big")
        self._packet_header = dpkt_pcap.MAGIC_TO_PKT_HDR.get(magic)
        if self._packet_header is None:
            self._file.close()
            raise NotPackets("its first bytes are none of a packet capture")
        # dpkt says so of what is little-endian alone.
        little = getattr(self._packet_header, "__byte_order__", ">") == "<"
        header = (dpkt_pcap.LEFileHdr if little else dpkt_pcap.FileHdr)(start)
        self.linktypes: list[int] = [header.linktype]
        self.resolution_ns = 1 if magic in _NANO_MAGICS else 1000
        self.read_to = 0

    def packets(self) -> Iterator[CapturedPacket]:
        size = self._packet_header.__hdr_len__
        while True:
            self.read_to = self._file.tell()
            start = self._file.read(size)
            if len(start) < size:
                return
            header = self._packet_header(start)
            if header.caplen > PACKET_LIMIT:
                return
            raw = self._file.read(header.caplen)
            if len(raw) < header.caplen:
                return
            wall_ns = header.tv_sec * NANOSECONDS + header.tv_usec * self.resolution_ns
            yield CapturedPacket(self.read_to, self.linktypes[0], wall_ns, raw, header.len)

    def close(self) -> None:
        self._file.close()


class PcapngFile:
    """A pcapng file as a `PacketFile`, and its blocks; raises OSError and NotPackets."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._scanner = FileScanner(self._file)
        self._blocks = iter(self._scanner)
        self.linktypes: list[int] = []
        self._resolutions: list[int] = []
        self.ticks: list[int] = []
        """Of each interface of the section that is being read, ticks a second."""
        self.read_to = 0
        self.dropped = 0
        first = self._next()
        if not isinstance(first, blocks.SectionHeader):
            self._file.close()
            raise NotPackets("its first block is torn")
        self.section = first

    @property
    def resolution_ns(self) -> int:
        return max(1, NANOSECONDS // max(self._resolutions, default=NANOSECONDS))

    def packets(self) -> Iterator[CapturedPacket]:
        for block in self.blocks():
            if isinstance(
                block, (blocks.EnhancedPacket, blocks.SimplePacket, blocks.ObsoletePacket)
            ):
                packet = self.packet(block)
                if packet is not None:
                    yield packet

    def blocks(self) -> Iterator[Any]:
        """Every block after the first; interfaces and counts are taken in on the way."""
        while (block := self.block_at(self.position)) is not None:
            yield block

    @property
    def position(self) -> int:
        """Where the next block begins."""
        return self._file.tell()

    @property
    def is_little_endian(self) -> bool:
        """Whether the section that is being read is."""
        return bool(self._scanner.endianness == "<")

    def block_at(self, position: int) -> Any:
        """The block that begins there; None where no whole one does, and none can be read then."""
        if position != self._file.tell():
            self._file.seek(position)
        block = self._next()
        if isinstance(block, blocks.InterfaceDescription):
            self.linktypes.append(block.link_type)
            self._resolutions.append(_ticks(block))
            self.ticks.append(self._resolutions[-1])
        elif isinstance(block, blocks.SectionHeader):
            self.ticks.clear()
        elif isinstance(block, blocks.InterfaceStatistics):
            self.dropped += _number(block.options, "isb_ifdrop")
            self.dropped += _number(block.options, "isb_osdrop")
        return block

    def bytes_at(self, position: int, size: int) -> bytes:
        """So many bytes of the file, fewer at its end."""
        return os.pread(self._file.fileno(), size, position)

    def packet(self, block: Any) -> CapturedPacket | None:
        """A packet block; None when no interface or no bytes belong to it."""
        try:
            interface = block.interface
            ticks = getattr(block, "timestamp_high", 0) << 32 | getattr(block, "timestamp_low", 0)
            raw = block.packet_data
            size = block.packet_len
        except Exception:  # the library's readers raise whatever a damaged block leads to
            return None
        wall_ns = min(ticks * NANOSECONDS // _ticks(interface), WALL_LIMIT)
        return CapturedPacket(self.read_to, interface.link_type, wall_ns, raw, size)

    def close(self) -> None:
        self._file.close()

    def _next(self) -> Any:
        self.read_to = self._file.tell()
        try:
            block = next(self._blocks, None)
        except Exception:  # as above; what follows cannot be read
            return None
        if block is None:
            self.read_to = self._file.tell()
        return block


def comments(block: Any) -> Sequence[str]:
    """The comments of a block, those that are text."""
    try:
        found = block.options.get_all("opt_comment")
    except Exception:  # as above
        return ()
    return [text for text in found if isinstance(text, str)]


def _ticks(interface: Any) -> int:
    """Ticks a second of an interface's clock."""
    try:
        coded = interface.options["if_tsresol"]
        value = coded[0] if isinstance(coded, bytes) else int(coded)
    except Exception:  # no such option, or a damaged one
        value = _DEFAULT_RESOLUTION
    return 1 << (value & 0x7F) if value & 0x80 else 10 ** min(value, 40)


def _number(options: Any, name: str) -> int:
    try:
        return max(0, int(options[name]))
    except Exception:  # no such option, or a damaged one
        return 0


def open_packets(path: Path) -> PcapFile | PcapngFile:
    """Open a packet capture of either kind; raises OSError and NotPackets."""
    with path.open("rb") as file:
        is_pcapng = file.read(4) == _SECTION_MAGIC
    return PcapngFile(path) if is_pcapng else PcapFile(path)
