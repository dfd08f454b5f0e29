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
from .packets import CapturedPacket, NotPackets, PacketFile
from .vsock_records import PacketRecords

if TYPE_CHECKING:
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
            malformed = converter.malformed
            for record in converter.packet(t_ns, packet.raw, packet.original_size):
                yield 0, record
            if converter.malformed > malformed:
                self.damage.append(Damage(packet.offset, len(packet.raw), at_end=False))
        for record in converter.finish():
            yield 0, record
        if self._file.dropped:
            yield 0, Gap(t_ns, 0, False, self._file.dropped, DROPPED)
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
        return own or PcapSource(path, _open(path))
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
    """With scapy, which is the fastest of them; a small installation has none."""
    try:
        from .pcap_scapy import ScapyFile
    except ImportError:
        from .pcap_permissive import open_packets

        return open_packets(path)
    return ScapyFile(path)
