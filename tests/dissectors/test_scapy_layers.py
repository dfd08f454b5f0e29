"""The scapy layers on captures from inside real guests, and on packets that no guest sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap, wrpcap

from dissectors.constants import MESSAGE_SIZE, UPCALL_PORT, Arch, MessageType
from dissectors.scapy_layers import (
    UpcallAddCpu,
    UpcallAddCpuArm,
    UpcallAddMmio,
    UpcallAddPci,
    UpcallConnect,
    UpcallCpuReply,
    UpcallCpuReplyArm,
    UpcallDelCpu,
    UpcallDelCpuArm,
    UpcallDelMmio,
    UpcallDelPci,
    UpcallHeader,
    UpcallReply,
    UpcallRequest,
    UpcallService,
    VirtioVsock,
    VsockMon,
)
from tests.dissectors.strategies import GOLDEN, Sample, samples

CAPTURES = sorted(GOLDEN.glob("*.pcap"))
X86, ARM = Arch.X86_64, Arch.AARCH64
CLIENT, GUEST = (2, 1024), (3, UPCALL_PORT)


@pytest.fixture(autouse=True)
def upcall_conf(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The layers' settings, put back after each test."""
    settings = {"arch": X86}
    monkeypatch.setitem(conf.contribs, "upcall", settings)
    return settings


def rebuilt(packet: Packet) -> bytes:
    """The packet from its fields alone: scapy otherwise hands out the bytes that it has read."""
    copy = packet.copy()
    copy.clear_cache()
    return bytes(copy)


def upcall_layers(packet: Packet) -> list[Packet]:
    """What follows the vsock headers."""
    return [p for p in packet.iterpayloads() if not isinstance(p, VsockMon | VirtioVsock)]


def kinds(packet: Packet) -> list[type[Packet]]:
    return [type(layer) for layer in upcall_layers(packet)]


def vsock(to_guest: bool, payload: Packet | bytes, **virtio: Any) -> Packet:
    """One packet of an upcall connection, as scapy builds it."""
    (src_cid, src_port), (dst_cid, dst_port) = (CLIENT, GUEST) if to_guest else (GUEST, CLIENT)
    ends: dict[str, Any] = {
        "src_cid": src_cid,
        "src_port": src_port,
        "dst_cid": dst_cid,
        "dst_port": dst_port,
    }
    return VsockMon(**ends) / VirtioVsock(**ends, **virtio) / payload


def captured(name: str) -> Iterator[Packet]:
    """The packets of one recording that carry something."""
    for packet in rdpcap(str(GOLDEN / f"{name}.vsockmon.pcap")):
        if upcall_layers(packet):
            yield packet


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name.partition(".")[0])
def test_a_recorded_packet_is_built_from_its_fields_byte_for_byte(path: Path) -> None:
    packets = rdpcap(str(path))
    assert len(packets) > 10
    for packet in packets:
        assert isinstance(packet, VsockMon)
        assert rebuilt(packet) == packet.original


def test_a_recorded_connection_shows_upcall_fields() -> None:
    service, connect, *rest = captured("mmio_lifecycle")
    assert service[UpcallService].service == ord("d")
    assert connect[UpcallConnect].ret == 0
    request, reply = rest[0][UpcallAddMmio], rest[1][UpcallReply]
    assert (request.mmio_base, request.mmio_size, request.mmio_irq) == (0xFEB00400, 0x200, 7)
    assert (reply.msg_type, reply.ret) == (MessageType.ADD_MMIO, 0)
    assert {type(layer) for packet in rest for layer in upcall_layers(packet)} == {
        UpcallAddMmio, UpcallDelMmio, UpcallReply,
    }  # fmt: skip


def test_every_type_of_message_was_recorded_and_has_its_layer(upcall_conf: dict[str, Any]) -> None:
    seen = {kind for path in CAPTURES for p in rdpcap(str(path)) for kind in kinds(p)}
    assert seen == {
        UpcallService, UpcallConnect, UpcallReply, UpcallCpuReply, UpcallRequest,
        UpcallAddCpu, UpcallDelCpu, UpcallAddCpuArm, UpcallDelCpuArm,
        UpcallAddMmio, UpcallDelMmio, UpcallAddPci, UpcallDelPci, Raw,
    }  # fmt: skip
    upcall_conf["arch"] = ARM
    arm = {kind for packet in captured("aarch64_lifecycle") for kind in kinds(packet)}
    assert UpcallCpuReplyArm in arm
    assert UpcallCpuReply not in arm


def test_pieces_of_messages_stay_raw_and_whole_ones_become_a_chain() -> None:
    to_guest = [p for p in captured("framing") if p[VirtioVsock].dst_port == UPCALL_PORT]
    assert [(p[VirtioVsock].len, kinds(p)) for p in to_guest] == [
        (1, [UpcallService]), (2048, [UpcallRequest, UpcallRequest]), (16, [Raw]),
        (1, [UpcallService]), (500, [Raw]), (524, [Raw]),
        (1, [UpcallService]), (20, [Raw]), (1004, [Raw]),
        (1, [UpcallService]), (1500, [UpcallRequest, Raw]),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["cpu_lifecycle", "mmio_lifecycle", "stale_results", "pci_memory"])
