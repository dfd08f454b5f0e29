"""The formats made from the table against section 3's tables, codecs and scapy layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from construct import StreamError  # type: ignore[import-untyped]  # ships no annotations
from hypothesis import given
from scapy.config import conf
from scapy.packet import NoPayload, Packet

from dissectors import wire_formats
from dissectors.constants import MAGIC_VERSION, MESSAGE_SIZE, Arch
from dissectors.messages import decode_reply, decode_request
from dissectors.scapy_layers import UpcallReply, UpcallRequest
from tests.dissectors.strategies import Sample, golden_messages, samples, seeded

X86, ARM = Arch.X86_64, Arch.AARCH64
HEADER_FIELDS = ("magic_version", "msg_size", "msg_type", "msg_flags")


def fields(*header: int, padding: bytes, **load: object) -> dict[str, object]:
    """A message's fields in the order of the format."""
    return dict(zip(HEADER_FIELDS, header, strict=True)) | load | {"padding": padding}


def roundtrip(fmt: Any, raw: bytes, obj: dict[str, object]) -> None:
    """`fmt` parses `raw` to `obj`, builds `obj` to `raw`, and knows the size of both."""
    assert dict(fmt.parse(raw), _io=None) == dict(obj, _io=None)
    assert fmt.build(obj) == raw
    assert fmt.sizeof() == len(raw)


# type, msg_size, assumed architecture, the load's bytes, its fields
REQUESTS: list[tuple[int, int, Arch, str, dict[str, object]]] = [
    (0, 0, X86, "", {}),
    (
        1, 258, X86, "02 14 0102" + 254 * "00",
        {"count": 2, "apic_ver": 20, "apic_ids": b"\1\2" + bytes(254)},
    ),
    (2, 258, X86, "01 14" + 256 * "ff", {"count": 1, "apic_ver": 20, "apic_ids": b"\xff" * 256}),
    (1, 258, ARM, "00 00" + 256 * "00", {"count": 0, "apic_ver": 0, "apic_ids": bytes(256)}),
    (1, 0, X86, "01 14" + 256 * "07", {"count": 1, "apic_ver": 20, "apic_ids": b"\7" * 256}),
    (1, 1, ARM, "03", {"count": 3}),
    (2, 1, X86, "01", {"count": 1}),
    (2, 0, ARM, "ff", {"count": 255}),
    (3, 0, X86, "", {}),
    (4, 0, ARM, "", {}),
    (
        5, 24, X86, "006000e000000000 0020000000000000 05000000 00000000",
        {"mmio_base": 0xE0006000, "mmio_size": 0x2000, "mmio_irq": 5, "alignment": bytes(4)},
    ),
    (
        6, 20, ARM, "0030106000000000 0020000000000000 20000000 41424344",
        {"mmio_base": 0x60103000, "mmio_size": 0x2000, "mmio_irq": 32, "alignment": b"ABCD"},
    ),
    (7, 2, X86, "00 18", {"busno": 0, "devfn": 0x18}),
    (8, 2, ARM, "01 08", {"busno": 1, "devfn": 8}),
    (77, 0, X86, "", {}),
]  # fmt: skip

REPLIES: list[tuple[int, int, Arch, str, dict[str, object]]] = [
    (0, 0, X86, "00000000", {"ret": 0}),
    (1, 4, X86, "00000000 02000000", {"ret": 0, "apic_index": 2}),
    (2, 0, X86, "eaffffff 00000000", {"ret": -22, "apic_index": 0}),
    (1, 4, ARM, "00000000 04000000", {"ret": 0, "cpu_id": 4}),
    (2, 4, ARM, "00000000 03000000", {"ret": 0, "cpu_id": 3}),
    (3, 0, X86, "ffffffff", {"ret": -1}),
    (4, 0, ARM, "ffffffff", {"ret": -1}),
    (5, 0, X86, "efffffff", {"ret": -17}),
    (6, 0, X86, "edffffff", {"ret": -19}),
    (7, 0, X86, "00000000", {"ret": 0}),
    (8, 0, X86, "01000000", {"ret": 1}),
    (77, 0, ARM, "ffffffff", {"ret": -1}),
]


