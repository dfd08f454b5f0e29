"""Many mutated parts in one file, so that opening it costs next to nothing for each of them.

What surrounds the parts is right: their checksums, the headers of packets, the handshake of the
connection that messages are of. So a part is read, whatever became of the one before it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dissectors.constants import Arch
from tests.support import connect
from tests.trace.test_bulk import by_columns, one_by_one, told
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import MAGIC, frame
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk, Header, Record
from upcall_trace.capture.runs import MessageRun
from upcall_trace.diagnose.log_inputs import read_logs
from upcall_trace.sources import open_source
from upcall_trace.trace.bulk import feed
from upcall_trace.trace.decoding import Session
from upcall_trace.trace.streams import in_bulk

_VSOCK: Final = 271
_PCAP: Final = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, _VSOCK)
_SECTION: Final = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
_INTERFACE: Final = struct.pack("<IIHHII", 1, 20, _VSOCK, 0, 0, 20)
_TRANSCRIPT: Final = (
    b'{"kind": "header", "format": "upcall-transcript", "version": 1, "port": 219}\n'
)
_WHOLE: Final = 1024


def _frames(records: Sequence[Record], header: Header) -> bytes:
    return MAGIC + b"".join(map(encode, [header, *records]))


def capture_of(payloads: Sequence[bytes]) -> bytes:
    """Records with checksums that are right."""
    return _frames([], Header("heap")) + b"".join(frame(each) for each in payloads if each)


def capture_of_messages(messages: Sequence[bytes]) -> bytes:
    """Whole messages on one connection, most of them a request and its reply in turn."""
    arch = Arch.X86_64 if sum(messages[0]) & 1 else Arch.AARCH64
    records = connect()
    for number, raw in enumerate(messages):
        raw = raw[:_WHOLE].ljust(_WHOLE, b"\0")
        records.append(Chunk(1_000_000 * number, 1, (number + (raw[900] == 7)) % 2 == 0, raw))
    return _frames(records, Header("heap", arch=arch.value))


def pcap_of(packets: Sequence[bytes]) -> bytes:
    """A pcap file, with nanoseconds."""
    heads = (
        struct.pack("<IIII", number, number * 1000, len(raw), len(raw))
        for number, raw in enumerate(packets)
    )
    return _PCAP + b"".join(head + raw for head, raw in zip(heads, packets, strict=True))


def pcapng_of(packets: Sequence[bytes]) -> bytes:
    """A pcapng file as another program writes it."""
    blocks = []
    for number, raw in enumerate(packets):
        size = 32 + (len(raw) + 3) // 4 * 4
        body = raw.ljust(size - 32, b"\0")
        head = struct.pack("<IIIIIII", 6, size, 0, 0, number * 1000, len(raw), len(raw))
        blocks.append(head + body + struct.pack("<I", size))
    return _SECTION + _INTERFACE + b"".join(blocks)


def transcript_of(lines: Sequence[bytes]) -> bytes:
    """A transcript with a header that is right."""
    return _TRANSCRIPT + b"\n".join(lines)


def log_of(lines: Sequence[bytes]) -> bytes:
    """A log; lines keep their ends, as far as they have some."""
    return b"".join(lines)


class HeapFiles:
    """What is made of such a file: `folder` is where it is written each time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "heap"

    def capture(self, raw: bytes) -> None:
        """Singly and by runs: the same records, the same damage."""
        self._path.write_bytes(raw)
        with CaptureReader(self._path) as plain, CaptureReader(self._path) as reader:
            expected = [*plain.records()]
            found: list[tuple[int, Record]] = []
            for offset, item in reader.runs(_WHOLE):
                found += item.records() if isinstance(item, MessageRun) else [(offset, item)]
            assert found == expected
            assert (reader.damage, reader.complete) == (plain.damage, plain.complete)

    def messages(self, raw: bytes) -> None:
        """By columns and by the observer: the same operations, and all else that is known."""
        self._path.write_bytes(raw)
        session, _ = by_columns(self._path)
        assert told(session) == told(one_by_one(self._path))

    def packets(self, raw: bytes) -> None:
        """Singly and by runs, through what reads every packet capture."""
        self._path.write_bytes(raw)
        found: list[Record] = []
        with open_source(self._path) as source:
            session = Session(source.header)
            for offset, item in in_bulk(source):
                feed(session, item, offset)
                found += [r for _, r in item.records()] if isinstance(item, MessageRun) else [item]
            session.finish()
        with open_source(self._path) as source:
            assert found == [record for _, record in source.records()]

    def log(self, raw: bytes) -> None:
        """As a log of any kind, as a console, and as what a VMM wrote."""
        self._path.write_bytes(raw)
        for logs in (
            read_logs(found=[self._path]),
            read_logs(console=self._path),
            read_logs(vmm_log=self._path),
        ):
            for finding in logs.findings():
                str(finding)