def test_a_recorded_reply_answers_the_request_before_it(name: str) -> None:
    packets = list(captured(name))
    pairs = list(zip(packets[::2], packets[1::2], strict=True))
    assert len(pairs) > 10
    for request, reply in pairs:
        assert reply.answers(request)
        assert not request.answers(reply)
        assert not request.answers(request)
        assert not reply.answers(reply)


def test_a_reply_answers_only_its_own_type_and_connection() -> None:
    reply = vsock(False, UpcallReply(msg_type=MessageType.ADD_PCI))
    assert reply.answers(vsock(True, UpcallAddPci(devfn=0x18)))
    assert not reply.answers(vsock(True, UpcallDelPci(devfn=0x18)))
    assert not reply.answers(vsock(True, UpcallService()))
    other = vsock(True, UpcallAddPci())
    other[VirtioVsock].src_port = 1025
    assert not reply.answers(other)
    other[VsockMon].src_port = 1025
    assert not reply.answers(other)


def test_a_connect_message_answers_the_service_byte_and_a_request_of_type_0() -> None:
    connect = vsock(False, UpcallConnect())
    assert connect.answers(vsock(True, UpcallService()))
    assert connect.answers(vsock(True, UpcallRequest()))
    assert not connect.answers(vsock(True, UpcallRequest(msg_type=77)))


def test_a_response_or_a_reset_answers_a_connection_request() -> None:
    request = vsock(True, b"", op="REQUEST")
    assert vsock(False, b"", op="RESPONSE").answers(request)
    assert vsock(False, b"", op="RST").answers(request)
    assert not vsock(False, b"", op="CREDIT_UPDATE").answers(request)
    assert not vsock(False, b"", op="RST").answers(vsock(True, UpcallAddPci()))


BUILT: list[tuple[Packet, str, int]] = [
    (UpcallRequest(msg_type="ADD_MEM"), "00014d44 00000000 03000000 00000000", 1024),
    (UpcallAddCpu(count=1, apic_ids=b"\3"), "00014d44 02010000 01000000 00000000 01 14 03", 1024),
    (UpcallDelCpu(count=1, apic_ids=b"\3"), "00014d44 02010000 02000000 00000000 01 14 03", 1024),
    (UpcallAddCpuArm(count=2), "00014d44 01000000 01000000 00000000 02", 1024),
    (UpcallDelCpuArm(count=1), "00014d44 01000000 02000000 00000000 01", 1024),
    (
        UpcallAddMmio(mmio_base=0xE0006000, mmio_size=0x2000, mmio_irq=5),
        "00014d44 18000000 05000000 00000000 006000e000000000 0020000000000000 05",
        1024,
    ),
    (
        UpcallDelMmio(mmio_base=0xE0006000, mmio_size=0x2000, mmio_irq=5),
        "00014d44 18000000 06000000 00000000 006000e000000000 0020000000000000 05",
        1024,
    ),
    (UpcallAddPci(devfn=0x18), "00014d44 02000000 07000000 00000000 00 18", 1024),
    (UpcallDelPci(devfn=0x18), "00014d44 02000000 08000000 00000000 00 18", 1024),
    (UpcallService(), "64", 1),
    (UpcallAddPci() / UpcallRequest(), "00014d44 02000000 07", 2048),
]


@pytest.mark.parametrize(("layer", "head", "size"), BUILT)
def test_a_built_request_is_a_whole_message_and_is_read_back(
    layer: Packet, head: str, size: int
) -> None:
    packet = vsock(True, layer)
    start = bytes.fromhex(head)
    assert bytes(layer)[: len(start)] == start
    assert len(bytes(layer)) == size
    again = VsockMon(bytes(packet))
    assert kinds(again) == kinds(packet)
    assert (again.op, again.t, again.len) == (4, 2, 44)
    assert (again[VirtioVsock].op, again[VirtioVsock].len) == (5, size)


@pytest.mark.parametrize(
    ("reply", "arch", "head"),
    [
        (UpcallConnect(), X86, "00014d44 00000000 00000000 00000000 00000000"),
        (
            UpcallReply(msg_type="ADD_PCI", ret="ENODEV"), X86,
            "00014d44 00000000 07000000 00000000 edffffff",
        ),
        (UpcallCpuReply(apic_index=2), X86, "00014d44 04000000 01000000 00000000 00000000 02"),
        (UpcallCpuReplyArm(cpu_id=3), ARM, "00014d44 04000000 01000000 00000000 00000000 03"),
    ],
)  # fmt: skip
def test_a_built_reply_is_a_whole_message_and_is_read_back(
    reply: Packet, arch: Arch, head: str, upcall_conf: dict[str, Any]
) -> None:
    upcall_conf["arch"] = arch
    start = bytes.fromhex(head)
    assert bytes(reply)[: len(start)] == start
    assert len(bytes(reply)) == MESSAGE_SIZE
    assert kinds(VsockMon(bytes(vsock(False, reply)))) == [type(reply)]


