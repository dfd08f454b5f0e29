"""A capture as pcapng with LINKTYPE_VSOCK: for Wireshark, tshark and everything that reads it.

Times keep their nanoseconds, findings and marks become comments on packets. What a packet cannot
hold is carried in comments, so that reading the file gives the same capture. docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, BinaryIO, Final

from pcapng import FileWriter, blocks  # type: ignore[import-untyped]  # ships no annotations

from .. import __version__
from ..capture.records import COMMENT, Header, Record
from ..diagnose.whole_capture import WholeCapture
from ..sources.carried import COMMENT_LIMIT, CONNECTION, DERIVED, PROGRAM, carry
from ..sources.pcap import LINKTYPE_VSOCK
from ..views.text import safe
from . import Loss
from .vsock_packets import Item, items

_NANOSECONDS: Final = bytes([9])


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write a capture as pcapng, its findings and marks as comments on packets."""
    write_packets(capture.header, capture.records(), out, _remarks(capture))
    return []


def _remarks(capture: WholeCapture) -> dict[tuple[int, int | None], list[str]]:
    """What is said of each request, and with None of each connection as a whole."""
    said: dict[tuple[int, int | None], list[str]] = {}
    for mark in capture.marks:
        if mark.conn is not None:
            text = mark.text if mark.name == COMMENT else f"{mark.name} {mark.text}".rstrip()
            said.setdefault((mark.conn, mark.request), []).append(safe(text))
    for finding in capture.findings:
        if finding.conn is not None:
            sure = "possibly " if finding.inferred else ""
            text = f"{sure}{finding.code} {finding.name} ({finding.severity.word}): {finding.what}"
            said.setdefault((finding.conn, finding.request), []).append(safe(text))
    return said


def write_packets(
    header: Header,
    records: Iterable[Record],
    file: BinaryIO,
    remarks: Mapping[tuple[int, int | None], Sequence[str]],
) -> None:
    """Write all records; `remarks` as in `vsock_packets.items`."""
    notes = [f"{name}: {text}" for name, text in header.notes.items()]
    section = blocks.SectionHeader(
        endianness="<",
        options={
            # First: it is what a file of ours is known by.
            "shb_userappl": f"{PROGRAM} {__version__}",
            "opt_comment": [*map(_fitting, notes), *carry(header)],
            "shb_hardware": _fitting(header.host or "unknown"),
        },
    )
    interface = section.new_member(
        blocks.InterfaceDescription,
        link_type=LINKTYPE_VSOCK,
        options={"if_name": "upcall", "if_tsresol": _NANOSECONDS},
    )
    writer = FileWriter(file, section)
    begin_ns = header.wall_ns or 0
    for item in items(header, records, remarks):
        writer.write_block(_block(section, interface, item, begin_ns + item.t_ns))


def _fitting(text: str) -> str:
    """As much as a comment can hold; what it is said of is carried whole."""
    return text.encode("utf-8", "replace")[:COMMENT_LIMIT].decode("utf-8", "ignore")


def _block(section: Any, interface: Any, item: Item, wall_ns: int) -> Any:
    """A packet or a note. A time before 1970 has no place in the file: the record is carried."""
    derived = item.itself is None or wall_ns < 0
    carried = [*item.carried, *([item.itself] if item.itself and derived else [])]
    comments = [*map(_fitting, item.words), *chain.from_iterable(map(carry, carried))]
    if item.begins is not None:
        comments.append(f"{CONNECTION}{item.begins}")
    if item.raw and derived:
        comments.append(DERIVED)
    options = {"opt_comment": comments} if comments else {}
    wall_ns = max(0, wall_ns)
    when = {"timestamp_high": wall_ns >> 32, "timestamp_low": wall_ns & 0xFFFFFFFF}
    if not item.raw:
        # Statistics are the one kind of block that may stand anywhere and is no packet.
        return section.new_member(
            blocks.InterfaceStatistics, interface_id=interface.interface_id, options=options, **when
        )
    return section.new_member(
        blocks.EnhancedPacket,
        interface_id=interface.interface_id,
        packet_data=item.raw,
        packet_len=len(item.raw),
        options=options,
        **when,
    )
