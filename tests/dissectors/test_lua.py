"""The Wireshark dissector in a real tshark: what it shows is what `show --json` prints."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from dissectors.lua import tables
from dissectors.vsockmon import VirtioOp, encode_packet
from tests.support import PCAPS, TRANSCRIPTS, decode, operations, records_of
from upcall_trace.capture.records import Begins, Record
from upcall_trace.exports.pcapng import write_packets
from upcall_trace.exports.wireshark import dissector
from upcall_trace.sources import open_source
from upcall_trace.trace.operations import Operation

pytestmark = pytest.mark.skipif(not shutil.which("tshark"), reason="there is no tshark here")

LOADS = ("mmio_base", "mmio_size", "mmio_irq", "count", "apic_ver", "busno", "devfn", "slot")
FIELDS = (
    "conn", "request", "op", "type", "ret", "errno", "latency_ns", "anomaly", "apic_id",
    "apic_index", "cpu_id", "msg_size", "function", *LOADS,
)  # fmt: skip


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lua") / "upcall.lua"
    path.write_text(dissector(), "utf-8")
    return path


def tshark(script: Path, capture: Path, *arguments: str) -> str:
    """What tshark prints; its complaints about root and nothing else may be on stderr."""
    ended = subprocess.run(
        ["tshark", "-X", f"lua_script:{script}", "-r", str(capture), *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Lua" not in ended.stderr + ended.stdout, ended.stderr
    return ended.stdout


def layers(script: Path, capture: Path) -> list[dict[str, Any]]:
    """The fields of every message that tshark shows, one dictionary a message."""
    # -2: what a packet is can depend on a later one, such as the rest of a split request.
    printed = tshark(script, capture, "-2", "-T", "json", "--no-duplicate-keys", "-Y", "upcall")
    found = []
    for packet in json.loads(printed or "[]"):
        upcall = packet["_source"]["layers"]["upcall"]
        found += upcall if isinstance(upcall, list) else [upcall]
    return found


def listed(value: Any) -> list[str]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def shown_operations(script: Path, capture: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What tshark shows of each operation, in the words of `show --json`."""
    shown: dict[tuple[int, int], dict[str, Any]] = defaultdict(lambda: {"anomalies": set()})
    for layer in layers(script, capture):
        if "upcall.request" not in layer:
            continue
        key = (int(layer["upcall.conn"]), int(layer["upcall.request"]))
        told = shown[key]
        told["anomalies"] |= set(listed(layer.get("upcall.anomaly")))
        if "upcall.ret" in layer:
            told["ret"] = int(layer["upcall.ret"])
            told["errno"] = layer.get("upcall.errno")
            told["latency_ns"] = int(layer["upcall.latency_ns"])
            told["reply"] = {
                name: int(layer[f"upcall.{field}"])
                for name, field in (("msg_type", "type"), ("msg_size", "msg_size"),
                                    ("apic_index", "apic_index"), ("cpu_id", "cpu_id"))
                if f"upcall.{field}" in layer
            }  # fmt: skip
        else:
            told["op"] = layer["upcall.op"]
            told["fields"] = {
                name: int(layer[f"upcall.{name}"], 0)
                for name in (*LOADS, "function")
                if f"upcall.{name}" in layer
            }
            tree = layer.get("upcall.apic_ids_tree")
            if "upcall.apic_ids" in layer:
                ids = listed(tree.get("upcall.apic_id")) if isinstance(tree, dict) else []
                told["fields"]["apic_ids"] = [int(each) for each in ids]
    return dict(shown)


