"""messages.py against what the specification says, what guests sent, and a lot of random bytes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given

from dissectors.codecs import FieldValue, NotAMessage
from dissectors.constants import MAGIC_VERSION, MESSAGE_SIZE, Arch, MessageType
from dissectors.messages import (
    CpuReplyArm,
    CpuReplyX86,
    CpuRequestArm,
    CpuRequestX86,
    MmioRequest,
    PciRequest,
    Reply,
    Request,
    bare_request,
    cpu_request,
    decode_reply,
    decode_request,
    hello,
    mmio_request,
    pci_request,
)
from tests.dissectors.strategies import Sample, golden, golden_messages, samples

T = MessageType
X86, ARM = Arch.X86_64, Arch.AARCH64


def whole(head: str) -> bytes:
    """A message that is `head`, in hex, and then zeros."""
    return bytes.fromhex(head).ljust(MESSAGE_SIZE, b"\0")


def decode(sample: Sample) -> Request | Reply:
    return (decode_request if sample.to_guest else decode_reply)(sample.raw, sample.arch)


REQUESTS: list[tuple[str, Request, type[Request], str, dict[str, FieldValue]]] = [
    (
        "00014d44 02010000 01000000 00000000 02 14 0203",
        cpu_request(T.ADD_CPU, [2, 3]), CpuRequestX86,
        "add_cpu", {"count": 2, "apic_ver": 0x14, "apic_ids": [2, 3]},
    ),
    (
        "00014d44 02010000 02000000 00000000 02 14 0302",
        cpu_request(T.DEL_CPU, [3, 2]), CpuRequestX86,
        "del_cpu", {"count": 2, "apic_ver": 0x14, "apic_ids": [3, 2]},
    ),
    (
        "00014d44 01000000 01000000 00000000 03",
        cpu_request(T.ADD_CPU, 3), CpuRequestArm, "add_cpu", {"count": 3},
    ),
    (
        "00014d44 01000000 02000000 00000000 01",
        cpu_request(T.DEL_CPU, 1), CpuRequestArm, "del_cpu", {"count": 1},
    ),
    (
        "00014d44 00000000 03000000 00000000",
        bare_request(T.ADD_MEM), Request, "add_mem", {},
    ),
    (
        "00014d44 00000000 04000000 00000000",
        bare_request(T.DEL_MEM), Request, "del_mem", {},
    ),
    (
        "00014d44 18000000 05000000 00000000 006000e0 00000000 00200000 00000000 05000000",
        mmio_request(T.ADD_MMIO, 0xE0006000, 0x2000, 5), MmioRequest,
        "add_mmio", {"mmio_base": 0xE0006000, "mmio_size": 0x2000, "mmio_irq": 5},
    ),
    (
        "00014d44 18000000 06000000 00000000 006000e0 00000000 00200000 00000000 05000000",
        mmio_request(T.DEL_MMIO, 0xE0006000, 0x2000, 5), MmioRequest,
        "del_mmio", {"mmio_base": 0xE0006000, "mmio_size": 0x2000, "mmio_irq": 5},
    ),
    (
        "00014d44 02000000 07000000 00000000 00 21",
        pci_request(T.ADD_PCI, 0, 4, 1), PciRequest,
        "add_pci", {"busno": 0, "devfn": 0x21, "slot": 4, "function": 1},
    ),
    (
        "00014d44 02000000 08000000 00000000 01 08",
        pci_request(T.DEL_PCI, 1, 1), PciRequest,
        "del_pci", {"busno": 1, "devfn": 0x08, "slot": 1, "function": 0},
    ),
    (
        "00014d44 00000000 00000000 00000000",
        bare_request(T.CONNECT), Request, "connect", {},
    ),
    (
        "00014d44 00000000 4d000000 00000000",
        bare_request(77), Request, "type_77", {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("head", "request_", "kind", "op", "fields"), REQUESTS)
def test_a_request_of_each_type(
    head: str, request_: Request, kind: type[Request], op: str, fields: dict[str, FieldValue]
) -> None:
    decoded = decode_request(whole(head))
    assert decoded == request_
    assert type(decoded) is type(request_) is kind
    assert (decoded.op, decoded.fields()) == (op, fields)
    assert request_.encode() == whole(head)


REPLIES: list[tuple[str, Arch, Reply, dict[str, FieldValue]]] = [
    ("00014d44 00000000 00000000 00000000", X86, hello(), {}),
    (
        "00014d44 04000000 01000000 00000000 00000000 02000000", X86,
        cpu_request(T.ADD_CPU, [2, 3]).reply(), {"apic_index": 2},
    ),
    (
        "00014d44 00000000 02000000 00000000 eaffffff 00000000", X86,
        cpu_request(T.DEL_CPU, [0]).reply(-22), {"apic_index": 0},
    ),
    (
        "00014d44 00000000 01000000 00000000 eaffffff 01000000", X86,
        cpu_request(T.ADD_CPU, [1]).reply(-22, load=1), {"apic_index": 1},
    ),
    (
        "00014d44 04000000 02000000 00000000 00000000 03000000", ARM,
        cpu_request(T.DEL_CPU, 1).reply(load=3), {"cpu_id": 3},
    ),
    (
        "00014d44 00000000 02000000 00000000 eaffffff 00000000", ARM,
        cpu_request(T.DEL_CPU, 4).reply(-22), {"cpu_id": 0},
    ),
    (
        "00014d44 00000000 05000000 00000000 efffffff", X86,
        mmio_request(T.ADD_MMIO, 0xE0006000, 0x2000, 5).reply(-17), {},
    ),
    (
        "00014d44 00000000 06000000 00000000 00000000", X86,
        mmio_request(T.DEL_MMIO, 0xE0006000, 0x2000, 5).reply(), {},
    ),
    (
        "00014d44 00000000 07000000 00000000 edffffff", X86,
        pci_request(T.ADD_PCI, 0, 9).reply(-19), {},
    ),
    (
        "00014d44 00000000 08000000 00000000 00000000", X86,
        pci_request(T.DEL_PCI, 0, 9).reply(), {},
    ),
    (
        "00014d44 00000000 03000000 00000000 ffffffff", ARM,
        bare_request(T.ADD_MEM).reply(-1), {},
    ),
    (
        "00014d44 00000000 4d000000 00000000 ffffffff", X86,
        bare_request(77).reply(-1), {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("head", "arch", "reply", "fields"), REPLIES)
def test_a_reply_to_each_type(
    head: str, arch: Arch, reply: Reply, fields: dict[str, FieldValue]
) -> None:
    decoded = decode_reply(whole(head), arch)
    assert decoded == reply
    assert type(decoded) is type(reply)
    assert decoded.fields() == fields
    assert reply.encode() == whole(head)


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("size", [0, 1, 16, MESSAGE_SIZE - 1, MESSAGE_SIZE + 1, 2 * MESSAGE_SIZE])
def test_only_a_whole_message_is_a_message(size: int, arch: Arch) -> None:
    with pytest.raises(NotAMessage, match=f"1024 bytes, not {size}$"):
        decode_request(bytes(size), arch)
    with pytest.raises(NotAMessage, match=f"1024 bytes, not {size}$"):
        decode_reply(bytes(size), arch)


def test_msg_size_tells_the_architecture_of_a_cpu_request_and_else_the_reader_does() -> None:
    for size, told in ((258, X86), (1, ARM), (0, None), (257, None)):
        raw = replace(cpu_request(T.ADD_CPU, [7]), msg_size=size).encode()
        for arch in Arch:
            kind = CpuRequestArm if (told or arch) is ARM else CpuRequestX86
            assert type(decode_request(raw, arch)) is kind


def test_only_the_reader_tells_the_architecture_of_a_cpu_reply() -> None:
    raw = cpu_request(T.ADD_CPU, [7]).reply().encode()
    assert isinstance(decode_reply(raw, X86), CpuReplyX86)
    assert isinstance(decode_reply(raw, ARM), CpuReplyArm)


def test_a_wrong_magic_and_a_wrong_msg_size_change_no_layout() -> None:
    request = mmio_request(T.ADD_MMIO, 0xD0000000, 0x2000, 5)
    wrong = replace(request, magic_version=0, msg_size=20)
    assert decode_request(wrong.encode()) == wrong
    assert wrong.fields() == request.fields()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"ret": -22}, True),  # the client looks at the header only: section 5
        ({"magic_version": 0}, False),
        ({"msg_size": 4}, False),
        ({"msg_type": 1}, False),
        ({"msg_flags": 1}, False),
    ],
)
def test_the_header_alone_makes_a_connect_message(change: dict[str, int], expected: bool) -> None:
    assert replace(hello(), **change).is_hello is expected  # type: ignore[arg-type]  # padding is bytes


def test_padding_is_kept_and_is_not_a_field() -> None:
    raw = pci_request(T.ADD_PCI, 0, 3).encode()[:18] + bytes(range(256)) * 3 + bytes(238)
    decoded = decode_request(raw)
    assert decoded.encode() == raw
    assert decoded.padding == raw[18:]
    assert "padding" not in repr(decoded)
    assert "padding" not in decoded.fields()


def test_every_recorded_message_is_kept_byte_for_byte() -> None:
    recorded = list(golden_messages())
    assert len(recorded) > 200
    for sample in recorded:
        assert decode(sample).encode() == sample.raw


def test_every_recorded_connection_starts_with_a_connect_message() -> None:
    for conn in golden():
        assert decode_reply(conn.hello, conn.arch) == hello()


def test_a_request_builds_the_reply_that_the_guest_gave() -> None:
    pairs = 0
    for conn in golden():
        for sent, answer in zip(conn.requests, conn.replies, strict=False):
            request, reply = decode_request(sent, conn.arch), decode_reply(answer, conn.arch)
            if request.magic_version != MAGIC_VERSION:
                continue  # its `ret` says nothing: section 4, "stale result"
            built = request.reply(reply.ret, next(iter(reply.fields().values()), None))
            assert replace(built, padding=reply.padding) == reply
            pairs += 1
    assert pairs > 80


@given(samples())
def test_decode_then_encode_is_the_identity(sample: Sample) -> None:
    assert decode(sample).encode() == sample.raw


@given(samples())
def test_the_same_bytes_decode_to_equal_and_hashable_messages(sample: Sample) -> None:
    one, other = decode(sample), decode(Sample(bytes(bytearray(sample.raw)), *sample[1:]))
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.torture
def test_a_million_messages_are_kept_byte_for_byte() -> None:
    rng = Random(1024)
    types = list(MessageType)
    for number in range(1_000_000):
        raw = rng.randbytes(MESSAGE_SIZE)
        if number % 2:  # otherwise hardly any would have a type with a load
            raw = raw[:8] + rng.choice(types).to_bytes(4, "little") + raw[12:]
        arch = ARM if number % 3 else X86
        assert decode_request(raw, arch).encode() == raw
        assert decode_reply(raw, arch).encode() == raw
