"""A message type that nobody has heard of, added by a row of the table: everything knows it.

The sources are copied, the row is written into the copy, and the copy is run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import write_capture
from tests.test_imports import ROOT
from upcall_trace.capture.records import Begins, Chunk, Close, Header, Open, Record

NUMBER = """    DEL_PCI = 8
    SET_LEVEL = 9
"""
ROW = '''    _message(
        MessageType.SET_LEVEL,
        (
            FieldRow(16, "level", "u16", "how high", show=Show.HEX, word="LEVEL"),
            FieldRow(18, "zones", "u8", "how many of zone_ids are meant"),
            FieldRow(19, "zone_ids", "u16", "which", 5, "zones", word="ZONE", item="zone_id"),
            FieldRow(29, "hart", "u8", "which hart", arch=_ARM, word="HART"),
        ),
        (
            FieldRow(20, "reached", "i32", "the level afterwards"),
            FieldRow(24, "took", "u16", "seconds that it took"),
        ),
    ),
)
"""Every message type.'''

HELLO = struct.pack("<4I", 0x444D0100, 0, 0, 0) + bytes(1008)


def request(level: int, zones: list[int], hart: int | None = None) -> bytes:
    """The bytes of a SET_LEVEL, put together without the table."""
    load = struct.pack("<HB5H", level, len(zones), *zones, *[0] * (5 - len(zones)))
    load += b"" if hart is None else bytes([hart])
    return (struct.pack("<4I", 0x444D0100, len(load), 9, 0) + load).ljust(1024, b"\0")


def reply(ret: int, reached: int, took: int) -> bytes:
    """The bytes of its answer."""
    head = struct.pack("<4Ii", 0x444D0100, 0 if ret else 6, 9, 0, ret)
    return (head + struct.pack("<iH", reached, took)).ljust(1024, b"\0")


def recording(*exchanges: tuple[bytes, bytes]) -> list[Record]:
    """One connection with these requests and replies."""
    records: list[Record] = [
        Open(0, 1, Begins.SERVICE, 219, True),
        Chunk(1, 1, True, b"d"),
        Chunk(2, 1, False, HELLO),
    ]
    for number, (asked, answered) in enumerate(exchanges, 1):
        records.append(Chunk(1000 * number, 1, True, asked))
        records.append(Chunk(1000 * number + 500, 1, False, answered))
    return [*records, Close(9000, 1, by_guest=False)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with one number and one row more."""
    place = tmp_path_factory.mktemp("sources")
    for package in ("dissectors", "upcall_trace"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, place / package, ignore=skipped)
    for name, before, after in (
        ("constants.py", "    DEL_PCI = 8\n", NUMBER),
        ("layouts.py", ')\n"""Every message type.', ROW),
    ):
        path = place / "dissectors" / name
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, after))
    return place


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings that differ in a field of one reply, and one of an aarch64 guest."""
    place = tmp_path_factory.mktemp("captures")
    first = (request(0x20, [300, 7]), reply(0, 32, 5))
    second = (request(0x30, []), reply(0, -2, 9))
    write_capture(place / "a.upcap", recording(first, second), Header("test", arch="x86_64"))
    other = (second[0], reply(0, -3, 9))
    write_capture(place / "b.upcap", recording(first, other), Header("test", arch="x86_64"))
    arm = (request(0x40, [1], hart=3), reply(0, 64, 1))
    write_capture(place / "arm.upcap", recording(arm), Header("test", arch="aarch64"))
    return place


def python(sources: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The interpreter with the copied sources."""
    environment = {**os.environ, "PYTHONPATH": str(sources), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment, cwd=sources, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def program(sources: Path, *arguments: str | Path, code: int = 0) -> str:
    """What the program prints; nothing goes wrong."""
    ended = python(sources, "-m", "upcall_trace", *arguments)
    assert (ended.returncode, ended.stderr) == (code, "")
    return ended.stdout


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_it_is_shown_as_text_and_as_json(sources: Path, captures: Path) -> None:
    shown = program(sources, "show", captures / "a.upcap")
    assert "set_level level=0x20 zones=2 zone_ids=300,7" in shown
    assert "ok reached=32 took=5" in shown
    first, second = objects(program(sources, "show", "--json", captures / "a.upcap"))
    assert first["op"] == "set_level"
    assert first["fields"] == {"level": 0x20, "zones": 2, "zone_ids": [300, 7]}
    assert first["reply"] == {"msg_type": 9, "msg_size": 6, "reached": 32, "took": 5}
    assert second["fields"] == {"level": 0x30, "zones": 0, "zone_ids": []}
    assert second["reply"]["reached"] == -2
    (arm,) = objects(program(sources, "show", "--json", captures / "arm.upcap"))
    assert arm["fields"] == {"level": 0x40, "zones": 1, "zone_ids": [1], "hart": 3}


FILTERS = [
    ("a", "op == set_level", [0, 1]),
    ("a", "level == 0x20", [0]),
    ("a", "zones < 1", [1]),
    ("a", "zone_id == 7", [0]),
    ("a", "zone_id in 200..400", [0]),
    ("a", "reached < 0", [1]),
    ("a", "took in (5, 6)", [0]),
    ("a", "hart == 0", []),
    ("arm", "hart == 3 and zone_id == 1", [0]),
]
MASKS = """
import json
import sys
from pathlib import Path

from upcall_trace.trace.filters import parse
from upcall_trace.trace.opening import load

for capture, expression, expected in json.loads(sys.argv[2]):
    operations = load(Path(sys.argv[1]) / f"{capture}.upcap").operations
    assert parse(expression).mask(operations).nonzero()[0].tolist() == expected, expression
"""


def test_its_fields_are_filtered_by(sources: Path, captures: Path) -> None:
    ended = python(sources, "-c", MASKS, captures, json.dumps(FILTERS))
    assert (ended.returncode, ended.stderr) == (0, "")
    path = captures / "a.upcap"
    (one,) = objects(program(sources, "show", "--json", "--filter", "zone_id == 7", path))
    assert one["request"] == 0


def test_its_fields_are_edited(sources: Path, captures: Path, tmp_path: Path) -> None:
    out = tmp_path / "edited.upcap"
    settings = ("1.0 zone_ids=9,8,500", "1.1 level=77", "1.1 reached=-7", "1.1 took=65535")
    arguments = [word for setting in settings for word in ("--set", setting)]
    edited = python(
        sources, "-m", "upcall_trace", "edit", captures / "a.upcap", "-o", out, *arguments
    )
    assert edited.returncode == 0, edited.stderr
    first, second = objects(program(sources, "show", "--json", out))
    assert first["fields"] == {"level": 0x20, "zones": 3, "zone_ids": [9, 8, 500]}
    assert second["fields"]["level"] == 77
    assert second["reply"] == {"msg_type": 9, "msg_size": 6, "reached": -7, "took": 65535}
    for wrong in ("1.0 hart=1", "1.0 zone_ids=1,2,3,4,5,6"):
        refused = python(
            sources, "-m", "upcall_trace", "edit", captures / "a.upcap", "-o", out, "--set", wrong,
            "--force",
        )  # fmt: skip
        assert refused.returncode == 2, wrong
        assert "Traceback" not in refused.stderr


def test_a_field_of_its_reply_is_a_difference(sources: Path, captures: Path) -> None:
    a, b = captures / "a.upcap", captures / "b.upcap"
    told = json.loads(program(sources, "diff", "--json", a, b, code=1))
    (difference,) = told["differences"]
    assert difference["differing"] == ["reached"]
    ignored = program(sources, "diff", "--ignore", "reached", a, b)
    assert "no difference" in ignored


def test_its_success_is_no_finding_and_its_refusal_is_one(
    sources: Path, captures: Path, tmp_path: Path
) -> None:
    path = captures / "a.upcap"
    (told,) = objects(program(sources, "diagnose", "--json", path))
    assert told["findings"] == []
    refused = write_capture(
        tmp_path / "refused.upcap", recording((request(1, []), reply(-22, 0, 0)))
    )
    (told,) = objects(program(sources, "diagnose", "--json", refused))
    (finding,) = told["findings"]
    assert finding["severity"] == "error"
    assert "set_level" in finding["what"]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """Somebody who answers one request behind a socket, and what was asked of them."""
    path = tmp_path / "guest.sock"
    asked: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(30)
            line = b""
            while not line.endswith(b"\n"):
                line += stream.recv(1)
            stream.sendall(b"OK 1\n")
            assert stream.recv(1) == b"d"
            stream.sendall(HELLO)
            raw = b""
            while len(raw) < 1024:
                raw += stream.recv(1024 - len(raw))
            asked.append(raw)
            stream.sendall(reply(0, 0x55, 2))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield path, asked
    listener.close()
    thread.join(5)


def test_it_is_sent_by_its_words(sources: Path, guest: tuple[Path, list[bytes]]) -> None:
    path, asked = guest
    words = ("set-level", "0x55", "3", "400")
    sent = python(sources, "-m", "upcall_trace", "send", "--json", "--to", path, *words)
    assert sent.returncode == 0, sent.stderr
    assert asked == [request(0x55, [3, 400])]
    (shown,) = objects(sent.stdout)
    assert shown["fields"] == {"level": 0x55, "zones": 2, "zone_ids": [3, 400]}
    assert shown["reply"]["reached"] == 0x55
    assert "set-level LEVEL ZONE…" in " ".join(program(sources, "send", "--help").split())


def test_it_is_sent_to_a_guest_of_the_other_architecture_with_what_that_has(
    sources: Path, guest: tuple[Path, list[bytes]]
) -> None:
    path, asked = guest
    words = ("--arch", "aarch64", "set-level", "1", "4", "9")
    sent = python(sources, "-m", "upcall_trace", "send", "--to", path, *words)
    assert sent.returncode == 0, sent.stderr
    assert asked == [request(1, [9], hart=4)]


STATEMENTS = """
import sys
from dataclasses import asdict
from pathlib import Path

from dissectors import wire_formats
from dissectors.constants import Arch
from dissectors.lua import tables
from dissectors.messages import decode_reply, decode_request
from dissectors.scapy_layers import UpcallReply, UpcallRequest
from upcall_trace.trace.opening import load
from upcall_trace.sources import open_source
from upcall_trace.tui.panes.message_fields import reply_fields, request_fields
from upcall_trace.tui.data.walk import Message
from upcall_trace.tui.panes.prompt import complete
from upcall_trace.views.frames import frames

folder = Path(sys.argv[1])
asked, answered = (bytes.fromhex(word) for word in sys.argv[2:])

# Codecs, construct and scapy say the same.
by_struct = asdict(decode_request(asked))
parsed = wire_formats.request_format(9, 13).parse(asked)
assert {k: v for k, v in parsed.items() if k != "_io"} == by_struct
layer = UpcallRequest(asked)
assert type(layer).__name__ == "UpcallSetLevel"
assert {**layer.fields} == by_struct
assert bytes(layer) == decode_request(asked).encode() == asked
assert "zone_ids=[300, 7]" in layer.summary()
got = UpcallReply(answered)
assert (type(got).__name__, got.reached, got.took) == ("UpcallSetLevelReply", 32, 5)
parsed = wire_formats.reply_format(9).parse(answered)
assert (parsed.reached, parsed.took) == (decode_reply(answered).reached, 5)
assert "set_level" in tables() and "zone_ids" in tables()

# The browser's fields, and what it completes.
operations = load(folder / "a.upcap").operations
operation, layout = operations.operation(0), operations.layout(0)
shown = {f.name: f.value for f in request_fields(operation, layout, Message(asked, 1024, ()))}
assert (shown["level"], shown["zones"], shown["zone_ids"]) == ("0x20", "2", "300,7"), shown
message = Message(answered, 1024, ())
told = {f.name: f.value for f in reply_fields(operation, layout, message, Arch.X86_64)}
assert (told["reached"], told["took"]) == ("32", "5"), told
assert complete("op == set_l") == "op == set_level"
assert complete("zone_i") == "zone_id"

# Whose the bytes of its reply are: it writes its load when it succeeds, and not when it fails.
with open_source(folder / "a.upcap") as source:
    replies = [f for f in frames(source, with_provenance=True) if f.text.startswith("reply to")]
assert "reached=32 took=5" in replies[0].text
second = [(run.offset, run.length, run.kind) for run in replies[1].runs]
assert second[0] == (0, 26, "fresh"), second
"""


def test_codecs_layers_formats_the_browser_and_provenance_know_it(
    sources: Path, captures: Path
) -> None:
    asked, answered = request(0x20, [300, 7]), reply(0, 32, 5)
    ended = python(sources, "-c", STATEMENTS, captures, asked.hex(), answered.hex())
    assert (ended.returncode, ended.stderr) == (0, "")
