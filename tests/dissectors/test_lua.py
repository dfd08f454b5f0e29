"""The Wireshark dissector in real tsharks: what they show is what `show --json` prints."""

from __future__ import annotations

import json
import random
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dissectors.lua import tables
from dissectors.vsockmon import VirtioOp, encode_packet
from tests.programs import not_as_root, tsharks
from tests.support import PCAPS, TRANSCRIPTS, decode, operations, records_of, run
from upcall_trace.capture.records import Begins, Record
from upcall_trace.exports.pcapng import write_packets
from upcall_trace.exports.wireshark import dissector
from upcall_trace.sources import open_source
from upcall_trace.trace.operations import Operation

LOADS = ("mmio_base", "mmio_size", "mmio_irq", "count", "apic_ver", "busno", "devfn", "slot")
FIELDS = (
    "conn", "request", "op", "type", "ret", "errno", "latency_ns", "anomaly", "apic_id",
    "apic_index", "cpu_id", "msg_size", "function", *LOADS,
)  # fmt: skip


@dataclass(frozen=True)
class Tshark:
    """A tshark that runs the dissector."""

    program: str
    script: Path

    def prints(self, capture: Path, *arguments: str) -> str:
        """What it prints; the word of an error in Lua may be nowhere, since it exits with 0."""
        ended = subprocess.run(
            [*not_as_root(), self.program, "-X", f"lua_script:{self.script}",
             "-r", str(capture), *arguments],
            capture_output=True, text=True, check=False, timeout=60, errors="replace",
        )  # fmt: skip
        assert "Lua" not in ended.stderr + ended.stdout, ended.stderr[-2000:]
        return ended.stdout

    def layers(self, capture: Path) -> list[dict[str, Any]]:
        """The fields of every message that it shows, one dictionary a message."""
        # -2: what a packet is can depend on a later one, such as the rest of a split request.
        printed = self.prints(capture, "-2", "-T", "json", "--no-duplicate-keys", "-Y", "upcall")
        found = []
        for packet in json.loads(printed or "[]"):
            upcall = packet["_source"]["layers"]["upcall"]
            found += upcall if isinstance(upcall, list) else [upcall]
        return found


