"""From records to connections and operations: what was recorded, by hand, and whatever comes."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import MAGIC_VERSION, Arch, MessageType
from dissectors.events import Incomplete, Lost, RequestReceived
from dissectors.messages import Request, cpu_request, decode_request, pci_request
from tests.capture.strategies import records
from tests.dissectors.strategies import messages
from tests.support import (
    ADD_MEM,
    DISK,
    GOLDEN,
    HELLO,
    TRANSCRIPTS,
    answer,
    ask,
    connect,
    decode,
    golden,
    operations,
    records_of,
)
from upcall_trace.capture.records import (
    DAMAGED,
    LEFT_OUT,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.trace.decoding import Session, TooManyOperations
from upcall_trace.trace.opening import load
from upcall_trace.trace.operations import Operation, Operations

ADD_CPU = cpu_request(MessageType.ADD_CPU, [1, 2])
ADD_PCI = pci_request(MessageType.ADD_PCI, 0, 6)


def line(operation: Operation) -> str:
    """One operation as the tables below have it."""
    shown = []
    for name, value in operation.fields.items():
        if name in ("mmio_base", "mmio_size"):
            shown.append(f"{value:#x}")
        elif name in ("apic_ids", "mmio_irq"):
            shown.append(str(value).replace(" ", ""))
        elif name in ("busno", "devfn") or (name == "count" and "apic_ids" not in operation.fields):
            shown.append(f"{name}={value}")
    key = f"{operation.conn}.{operation.request}"
    return " ".join([key, operation.op, *shown, "->", str(operation.ret), *operation.anomalies])


TABLES = {
    "framing": """
        1.0 add_mem -> -1
        1.1 del_mem -> -1 overlapping-requests
        1.2 add_mem -> -1 short-request
        2.0 add_mmio 0xd1000000 0x2000 11 -> 0
        2.1 connect -> 0 bad-magic stale-success split-request
        3.0 add_mmio 0xd1002000 0x0 0 -> -22
        3.1 connect -> -22 bad-magic stale-error split-request
        4.0 add_mem -> -1
        4.1 type_4294967295 -> -1 bad-magic stale-error over-long-request
    """,
    "stale_results": """
        1.0 add_mmio 0xd0000000 0x2000 5 -> 0 bad-magic stale-success
        1.1 add_mmio 0xfeb00400 0x200 7 -> 0
        1.2 add_mmio 0xfeb00400 0x200 7 -> -17
        1.3 add_mmio 0xd0000000 0x2000 5 -> -17 bad-magic stale-error
        1.4 del_cpu [3] -> 0
        1.5 add_cpu [3] -> 0
        1.6 add_cpu [3] -> -22 stale-load
        1.7 add_mem -> -1 stale-load
        1.8 del_mem -> -1 stale-load
        1.9 connect -> -1 stale-load
        1.10 type_77 -> -1 stale-load
        1.11 add_mem -> -1 stale-load
    """,
    "pci_memory": """
        1.0 del_pci busno=0 devfn=48 -> 0
        1.1 del_pci busno=0 devfn=64 -> 0
        1.2 add_pci busno=0 devfn=48 -> 0
        1.3 add_pci busno=0 devfn=64 -> 0
        1.4 add_pci busno=0 devfn=48 -> 0
        1.5 add_pci busno=0 devfn=72 -> -19
        1.6 del_pci busno=0 devfn=48 -> -19 stale-error
        1.7 del_pci busno=0 devfn=48 -> -19 stale-error
        1.8 add_pci busno=0 devfn=48 -> -19 stale-error
        1.9 add_pci busno=9 devfn=8 -> -19 stale-error
        2.0 del_pci busno=0 devfn=48 -> 0
    """,
    "cpu_lifecycle": """
        1.0 add_cpu [1] -> -5
        1.1 add_cpu [1] -> 0
        1.2 add_cpu [1] -> -22 stale-load
        1.3 add_cpu [2,3] -> 0
        1.4 del_cpu [3] -> 0
        1.5 add_cpu [3] -> 0
        1.6 del_cpu [3,2] -> 0
        1.7 del_cpu [0] -> -22 stale-load
        1.8 del_cpu [0,1] -> -22
        1.9 del_cpu [1] -> 0
        1.10 add_cpu [1,2,3] -> 0
    """,
    "mmio_lifecycle": """
        1.0 add_mmio 0xfeb00400 0x200 7 -> 0
        1.1 add_mmio 0xfeb00600 0x200 8 -> 0
        1.2 add_mmio 0xfeb00400 0x200 7 -> -17
        1.3 add_mmio 0xfeb00500 0x200 9 -> -17
        1.4 add_mmio 0xfeb00800 0x200 8 -> -17
        1.5 add_mmio 0xd0000000 0x2000 5 -> 0
        1.6 add_mmio 0xd0002000 0x2000 5 -> 0
        1.7 add_mmio 0xd0004000 0x2000 0 -> -22
        1.8 add_mmio 0xd0006000 0x0 10 -> -16
        1.9 add_mmio 0xd0008000 0x2000 11 -> -22
        1.10 del_mmio 0xfeb00600 0x200 9 -> -19
        1.11 del_mmio 0xfeb00600 0x200 8 -> 0
        1.12 del_mmio 0xfeb00600 0x200 8 -> -19
        1.13 add_mmio 0xfeb00600 0x200 8 -> 0
        1.14 del_mmio 0xfeb00400 0x200 7 -> 0
    """,
    "guest_oops": """
        1.0 del_cpu [3] -> 0
        1.1 del_cpu [9] -> None
        2.0 add_mem -> -1
        2.1 add_cpu [3] -> 0
    """,
    "handshake": """
        7.0 add_mem -> -1
        8.0 add_mem -> -1
        9.0 add_mem -> -1
        10.0 add_mem -> -1
    """,
    "aarch64_lifecycle": """
        1.0 add_cpu count=1 -> 0
        1.1 del_cpu count=1 -> 0
        1.2 add_cpu count=2 -> 0
        1.3 del_cpu count=4 -> -22
        1.4 del_cpu count=3 -> 0
        1.5 add_cpu count=0 -> 0
        1.6 del_cpu count=0 -> 0
        1.7 add_mem -> -1 stale-load
        1.8 add_cpu count=3 -> 0
        1.9 add_cpu count=1 -> 0 bad-magic stale-success stale-load
        1.10 add_mmio 0xa000400 0x200 18 -> 0 stale-load
        1.11 add_mmio 0xa000400 0x200 18 -> -17 stale-load
        1.12 add_mmio 0xa000600 0x200 19 -> 0 stale-load
        1.13 add_mmio 0xa000800 0x200 18 -> -17 stale-load
        1.14 add_mmio 0xa000a00 0x200 5 -> 0 stale-load
        1.15 add_mmio 0xa000c00 0x200 32 -> 0 stale-load
        1.16 add_mmio 0xa000e00 0x200 32 -> -17 stale-load
        1.17 add_mmio 0xa001000 0x200 0 -> 0 stale-load
        1.18 add_mmio 0xa001200 0x200 2000 -> -22 stale-load
        1.19 add_mmio 0xa001400 0x200 26 -> -22 stale-load
        1.20 del_mmio 0xa000400 0x200 18 -> 0 stale-load
        1.21 del_mmio 0xa000400 0x200 18 -> -19 stale-load
        1.22 add_mmio 0xa000400 0x200 18 -> 0 stale-load
        1.23 add_pci busno=0 devfn=72 -> -19 stale-load
        1.24 del_pci busno=0 devfn=32 -> -19 stale-error stale-load
        1.25 add_pci busno=0 devfn=32 -> -19 stale-error stale-load
        2.0 add_pci busno=0 devfn=32 -> 0
        2.1 add_cpu count=1 -> None
        3.0 add_mem -> -1
        3.1 del_mmio 0xa001800 0x200 28 -> -19
        3.2 add_mmio 0xa000400 0x200 18 -> -17
        3.3 add_mmio 0xa001800 0x200 28 -> None
    """,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_recording_says_what_it_was_made_to_say(name: str) -> None:
    expected = [text.strip() for text in TABLES[name].strip().splitlines()]
    assert [line(operation) for operation in load(golden(name)).operations] == expected


def test_the_loads_of_recorded_cpu_replies() -> None:
    x86 = [op.reply for op in load(golden("cpu_lifecycle")).operations]
    assert x86[0] == {"msg_type": 1, "msg_size": 0, "apic_index": 0}
    assert x86[3] == {"msg_type": 1, "msg_size": 4, "apic_index": 2}
    assert x86[7] == {"msg_type": 2, "msg_size": 0, "apic_index": 2}
    arm = [op.reply for op in load(golden("aarch64_lifecycle")).operations]
    assert arm[0] == {"msg_type": 1, "msg_size": 4, "cpu_id": 3}
    assert arm[3] == {"msg_type": 2, "msg_size": 0, "cpu_id": 0}
    assert arm[7] == {"msg_type": 3, "msg_size": 0}
    assert arm[27] is None


@pytest.mark.parametrize("name", [path.stem for path in TRANSCRIPTS])
def test_outside_and_inside_the_guest_the_same_was_seen(name: str) -> None:
    """Connections are numbered otherwise where some never reached the guest."""
    outside = list(load(golden(name)).operations)
    inside = list(load(GOLDEN / f"{name}.vsockmon.pcap").operations)
    if name == "aarch64_lifecycle":  # this packet capture ends early
        assert (len(inside), len(outside)) == (24, 32)
        assert inside[-1].ret is None
        inside.pop()
        outside = outside[: len(inside)]
    if name == "channel_removed_5_10":  # what was sent after that never reached the guest
        assert outside.pop().ret is None

    def seen(ops: list[Operation]) -> list[object]:
        return [(op.request, op.op, op.fields, op.ret, op.reply, op.anomalies) for op in ops]

    assert seen(inside) == seen(outside)


def test_a_clients_own_log_and_a_packet_capture_agree() -> None:
    """Dragonball's client printed what it sent; there is no transcript of it."""
    found = load(GOLDEN / "real_client_simple.vsockmon.pcap").operations
    assert [line(operation) for operation in found] == [
        text.strip() for text in REAL_CLIENT.strip().splitlines()
    ]


