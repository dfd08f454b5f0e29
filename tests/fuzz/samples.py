"""What is right, for every parser: the recordings, logs and texts that the other tests use."""

from __future__ import annotations

import gzip
import lzma
import tempfile
from functools import cache
from pathlib import Path

from tests.support import GOLDEN, PCAPS, TRANSCRIPTS, records_of
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import FRAME
from upcall_trace.capture.records import Chunk
from upcall_trace.exports.pcapng import write_packets

TESTS = Path(__file__).parents[1]
CAPTURES = TESTS.parent / "captures"
_SMALL = 48 << 10


def _files(folder: Path, pattern: str, most: int = _SMALL) -> list[bytes]:
    return [
        path.read_bytes()
        for path in sorted(folder.rglob(pattern))
        if path.is_file() and path.stat().st_size <= most
    ]


@cache
def messages() -> list[bytes]:
    """Requests and replies, each once."""
    records = [record for path in TRANSCRIPTS for record in records_of(path)[1]]
    return sorted({r.data for r in records if isinstance(r, Chunk) and len(r.data) == 1024})


@cache
def payloads() -> list[bytes]:
    """Records of every kind, without the frame around them."""
    found = [encode(record) for path in TRANSCRIPTS[:8] for record in records_of(path)[1]]
    for path in sorted(CAPTURES.glob("*.upcap"))[:6]:
        raw = path.read_bytes()
        at = 8
        while at + FRAME.size <= len(raw):
            length, _ = FRAME.unpack_from(raw, at)
            found.append(raw[at : at + FRAME.size + length])
            at += FRAME.size + length
    return sorted({each[FRAME.size :] for each in found})


@cache
def captures() -> list[bytes]:
    return _files(CAPTURES, "*.upcap", 12 << 10)


@cache
def transcripts() -> list[bytes]:
    return [path.read_bytes() for path in TRANSCRIPTS if path.stat().st_size <= _SMALL]


@cache
def transcript_lines() -> list[bytes]:
    """All but the first, each once."""
    return sorted({line for text in transcripts() for line in text.splitlines()[1:]})


@cache
def pcaps() -> list[bytes]:
    return [path.read_bytes()[:_SMALL] for path in PCAPS]


@cache
def pcapngs() -> list[bytes]:
    """What `export` writes; the first one is short."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for path in TRANSCRIPTS[:6]:
            header, records = records_of(path)
            to = Path(folder) / "x.pcapng"
            with to.open("wb") as file:
                write_packets(header, records, file, {})
            found.append(to.read_bytes())
    return sorted(found, key=len)


@cache
def packets() -> list[bytes]:
    """Single packets of a vsockmon interface."""
    found = set()
    for raw in pcaps():
        at = 24
        while at + 16 <= len(raw):
            length = int.from_bytes(raw[at + 8 : at + 12], "little")
            found.add(raw[at + 16 : at + 16 + length])
            at += 16 + length
    return sorted(found)


@cache
def logs() -> list[bytes]:
    """Consoles and logs of VMMs and runtimes, in all the forms that they come in."""
    found = _files(GOLDEN, "*.log", 16 << 10) + _files(TESTS / "scenes", "*.log", 16 << 10)
    for pattern in ("*.log", "*.json", "*.jsonl", "*.txt"):
        found += _files(TESTS / "cases", pattern, 16 << 10)
    return found


@cache
def log_lines() -> list[bytes]:
    """Their lines, each once."""
    return sorted({line for text in logs() for line in text.splitlines(keepends=True)})


@cache
def packed() -> list[bytes]:
    plain = captures()[:2] + logs()[:2]
    return [gzip.compress(p) for p in plain] + [lzma.compress(p) for p in plain]


@cache
def images() -> list[bytes]:
    """The memory of guests."""
    return [path.read_bytes() for path in sorted((TESTS / "memory").glob("*.img"))][:2]


def worlds() -> list[bytes]:
    return [(GOLDEN / "worlds.toml").read_bytes()[:6000]]


SETTINGS = [b'theme = "nord"\n[keys]\nnext_failure = "f3"\n']
MATCHERS = [b'"*" = "ret"\n"1.0" = "latency<=2x, cpu_id=*"\n', b'"add_cpu" = "ret=0|-17"\n']
MAPS = [
    b'[mmio]\n0xe0006000 = 0xe0008000\n[irq]\n5 = 6\n[pci]\n"0:9" = "1:9.0"\n[apic_id]\n1 = 3\n'
]
BASELINES = [
    b'{"findings": [{"code": "UP301", "conn": 1, "request": 0, "sandbox": null}, {}]}',
]
NOTES = [
    b'{"v": 1, "kind": "guest", "pid": 1, "backend": "dragonball", "machine": "pc"}',
]
FILTERS = [
    b"op == add_cpu and ret < 0", b"not (failed or stale) and conn in (1, 2)", b"latency > 2.5ms",
    b"code == UP301 and finding >= warning", b"split-request", b"mmio_base == 0xe0006000",
    b"op in (add_mmio, del_mmio) or msg_size != 4", b"ret == EINVAL", b"time < 1.5s",
]  # fmt: skip
FAULTS = [
    b"add_cpu:delay=300ms",
    b"any:drop:chance=0.1",
    b"del_mmio:ret=-17:times=2",
    b"any:split=3",
]
CHANGES = [
    b"1.0 ret=-17",
    b"2.1 request.msg_size=4",
    b"1.0 mmio_base=0xe0006000",
    b"1.2 apic_id=1,2",
]
RULES = [b"ret", b"latency<=2x, cpu_id=*", b"1.0:ret=0|-17", b"add_cpu:apic_ver"]
MOMENTS = [b"2026-09-01T10:00", b"-10m", b"today", b"2026-09-01T10:00:00.5+02:00", b"now"]
LINES = [b"CONNECT 219\n", b"OK 1024\n", b"CONNECT 4294967295\n", b"OK 0\n"]
