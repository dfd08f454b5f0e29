"""Transcripts: there and back without a change, and lines that nobody should have written."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.strategies import records
from tests.support import each_transcript, records_of, transcript_text, write_capture
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.reader import Damage
from upcall_trace.capture.records import (
    MAX_CHUNK,
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
from upcall_trace.errors import UnreadableInput
from upcall_trace.exports.transcript import write_records
from upcall_trace.sources import open_source
from upcall_trace.sources.transcript import TranscriptSource, read

HEAD = '{"kind": "header", "format": "upcall-transcript", "version": 1, "arch": "aarch64"}\n'


def exported(header: Header, recorded: list[Record]) -> tuple[str, tuple[int, int]]:
    """The text of a transcript, and how many gaps and others had no place in it."""
    text = io.StringIO()
    left_out = write_records(header, recorded, text)
    return text.getvalue(), left_out


@each_transcript
def test_a_recorded_transcript_comes_back_byte_for_byte(golden: Path) -> None:
    header, recorded = records_of(golden)
    assert exported(header, recorded) == (transcript_text(golden), (0, 0))


@each_transcript
def test_it_comes_back_byte_for_byte_through_a_capture_too(golden: Path, tmp_path: Path) -> None:
    header, recorded = records_of(golden)
    path = write_capture(tmp_path / "x.upcap", recorded, header)
    assert exported(*records_of(path)) == (transcript_text(golden), (0, 0))


def source(tmp_path: Path, text: str | bytes) -> TranscriptSource:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return read(path)


def lines(tmp_path: Path, *text: str) -> tuple[list[Record], list[Damage], bool]:
    """What lines under a good header amount to."""
    with source(tmp_path, HEAD + "".join(text)) as opened:
        found = [record for _, record in opened.records()]
        return found, opened.damage, opened.complete


KINDS: list[tuple[str, Record]] = [
    ('{"kind": "open", "t_ns": 5, "conn": 1}', Open(5, 1)),
    (
        '{"kind": "open", "t_ns": 5, "conn": 1, "begins": "service", "port": 9, "accepted": true}',
        Open(5, 1, Begins.SERVICE, 9, True),
    ),
    (
        '{"kind": "open", "t_ns": 5, "conn": 1, "begins": "other", "port": 0, "accepted": false}',
        Open(5, 1, Begins.OTHER, 0, False),
    ),
    (
        '{"kind": "bytes", "t_ns": -5, "conn": 1, "dir": ">", "hex": "64", "zeros": 0}',
        Chunk(-5, 1, True, b"d"),
    ),
    (
        '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": "<", "hex": "00014d44", "zeros": 1020}',
        Chunk(5, 1, False, b"\0\1MD" + bytes(1020)),
    ),
    (
        '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": "<", "hex": "", "zeros": 0}',
        Chunk(5, 1, False, b""),
    ),
    ('{"kind": "close", "t_ns": 5, "conn": 1}', Close(5, 1, by_guest=False)),
    (
        '{"kind": "close", "t_ns": 5, "conn": 1, "how": "reset"}',
        Close(5, 1, by_guest=False, how=How.RESET),
    ),
    ('{"kind": "closed_by_guest", "t_ns": 5, "conn": 1}', Close(5, 1, by_guest=True)),
    (
        '{"kind": "reset_by_guest", "t_ns": 5, "conn": 1}',
        Close(5, 1, by_guest=True, how=How.RESET),
    ),
    (
        '{"kind": "gave_up", "t_ns": 5, "conn": 1, "after_s": 2.5}',
        GaveUp(5, 1, 2_500_000_000),
    ),
    (
        '{"kind": "vmm", "t_ns": 5, "conn": 0, "action": "vCPU 1 created"}',
        Vmm(5, "vCPU 1 created"),
    ),
]


@pytest.mark.parametrize(("line", "record"), KINDS, ids=lambda value: str(value)[:60])
def test_a_line_of_each_kind_there_and_back(tmp_path: Path, line: str, record: Record) -> None:
    assert lines(tmp_path, line, "\n") == ([record], [], True)
    assert exported(Header("transcript", arch="aarch64"), [record]) == (
        HEAD + line + "\n",
        (0, 0),
    )


def test_a_header_becomes_notes(tmp_path: Path) -> None:
    head = json.loads(HEAD) | {"name": "x", "number": 5, "list": ["a"], "text": "\ud800"}
    with source(tmp_path, json.dumps(head) + "\n") as opened:
        assert opened.header == Header(
            "transcript",
            arch="aarch64",
            notes={"arch": "aarch64", "name": "x", "text": "\ud800"},
        )


def test_what_has_no_place_in_a_transcript_is_counted() -> None:
    recorded: list[Record] = [
        Open(0, 1),
        Gap(1, 1, True, 5, "x"),
        Close(2, 1, by_guest=False, how=How.HALF),
        Mark(3, None, None, "x"),
        End(4),
    ]
    text, left_out = exported(Header("proxy", arch="aarch64"), recorded)
    assert text == HEAD + '{"kind": "open", "t_ns": 0, "conn": 1}\n'
    assert left_out == (1, 2)


@given(st.lists(records(time=st.integers(-(1 << 62) + 1, (1 << 62) - 1)), max_size=6))
def test_any_records_that_have_a_place_come_back(
    tmp_path_factory: pytest.TempPathFactory, recorded: list[Record]
) -> None:
    text, (gaps, others) = exported(Header("transcript"), recorded)
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(text)
    with open_source(path) as opened:
        found = [record for _, record in opened.records()]
        lost = len(opened.damage)
    again, _ = exported(Header("transcript"), found)
    kept = [line for line in text.splitlines() if line in again.splitlines()]
    # Only numbers beyond those of a transcript are not read again.
    assert len(kept) == len(text.splitlines()) - lost
    ends = sum(isinstance(record, End) for record in recorded)
    assert gaps + others + ends + len(text.splitlines()) - 1 == len(recorded)


GOOD = '{"kind": "open", "t_ns": 5, "conn": 1}\n'

BAD_LINES = [
    "not json",
    "{",
    "5",
    "null",
    '"open"',
    "[]",
    "{}",
    '{"kind": null}',
    '{"kind": []}',
    '{"kind": "wave", "t_ns": 5, "conn": 1}',
    '{"kind": "open", "conn": 1}',
    '{"kind": "open", "t_ns": 5}',
    '{"kind": "open", "t_ns": "5", "conn": 1}',
    '{"kind": "open", "t_ns": 5.0, "conn": 1}',
    '{"kind": "open", "t_ns": true, "conn": 1}',
    '{"kind": "open", "t_ns": NaN, "conn": 1}',
    '{"kind": "open", "t_ns": Infinity, "conn": 1}',
    '{"kind": "open", "t_ns": 4611686018427387904, "conn": 1}',
    '{"kind": "open", "t_ns": -4611686018427387905, "conn": 1}',
    '{"kind": "open", "t_ns": 1e400, "conn": 1}',
    '{"kind": "open", "t_ns": ' + "9" * 5000 + ', "conn": 1}',
    '{"kind": "open", "t_ns": 5, "conn": -1}',
    '{"kind": "open", "t_ns": 5, "conn": 4294967296}',
    '{"kind": "open", "t_ns": 5, "conn": 1, "begins": "sideways"}',
    '{"kind": "open", "t_ns": 5, "conn": 1, "begins": {}}',
    '{"kind": "open", "t_ns": 5, "conn": 1, "port": null}',
    '{"kind": "open", "t_ns": 5, "conn": 1, "port": -1}',
    '{"kind": "open", "t_ns": 5, "conn": 1, "accepted": "yes"}',
    '{"kind": "open", "t_ns": 5, "conn": 1, "accepted": 123456789012345678901234567890}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "zeros": 0}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": ""}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": "?", "hex": "", "zeros": 0}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": [], "hex": "", "zeros": 0}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": "0", "zeros": 0}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": "zz", "zeros": 0}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": null, "zeros": 0}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": 64, "zeros": 0}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": "", "zeros": -1}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": "", "zeros": 1.5}',
    '{"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": "", "zeros": 99999999999999}',
    '{"kind": "close", "t_ns": 5, "conn": 1, "how": "gently"}',
    '{"kind": "gave_up", "t_ns": 5, "conn": 1}',
    '{"kind": "gave_up", "t_ns": 5, "conn": 1, "after_s": NaN}',
    '{"kind": "gave_up", "t_ns": 5, "conn": 1, "after_s": Infinity}',
    '{"kind": "gave_up", "t_ns": 5, "conn": 1, "after_s": -1}',
    '{"kind": "gave_up", "t_ns": 5, "conn": 1, "after_s": 1' + "0" * 400 + "}",
    '{"kind": "gave_up", "t_ns": 5, "conn": 1, "after_s": []}',
    '{"kind": "vmm", "t_ns": 5, "conn": 0}',
    "[" * 100_000,
    '{"a":' * 100_000,
    "\x1b[31m",
    "\x00" * 100,
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda text: text[:70])
def test_a_bad_line_in_the_middle_costs_nothing_but_itself(tmp_path: Path, bad: str) -> None:
    found, damage, complete = lines(tmp_path, GOOD, bad + "\n", GOOD)
    assert found == [Open(5, 1), Open(5, 1)]
    assert damage == [Damage(len(HEAD) + len(GOOD), len(bad) + 1, at_end=False)]
    assert complete


def test_a_line_that_is_not_utf_8_is_damage(tmp_path: Path) -> None:
    with source(tmp_path, HEAD.encode() + b'{"kind": "\xff"}\n' + GOOD.encode()) as opened:
        assert [record for _, record in opened.records()] == [Open(5, 1)]
        assert len(opened.damage) == 1


def test_a_transcript_cut_at_every_byte_loses_its_last_line_at_most(tmp_path: Path) -> None:
    body = "".join(line + "\n" for line, _ in KINDS)
    whole = HEAD + body
    ends = [len(HEAD)]
    for line, _ in KINDS:
        ends.append(ends[-1] + len(line) + 1)
    for size in range(len(HEAD), len(whole)):
        with source(tmp_path, whole[:size]) as opened:
            found = [record for _, record in opened.records()]
        # A line without its newline is still a line.
        count = sum(end - 1 <= size for end in ends) - 1
        assert found == [record for _, record in KINDS][:count]
        torn = 0 if size >= ends[count] - 1 and size - ends[count] <= 0 else size - ends[count]
        assert opened.damage == ([Damage(ends[count], torn, at_end=True)] if torn else [])
        assert opened.complete is not bool(torn)


def test_a_mark_of_the_byte_order_before_it_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(HEAD + GOOD, encoding="utf-8-sig")
    with open_source(path) as opened:
        assert [record for _, record in opened.records()] == [Open(5, 1)]


def test_empty_lines_and_a_second_header_mean_nothing(tmp_path: Path) -> None:
    assert lines(tmp_path, "\n", "  \n", HEAD, GOOD, "\r\n") == ([Open(5, 1)], [], True)


def test_a_send_larger_than_a_chunk_comes_in_pieces(tmp_path: Path) -> None:
    line = json.dumps(
        {"kind": "bytes", "t_ns": 5, "conn": 1, "dir": ">", "hex": "01" * 10, "zeros": 200_000}
    )
    found, damage, _ = lines(tmp_path, line, "\n")
    assert damage == []
    chunks = [record for record in found if isinstance(record, Chunk)]
    assert [len(chunk.data) for chunk in chunks] == [MAX_CHUNK] * 3 + [200_010 - 3 * MAX_CHUNK]
    assert b"".join(chunk.data for chunk in chunks) == b"\1" * 10 + bytes(200_000)


def test_a_line_without_end_is_read_in_pieces_of_damage(tmp_path: Path) -> None:
    begin = time.process_time()
    found, damage, complete = lines(tmp_path, "x" * (9 << 20), "\n", GOOD)
    assert found == [Open(5, 1)]
    assert sum(piece.size for piece in damage) == (9 << 20) + 1
    assert not any(piece.at_end for piece in damage)
    assert complete
    assert time.process_time() - begin < 10


def test_texts_from_a_transcript_can_be_kept_in_a_capture(tmp_path: Path) -> None:
    """Whatever a transcript says, the records it makes can be written."""
    head = json.loads(HEAD) | {f"note{n}": "\ud800x" * 5000 for n in range(100)}
    head["k" * 10_000] = "v"
    action = json.dumps({"kind": "vmm", "t_ns": 5, "conn": 0, "action": "\udfff" * 10_000})
    nested = json.dumps({"kind": "vmm", "t_ns": 5, "conn": 0, "action": [[["x"]] * 5000]})
    text = f"{json.dumps(head)}\n{action}\n{nested}\n"
    with source(tmp_path, text) as opened:
        assert len(opened.header.notes) == 64
        assert len(encode(opened.header)) < 64 * 5000 * 5
        for _, record in opened.records():
            assert len(encode(record)) < 20_000
        assert opened.damage == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\n" + HEAD, "first line is not a transcript's header"),
        ('["upcall-transcript"]\n', "first line is not a transcript's header"),
        ('{"format": "upcall-transcripts"}\n', "first line is not a transcript's header"),
        (HEAD[:40], "first line is not a transcript's header"),
        ("[" * 100_000 + '"upcall-transcript"', "first line is not a transcript's header"),
        (HEAD.replace("1,", "2,"), "is a transcript of version 2; this program knows 1"),
        (HEAD.replace("1,", "1.5,"), "is a transcript of no known version"),
        (HEAD.replace("1,", '"\x7f",'), "is a transcript of no known version"),
        (HEAD.replace("1,", "[" * 900 + "]" * 900 + ","), "transcript"),
        (HEAD.replace('"version": 1,', ""), "is a transcript of no known version"),
    ],
    ids=range(10),
)
def test_what_is_not_a_transcript_of_ours(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UnreadableInput, match=why):
        source(tmp_path, text)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([">", "<", "64", "line", "half", "reset"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.sampled_from("open bytes close closed_by_guest reset_by_guest gave_up vmm header x".split()),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("t_ns", "conn", "zeros", "port"), st.integers(-1, 9) | _JSON),
            **dict.fromkeys(
                ("dir", "hex", "begins", "accepted", "how", "after_s", "action"), _JSON
            ),
        },
    ),
)
def test_any_line_is_a_record_that_can_be_kept_or_damage(
    tmp_path_factory: pytest.TempPathFactory, kind: str, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "line.jsonl"
    path.write_text(HEAD + json.dumps({"kind": kind, **values}) + "\n")
    with open_source(path) as opened:
        found = [record for _, record in opened.records()]
        damage = opened.damage
    assert bool(found) + bool(damage) == (kind != "header" or bool(damage))
    for record in found:
        encode(record)


@pytest.mark.parametrize("space", [b"", b"  ", b"\t"])
def test_a_transcript_is_told_from_its_beginning(tmp_path: Path, space: bytes) -> None:
    path = tmp_path / "named.upcap"
    path.write_bytes(space + HEAD.encode())
    with open_source(path) as opened:
        assert isinstance(opened, TranscriptSource)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\xd4\xc3\xb2\xa1", "packet capture"),
        (b"\x0a\x0d\x0d\x0a", "packet capture"),
        (b"\x89UPCAP\n", "cannot be read as a capture"),
        (b"", "is empty"),
        (b"{}", "neither a capture nor one of the formats pcap, transcript"),
        (b"\x1f\x8b" + bytes(50), "is a damaged archive"),
        (bytes(5000), "neither a capture nor one of the formats"),
    ],
)
def test_what_no_format_recognises_is_unreadable(tmp_path: Path, raw: bytes, why: str) -> None:
    path = tmp_path / "named.upcap"
    path.write_bytes(raw)
    with pytest.raises(UnreadableInput, match=why):
        open_source(path)


@pytest.mark.parametrize("port", [0, 300, (1 << 32) - 1])
def test_another_upcall_port_comes_back(tmp_path: Path, port: int) -> None:
    text, _ = exported(Header("transcript", port=port), [])
    with source(tmp_path, text) as opened:
        assert opened.header == Header("transcript", port=port)


@pytest.mark.parametrize("port", ['"300"', "-1", "4294967296", "1.5", "null", "true"])
def test_an_upcall_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(UnreadableInput, match="port is not a number of 32 bits"):
        source(tmp_path, HEAD.replace('"arch"', f'"port": {port}, "arch"'))
