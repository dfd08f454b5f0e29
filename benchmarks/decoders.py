"""Decoding from bytes: by columns, and what else can be had for it, all on the same messages."""

from __future__ import annotations

import resource
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dissectors.scapy_layers import UpcallReply, UpcallRequest
from dissectors.vsockmon import VirtioOp, encode_packet
from dissectors.wire_formats import reply_format, request_format
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk, Header, Record
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.cli.support.files import write_whole
from upcall_trace.exports.wireshark import dissector
from upcall_trace.sources import open_source
from upcall_trace.trace.decoding import Session
from upcall_trace.trace.opening import decode_source, load
from upcall_trace.trace.streams import all_in_bulk

from .decoding import records
from .rows import Row

OPERATIONS = 100_000
_FEW = 2_000
"""Operations for what takes long."""
_HOST, _GUEST = (2, 1 << 30), (3, 219)


def run() -> Iterator[Row]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        path, packets = Path(name) / "x.upcap", Path(name) / "x.pcap"
        with CaptureWriter(path, Header("bench")) as writer:
            for record in records(OPERATIONS):
                writer.write(record)
        count = write_packets(packets)
        told = _tshark(packets, count)
        others = {
            "one by one": _rate(lambda: _one_by_one(path), 2 * OPERATIONS),
            "a struct loop over messages in memory": _rate(_struct_loop(OPERATIONS), OPERATIONS),
            "construct": _rate(_construct(), _FEW),
            "scapy": _rate(_scapy(), _FEW),
        } | ({"tshark -T fields": told} if told else {})
        for other, rate in others.items():
            ours = _rate(lambda: _by_columns(path), 2 * OPERATIONS)
            yield Row("decode and pair from a file's bytes", ours, "messages/s", ours / rate,
                      other, size=OPERATIONS)  # fmt: skip
        imported = _rate(lambda: _import(packets, Path(name) / "y.upcap"), count)
        if told:
            yield Row("import a pcap", imported, "packets/s", imported / told, "tshark -T fields",
                      size=OPERATIONS)  # fmt: skip
        else:
            yield Row("import a pcap", imported, "packets/s", size=OPERATIONS)


def write_packets(path: Path) -> int:
    """The same messages as a vsockmon interface shows them; returns how many packets."""
    taken = {True: 0, False: 0}
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 271))

        def put(t_ns: int, to_guest: bool, op: VirtioOp, raw: bytes = b"") -> None:
            ends = (_HOST, _GUEST) if to_guest else (_GUEST, _HOST)
            packet = encode_packet(*ends, op, raw, fwd_cnt=taken[not to_guest])
            taken[to_guest] += len(raw)
            file.write(struct.pack("<4I", 0, t_ns, len(packet), len(packet)) + packet)

        put(0, True, VirtioOp.REQUEST)
        put(0, False, VirtioOp.RESPONSE)
        count = 2
        for record in records(OPERATIONS):
            if isinstance(record, Chunk) and record.data[:2] not in (b"CO", b"OK"):
                put(record.t_ns, record.to_guest, VirtioOp.RW, record.data)
                count += 1
    return count


def _rate(work: Callable[[], object], count: int) -> float:
    """How many a second of CPU time, in the quickest of three."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return count / min(times)


def _by_columns(path: Path) -> None:
    with CaptureReader(path) as reader:
        if len(decode_source(reader).operations) != OPERATIONS:
            raise ValueError("operations are missing")


def _one_by_one(path: Path) -> None:
    with CaptureReader(path) as reader:
        session = Session(reader.header)
        for offset, record in reader.records():
            session.feed(record, offset)


def _messages(operations: int) -> list[Chunk]:
    kept: list[Record] = list(records(operations))[5:]
    return [record for record in kept if isinstance(record, Chunk)]


def _struct_loop(operations: int) -> Callable[[], object]:
    """No file, no checksum, no pairing, no table: what Python takes to unpack the fields."""
    raw = [chunk.data for chunk in _messages(operations // 2)]
    head, mmio, pci, result = (struct.Struct("<" + code) for code in ("4I", "QQI", "BB", "iI"))

    def loop() -> list[tuple[int, ...]]:
        found = []
        for place, message in enumerate(raw):
            _, _, kind, _ = head.unpack_from(message)
            load = result if place % 2 else mmio if kind in (5, 6) else pci
            found.append((kind, *load.unpack_from(message, 16)))
        return found

    return loop


def _construct() -> Callable[[], object]:
    def form(raw: bytes, to_guest: bool) -> Any:
        _, size, kind, _ = struct.unpack_from("<4I", raw)
        return request_format(kind, size) if to_guest else reply_format(kind)

    chunks = [(form(chunk.data, chunk.to_guest), chunk.data) for chunk in _messages(_FEW // 2)]
    return lambda: [known.parse(raw) for known, raw in chunks]


def _scapy() -> Callable[[], object]:
    chunks = _messages(_FEW // 2)
    return lambda: [
        (UpcallRequest if chunk.to_guest else UpcallReply)(chunk.data) for chunk in chunks
    ]


def _import(packets: Path, output: Path) -> None:
    with open_source(packets) as source:
        write_whole(output, source.header, all_in_bulk(source))
    if len(load(output).operations) != OPERATIONS:
        raise ValueError("operations are missing")


def _tshark(packets: Path, count: int) -> float | None:
    """Packets a second of CPU time, with the dissector; None without tshark."""
    if shutil.which("tshark") is None:
        return None
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = packets.with_suffix(".lua")
    script.write_text(dissector(), "utf-8")
    command = ["tshark", "-X", f"lua_script:{script}", "-r", str(packets), "-T", "fields"]
    fields = ["-e", "upcall.type", "-e", "upcall.ret"]
    done = subprocess.run([*command, *fields], capture_output=True, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    if len(done.stdout.splitlines()) != count:
        raise ValueError("tshark read something else")
    return count / (ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