def test_a_changed_field_changes_its_own_bytes_only() -> None:
    request = next(p for p in captured("pci_memory") if UpcallDelPci in p)
    before = bytes(request)
    request[UpcallDelPci].devfn = 0xFF
    changed = [n for n, (a, b) in enumerate(zip(before, bytes(request), strict=True)) if a != b]
    assert changed == [32 + 44 + 17]


def test_a_service_byte_and_a_request_in_one_packet_are_told_apart() -> None:
    together = b"d" + bytes(UpcallAddPci())
    assert kinds(VsockMon(bytes(vsock(True, together)))) == [UpcallService, UpcallAddPci]
    assert kinds(VsockMon(bytes(vsock(True, together[:400])))) == [UpcallService, Raw]
    assert kinds(VsockMon(bytes(vsock(True, bytes(UpcallAddPci()) + b"d")))) == [UpcallAddPci, Raw]


def test_a_whole_message_is_one_whatever_its_first_bytes_are() -> None:
    """A wrong magic that looks like a service byte and a request."""
    raw = b"\0" + UpcallRequest().build()[:4]
    raw += bytes(MESSAGE_SIZE - len(raw))
    assert kinds(UpcallRequest(raw)) == [UpcallRequest]
    assert kinds(UpcallRequest(raw + b"\0"))[0] is UpcallService


def test_other_ports_and_unknown_transports_are_left_alone() -> None:
    ours = bytes(vsock(True, UpcallAddPci()))
    other_port = ours.replace(UPCALL_PORT.to_bytes(4, "little"), (1024).to_bytes(4, "little"))
    assert kinds(VsockMon(other_port)) == [Raw]
    unknown = VsockMon(ours)
    unknown.t = 7
    assert kinds(VsockMon(bytes(unknown))) == [Raw]
    cut = VsockMon(ours[: 32 + 43])
    assert kinds(cut) == [Raw]
    assert rebuilt(cut) == ours[: 32 + 43]


def test_without_a_transport_header_the_payload_follows_at_once() -> None:
    request = VsockMon(dst_port=UPCALL_PORT, t="NO_INFO") / UpcallAddPci()
    reply = VsockMon(src_port=UPCALL_PORT, t="NO_INFO") / UpcallReply(msg_type="ADD_PCI")
    assert kinds(VsockMon(bytes(request))) == [UpcallAddPci]
    assert kinds(VsockMon(bytes(reply))) == [UpcallReply]
    assert VsockMon(bytes(reply)).answers(VsockMon(bytes(request)))


def test_a_summary_says_who_asked_for_what() -> None:
    _, _, request, reply, *_ = captured("cpu_lifecycle")
    asked = "Upcall request ADD_CPU count=1 apic_ver=20 apic_ids=[1]"
    assert request.summary() == f"2:0 > 4:219 / RW / {asked}"
    assert reply.summary() == "4:219 > 2:0 / RW / Upcall reply ADD_CPU ret=EIO apic_index=0"
    two = vsock(True, UpcallAddPci(devfn=0x18) / UpcallRequest(msg_type=77))
    one = "Upcall request ADD_PCI busno=0 devfn=0x18"
    assert two.summary() == f"2:1024 > 3:219 / RW / {one} / Upcall request 77"
    assert vsock(True, UpcallService()).summary().endswith("Upcall service device manager")
    assert "RST" in vsock(False, b"", op="RST").summary()


def test_a_written_capture_has_the_vsock_link_type(tmp_path: Path) -> None:
    path = tmp_path / "guest.pcap"
    wrpcap(str(path), [vsock(True, UpcallAddPci(devfn=0x18))])
    assert int.from_bytes(path.read_bytes()[20:24], "little") == 271
    (packet,) = rdpcap(str(path))
    assert packet[UpcallAddPci].devfn == 0x18


@given(st.binary(min_size=32, max_size=200))
def test_any_packet_is_built_from_its_fields_byte_for_byte(raw: bytes) -> None:
    assert rebuilt(VsockMon(raw)) == raw


@given(st.lists(samples(), max_size=3), st.binary(max_size=40), st.booleans())
def test_any_run_of_messages_is_built_from_its_fields_byte_for_byte(
    run: list[Sample], rest: bytes, to_guest: bool
) -> None:
    sent = b"".join(sample.raw for sample in run) + rest
    raw = bytes(vsock(to_guest, sent))
    packet = VsockMon(raw)
    assert rebuilt(packet) == raw
    messages = [isinstance(layer, UpcallHeader) for layer in upcall_layers(packet)]
    assert messages[: len(run)] == [True] * len(run)
    assert not any(messages[len(run) :])
