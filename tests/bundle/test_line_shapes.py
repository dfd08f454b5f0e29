"""What is remembered of lines changes nothing of what is written of them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upcall_trace.bundle import allowed_text as texts
from upcall_trace.bundle import line_shapes
from upcall_trace.bundle.allowed_lines import allowed_lines
from upcall_trace.bundle.line_shapes import LineShapes, allowed_line, digit_rows, wall_time
from upcall_trace.bundle.redaction import Redactor
from upcall_trace.logs import entries, journal, json_fields, lines, prose
from upcall_trace.logs.entries import Scanner, shape_of
from upcall_trace.logs.table import ROWS, understood_in, wanted
from upcall_trace.logs.times import parse_time

ROOT = Path(__file__).parents[2]
LOGS = sorted([*(ROOT / "tests/cases").glob("*/*.log"), *(ROOT / "captures/logs").glob("*.log")])
EXAMPLES = [row.example for row in ROWS] + [
    "launching /opt/kata/bin/qemu-system-x86_64 with: [-name sandbox-pod-7]",
    'Timeout after 3s waiting for uevent VirtioBlkPciMatcher { rex: Regex("^/devices/x") }',
    "exiting vcpus [5, 4, 3]",
    "vmm action error: 0x10 0-9 3-5 0000:00:1f.7 0000:00:1f.9 naa.600508b1001c5e0f 10.0.0.7",
    'Others("failed to start\\n\\nCaused by:\\n    0: vmm action error: UpcallServerNotReady")',
    'Failed to insert block device {"drive_id": 7}',
    "CPU: 1 UID: 61234 PID: 7 Comm: db_dev_mgr " + "adding vcpu apic_id 12 to eve17 " * 99,
]
ID = "6b76768740b5d88f4eac4a1d65bafa3ffdc46eb38c487d8f7312e34561764022"
T = "2026-09-01T10:15:19.847698739Z"
DRESSES: list[Callable[[str], str]] = [
    str,
    lambda said: f"[   12.414970] {said}",
    lambda said: f"{T} stderr F {said}",
    lambda said: f"{T} stdout P {said}",
    lambda said: f"Sep  1 10:00:00 node-23 kata[13337]: {said}",
    lambda said: f"Sep  1 10:00:00 node-23 kernel: [   12.414970] {said}",
    lambda said: f"  {said}",
    lambda said: f"Caused by: {said}",
    lambda said: f"2026-09-01 10:00:00 n1 kata[7]: {said}",
    lambda said: f'E0902 10:00:00.000123   41017 x.go:31] "failed" err={json.dumps(said)}',
    lambda said: (
        f"Sep  1 10:00:00 n1 kata[77]: "
        f'time="{T}" level=error msg={json.dumps(said)} pid=77 sandbox={ID} source=virtcontainers'
    ),
    lambda said: f'time="{T}" level=error msg="it is 1" error={json.dumps(said)} pod=x1',
    lambda said: json.dumps(
        {"__CURSOR": "s=6d3c;i=1f", "__REALTIME_TIMESTAMP": "1788256800000000",
         "_HOSTNAME": "node-7", "_PID": "41017", "SYSLOG_IDENTIFIER": "kata", "SOURCE": ID,
         "SUBSYSTEM": "vm", "_CMDLINE": f"kata -id {ID} -debug", "MESSAGE": said}),
    lambda said: "Sep  1 10:00:00 n1 containerd[881]: " + json.dumps(
        {"msg": said, "ts": T, "source": ID, "subsystem": "dmesg", "pid": "881", "level": 6}),
    lambda said: json.dumps({"log": said, "error": "code 7", "n": 12, "ts": "2026-13-01"}),
    lambda said: json.dumps({"a": {"msg": said, "pid": 12}}),
]  # fmt: skip


def changed(text: str, chance: random.Random) -> str:
    """With some of its digits others, and with another id."""
    known = f"{chance.getrandbits(256):064x}"
    text = text.replace(ID, known) if chance.random() < 0.5 else text
    often = chance.choice((0.0, 0.1, 1.0))
    return re.sub(
        "[0-9]",
        lambda found: str(chance.randrange(10)) if chance.random() < often else found[0],
        text,
    )


def with_memory(log: bytes) -> tuple[list[str | int], object]:
    redactor = Redactor()
    return [*allowed_lines([log], redactor.placeholder)], redactor.account()


def without_memory(log: bytes) -> tuple[list[str | int], object]:
    """The same, each line by itself."""
    redactor = Redactor()
    scanner, last = Scanner(wanted()), 0
    found: list[str | int] = []
    for entry in scanner.entries([log]):
        for line, _ in understood_in(entry, None):
            if line.number > last + 1:
                found.append(line.number - last - 1)
            last = max(last, line.number + line.text.count("\n"))
            texts._remembered.clear()
            found.append(allowed_line(line, redactor.placeholder))
    if scanner.lines > last:
        found.append(scanner.lines - last)
    return found, redactor.account()


@given(st.integers(0, 1 << 32))
def test_lines_are_written_as_without_memory(seed: int) -> None:
    chance = random.Random(seed)
    usual = chance.choice(DRESSES)
    said = [chance.choice(EXAMPLES) for _ in range(4)]
    made = []
    for _ in range(40):
        dress = usual if chance.random() < 0.8 else chance.choice(DRESSES)
        made.append(changed(dress(chance.choice(said)), chance))
    log = "\n".join(made).encode() + b"\n"
    assert with_memory(log) == without_memory(log)


@pytest.mark.parametrize("path", LOGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_logs_that_say_it_again_are_written_as_without_memory(path: Path) -> None:
    chance = random.Random(1)
    text = path.read_text("utf-8", "replace")
    log = "".join(changed(text, chance) for _ in range(4)).encode()
    assert with_memory(log) == without_memory(log)


@given(st.text(st.sampled_from("aduid0179x.:-/ ][vcpu,=\\nNo"), min_size=2100, max_size=2300))
def test_a_long_text_is_redacted_in_pieces_as_in_one(text: str) -> None:
    def once(kind: str, value: str) -> str:
        return f"{kind}-{len(value)}"

    parts = texts.parts_of(text)
    parts[::2] = [texts._edits(texts._START, part)[0].applied(part, once) for part in parts[::2]]
    assert texts.allowed_text(text, once) == "".join(parts)


MODULES: list[ModuleType] = [entries, journal, json_fields, lines, prose, texts, line_shapes]
TELL = {
    # What of the patterns tells digits apart, and is looked at in every line, or not remembered.
    "_ANSI", "_ENTITY", "_FORMS", "_HEX_NUMBER", "_MARKS", "_PROGRAM", "_DIGITS_TELL",
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_no_pattern_tells_one_digit_from_another(module: ModuleType) -> None:
    for name, value in vars(module).items():
        patterns = value if isinstance(value, tuple) else (value,)
        for pattern in patterns:
            if isinstance(pattern, re.Pattern) and name not in TELL:
                text = pattern.pattern
                text = text if isinstance(text, str) else text.decode()
                assert not re.search("[0-9]", line_shapes._COUNTS.sub("", text)), name


def test_rows_that_tell_digits_apart_are_looked_at_in_every_line() -> None:
    for row in ROWS:
        words = row.pattern.pattern if row.pattern is not None else row.anchor
        if "0x" in words or "0000:" in words:
            assert row in digit_rows()


@given(
    st.datetimes().map(lambda when: when.isoformat()),
    st.sampled_from(["", "Z", "+00:00", "+0130", "-05:30"]),
    st.sampled_from(["", ".5", ",123456", ".123456789", ".000001999"]),
)
def test_a_time_is_that_of_the_reader_of_logs(when: str, zone: str, fraction: str) -> None:
    text = when[:19] + fraction + zone
    assert wall_time(text) == parse_time(text)


def test_a_shape_is_the_line_without_its_digits_and_ids() -> None:
    assert shape_of(b"cpu 17 at 10:15\n") == b"cpu 00 at 00:00\n"
    other = ID.replace("6", "7").replace("b", "c")
    assert shape_of(f'"id": "{ID}"'.encode()) == shape_of(f'"id": "{other}"'.encode())
    # Part of more is no id, and neither is a number.
    assert shape_of(f"x-{ID}".encode()) != shape_of(f"x-{other}".encode())
    assert b"\x00" not in shape_of(b'"' + b"1" * 64 + b'"') + shape_of(b'"' + b"a" * 64 + b'"')


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_shapes, "_SHAPES", 8)
    monkeypatch.setattr(texts, "_SHAPES", 8)
    made: list[LineShapes] = []

    class Kept(LineShapes):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr("upcall_trace.bundle.allowed_lines.LineShapes", Kept)
    log = b"".join(b"del vcpu failed, err: -%s\n" % (b"1" * n) for n in range(1, 60))
    with_memory(log)
    assert len(made[0]) <= 8
    assert len(texts._remembered) <= 8