REAL_CLIENT = """
    1.0 add_mmio 0xfeb00400 0x200 7 -> 0
    1.1 del_cpu [3,2] -> 0
    1.2 add_cpu [2,3] -> 0
    1.3 add_mmio 0xfeb00600 0x200 8 -> 0 stale-load
    1.4 add_mmio 0xfeb00600 0x200 8 -> -17 stale-load
    1.5 del_mmio 0xfeb00400 0x200 7 -> 0 stale-load
"""


def test_connections_are_counted_refused_ones_and_other_ports_included() -> None:
    connections = load(golden("handshake")).connections
    table = [
        (c.number, c.port, c.accepted, c.service, c.hello, c.requests, c.payload, c.closed_by_guest)
        for c in connections
    ]
    assert table == [
        (1, 9999, None, None, None, 0, 0, True),
        (2, None, None, None, None, 0, 0, True),
        (3, None, None, None, None, 0, 0, True),
        (4, 219, True, None, None, 0, 0, False),
        (5, 219, True, ord("x"), None, 0, 1, True),
        (6, 219, True, None, None, 0, 0, True),
        (7, 219, True, ord("d"), True, 1, 3073, False),
        (8, 219, True, ord("d"), True, 1, 3073, False),
        (9, 219, True, ord("d"), True, 1, 3073, False),
        (10, 219, True, ord("d"), True, 1, 3073, False),
    ]
    assert [c.line for c in connections[1:4]] == [b"HELLO\n", b"CONNECT abc\n", b"connect 219\n"]
    assert connections[5].closed_ns is not None
    assert connections[5].closed_ns - connections[5].opened_ns == 10_086_002_113


