"""The one table: its rows against section 3's, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dissectors.constants import (
    CPU_MSG_SIZE,
    CPU_REPLY_MSG_SIZE,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    PCI_MSG_SIZE,
    Arch,
    MessageType,
    op_name,
)
from dissectors.layouts import DEVICE_MANAGER_TABLE, VIRTIO_VSOCK_HEADER, VSOCKMON_HEADER, formats
from dissectors.tables import BadTable, Bits, FieldRow, MessageRow, MessageTable

X86, ARM = Arch.X86_64, Arch.AARCH64
HEADER_FIELDS = ("magic_version", "msg_size", "msg_type", "msg_flags")
RET = (16, "ret", "i32")
FORMATS = formats(DEVICE_MANAGER_TABLE)

# type, of the reply, architecture, the rows behind the header
ROWS: list[tuple[MessageType, bool, Arch, list[tuple[int, str, str]]]] = [
    (MessageType.CONNECT, False, X86, []),
    (MessageType.CONNECT, True, X86, []),
    (
        MessageType.ADD_CPU, False, X86,
        [(16, "count", "u8"), (17, "apic_ver", "u8"), (18, "apic_ids", "u8[256]")],
    ),
    (MessageType.DEL_CPU, False, ARM, [(16, "count", "u8")]),
    (MessageType.ADD_CPU, True, X86, [(20, "apic_index", "u32")]),
    (MessageType.DEL_CPU, True, ARM, [(20, "cpu_id", "u32")]),
    (MessageType.ADD_MEM, False, X86, []),
    (MessageType.DEL_MEM, True, ARM, []),
    (
        MessageType.ADD_MMIO, False, X86,
        [
            (16, "mmio_base", "u64"), (24, "mmio_size", "u64"), (32, "mmio_irq", "u32"),
            (36, "alignment", "u8[4]"),
        ],
    ),
    (MessageType.DEL_MMIO, True, X86, []),
    (MessageType.ADD_PCI, False, ARM, [(16, "busno", "u8"), (17, "devfn", "u8")]),
    (MessageType.DEL_PCI, True, ARM, []),
]  # fmt: skip


@pytest.mark.parametrize(("msg_type", "of_reply", "arch", "expected"), ROWS)
def test_the_rows_of_a_message_are_section_3s(
    msg_type: MessageType, of_reply: bool, arch: Arch, expected: list[tuple[int, str, str]]
) -> None:
    layout = DEVICE_MANAGER_TABLE.layout(msg_type, arch)
    rows = layout.reply if of_reply else layout.request
    assert [(row.offset, row.name, row.type_name) for row in rows] == expected


def test_every_type_has_its_row_under_its_name() -> None:
    assert list(DEVICE_MANAGER_TABLE.by_number) == list(MessageType)
    assert list(DEVICE_MANAGER_TABLE.by_name) == [op_name(number) for number in MessageType]


def test_sizes_of_loads_are_the_specifications() -> None:
    sizes = {
        (number, arch): DEVICE_MANAGER_TABLE.load_size(DEVICE_MANAGER_TABLE.layout(number, arch))
        for number in (MessageType.ADD_CPU, MessageType.ADD_MMIO, MessageType.ADD_PCI)
        for arch in Arch
    }
    assert {a: sizes[MessageType.ADD_CPU, a] for a in Arch} == CPU_MSG_SIZE
    assert {sizes[MessageType.ADD_MMIO, arch] for arch in Arch} == {MMIO_MSG_SIZE}
    assert {sizes[MessageType.ADD_PCI, arch] for arch in Arch} == {PCI_MSG_SIZE}
    reply = DEVICE_MANAGER_TABLE.layout(MessageType.ADD_CPU, X86)
    assert DEVICE_MANAGER_TABLE.load_size(reply, of_reply=True) == CPU_REPLY_MSG_SIZE


@pytest.mark.parametrize("title", FORMATS)
def test_every_format_is_whole_and_explained(title: str) -> None:
    rows = FORMATS[title]
    assert [row.offset for row in rows] == [0, *(row.end for row in rows[:-1])]
    assert rows[-1].end == MESSAGE_SIZE
    assert all(row.meaning for row in rows)


def test_the_headers_of_a_vsockmon_packet_have_no_holes() -> None:
    for header, size in ((VSOCKMON_HEADER, 32), (VIRTIO_VSOCK_HEADER, 44)):
        assert [row.offset for row in header] == [0, *(row.end for row in header[:-1])]
        assert header[-1].end == size


def test_bits_are_taken_out_and_put_in() -> None:
    slot = Bits("slot", 3, 5, "slot")
    assert (slot.of(0xFF), slot.limit, slot.put(0xFF, 3), slot.put(0x07, 3)) == (31, 31, 0x1F, 0x1F)


NUMBER = FieldRow(0, "kind", "u8", "kind")
RET_ROW = FieldRow(0, "ret", "i32", "result")


def table(*messages: MessageRow, header: tuple[FieldRow, ...] = (NUMBER,)) -> MessageTable:
    return MessageTable(1, 8, 8, header, (RET_ROW,), messages, type_field="kind")


def message(*rows: FieldRow, name: str = "ask", number: int = 1) -> MessageRow:
    return MessageRow(number, name, rows)


A = FieldRow(1, "a", "u8", "a number")
WRONG = {
    "two messages have the same number": lambda: table(message(), message(name="other")),
    "no name for a message": lambda: table(message(name="Ask")),
    "no field of the request's header": lambda: table(message(), header=()),
    "is of type": lambda: table(message(replace(A, type="u24"))),
    "and the row before ends at 1": lambda: table(message(replace(A, offset=2))),
    "used twice": lambda: table(message(A, replace(A, offset=2))),
    "cannot be the name": lambda: table(message(replace(A, name="padding"))),
    "which is no number before it": lambda: table(message(replace(A, count=2, length="n"))),
    "beyond its 8 bytes": lambda: table(message(replace(A, count=8))),
    "no ret": lambda: MessageTable(1, 8, 8, (NUMBER,), (), (message(),), type_field="kind"),
    "need a type_field": lambda: MessageTable(1, 8, 8, (), (RET_ROW,), ()),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_table_that_is_none_is_refused_with_a_reason(why: str) -> None:
    with pytest.raises(BadTable, match=why):
        WRONG[why]()
