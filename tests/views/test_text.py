"""What people read: failures in one line, and nothing that steers a terminal."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import ERRNO_NAMES, result_meaning
from tests.support import each_recording
from upcall_trace.trace.opening import load
from upcall_trace.trace.operations import ANOMALIES, Operation
from upcall_trace.views.text import (
    HEADING,
    WIDTH,
    duration,
    fields_text,
    hex_lines,
    operation_text,
    result_text,
    safe,
    seconds,
)

DISK = {"mmio_base": 0xE0006000, "mmio_size": 0x2000, "mmio_irq": 5}
ADDED = Operation(
    row=0, conn=1, request=2, t_ns=1_500_000_000, op="add_mmio", msg_type=5, fields=DISK,
    size=1024, ret=-17, latency_ns=1_880_000, reply={"msg_type": 5, "msg_size": 0}, anomalies=(),
)  # fmt: skip


def operation(**changes: Any) -> Operation:
    return dataclasses.replace(ADDED, **changes)


def cpus(*ids: int) -> dict[str, Any]:
    return {"count": len(ids), "apic_ver": 20, "apic_ids": list(ids)}


# By name, as a person looking for the cause would want to read it.
KEY_FIELDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "mmio_base": lambda fields: f"{fields['mmio_base']:#x}",
    "mmio_size": lambda fields: f"{fields['mmio_size']:#x}",
    "mmio_irq": lambda fields: f"irq={fields['mmio_irq']}",
    "busno": lambda fields: f"bus={fields['busno']}",
    "slot": lambda fields: f"slot={fields['slot']}.{fields['function']}",
}


@each_recording
def test_a_failures_first_line_says_what_failed_and_why(golden: Path) -> None:
    failures = [op for op in load(golden).operations if op.ret is not None and op.ret < 0]
    for op in failures:
        line, *more = operation_text(op).split("\n")
        assert len(line) <= WIDTH
        if f" {op.errno} " not in line:  # its fields leave no room for a result
            line += more[0]
        assert f"{op.conn}.{op.request} " in line
        assert f" {op.op} " in line
        for name, written in KEY_FIELDS.items():
            assert name not in op.fields or written(op.fields) in line
        assert "apic_ids" not in op.fields or "apic_ids=" in line
        assert op.errno is not None
        assert f"{op.errno} ({op.ret}) " in line
        assert op.ret is not None
        assert op.msg_type is not None
        meaning = result_meaning(op.msg_type, op.ret)
        executed = "bad-magic" not in op.anomalies
        assert (meaning if executed else "left over, not executed") in line


@each_recording
def test_no_line_of_a_recording_is_wider_than_the_screen(golden: Path) -> None:
    for op in load(golden).operations:
        for line in operation_text(op).split("\n"):
            assert len(line) <= WIDTH
            assert line == safe(line) == line.rstrip()
        if op.ret is None:
            assert operation_text(op).split("\n")[0].endswith("no answer")


LINES = """\
   req   seconds latency  operation                        result
   1.2  1.500000  1.88ms  add_mmio 0xe0006000+0x2000 irq=5 EEXIST (-17) window or IRQ already taken
   1.2  1.500000  1.88ms  add_mmio 0xe0006000+0x2000 irq=5 ok
   1.2  1.500000          add_mmio 0xe0006000+0x2000 irq=5 no answer
   1.2  1.500000  1.88ms  add_mmio 0xe0006000+0x2000 irq=5 EEXIST (-17) window or IRQ already taken
   1.2  1.500000  1.88ms  add_cpu apic_ids=1-8             ok apic_index=8
   1.2  1.500000  1.88ms  del_cpu count=2                 EBUSY (-16) CPU could not be taken offline
   1.2  1.500000  1.88ms  add_pci bus=0 slot=6.0    ENODEV (-19) no such bus or empty slot, or stale
                              [stale-error]