def test_times_and_latencies_of_a_recording() -> None:
    """By the numbers of the file: 3011.. is its first record's time."""
    capture = load(golden("framing"))
    found = {(op.conn, op.request): op for op in capture.operations}
    begin = 3211464621
    assert capture.first_ns == begin
    assert found[1, 0].t_ns == 3220770708 - begin
    assert found[1, 0].latency_ns == found[1, 1].latency_ns == 3222577412 - 3220770708
    assert found[2, 0].latency_ns == 3628556106 - 3228202026
    assert found[2, 1].latency_ns == 3629804958 - 3628368417
    assert capture.duration_ns == 6040697578 - begin


def test_a_reply_in_slices_ends_with_its_last_byte() -> None:
    reply = DISK.reply(-17).encode()
    slices = [Chunk(n, 1, False, reply[n - 100 : n - 99]) for n in range(100, 100 + 1023)]
    found = operations(
        decode([*connect(), ask(DISK, 50), *slices, Chunk(5000, 1, False, reply[1023:])])
    )
    assert [(op.ret, op.latency_ns) for op in found] == [(-17, 4950)]


def test_a_receive_with_the_end_of_one_reply_and_the_next() -> None:
    first, second = DISK.reply(-17).encode(), ADD_MEM.reply(-1).encode()
    found = operations(
        decode(
            [
                *connect(),
                ask(DISK.encode() + ADD_MEM.encode(), 10),
                Chunk(20, 1, False, first[:1000]),
                Chunk(30, 1, False, first[1000:] + second),
            ]
        )
    )
    assert [(op.op, op.ret, op.latency_ns) for op in found] == [
        ("add_mmio", -17, 20),
        ("add_mem", -1, 20),
    ]