@pytest.mark.parametrize("fill", [b"\0", b"\xa5"], ids=["zeros", "garbage"])
@pytest.mark.parametrize(
    ("to_guest", "msg_type", "msg_size", "arch", "load_hex", "load"),
    [(True, *row) for row in REQUESTS] + [(False, *row) for row in REPLIES],
)
def test_a_message_of_each_type(
    to_guest: bool,
    msg_type: int,
    msg_size: int,
    arch: Arch,
    load_hex: str,
    load: dict[str, object],
    fill: bytes,
) -> None:
    header = (MAGIC_VERSION, msg_size, msg_type, 0)
    start = wire_formats.HEADER.build(dict(zip(HEADER_FIELDS, header, strict=True)))
    start += bytes.fromhex(load_hex)
    padding = fill * (MESSAGE_SIZE - len(start))
    if to_guest:
        fmt = wire_formats.request_format(msg_type, msg_size, arch)
    else:
        fmt = wire_formats.reply_format(msg_type, arch)
    roundtrip(fmt, start + padding, fields(*header, padding=padding, **load))


def test_the_headers_of_a_vsockmon_packet() -> None:
    roundtrip(
        wire_formats.VSOCKMON,
        bytes.fromhex("0200000000000000 0300000000000000 00040000 db000000 0400 0200 2c00 0000"),
        {
            "src_cid": 2, "dst_cid": 3, "src_port": 1024, "dst_port": 219,
            "op": 4, "t": 2, "len": 44, "reserved": bytes(2),
        },
    )  # fmt: skip
    roundtrip(
        wire_formats.VIRTIO_VSOCK,
        bytes.fromhex(
            "0200000000000000 0300000000000000 00040000 db000000 00040000 0100 0500"
            "03000000 00000400 01040000"
        ),
        {
            "src_cid": 2, "dst_cid": 3, "src_port": 1024, "dst_port": 219, "len": 1024,
            "type": 1, "op": 5, "flags": 3, "buf_alloc": 0x40000, "fwd_cnt": 1025,
        },
    )  # fmt: skip


def test_half_a_message_does_not_parse() -> None:
    with pytest.raises(StreamError):
        wire_formats.request_format(0, 0).parse(bytes(MESSAGE_SIZE - 1))


def by_struct(sample: Sample) -> dict[str, object]:
    decoded = (decode_request if sample.to_guest else decode_reply)(sample.raw, sample.arch)
    assert decoded.encode() == sample.raw
    return asdict(decoded)


def fmt_of(sample: Sample) -> Any:
    header = wire_formats.HEADER.parse(sample.raw)
    if sample.to_guest:
        return wire_formats.request_format(header.msg_type, header.msg_size, sample.arch)
    return wire_formats.reply_format(header.msg_type, sample.arch)


def by_construct(sample: Sample) -> dict[str, object]:
    fmt = fmt_of(sample)
    parsed = fmt.parse(sample.raw)
    assert fmt.build(parsed) == sample.raw
    return {name: value for name, value in parsed.items() if name != "_io"}


def by_scapy(sample: Sample) -> dict[str, object]:
    conf.contribs["upcall"]["arch"] = sample.arch
    layer: Packet = (UpcallRequest if sample.to_guest else UpcallReply)(sample.raw)
    assert isinstance(layer.payload, NoPayload)
    found = dict(layer.fields)
    layer.clear_cache()
    assert bytes(layer) == sample.raw
    return found


@pytest.fixture(scope="module", autouse=True)
def _restore_scapy_arch() -> Iterator[None]:
    before = dict(conf.contribs["upcall"])
    yield
    conf.contribs["upcall"].update(before)


def test_the_seeded_messages_use_every_format() -> None:
    used = {id(fmt_of(sample)) for sample in seeded(500)}
    assert used == {id(fmt) for fmt in (*wire_formats.requests(), *wire_formats.replies())}


def test_the_three_statements_of_the_format_agree_on_20_000_messages() -> None:
    for sample in seeded(20_000):
        assert by_struct(sample) == by_construct(sample) == by_scapy(sample)


def test_the_three_statements_of_the_format_agree_on_every_recorded_message() -> None:
    for sample in golden_messages():
        assert by_struct(sample) == by_construct(sample) == by_scapy(sample)


@given(samples())
def test_the_three_statements_of_the_format_agree_on_any_message(sample: Sample) -> None:
    assert by_struct(sample) == by_construct(sample) == by_scapy(sample)
