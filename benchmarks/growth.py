"""Decoding and reading from 10^3 operations up to 10^7, beside other ways to decode the same.

Each figure is of a process of its own, `python -m benchmarks.growth STEP SIZE FOLDER`, and each is
measured in turn with what it is held against. Rates are by seconds of one processor. The others
are slow, and get fewer messages.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from .rows import Row

LARGEST = int(os.environ.get("UPCALL_BENCH_LARGEST", "100000"))
SIZES: Final = tuple(10**power for power in range(3, 8))
_ROUNDS = 3
_MOST_WITH_FINDINGS: Final = 1_000_000
"""Findings are kept until the end: beyond, they would take gigabytes."""
_LONG = 1_000_000
"""From so many operations on a figure is of one round."""
_OTHERS: Final = {
    "the observer alone": 100_000, "plain struct loop": 10**7, "construct": 1_000, "scapy": 1_000,
    "tshark": 100_000,
}  # fmt: skip
"""What else decodes, and at most how many operations of it."""
_HEADER: Final = Struct("<IIII")
_PCAP: Final = Struct("<IHHiIII")
_WINDOW: Final = Struct("<QQI")
_SLOT: Final = Struct("<BB")
_AT_ONCE: Final = 4096
Work = Callable[[], object]


class _Took(NamedTuple):
    seconds: float
    cpu_s: float
    peak_mib: float


def run() -> Iterator[Row]:
    """Rows of the table, size by size."""
    for size in SIZES:
        if size <= LARGEST:
            with tempfile.TemporaryDirectory() as name:
                yield from _of_size(size, Path(name))


def _of_size(size: int, folder: Path) -> Iterator[Row]:
    rounds = _ROUNDS if size < _LONG else 1
    written = _child("write", size, folder)
    on_disk = (folder / "c.upcap").stat().st_size / (2 * size)
    yield _rate("written", size, written, on_disk)
    others = {
        name: step for name, step in _STEPS.items()
        if size <= _OTHERS.get(name, 0) and (name != "tshark" or shutil.which("tshark"))
    }  # fmt: skip
    if "tshark" in others:
        _child("packets", size, folder)
        _child("exported", size, folder)
    took: dict[str, list[_Took]] = {}
    imported = ["imported", "imported again"] if "tshark" in others else []
    for _ in range(rounds):  # in turns, so that the machine's mood meets all of them
        for name in ("decoded and paired", *others, *imported):
            took.setdefault(name, []).append(_child(name, size, folder))
    ours = took["decoded and paired"]
    yield _rate("decoded and paired, from the file", size, _middle(ours), on_disk)
    for name in others:
        slower = 1 / _times(took[name], ours)
        yield _rate(f"the same by {name}", size, _middle(took[name]), None, slower)
    if imported:
        one = _middle(took["imported"])
        faster = _times(took["tshark"], took["imported"])
        yield _row("packets imported", 2 * size / one.seconds, "messages/s", size, one, faster,
                   "tshark")  # fmt: skip
        one = _middle(took["imported again"])
        faster = _times(took["imported"], took["imported again"])
        yield _row("a pcapng of ours imported", 2 * size / one.seconds, "messages/s", size, one,
                   faster, "packets imported")  # fmt: skip
    indexed = _child("indexed", size, folder)
    yield _rate("indexed", size, indexed, (folder / "c.upcap").stat().st_size / (2 * size))
    for name in ("opened", "filtered"):
        one = _middle([_child(name, size, folder) for _ in range(rounds)])
        yield _row(name, one.seconds * 1000, "ms", size, one)
    for name in ("info", "shown, what matches little"):
        one = _middle([_child(name, size, folder) for _ in range(rounds)])
        yield _row(name, one.cpu_s, "s", size, one)
    if size <= _MOST_WITH_FINDINGS:
        one = _middle([_child("diagnosed", size, folder) for _ in range(rounds)])
        yield _row(
            "diagnosed, three findings at four", size / one.seconds, "operations/s", size, one
        )
    (folder / "c.upcap").unlink()
    _child("write what mostly succeeds", size, folder)
    one = _middle([_child("diagnosed", size, folder) for _ in range(rounds)])
    yield _row("diagnosed, one in a thousand fails", size / one.seconds, "operations/s", size, one)


def _times(theirs: list[_Took], ours: list[_Took]) -> float:
    """How many times as long they take as we do, in the median of the rounds."""
    return statistics.median(
        one.seconds / other.seconds for one, other in zip(theirs, ours, strict=True)
    )


def _middle(several: list[_Took]) -> _Took:
    return sorted(several)[len(several) // 2]


def _rate(
    name: str, size: int, took: _Took, on_disk: float | None, ratio: float | None = None
) -> Row:
    against = "decoded and paired" if ratio is not None else ""
    rate = 2 * size / took.seconds
    return _row(name, rate, "messages/s", size, took, ratio, against, on_disk)


def _row(
    name: str, value: float, unit: str, size: int, took: _Took, ratio: float | None = None,
    against: str = "", on_disk: float | None = None,
) -> Row:  # fmt: skip
    return Row(f"{name}, {size:,} operations", value, unit, ratio, against, size, on_disk,
               took.cpu_s, took.peak_mib)  # fmt: skip


def _child(step: str, size: int, folder: Path) -> _Took:
    command = [sys.executable, "-m", "benchmarks.growth", step, str(size), str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _Took(*map(float, told.split()))


# What a child does.


def _pairs() -> list[bytes]:
    from .made_up import records

    return [raw for record in records(4) if len(raw := getattr(record, "data", b"")) == 1024][1:]


def _messages(size: int) -> Iterator[bytes]:
    return islice(cycle(_pairs()), 2 * size)


def _write(size: int, folder: Path, mostly_succeed: bool = False) -> Work:
    from upcall_trace.capture.records import Header
    from upcall_trace.capture.writer import CaptureWriter

    from .made_up import records, successes

    made = successes if mostly_succeed else records

    def work() -> None:
        with CaptureWriter(folder / "c.upcap", Header("bench", arch="x86_64")) as writer:
            for record in made(size):
                writer.write(record)

    return work


def _packets(size: int, folder: Path) -> Work:
    """The same messages as somebody captures them at a vsockmon interface."""
    from dissectors.vsockmon import VirtioOp, encode_packet
    from upcall_trace.capture.records import Chunk
    from upcall_trace.exports.wireshark import dissector

    from .made_up import records

    host, guest = (2, 1 << 30), (3, 219)
    taken = {True: 0, False: 0}

    def work() -> None:
        (folder / "upcall.lua").write_text(dissector(), "utf-8")
        with (folder / "c.pcap").open("wb") as file:
            file.write(_PCAP.pack(0xA1B23C4D, 2, 4, 0, 0, 262144, 271))

            def put(t_ns: int, to_guest: bool, op: VirtioOp, raw: bytes = b"") -> None:
                ends = (host, guest) if to_guest else (guest, host)
                packet = encode_packet(*ends, op, raw, fwd_cnt=taken[not to_guest])
                taken[to_guest] += len(raw)
                seconds, part = divmod(t_ns, 1_000_000_000)
                file.write(_HEADER.pack(seconds, part, len(packet), len(packet)) + packet)

            put(0, True, VirtioOp.REQUEST)
            put(0, False, VirtioOp.RESPONSE)
            for record in records(size):  # a guest's socket does not see the VMM's lines
                if isinstance(record, Chunk) and record.data[:2] not in (b"CO", b"OK"):
                    put(record.t_ns, record.to_guest, VirtioOp.RW, record.data)

    return work


def _decode(size: int, folder: Path) -> Work:
    from upcall_trace.sources import open_source
    from upcall_trace.trace.opening import decode_source

    def work() -> None:
        with open_source(folder / "c.upcap") as source:
            _check(len(decode_source(source).operations), size)

    return work


def _observe(size: int, folder: Path) -> Work:
    """The same one by one, as it is done wherever something is odd."""
    from upcall_trace.capture.reader import CaptureReader
    from upcall_trace.trace.decoding import Session

    def work() -> None:
        with CaptureReader(folder / "c.upcap") as reader:
            session = Session(reader.header)
            for offset, record in reader.records():
                session.feed(record, offset)
            _check(len(session.table), size)

    return work


def _export(size: int, folder: Path) -> Work:
    """The capture as this program writes it for Wireshark."""
    from upcall_trace.exports.pcapng import write_packets
    from upcall_trace.sources import open_source

    def work() -> None:
        with open_source(folder / "c.upcap") as source, (folder / "c.pcapng").open("wb") as file:
            write_packets(source.header, (record for _, record in source.records()), file, {})

    return work


def _import(size: int, folder: Path, name: str = "c.pcap") -> Work:
    from upcall_trace.cli.support.files import write_whole
    from upcall_trace.sources import open_source
    from upcall_trace.trace.opening import load
    from upcall_trace.trace.streams import all_in_bulk

    output = folder / "imported.upcap"

    def work() -> None:
        with open_source(folder / name) as source:
            write_whole(output, source.header, all_in_bulk(source))
        _check(len(load(output).operations), size)

    return work


def _import_again(size: int, folder: Path) -> Work:
    return _import(size, folder, "c.pcapng")


def _struct(size: int, folder: Path) -> Work:
    """The least that a program written for the purpose does: a header, a load, a list of rows."""
    messages = _messages(size)

    def work() -> None:
        header, rows = _HEADER.unpack_from, []
        for raw in messages:
            magic, load_size, kind, flags = header(raw)
            load = _WINDOW.unpack_from(raw, 16) if load_size > 4 else _SLOT.unpack_from(raw, 16)
            rows.append((magic, kind, flags, load))
            if len(rows) == _AT_ONCE:
                rows.clear()

    return work


def _construct(size: int, folder: Path) -> Work:
    from dissectors.wire_formats import reply_format, request_format

    formats = []
    for place, raw in enumerate(_pairs()):
        _, load_size, kind, _ = _HEADER.unpack_from(raw)
        formats.append(reply_format(kind) if place % 2 else request_format(kind, load_size))
    messages = _messages(size)

    def work() -> None:
        for layout, raw in zip(cycle(formats), messages, strict=False):
            layout.parse(raw)

    return work


def _scapy(size: int, folder: Path) -> Work:
    from dissectors.scapy_layers import UpcallReply, UpcallRequest

    messages = _messages(size)

    def work() -> None:
        for kind, raw in zip(cycle((UpcallRequest, UpcallReply)), messages, strict=False):
            kind(raw)

    return work


def _tshark(size: int, folder: Path) -> Work:
    packets, script = str(folder / "c.pcap"), f"lua_script:{folder / 'upcall.lua'}"
    command = ["tshark", "-X", script, "-r", packets, "-T", "fields", "-Y",
               "upcall", "-e", "upcall.op", "-e", "upcall.ret"]  # fmt: skip

    def work() -> None:
        told = subprocess.run(command, capture_output=True, check=True).stdout
        _check(min(told.count(b"\n"), 2 * size) // 2, size)

    return work


def _index(size: int, folder: Path) -> Work:
    from upcall_trace.trace.opening import build_index

    return lambda: build_index(folder / "c.upcap")


def _open(size: int, folder: Path) -> Work:
    from upcall_trace.trace.opening import load

    return lambda: load(folder / "c.upcap")


def _filter(size: int, folder: Path) -> Work:
    from upcall_trace.trace.filters import parse
    from upcall_trace.trace.opening import load

    wanted = parse("op == add_mmio and ret < 0 and latency > 100ns")

    def work() -> None:
        hits = wanted.mask(load(folder / "c.upcap").operations)
        _check(int(hits.sum()), size // 4)

    return work


def _command(*arguments: str) -> Callable[[int, Path], Work]:
    """A command as users give it, all of its process."""

    def made(_: int, folder: Path) -> Work:
        command = [sys.executable, "-m", "upcall_trace", *arguments, str(folder / "c.upcap")]
        return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    return made


def _diagnose(size: int, folder: Path) -> Work:
    from upcall_trace.diagnose.run import diagnose

    return lambda: diagnose(folder / "c.upcap")


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"{found} instead of {wanted}")


_STEPS: Final[dict[str, Callable[[int, Path], Work]]] = {
    "write": _write,
    "packets": _packets,
    "decoded and paired": _decode,
    "the observer alone": _observe,
    "plain struct loop": _struct,
    "construct": _construct,
    "scapy": _scapy,
    "tshark": _tshark,
    "exported": _export,
    "imported": _import,
    "imported again": _import_again,
    "indexed": _index,
    "opened": _open,
    "filtered": _filter,
    "info": _command("info"),
    "shown, what matches little": _command("show", "--filter", "latency > 1s"),
    "diagnosed": _diagnose,
    "write what mostly succeeds": partial(_write, mostly_succeed=True),
}


def _status(name: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/self/{name}").read_text(), re.M)
    return int(found[1]) if found else 0


def main() -> None:
    """Do one step; print its CPU seconds, those of the whole process, and the peak in MiB."""
    work = _STEPS[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))  # it imports what it needs
    begun = sum(os.times()[:4])  # seconds of CPU: others may be at work on this machine
    work()
    cpu = sum(os.times()[:4])
    seconds = max(cpu - begun, 0.01)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(seconds, cpu, max(_status("status", "VmHWM"), children) / 1024)


if __name__ == "__main__":
    main()