def test_requests_are_numbered_on_their_connection_and_times_count_from_the_first_record() -> None:
    sent: list[Record] = [*connect(3, 1000), *connect(1, 2000)]
    for number in range(4):
        sent.append(ask(DISK, 3000 + number, 1 if number % 2 else 3))
        sent.append(answer(DISK, 3100 + number, 1 if number % 2 else 3))
    found = operations(decode(sent))
    assert [(op.conn, op.request, op.t_ns) for op in found] == [
        (3, 0, 2000), (1, 0, 2001), (3, 1, 2002), (1, 1, 2003),
    ]  # fmt: skip


def test_every_1024_bytes_of_a_send_are_one_receive_and_sends_are_never_joined() -> None:
    twice = DISK.encode() * 2
    found = operations(decode([*connect(), ask(twice + ADD_MEM.encode()[:9], 10)]))
    assert [(op.request, op.op, op.size) for op in found] == [
        (0, "add_mmio", 1024), (1, "add_mmio", 1024), (2, "add_mem", 9),
    ]  # fmt: skip
    split = operations(decode([*connect(), ask(twice[:1000], 10), ask(twice[1000:], 20)]))
    assert [op.size for op in split] == [1000, 1024, 24]


def test_what_an_operation_of_each_layout_shows() -> None:
    arm = cpu_request(MessageType.DEL_CPU, 3)
    sent = [ADD_CPU, arm, DISK, ADD_PCI, ADD_MEM]
    found = operations(
        decode([*connect(), *(r for q in sent for r in (ask(q, 10), answer(q, 20)))])
    )
    assert [dict(op.fields) for op in found] == [
        {"count": 2, "apic_ver": 20, "apic_ids": [1, 2]},
        {"count": 3},
        {"mmio_base": 0xE0006000, "mmio_size": 0x2000, "mmio_irq": 5},
        {"busno": 0, "devfn": 48, "slot": 6, "function": 0},
        {},
    ]
    assert [op.reply for op in found] == [
        {"msg_type": 1, "msg_size": 4, "apic_index": 2},
        {"msg_type": 2, "msg_size": 4, "cpu_id": 0},
        {"msg_type": 5, "msg_size": 0},
        {"msg_type": 7, "msg_size": 0},
        {"msg_type": 3, "msg_size": 0},
    ]


@pytest.mark.parametrize(
    ("msg_size", "arch", "is_arm"),
    [(258, "aarch64", False), (1, "x86_64", True), (0, "aarch64", True), (0, "x86_64", False),
     (0, None, False), (0, "riscv", False)],
)  # fmt: skip
def test_where_the_architecture_of_a_cpu_request_comes_from(
    msg_size: int, arch: str | None, is_arm: bool
) -> None:
    raw = dataclasses.replace(ADD_CPU, msg_size=msg_size).encode()
    (found,) = operations(decode([*connect(), ask(raw, 10)], Header("test", arch=arch)))
    assert ("apic_ids" not in found.fields) is is_arm


def test_payload_is_counted_in_both_directions_without_the_lines() -> None:
    session = decode([*connect(), ask(DISK.encode()[:100], 10), answer(DISK, 20)])
    (connection,) = session.connections.values()
    assert connection.payload == 1 + 1024 + 100 + 1024
    assert (connection.requests, connection.replies, connection.failures) == (1, 1, 0)


