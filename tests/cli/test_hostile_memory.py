"""Every command on every hostile file: less than 500 MB more than on an empty one, exit as told."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import msgpack
import pytest

from dissectors.constants import Arch
from tests.cli.test_attacks import HOSTILE, ROOM
from tests.support import DISK, answer, ask, command, connect, golden, write_capture
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import MAGIC, frame
from upcall_trace.capture.records import Chunk, Header
from upcall_trace.errors import EXIT_MEANINGS
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.on_socket import SimulatedGuest

COMMANDS: Final = {
    "info": "info IN", "verify": "info --verify IN", "show": "show IN", "json": "show --json IN",
    "frames": "show --frames IN", "hex": "show --hex IN", "filtered": "show IN --filter ret<0",
    "diagnose": "diagnose IN", "report": "diagnose --json IN", "state": "state IN --at 1.0",
    "split": "split IN -o OUT", "recover": "recover IN -o OUT", "filter": "filter IN failed -o OUT",
    "merge": "merge IN IN -o OUT", "edit": "edit IN --drop 1.0 -o OUT",
    "import": "import IN -o OUT", "html": "export IN -o OUT.html", "csv": "export IN -o OUT.csv",
    "ndjson": "export IN -o OUT.ndjson", "pcapng": "export IN -o OUT.pcapng",
    "transcript": "export IN -o OUT.jsonl", "perfetto": "export IN -o OUT.pftrace",
    "parquet": "export IN -o OUT.parquet", "markdown": "export IN -o OUT.md",
    "replay": "replay IN --to GUEST", "plan": "replay IN --to GUEST --dry-run",
    "minimise": "minimise IN -o OUT", "diff": "diff IN IN", "diff-empty": "diff EMPTY IN",
    "bundle": "bundle IN -o OUT.tgz", "redacted": "bundle --redact IN -o OUT.tgz",
    "tui": "tui IN", "peek": "peek IN", "memory": "diagnose --memory IN",
    "console": "diagnose --console IN", "vmm-log": "diagnose --vmm-log IN",
    "world": "diagnose ONE --world IN", "matchers": "replay ONE --to GUEST --match-file IN",
    "baseline": "diagnose ONE --baseline IN", "fleet": "fleet add -j 1 OUT IN",
    "map": "replay ONE --to GUEST --map IN", "recording": "conform --to GUEST --recording IN",
    "resume": "conform --to GUEST --recording ONE --resume IN",
}  # fmt: skip


def _capture(name: str) -> Callable[[Path], object]:
    return lambda path: write_capture(path, HOSTILE[name]())


def _transcript(lines: list[str]) -> Callable[[Path], object]:
    header = golden("framing").read_text().splitlines()[0]
    return lambda path: path.write_text("\n".join([header, *lines]))


def _raw(made: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(made())


def _records(*payloads: bytes) -> Callable[[], bytes]:
    return lambda: MAGIC + encode(Header("x")) + b"".join(map(frame, payloads))


_ZEROS: Final = {
    "kind": "bytes", "t_ns": 1, "conn": 1, "dir": ">", "hex": "", "zeros": (1 << 20) - 1,
}  # fmt: skip
_PCAP: Final = bytes.fromhex("4d3cb2a1020004000000000000000000ffffff7f0f010000")
_PACKET: Final = bytes(8) + b"\xff\xff\xff\x7f" * 2
_SECTION: Final = b"\x0a\x0d\x0d\x0a\xf0\xff\xff\x7f\x4d\x3c\x2b\x1a" + bytes(20)
_CLAIMS: Final = [10, 1, 8_000_000, 8_000_000, b"", 0, 1 << 40]

CORPUS: Final[dict[str, Callable[[Path], object]]] = {
    **{name: _capture(name) for name in HOSTILE},
    "transcript-of-zeros": _transcript([json.dumps(_ZEROS)] * 200),
    "transcript-of-brackets": _transcript(["[" * 100_000, '{"kind":' * 50_000]),
    "empty-maps": _raw(_records(*[msgpack.packb([1, *[[{}] * 4000] * 200])] * 20)),
    "claims-of-rows": _raw(_records(*[msgpack.packb(_CLAIMS)] * 50)),
    "gzip-of-zeros": _raw(lambda: gzip.compress(bytes(200 << 20), 6)),
    "xz-of-zeros": _raw(lambda: lzma.compress(bytes(100 << 20), preset=0)),
    "xz-of-a-large-window": _raw(lambda: lzma.compress(b"db-dev-mgr: x\n", filters=[
        {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])),
    "one-line": _raw(lambda: b"a" * (20 << 20)),
    "colons": _raw(lambda: b"db-dev-mgr: " + b":" * (2 << 20) + b"\n"),
    "json-line": _raw(lambda: b'{"MESSAGE": ' + b'{"a":' * 200_000),
    "many-guests": _raw(lambda: b"".join(
        b'{"SOURCE":"%032x","SUBSYSTEM":"dmesg","MESSAGE":"add vcpu number: 1"}\n' % n
        for n in range(20_000))),
    "pcap-of-long-packets": _raw(lambda: _PCAP + _PACKET * 1000),
    "pcapng-of-a-long-block": _raw(lambda: _SECTION * 10),
    "elf-of-long-segments": _raw(lambda: b"\x7fELF\x02\x01\x01" + b"\xff" * 4000),
    "brackets": _raw(lambda: b"a = " + b"[" * 200_000),
    "json-brackets": _raw(lambda: b"[" * 200_000),
    "digits": _raw(lambda: b"a = " + b"9" * 200_000),
    "key-of-many-parts": _raw(lambda: b"a" + b".a" * 200_000 + b" = 1"),
    "random": _raw(lambda: random.Random(1).randbytes(1 << 20)),
    "long-chunks": lambda path: write_capture(
        path, [Chunk(n, n, True, random.Random(n).randbytes(60_000)) for n in range(1, 40)]),
}  # fmt: skip


# What `wait4` tells counts what the process was forked from.
_MEASURED: Final = """
import atexit, sys
status = open(sys.argv[1], "w")
atexit.register(lambda: status.write(open("/proc/self/status").read()))
from upcall_trace.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Ended(NamedTuple):
    """How a command ended: KiB is the most memory that it had."""

    code: int
    said: str
    peak_kib: int


