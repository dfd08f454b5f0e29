"""pcap and pcapng files with LINKTYPE_VSOCK as a `Source`, by scapy or, without it, by others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..capture.reader import Damage
from ..capture.records import Gap, Header, Record
from ..errors import UnreadableInput
from .carried import PROGRAM
from .clock_ticks import LOOKED_AT, tick_ns
from .packet_blocks import BlockFile
from .packets import CapturedPacket, NotPackets, PacketFile
from .vsock_records import PacketRecords

if TYPE_CHECKING:
    from ..capture.runs import MessageRun
    from .pcapng_own import OwnPcapngSource

_SECTION_HEADER = 64 << 10
"""As far as the name of the writing program is looked for."""
LINKTYPE_VSOCK = 271
DROPPED = "packets that the capturing program lost"
"""The reason of a gap whose size in bytes nobody knows; it counts packets."""


class PcapSource:
    """A packet capture made inside a guest as a `Source`.

    `t_ns` counts from the first packet; the clock's step is seen in the times of the first
    packets, for a guest's clock may tick less often than the file could tell. A torn end and
    packets too short for their own headers are `damage`; packets of other link types beside vsock
    ones are left out.
    """

    live = False

    def __init__(self, path: Path, file: PacketFile) -> None:
        self.path = path
        self.damage: list[Damage] = []
        self.complete = False
        self._file = file
        self._size = path.stat().st_size
        self._other_linktype: int | None = None
        packets = self._vsock_packets()
        begin = list(islice(packets, LOOKED_AT))
        self._begin_ns = begin[0].wall_ns if begin else None
        self._packets = chain(begin, packets)
        if not begin:
            others = [link for link in file.linktypes if link != LINKTYPE_VSOCK]
            other = self._other_linktype or next(iter(others), None)
            if other is not None and LINKTYPE_VSOCK not in file.linktypes:
                file.close()
                raise UnreadableInput(
                    f"{path} has link type {other}, not VSOCK ({LINKTYPE_VSOCK}): "
                    "capture on a vsockmon interface inside the guest"
                )
        self.header = Header(
            source="vsockmon",
            wall_ns=self._begin_ns,
            resolution_ns=max(
                file.resolution_ns, tick_ns([packet.wall_ns for packet in begin]) or 0
            ),
        )

    def records(self) -> Iterator[tuple[int, Record]]:
        converter = PacketRecords(self.header.port)
        begin_ns = self._begin_ns or 0
        t_ns = 0
        for packet in self._packets:
            t_ns = packet.wall_ns - begin_ns
            for record in self._of(packet, t_ns, converter):
                yield 0, record
        for record in self._last(t_ns, converter):
            yield 0, record

    def runs(self, whole: int) -> Iterator[tuple[int, Record | MessageRun]]:
        """The same, with messages that are all `whole` bytes long as runs, as in a capture."""
        from .packet_runs import RunsOfPackets

        converter = PacketRecords(self.header.port)
        gathering = RunsOfPackets(converter, whole)
        begin_ns = self._begin_ns or 0
        t_ns = 0
        for found in self._file.batches() if isinstance(self._file, BlockFile) else self._packets:
            if isinstance(found, CapturedPacket):
                if found.linktype == LINKTYPE_VSOCK:
                    t_ns = found.wall_ns - begin_ns
                    for record in self._of(found, t_ns, converter):
                        yield 0, record
                continue
            for at in found.places:
                if at.linktype != LINKTYPE_VSOCK:
                    continue
                t_ns = at.wall_ns - begin_ns
                made = gathering.take(found.block, at, t_ns)
                if made is None:
                    raw = found.block[at.begin : at.end]
                    packet = CapturedPacket(at.offset, at.linktype, 0, raw, at.original_size)
                    for item in gathering.gathered(found.block):
                        yield 0, item
                    for record in self._of(packet, t_ns, converter):
                        yield 0, record
                    gathering.forget()
                elif made:
                    for item in gathering.gathered(found.block):
                        yield 0, item
                    for record in made:
                        yield 0, record
            for item in gathering.gathered(found.block):
                yield 0, item
        for record in self._last(t_ns, converter):
            yield 0, record

    def _of(self, packet: CapturedPacket, t_ns: int, converter: PacketRecords) -> Iterator[Record]:
        malformed = converter.malformed
        yield from converter.packet(t_ns, packet.raw, packet.original_size)
        if converter.malformed > malformed:
            self.damage.append(Damage(packet.offset, len(packet.raw), at_end=False))

    def _last(self, t_ns: int, converter: PacketRecords) -> Iterator[Record]:
        """What the end of the file brings to light."""
        yield from converter.finish()
        if self._file.dropped:
            yield Gap(t_ns, 0, False, self._file.dropped, DROPPED)
        torn = self._size - self._file.read_to
        if torn > 0:
            self.damage.append(Damage(self._file.read_to, torn, at_end=True))
        self.complete = torn <= 0

    def _vsock_packets(self) -> Iterator[CapturedPacket]:
        for packet in self._file.packets():
            if packet.linktype == LINKTYPE_VSOCK:
                yield packet
            else:
                self._other_linktype = packet.linktype

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(path: Path) -> PcapSource | OwnPcapngSource:
    """Open the packet capture at `path`; raises OSError and UnreadableInput."""
    try:
        own = _own(path)
        return own or PcapSource(path, BlockFile(path, _open))
    except NotPackets as error:
        raise UnreadableInput(f"{path} is not a whole packet capture: {error}") from None


def _own(path: Path) -> OwnPcapngSource | None:
    """A file that this program wrote carries more than packets."""
    with path.open("rb") as file:
        if PROGRAM.encode() not in file.read(_SECTION_HEADER):
            return None
    from .pcap_permissive import PcapngFile
    from .pcapng_own import OwnPcapngSource

    source = PcapngFile(path)
    if not str(source.section.options.get("shb_userappl", "")).startswith(PROGRAM):
        source.close()
        return None
    return OwnPcapngSource(path, source)


def _open(path: Path) -> PacketFile:
    """What is not of the usual form: with scapy, which a small installation does not have."""
    try:
        from .pcap_scapy import ScapyFile
    except ImportError:
        from .pcap_permissive import open_packets

        return open_packets(path)
    return ScapyFile(path)