def expected(operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {
        "op": operation.op,
        "fields": dict(operation.fields),
        "anomalies": set(operation.anomalies),
    }
    if operation.ret is not None:
        told["ret"], told["errno"] = operation.ret, operation.errno
        told["latency_ns"] = operation.latency_ns
        told["reply"] = dict(operation.reply or {})
    return told


def numbers_in_packets(recorded: list[Record]) -> dict[int, int]:
    """The number that Wireshark gives each connection: those without a packet do not count."""
    session = decode(recorded)
    asked = [
        conn
        for conn, connection in session.connections.items()
        if connection.begins is not Begins.LINE or connection.port is not None
    ]
    return {conn: number for number, conn in enumerate(asked, start=1)}


def compare(script: Path, capture: Path) -> int:
    header, recorded = records_of(capture)
    number = numbers_in_packets(recorded)
    wanted = {
        (number[o.conn], o.request): expected(o) for o in operations(decode(recorded, header))
    }
    shown = shown_operations(script, capture)
    assert shown.keys() == wanted.keys()
    for key, operation in wanted.items():
        assert shown[key] == operation, key
    return len(wanted)


@pytest.mark.parametrize("capture", PCAPS, ids=lambda path: path.stem)
def test_a_packet_capture_shows_the_same_operations(script: Path, capture: Path) -> None:
    assert compare(script, capture) > 0


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_is_written_as_pcapng_shows_the_same_operations(
    script: Path, transcript: Path, tmp_path: Path
) -> None:
    written = tmp_path / "x.pcapng"
    with open_source(transcript) as source, written.open("wb") as file:
        recorded = [record for _, record in source.records()]
        write_packets(source.header, recorded, file, {})
    compare(script, written)


def test_without_the_dissector_it_still_reads_as_vsock(tmp_path: Path) -> None:
    written = tmp_path / "x.pcapng"
    with open_source(TRANSCRIPTS[0]) as source, written.open("wb") as file:
        write_packets(source.header, [record for _, record in source.records()], file, {})
    printed = subprocess.run(
        ["tshark", "-r", written, "-T", "fields", "-e", "vsock.dst_port", "-e", "_ws.col.Protocol"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.splitlines()  # fmt: skip
    assert printed
    assert {line.split("\t")[1] for line in printed} == {"vSocket"}


def test_a_filter_finds_the_refused_adds(script: Path) -> None:
    capture = next(path for path in PCAPS if path.stem.startswith("mmio_lifecycle.v"))
    header, recorded = records_of(capture)
    refused = [
        o for o in operations(decode(recorded, header)) if o.msg_type == 5 and (o.ret or 0) < 0
    ]
    found = tshark(script, capture, "-Y", "upcall.type == 5 && upcall.ret < 0").splitlines()
    assert len(found) == len(refused) > 3


def test_the_port_is_a_preference(script: Path) -> None:
    capture = PCAPS[0]
    assert layers(script, capture)
    assert not tshark(script, capture, "-o", "upcall.port:1024", "-Y", "upcall").strip()


def test_padding_behind_a_payload_is_no_message(script: Path, tmp_path: Path) -> None:
    """A packet may be longer than its header says; a listener on the host is no guest."""
    client, guest, host = (2, 1 << 30), (3, 219), (2, 219)
    path = tmp_path / "x.pcap"
    packets = [
        encode_packet(client, guest, VirtioOp.REQUEST),
        encode_packet(guest, client, VirtioOp.RESPONSE),
        encode_packet(client, guest, VirtioOp.RW, b"d") + bytes(1500),
        encode_packet((3, 77), host, VirtioOp.REQUEST),
        encode_packet((3, 77), host, VirtioOp.RW, b"d"),
    ]
    head = bytes.fromhex("4d3cb2a1020004000000000000000000000004000f010000")
    body = b"".join(
        (0).to_bytes(8, "little") + len(raw).to_bytes(4, "little") * 2 + raw for raw in packets
    )
    path.write_bytes(head + body)
    (only,) = layers(script, path)
    assert only["upcall.service"] == "0x64"
    assert only["upcall.conn"] == "1"


def damaged(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 2, 4, 16))):
        changed[rng.randrange(24, len(changed))] = rng.randrange(256)
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


def dissect_damaged(script: Path, folder: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(rounds):
        path = folder / "damaged.pcap"
        path.write_bytes(damaged(rng.choice(PCAPS).read_bytes(), rng))
        both = subprocess.run(
            ["tshark", "-2", "-X", f"lua_script:{script}", "-r", path, "-V"],
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert b"Lua" not in both.stderr + both.stdout, (seed, number, both.stderr[-500:])


def test_damaged_captures_lead_to_no_error_in_lua(script: Path, tmp_path: Path) -> None:
    dissect_damaged(script, tmp_path, 12, 219)


@pytest.mark.torture
def test_a_thousand_damaged_captures_lead_to_no_error_in_lua(script: Path, tmp_path: Path) -> None:
    dissect_damaged(script, tmp_path, 1000, 1)


def test_the_tables_are_plain_ascii_lua() -> None:
    text = tables()
    assert text.isascii()
    assert text.count("{") == text.count("}")