def run(name: str, path: Path, folder: Path) -> Ended:
    """A command on a file, as a process of its own."""
    empty = write_capture(folder / "empty.upcap", [])
    one = write_capture(folder / "one.upcap", [*connect(), ask(DISK, 2000), answer(DISK, 5000)])
    places = {"IN": path, "EMPTY": empty, "ONE": one, "GUEST": folder / "g"}
    words = [
        str(places.get(word) or word.replace("OUT", str(folder / "out")))
        for word in COMMANDS[name].split()
    ]
    ended = subprocess.run(
        [*command()[:1], "-c", _MEASURED, folder / "status", *words], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, timeout=1800,
    )  # fmt: skip
    most = re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
    assert most is not None
    return Ended(ended.returncode, ended.stderr, int(most[1]))


@cache
def on_an_empty_file(name: str, folder: Path) -> int:
    """KiB that a command needs anyhow."""
    place = folder / f"{name}-empty"
    place.mkdir()
    with SimulatedGuest(kata_pod(Arch.X86_64), path=place / "g"):
        return run(name, write_capture(place / "x.upcap", []), place).peak_kib


@cache
def made(hostile: str, folder: Path) -> Path:
    """The file, made once: some take a second."""
    path = folder / hostile
    CORPUS[hostile](path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def check(name: str, hostile: str, folder: Path, place: Path) -> Ended:
    """Run a command on a file in an empty place; an AssertionError when it is not as told."""
    path = place / "x"
    shutil.copyfile(made(hostile, folder), path)
    with SimulatedGuest(kata_pod(Arch.X86_64), path=place / "g"):
        ended = run(name, path, place)
    assert ended.code in EXIT_MEANINGS, ended
    assert "Traceback" not in ended.said, ended
    assert (ended.peak_kib - on_an_empty_file(name, folder)) << 10 < ROOM, ended
    return ended


SAMPLE: Final = [
    ("info", "claims-of-rows"), ("console", "json-line"), ("world", "brackets"),
    ("import", "pcap-of-long-packets"), ("redacted", "gaps-whose-sum-overflows"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "hostile"), SAMPLE)
def test_some_commands_on_hostile_files(
    name: str, hostile: str, folder: Path, tmp_path: Path
) -> None:
    """The section `hostile` of `make torture` runs all commands on all files."""
    check(name, hostile, folder, tmp_path)


def test_what_takes_more_than_it_may_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the tests above could not fail."""
    on_empty = on_an_empty_file("info", folder)
    module = "tests.cli.test_hostile_memory._MEASURED"
    monkeypatch.setattr(module, f"kept = b'x' * {ROOM}\n{_MEASURED}")
    assert (run("info", golden("framing"), tmp_path).peak_kib - on_empty) << 10 > ROOM