@pytest.fixture(scope="module", params=tsharks())
def tshark(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tshark:
    script = tmp_path_factory.mktemp("lua") / "upcall.lua"
    script.write_text(dissector(), "utf-8")
    return Tshark(request.param, script)


def listed(value: Any) -> list[str]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def shown_operations(tshark: Tshark, capture: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What tshark shows of each operation, in the words of `show --json`."""
    shown: dict[tuple[int, int], dict[str, Any]] = defaultdict(lambda: {"anomalies": set()})
    for layer in tshark.layers(capture):
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


def compare(tshark: Tshark, capture: Path) -> int:
    header, recorded = records_of(capture)
    number = numbers_in_packets(recorded)
    wanted = {
        (number[o.conn], o.request): expected(o) for o in operations(decode(recorded, header))
    }
    shown = shown_operations(tshark, capture)
    assert shown.keys() == wanted.keys()
    for key, operation in wanted.items():
        assert shown[key] == operation, key
    return len(wanted)


@pytest.mark.parametrize("capture", PCAPS, ids=lambda path: path.stem)
def test_a_packet_capture_shows_the_same_operations(tshark: Tshark, capture: Path) -> None:
    assert compare(tshark, capture) > 0


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_is_written_as_pcapng_shows_the_same_operations(
    tshark: Tshark, transcript: Path, tmp_path: Path
) -> None:
    written = tmp_path / "x.pcapng"
    with open_source(transcript) as source, written.open("wb") as file:
        recorded = [record for _, record in source.records()]
        write_packets(source.header, recorded, file, {})
    compare(tshark, written)


def test_without_the_dissector_it_still_reads_as_vsock(tshark: Tshark, tmp_path: Path) -> None:
    written = tmp_path / "x.pcapng"
    with open_source(TRANSCRIPTS[0]) as source, written.open("wb") as file:
        write_packets(source.header, [record for _, record in source.records()], file, {})
    printed = subprocess.run(
        [tshark.program, "-r", written, "-T", "fields", "-e", "vsock.dst_port",
         "-e", "_ws.col.Protocol"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.splitlines()  # fmt: skip
    assert printed
    assert {line.split("\t")[1] for line in printed} == {"vSocket"}


def test_a_filter_finds_the_refused_adds(tshark: Tshark) -> None:
    capture = next(path for path in PCAPS if path.stem.startswith("mmio_lifecycle.v"))
    header, recorded = records_of(capture)
    refused = [
        o for o in operations(decode(recorded, header)) if o.msg_type == 5 and (o.ret or 0) < 0
    ]
    found = tshark.prints(capture, "-Y", "upcall.type == 5 && upcall.ret < 0").splitlines()
    assert len(found) == len(refused) > 3


def test_the_port_is_a_preference(tshark: Tshark) -> None:
    capture = PCAPS[0]
    assert tshark.layers(capture)
    assert not tshark.prints(capture, "-o", "upcall.port:1024", "-Y", "upcall").strip()


def test_padding_behind_a_payload_is_no_message(tshark: Tshark, tmp_path: Path) -> None:
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
    (only,) = tshark.layers(path)
    assert int(only["upcall.service"], 0) == 0x64
    assert only["upcall.conn"] == "1"


def test_a_packet_cut_in_its_headers_is_marked(tshark: Tshark, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    whole = encode_packet((2, 1 << 30), (3, 219), VirtioOp.REQUEST)
    body = b"".join(
        bytes(8) + size.to_bytes(4, "little") + len(whole).to_bytes(4, "little") + whole[:size]
        for size in (0, 20, 60, len(whole))
    )
    path.write_bytes(PCAPS[0].read_bytes()[:24] + body)
    marked = tshark.prints(path, "-Y", "upcall.cut", "-T", "fields", "-e", "frame.number")
    assert marked.split() == ["1", "2", "3"]
    assert tshark.prints(path, "-Y", "vsock.virtio.op == 1", "-T", "fields", "-e", "frame.number")


def test_of_messages_that_are_cut_it_shows_what_was_captured(
    tshark: Tshark, tmp_path: Path
) -> None:
    """With the capture limited to 120 bytes a packet, operations and results are all there."""
    recorded = next(path for path in PCAPS if path.stem.startswith("mmio_lifecycle.v"))
    raw, cut, position = recorded.read_bytes(), bytearray(), 24
    while position < len(raw):
        size = int.from_bytes(raw[position + 8 : position + 12], "little")
        kept = min(size, 120)
        cut += raw[position : position + 8] + kept.to_bytes(4, "little")
        cut += raw[position + 12 : position + 16 + kept]
        position += 16 + size
    path = tmp_path / "x.pcap"
    path.write_bytes(raw[:24] + cut)
    whole, shown = shown_operations(tshark, recorded), shown_operations(tshark, path)
    for key, told in whole.items():
        for name in ("op", "fields", "ret", "errno", "latency_ns"):
            assert shown[key].get(name) == told.get(name), (key, name)
        assert not shown[key]["anomalies"] - told["anomalies"]
    ours = [json.loads(line) for line in run("show", "--json", path).out.splitlines()]
    assert [(o["conn"], o["request"], o["ret"]) for o in ours] == [
        (*key, told["ret"]) for key, told in shown.items()
    ]
    messages = len(tshark.prints(path, "-Y", "upcall.type").splitlines())
    assert len(tshark.prints(path, "-Y", "upcall.cut").splitlines()) == messages > len(whole)


def with_damage(raw: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, and sometimes cut off."""
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 2, 4, 16))):
        changed[rng.randrange(24, len(changed))] = rng.randrange(256)
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


def with_damaged_packets(raw: bytes, rng: random.Random) -> bytes:
    """A file that can be read to its end, of packets that are changed, cut, lost and doubled."""
    kept, position = bytearray(), 24
    while position < len(raw):
        begun = raw[position : position + 8]
        size = int.from_bytes(raw[position + 8 : position + 12], "little")
        packet = raw[position + 16 : position + 16 + size]
        position += 16 + size
        chance = rng.random()
        if chance < 0.05:
            continue
        if chance < 0.3:
            # Mostly in the headers and the first fields, where a byte means much.
            packet = with_damage(bytes(24) + packet[: rng.choice((100, 4096))], rng)[24:]
        head = begun + len(packet).to_bytes(4, "little") + size.to_bytes(4, "little")
        kept += (head + packet) * (2 if chance > 0.95 else 1)
    return bytes(kept)


def test_damaged_packets_lead_to_no_error_in_lua(tshark: Tshark, tmp_path: Path) -> None:
    """Thirty damaged recordings, one behind the other in one file."""
    rng = random.Random(219)
    recordings = [rng.choice(PCAPS).read_bytes() for _ in range(30)]
    path = tmp_path / "damaged.pcap"
    packets = b"".join(with_damaged_packets(raw, rng) for raw in recordings)
    path.write_bytes(recordings[0][:24] + packets)
    assert "Upcall: request" in tshark.prints(path, "-2", "-V")


@pytest.mark.torture
def test_a_thousand_damaged_captures_lead_to_no_error_in_lua(
    tshark: Tshark, tmp_path: Path
) -> None:
    rng = random.Random(1)
    path = tmp_path / "damaged.pcap"
    understood = 0
    for _ in range(1000):
        path.write_bytes(with_damage(rng.choice(PCAPS).read_bytes(), rng))
        understood += "Upcall: request" in tshark.prints(path, "-2", "-V")
    assert understood > 500


def test_the_tables_are_plain_ascii_lua() -> None:
    text = tables()
    assert text.isascii()
    assert text.count("{") == text.count("}")