"""


def test_a_few_lines_to_the_letter() -> None:
    shown = [
        operation(),
        operation(ret=0),
        operation(ret=None, latency_ns=None, reply=None),
        operation(ret=-17, anomalies=("stale-load",)),
        operation(
            op="add_cpu", msg_type=1, fields=cpus(*range(1, 9)), ret=0,
            reply={"msg_type": 1, "msg_size": 4, "apic_index": 8},
        ),
        operation(op="del_cpu", msg_type=2, fields={"count": 2}, ret=-16),
        operation(
            op="add_pci", msg_type=7, ret=-19, anomalies=("stale-error",),
            fields={"busno": 0, "devfn": 48, "slot": 6, "function": 0},
        ),
    ]  # fmt: skip
    assert "\n".join([HEADING, *map(operation_text, shown), ""]) == LINES


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ret": None}, "no answer"),
        ({"ret": 0}, "ok"),
        ({"ret": 0, "reply": {"msg_type": 1, "msg_size": 4, "cpu_id": 3}}, "ok cpu_id=3"),
        ({"ret": 0, "anomalies": ("bad-magic", "stale-success")}, "ret 0 left over, not executed"),
        ({"anomalies": ("bad-magic", "stale-error")}, "EEXIST (-17) left over, not executed"),
        ({"anomalies": ("stale-error",)}, "EEXIST (-17) window or IRQ already taken, or stale"),
        ({"ret": -5, "anomalies": ("stale-error",)}, "EIO (-5) left over from an earlier reply"),
        ({"ret": -5}, "EIO (-5) not a known result"),
        ({"ret": -99}, "ret -99 not a known result"),
        ({"ret": 7}, "ret 7 not a known result"),
        ({"ret": 1, "msg_type": 1}, "ret 1 CPU was already online"),
        ({"ret": -1, "msg_type": 77}, "EPERM (-1) the guest has no handler for it"),
    ],
)
def test_what_a_result_says(changes: dict[str, Any], text: str) -> None:
    assert result_text(operation(**changes)) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, ""),
        (DISK, "0xe0006000+0x2000 irq=5"),
        ({"busno": 9, "devfn": 255, "slot": 31, "function": 7}, "bus=9 slot=31.7"),
        ({"count": 3}, "count=3"),
        (cpus(), "apic_ids=none"),
        (cpus(4), "apic_ids=4"),
        (cpus(2, 3), "apic_ids=2,3"),
        (cpus(1, 2, 3), "apic_ids=1-3"),
        (cpus(3, 2, 1), "apic_ids=3-1"),
        (cpus(1, 2, 3, 7, 9, 8, 7, 1), "apic_ids=1-3,7,9-7,1"),
        (cpus(1, 1, 1), "apic_ids=1,1,1"),
        (cpus(5, 6, 5, 6), "apic_ids=5,6,5,6"),
        (cpus(*range(256)), "apic_ids=0-255"),
        ({"apic_index": 2}, "apic_index=2"),
        ({"name\x1b": "value\n"}, "name\\x1b=value\\n"),
        # Names like ours, from another service.
        ({"mmio_base": "x"}, "mmio_base=x"),
        (DISK | {"mmio_irq": "\x07"}, "mmio_base=3758120960 mmio_size=8192 mmio_irq=\\x07"),
        ({"devfn": None}, "devfn=None"),
        ({"apic_ids": 5}, "apic_ids=5"),
        (cpus() | {"apic_ids": 5}, "count=0 apic_ver=20 apic_ids=5"),
        (cpus() | {"apic_ids": ["x"]}, "count=0 apic_ver=20 apic_ids=['x']"),
    ],
)
def test_the_key_fields_in_a_few_words(fields: dict[str, Any], text: str) -> None:
    assert fields_text(fields) == text


@given(st.lists(st.integers(0, 255), max_size=255), st.integers(-50, 200))
def test_a_list_of_ids_ends_within_its_room(ids: list[int], room: int) -> None:
    text = fields_text(cpus(*ids), room)
    whole = fields_text(cpus(*ids), 10**6)
    assert len(text) <= max(room, 12) or text == whole
    assert text == whole or (text.endswith("…") and whole.startswith(text[:-1]))
    assert text == whole or len(whole) > room


@given(st.lists(st.integers(0, 255), max_size=255))
def test_a_list_of_ids_can_be_read_back(ids: list[int]) -> None:
    text = fields_text(cpus(*ids), 10**6).removeprefix("apic_ids=")
    read: list[int] = []
    for part in [] if text == "none" else text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        read += range(low, high + 1) if low <= high else range(low, high - 1, -1)
    assert read == ids


_OPERATIONS = st.builds(
    operation,
    conn=st.integers(0, 0xFFFFFFFF),
    request=st.integers(0, 0xFFFFFFFF),
    t_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    op=st.sampled_from(["add_mmio", "type_4294967295"]) | st.text(max_size=120),
    msg_type=st.none() | st.integers(0, 0xFFFFFFFF) | st.integers(0, 9),
    fields=st.sampled_from(
        [{}, DISK, cpus(1, 2), cpus(*range(0, 255, 2)),
         {"mmio_base": (1 << 64) - 1, "mmio_size": (1 << 64) - 1, "mmio_irq": 0xFFFFFFFF}]
    )
    | st.dictionaries(st.text(max_size=20), st.text(max_size=90), max_size=4),
    ret=st.none() | st.integers(-(1 << 31), (1 << 31) - 1) | st.sampled_from(
        [-number for number in ERRNO_NAMES]
    ),
    latency_ns=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
    reply=st.none() | st.just({"msg_type": 1, "msg_size": 4, "apic_index": 0xFFFFFFFF}),
    anomalies=st.lists(st.sampled_from(ANOMALIES), max_size=9, unique=True).map(tuple),
)  # fmt: skip


@given(_OPERATIONS)
def test_any_operation_fits_on_the_screen_and_steers_nothing(op: Operation) -> None:
    for line in operation_text(op).split("\n"):
        assert len(line) <= WIDTH
        assert line.isprintable()


# Everything a terminal may act on, or a reader be misled by.
_DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_no_character_of_unicode_gets_through_that_is_not_printable() -> None:
    for begin in range(0, 0x110000, 1024):
        assert safe("".join(map(chr, range(begin, begin + 1024)))).isprintable()
    # Beyond these planes nothing is assigned but tags, variants and what is private.
    for character in map(chr, (*range(0x34000), *range(0xE0000, 0xE0200), 0xF0000, 0x10FFFF)):
        text = safe(character)
        if unicodedata.category(character) in _DANGEROUS or character in "\u00a0\u3000":
            assert text.isascii()
            assert len(text) in (2, 4, 6, 10)
            assert text.startswith("\\")
            assert text.encode().decode("unicode_escape") == character
        elif text != character:
            assert unicodedata.category(character) == "Zs"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ("Grüße ☃", "Grüße ☃"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
        ("\u202egpj.exe\u2066\u200f", "\\u202egpj.exe\\u2066\\u200f"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("\U000e0001", "\\U000e0001"),
        ("\x7f\xad", "\\x7f\\xad"),
        (b"CONNECT 219\n", "CONNECT 219\\n"),
        (b"\xff\x1b\xc3\xbc", "\\xff\\x1bü"),
        (b"\xc2\x9b", "\\x9b"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_what_is_made_safe_can_still_be_read(raw: str | bytes, text: str) -> None:
    assert safe(raw) == text


@given(st.text() | st.text(st.characters()) | st.binary())
def test_whatever_is_made_safe_is_printable_and_stays_so(raw: str | bytes) -> None:
    text = safe(raw)
    assert text.isprintable()
    assert safe(text) == text
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0ns"),
        (1, "1ns"),
        (999, "999ns"),
        (1000, "1us"),
        (12_345, "12.3us"),
        (999_499, "999us"),
        (999_500, "1ms"),
        (1_809_000, "1.81ms"),
        (250_000_000, "250ms"),
        (999_499_999, "999ms"),
        (999_500_000, "1.00s"),
        (10_061_234_567, "10.06s"),
        (-5_000, "-5us"),
        (1 << 62, "4611686018.43s"),
    ],
)
def test_a_time_span_is_short(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


def test_seconds_have_six_digits() -> None:
    assert seconds(0) == "0.000000"
    assert seconds(1_234_567_890) == "1.234568"
    assert seconds(-1_500) == "-0.000002"


def test_a_hex_dump_folds_zeros_and_shows_text() -> None:
    assert list(hex_lines(b"")) == []
    assert list(hex_lines(b"MD")) == [
        "  0000  4d 44                                             MD"
    ]
    assert list(hex_lines(b"\x00\x01MD\x18" + bytes(11) + bytes(16) * 3 + b"\x7f~ \n")) == [
        "  0000  00 01 4d 44 18 00 00 00  00 00 00 00 00 00 00 00  ..MD............",
        "      *",
        "  0040  7f 7e 20 0a                                       .~ .",
    ]


@given(st.lists(st.binary(max_size=20) | st.integers(0, 80).map(bytes), max_size=8).map(b"".join))
def test_a_hex_dump_holds_every_byte(raw: bytes) -> None:
    read = bytearray(len(raw))
    for line in hex_lines(raw):
        assert line.isascii()
        assert line.isprintable()
        if line.strip() != "*":
            offset = int(line[2:6], 16)
            row = bytes.fromhex(line[8:56])
            read[offset : offset + len(row)] = row
    assert read == raw


@pytest.mark.parametrize("width", [60, 72, 80, 100, 140])
def test_lines_fit_the_terminal_and_keep_the_errno(width: int) -> None:
    for ret in (0, -17, -16):
        text = operation_text(operation(ret=ret, latency_ns=300_000_000), width)
        assert all(len(line) <= width for line in text.split("\n"))
        assert {0: "ok", -17: "EEXIST (-17)", -16: "EBUSY (-16)"}[ret] in text


def test_slow_answers_are_marked() -> None:
    marks = {1_000_000: " ", 51_000_000: "*", 251_000_000: "!"}
    for latency_ns, mark in marks.items():
        line = operation_text(operation(latency_ns=latency_ns))
        assert line[line.index(duration(latency_ns)) + len(duration(latency_ns))] == mark


def test_a_stale_load_is_told_where_a_load_is_meant() -> None:
    doubts = ("stale-load", "stale-error")
    assert "[stale-load, stale-error]" in operation_text(operation(op="add_cpu", anomalies=doubts))
    assert "[stale-error]" in operation_text(operation(op="add_mmio", anomalies=doubts))
