"""The table of understood lines: each row by the line that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import run
from upcall_trace import codes
from upcall_trace.logs.entries import LogEntry, Scanner
from upcall_trace.logs.lines import lines_of
from upcall_trace.logs.meaning import Meaning, quote
from upcall_trace.logs.opening import LogFile
from upcall_trace.logs.table import ROWS, understand, understood, wanted

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words[:50])


@each_row
def test_a_rows_example_is_found_in_a_whole_log_and_understood(
    row: Meaning, tmp_path: Path
) -> None:
    noise = "nothing of that kind\n" * 50
    (tmp_path / "log").write_text(noise + row.example + "\n" + noise)
    found = list(understood(Scanner(wanted()), LogFile(tmp_path / "log").blocks(), "log"))
    assert [line.number for line, _ in found] == [51]
    assert row in [match.meaning for match in found[0].matches]


@each_row
def test_a_row_tells_since_when_and_where_it_leads(row: Meaning) -> None:
    assert re.fullmatch(r"\d\.\d{1,2}", row.since)
    assert row.says
    assert row.words
    assert all(code in [*codes.table()] for code in row.codes)


def test_the_consoles_of_guests_are_not_taken_for_the_vmms_words() -> None:
    raw = b"[   12.100000] upcall connect service success\n"
    (line,) = lines_of(LogEntry(1, raw), None)
    assert not understand(line)


@pytest.mark.parametrize(
    ("text", "at", "quoted"),
    [
        ("short", 0, "short"),
        ("first\n\nCaused by:\n    0: it", 0, "first Caused by: 0: it"),
        ("x" * 1000 + " the error", 1001, "… " + "x" * 39 + " the error"),
        ("x" * 1000, 0, "x" * 200 + " …"),
    ],
)
def test_a_quote_shows_the_error_and_not_the_lines_beginning(
    text: str, at: int, quoted: str
) -> None:
    assert quote(text, at) == quoted


@pytest.mark.parametrize("place", ["begin", "middle", "end"])
def test_lines_of_ten_megabytes_are_read_anywhere(place: str, tmp_path: Path) -> None:
    long = b"x" * 10_000_000
    words = b" upcall server's max reconnect time exceed "
    at = {"begin": 100, "middle": 5_000_000, "end": len(long)}[place]
    after = b"we should get message from event handler when connection state is `ServiceConnected`"
    (tmp_path / "log").write_bytes(long[:at] + words + long[at:] + b"\n" + after + b"\n")
    told = run("diagnose", "--json", tmp_path / "log")
    assert told.code == 0
    assert '"UP102"' in told.out
    assert re.search(r'"UP606".*"line": 2', told.out)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe\xfa upcall server's max reconnect time exceed \x80\x81",
        b"\x00\x00\x00upcall server's max reconnect time exceed\x00",
        b'{"MESSAGE": "upcall server\'s max reconnect time exceed", "X": {"X": ' + b"[" * 5000,
        b"{" * 100_000 + b" upcall server's max reconnect time exceed",
        b"upcall server's max reconnect time exceed",
    ],
)
def test_hostile_bytes_cost_nothing_but_their_line(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"ok\n" + raw)
    told = run("diagnose", "--json", tmp_path / "log")
    assert told.code == 0
    assert '"UP102"' in told.out
    assert '"line": 2' in told.out