@pytest.mark.parametrize(
    "last",
    [
        Close(50, 1, by_guest=True),
        Close(50, 1, by_guest=False, how=How.RESET),
        Open(50, 1),
        End(50),
        None,
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_request_without_a_reply_stays_unanswered(last: Record | None) -> None:
    sent = [*connect(), ask(DISK, 10), *([last] if last else [])]
    session = decode(sent)
    (found,) = operations(session)
    assert (found.ret, found.errno, found.latency_ns, found.reply) == (None, None, None, None)
    assert found.failed
    assert session.finished_rows == [0]


def test_a_half_closed_connection_goes_on() -> None:
    sent: list[Record] = [*connect(), ask(DISK, 10), Close(20, 1, by_guest=False, how=How.HALF)]
    session = decode([*sent, answer(DISK, 30)])
    assert operations(session)[0].ret == 0
    assert session.connections[1].closed_ns is None


def test_giving_up_is_not_an_answer_and_one_may_still_come() -> None:
    session = decode([*connect(), ask(DISK, 10), GaveUp(20, 1, 5), answer(DISK, 30)])
    assert operations(session)[0].ret == 0
    assert session.connections[1].gave_up_ns == 20


def test_rows_are_finished_once_each() -> None:
    session = Session(Header("test"))
    finished = []
    for record in [*connect(), ask(DISK, 1), answer(DISK, 2), ask(DISK, 3), Close(4, 1, True),
                   Open(5, 1), End(6)]:  # fmt: skip
        session.feed(record)
        finished.append(list(session.finished_rows))
        session.finished_rows.clear()
    session.finish()
    assert finished[-5:] == [[0], [], [1], [], []]
    assert session.finished_rows == []


def test_bytes_that_nobody_asked_for_are_counted() -> None:
    session = decode([*connect(), answer(DISK, 10), ask(DISK, 20), answer(DISK, 30)])
    assert operations(session)[0].latency_ns == 10
    assert session.connections[1].unsolicited == 1


def test_the_line_of_a_connection_and_its_answer() -> None:
    session = decode([Open(0, 1, peer=(7, 8, 9)), ask(b"CONNECT 1024\n", 1), ask(b"secret", 2)])
    connection = session.connections[1]
    assert (connection.line, connection.port, connection.peer) == (
        b"CONNECT 1024\n",
        1024,
        (7, 8, 9),
    )
    assert (connection.payload, connection.requests) == (0, 0)


def test_the_port_that_carries_upcall_is_the_headers() -> None:
    sent = [*connect(port=300), ask(DISK, 10)]
    assert len(operations(decode(sent))) == 0
    assert len(operations(decode(sent, Header("test", port=300)))) == 1


# Doubts about replies: what was sent, what came back, what is doubted.
BAD_MAGIC = dataclasses.replace(DISK, magic_version=MAGIC_VERSION + 1)
DIRTY = DISK.reply().encode()[:1000] + b"\1" * 24
CPU_REPLY = ADD_CPU.reply(0, 2).encode()
DOUBTS: list[tuple[str, list[tuple[Request, bytes]], list[tuple[str, ...]]]] = [
    ("none", [(DISK, DISK.reply(-17).encode())] * 2, [(), ()]),
    ("pci", [(ADD_PCI, ADD_PCI.reply(-19).encode())] * 2, [(), ("stale-error",)]),
    (
        "pci after another errno",
        [(DISK, DISK.reply(-17).encode()), (ADD_PCI, ADD_PCI.reply(-17).encode())],
        [(), ("stale-error",)],
    ),
    (
        "pci with an errno of its own",
        [(DISK, DISK.reply(-17).encode()), (ADD_PCI, ADD_PCI.reply(-19).encode())],
        [(), ()],
    ),
    (
        "pci after a success",
        [(ADD_PCI, ADD_PCI.reply(-19).encode()), (DISK, DISK.reply(0).encode()),
         (ADD_PCI, ADD_PCI.reply(-19).encode())],
        [(), (), ()],
    ),
    ("bad magic", [(BAD_MAGIC, DISK.reply(0).encode())], [("bad-magic", "stale-success")]),
    ("bad magic", [(BAD_MAGIC, DISK.reply(-5).encode())], [("bad-magic", "stale-error")]),
    ("bad magic", [(BAD_MAGIC, DISK.reply(1).encode())], [("bad-magic", "stale-error")]),
    ("load", [(DISK, DIRTY)], [("stale-load",)]),
    ("load of a cpu reply is its own", [(ADD_CPU, CPU_REPLY)], [()]),
    (
        "load of a refused cpu request",
        [(ADD_CPU, CPU_REPLY[:4] + bytes(4) + CPU_REPLY[8:])],
        [("stale-load",)],
    ),
    (
        "msg_size beyond the message",
        [(DISK, DIRTY[:4] + b"\xff\xff\xff\xff" + DIRTY[8:])],
        [()],
    ),
    ("other type", [(DISK, ADD_PCI.reply().encode())], [("reply-mismatch",)]),
    (
        "magic of the reply",
        [(DISK, b"\xff" + DISK.reply().encode()[1:])],
        [("reply-mismatch",)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("why", "exchanged", "doubts"), DOUBTS)
def test_doubts_about_replies(
    why: str, exchanged: list[tuple[Request, bytes]], doubts: list[tuple[str, ...]]
) -> None:
    sent = [*connect()]
    for request, reply in exchanged:
        sent += [ask(request, 10), Chunk(20, 1, False, reply)]
    assert [op.anomalies for op in operations(decode(sent))] == doubts


def test_what_the_buffer_held_is_unknown_in_the_middle_and_after_a_gap() -> None:
    """A PCI errno may then be an earlier reply's, though none was seen."""
    refused = [ask(ADD_PCI, 10), Chunk(20, 1, False, ADD_PCI.reply(-19).encode())]
    assert operations(decode([*connect(), *refused]))[0].anomalies == ()
    assert operations(decode(refused))[0].anomalies == ("stale-error",)
    assert operations(decode([Open(0, 1, Begins.MIDDLE), *refused]))[0].anomalies == (
        "stale-error",
    )
    both_ways = (Gap(5, 1, True, 1024, "x"), Gap(6, 1, False, 1024, "x"))
    for gaps in ([Gap(5, 0, False, 9, "x")], [Gap(5, 1, False, 1024, "x")], both_ways):
        (found,) = operations(decode([*connect(), *gaps, *refused]))
        assert (found.ret, found.anomalies) == (-19, ("stale-error",))


def test_a_gap_of_whole_messages_keeps_numbers_and_pairs() -> None:
    session = decode(
        [
            *connect(),
            ask(DISK, 10), answer(DISK, 20),
            Gap(30, 1, True, 2048, LEFT_OUT), Gap(40, 1, False, 2048, LEFT_OUT),
            ask(ADD_MEM, 50), answer(ADD_MEM, 60, ret=-1),
        ]
    )  # fmt: skip
    assert [(op.request, op.op, op.ret) for op in operations(session)] == [
        (0, "add_mmio", 0), (3, "add_mem", -1),
    ]  # fmt: skip
    assert session.lost == 0
    assert session.connections[1].lost == 4096


def test_what_is_not_left_out_on_purpose_is_lost() -> None:
    session = decode([*connect(), Gap(1, 1, True, 5, "full"), Gap(2, 0, False, 7, DAMAGED)])
    assert session.lost == 12


def test_after_a_gap_of_no_connection_a_request_is_not_paired_with_an_older_ones_reply() -> None:
    sent = [
        *connect(1), *connect(2),
        ask(DISK, 10, 1), ask(DISK, 11, 2), Gap(20, 0, False, 500, DAMAGED),
        ask(ADD_MEM, 30, 1), answer(ADD_MEM, 40, 1, ret=-1),
        answer(DISK, 50, 2, ret=-16),
    ]  # fmt: skip
    found = operations(decode(sent))
    assert [(op.conn, op.op, op.ret) for op in found] == [
        (1, "add_mmio", None),
        (2, "add_mmio", -16),
        (1, "add_mem", -1),
    ]


def test_a_connection_opened_after_a_gap_of_no_connection_does_not_mind_it() -> None:
    session = Session(Header("test"))
    for record in [Gap(0, 0, False, 9, DAMAGED), *connect(), ask(ADD_PCI, 10)]:
        session.feed(record)
    events = session.feed(Chunk(20, 1, False, ADD_PCI.reply(-19).encode()))
    assert not any(isinstance(event, Lost) for event in events)
    assert operations(session)[0].anomalies == ()


def test_a_recording_that_begins_in_the_middle() -> None:
    (found,) = operations(decode([ask(DISK, 10), answer(DISK, 20, ret=-17)]))
    assert (found.conn, found.request, found.op, found.ret) == (1, 0, "add_mmio", -17)
    (found,) = operations(
        decode([Open(0, 1, Begins.MIDDLE), answer(DISK, 5), ask(DISK, 10), answer(DISK, 20)])
    )
    assert found.latency_ns == 10


@pytest.mark.parametrize(("size", "number"), [(1, 0), (1023, 0), (1024, 1), (2048, 2), (2049, 3)])
def test_a_gap_in_the_middle_counts_what_can_only_be_requests(size: int, number: int) -> None:
    gaps = [Gap(1, 1, True, size, LEFT_OUT), Gap(2, 1, False, size, LEFT_OUT)]
    sent: list[Record] = [Open(0, 1, Begins.MIDDLE), *gaps, ask(DISK, 3), answer(DISK, 4, ret=-17)]
    (found,) = operations(decode(sent))
    assert (found.request, found.op, found.ret) == (number, "add_mmio", -17)


def test_inside_the_guest_a_connection_begins_with_the_service_byte() -> None:
    sent: list[Record] = [
        Open(0, 1, Begins.SERVICE, 219, True), ask(b"d", 1), Chunk(2, 1, False, HELLO),
        ask(DISK, 3), answer(DISK, 4),
    ]  # fmt: skip
    session = decode(sent)
    assert operations(session)[0].ret == 0
    assert (session.connections[1].service, session.connections[1].hello) == (ord("d"), True)


def test_marks_and_what_the_vmm_did_are_kept_in_order() -> None:
    marks = [Mark(n, None, None, str(n)) for n in range(3)]
    vmm = [Vmm(n, str(n)) for n in range(3)]
    session = decode([marks[0], vmm[0], *marks[1:], *vmm[1:]])
    assert (session.marks, session.vmm) == (marks, vmm)
    assert session.first_ns == 0


def test_events_are_returned_for_whoever_shows_frames() -> None:
    session = decode(connect())
    (event,) = session.feed(ask(DISK, 10))
    assert isinstance(event, RequestReceived)
    assert session.feed(Chunk(20, 1, False, b"half")) == []
    assert session.feed(Close(30, 1, by_guest=True)) == [Incomplete(False, b"half")]
    assert session.feed(Mark(1, 1, 0, "x")) == ()


def test_another_services_requests_are_operations_too(nasty_service: Path) -> None:
    sent = [
        *connect()[:3],
        ask(b"n", 5),
        ask(b"12345678", 10),
        Chunk(20, 1, False, b"\xea\xff\xff\xff5678"),
    ]
    session = decode(sent)
    (found,) = operations(session)
    assert (found.op, found.msg_type, found.service) == ("nasty", None, 0x6E)
    assert found.fields == {"mmio_base": 0x34333231, "count": [0x35, 0x36, 0x37, 0x38]}
    assert (found.ret, found.errno, found.meaning, found.latency_ns) == (-22, "EINVAL", "", 10)
    assert found.reply == {"value": 0x38373635}


def test_columns_from_a_later_row_on_are_the_same_operations() -> None:
    session = Session(Header("test"))
    header, recorded = records_of(golden("cpu_lifecycle"))
    for record in recorded:
        session.feed(record)
    everything = operations(session)
    for first in (0, 1, 5, len(everything)):
        later = Operations(session.table.columns(first), session.first_ns or 0)
        assert [dataclasses.replace(op, row=op.row + first) for op in later] == everything[first:]
    assert header.arch == Arch.X86_64.value


def test_there_is_a_limit_to_what_a_few_bytes_of_a_file_can_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("upcall_trace.trace.operation_table.FREE_ROWS", 100)
    monkeypatch.setattr("upcall_trace.trace.decoding.FREE_ROWS", 100)
    session = Session(Header("test"))
    for record in connect():
        session.feed(record, 50)
    session.feed(ask(bytes(65536), 1), 100)
    with pytest.raises(TooManyOperations, match="more operations than a file of its size"):
        session.feed(ask(bytes(65536), 2), 130)


@pytest.mark.parametrize("to_guest", [True, False])
def test_a_gap_of_any_size_costs_no_more_than_its_record(to_guest: bool) -> None:
    gaps: list[Record] = [Gap(n, 1, to_guest, (1 << 63) - 1, "x") for n in range(200)]
    begin = time.process_time()
    session = decode([*connect(), ask(DISK, 1), *gaps, ask(DISK, 999)])
    assert time.process_time() - begin < 5
    assert len(session.table) == 2


def test_many_gaps_and_many_ends_over_many_connections_cost_linear_time() -> None:
    """A record of a few bytes must not make us look at every connection."""
    rng = random.Random(219)
    many: list[Record] = [Open(n, n) for n in range(1, 20_001)]
    for n in range(20_000):
        many += [Gap(n, 0, False, 1, "x"), End(n)]
        many.append(Chunk(n, rng.randrange(1, 20_000), True, b"C"))
    begin = time.process_time()
    assert len(decode(many).connections) == 20_000
    assert time.process_time() - begin < 15


_FEW = st.integers(0, 3)
_BYTES = (
    st.sampled_from([b"CONNECT 219\n", b"OK 1\n", b"d", b"n", HELLO, b"", bytes(1023), bytes(3000)])
    | messages()
    | st.binary(max_size=40)
    | st.lists(messages(), min_size=2, max_size=3).map(b"".join)
    | st.builds(lambda raw, n: raw[:n], messages(), st.integers(0, 1023))
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Record]:
    """Likely records of few connections at any times, so that they meet."""
    made: list[Record] = []
    for _ in range(draw(st.integers(0, 4))):
        conn = draw(_FEW)
        made += draw(st.sampled_from([connect(conn), [], [Open(0, conn, Begins.MIDDLE)]]))
        made += draw(st.lists(records(conn=_FEW, raw=_BYTES), max_size=6))
    return made


@given(conversations())
def test_no_sequence_of_records_raises_and_what_is_found_holds_together(
    recorded: list[Record],
) -> None:
    session = decode(recorded)
    found = operations(session)
    by_connection = defaultdict(list)
    for op in found:
        assert (op.ret is None) == (op.reply is None) == (op.latency_ns is None)
        assert op.conn in session.connections
        by_connection[op.conn].append(op.request)
    for conn, numbers in by_connection.items():
        own = [r for r in recorded if getattr(r, "conn", None) == conn]
        # What comes before the first Open is of a connection that is seen from its middle.
        opened = sum(isinstance(r, Open) for r in own) + (not isinstance(own[0], Open))
        assert opened > 1 or numbers == sorted(set(numbers))
    assert sorted(session.finished_rows) == list(range(len(found)))
    assert session.lost >= 0


@pytest.mark.torture
def test_no_sequence_of_many_records_raises() -> None:
    rng = random.Random()
    raw = [HELLO, b"d", b"CONNECT 219\n", b"OK 9\n", DISK.encode(), ADD_PCI.reply(-19).encode()]
    for _ in range(300):
        made: list[Record] = []
        for n in range(2000):
            conn = rng.randrange(4)
            way = rng.random() < 0.5
            likely: list[Record] = [
                Open(n, conn, rng.choice(list(Begins))),
                Chunk(n, conn, way, rng.choice(raw)[: rng.randrange(1, 2000)]),
                Chunk(n, conn, way, rng.randbytes(rng.randrange(3000))),
                Gap(n, conn, way, rng.randrange(5000), "x"),
                Close(n, conn, way, rng.choice(list(How))),
            ]
            made.append(rng.choice(likely))
        operations(decode(made))


def test_every_recorded_request_is_decoded_as_the_protocol_package_does() -> None:
    for path in TRANSCRIPTS:
        header, recorded = records_of(path)
        arch = Arch(header.arch)
        whole = [
            decode_request(r.data, arch).fields()
            for r in recorded
            if isinstance(r, Chunk) and r.to_guest and len(r.data) == 1024
        ]
        found = [dict(op.fields) for op in operations(decode(recorded, header)) if op.size == 1024]
        lengths = {len(r.data) for r in recorded if isinstance(r, Chunk) and r.to_guest}
        if max(lengths) <= 1024:
            assert found == whole
